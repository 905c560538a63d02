"""Files of parameters for Theano's networks, as data: damaged and hostile ones are errors."""

from __future__ import annotations

import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploykit._plugins.converters.theano_graph import parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import DeploykitError, SourceError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "theano"
VALUES = [np.arange(6, dtype="float32").reshape(2, 3), np.arange(4.0)]


def packed(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def plain(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def load(data: bytes, folder: Path, *, trust: bool = False) -> Any:
    path = folder / "file"
    path.write_bytes(data)
    return parameters.load(path, trust=trust)


FILES = {
    "npz": packed(arr_0=VALUES[0], arr_1=VALUES[1]),
    "npy": plain(VALUES[0]),
    "objects": plain(np.array([None, 1.5, "x"], dtype=object)),
    "pickle": pickle.dumps(VALUES, 2),
    "python 2": (FIXTURES / "python2_2.pkl").read_bytes(),
}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps({"a": VALUES[0], "b": "text"}), "not all arrays"),
        (pickle.dumps([VALUES[0], "text"]), "holds a str"),
        (pickle.dumps([VALUES[0], True]), "holds a bool"),
        (pickle.dumps([]), "no arrays"),
        (pickle.dumps(np.array([1 + 2j])), "dtype c16"),
        (pickle.dumps(VALUES)[:-20], "damaged"),
        (b"nothing of the kind", "damaged"),
        (b"", "is empty"),
    ],
)
def test_what_holds_no_parameters_is_an_error(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=words):
        load(data, tmp_path)


def test_an_archive_of_other_things_is_an_error(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(SourceError, match="notes"):
        load(stream.getvalue(), tmp_path)


def test_an_archive_that_unpacks_without_measure_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(100 << 20))
    assert len(stream.getvalue()) < 1 << 20
    with pytest.raises(SourceError, match="unpacks to"):
        load(stream.getvalue(), tmp_path)


def test_arrays_in_order_and_by_name(tmp_path: Path) -> None:
    many = {f"arr_{at}": np.full(2, at, "float32") for at in range(12)}
    assert [int(one[0]) for one in load(packed(**many), tmp_path)] == list(range(12))
    assert list(load(packed(W=VALUES[0], b=VALUES[1]), tmp_path)) == ["W", "b"]
    nested = {"Params": [(VALUES[0], VALUES[1]), [np.float32(3)]], "epoch": 7}
    for found in (load(pickle.dumps(nested), tmp_path), load(pickle.dumps(nested, 0), tmp_path)):
        assert [one.shape for one in found] == [(2, 3), (4,), ()]
        np.testing.assert_array_equal(found[0], VALUES[0])
    for value in (VALUES[0].T, VALUES[0][:, ::-1], VALUES[0].astype(">f8")):
        for data in (pickle.dumps([value]), plain(value), packed(arr_0=value)):
            np.testing.assert_array_equal(load(data, tmp_path)[0], value)
    trusted = load(pickle.dumps(VALUES), tmp_path, trust=True)
    np.testing.assert_array_equal(trusted[1], VALUES[1])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_is_an_error_or_arrays(kind: str, draw: st.DataObject) -> None:
    data = bytearray(FILES[kind])
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data) - 1))
        data[at] = draw.draw(st.integers(0, 255))
    end = draw.draw(st.integers(1, len(data)))
    with tempfile.TemporaryDirectory() as folder:
        for damaged in (bytes(data), bytes(data[:end])):
            try:
                found = load(damaged, Path(folder))
            except DeploykitError:
                continue
            held = found.values() if isinstance(found, dict) else found
            assert all(isinstance(one, np.ndarray) for one in held)
