"""numpy's arrays in pickles: read without running, whatever Python wrote them, and nothing else."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import SourceError
from deploykit.formats import inspect, numpy_pickle
from deploykit.formats.numpy_pickle import StoredArray, arrays, structure
from deploykit.formats.pickle_scan import Pickle, scan
from deploykit.formats.reading import FormatError, RunsCodeError

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "theano"
VALUES = [np.arange(6, dtype="float32").reshape(2, 3), np.ones(4, "int64"), np.float32(2.5)]
BY_HAND = b"""cnumpy.core.multiarray
_reconstruct
(cnumpy
ndarray
(I0
tS'b'
tR(I1
(I6
tcnumpy
dtype
(S'f4'
I0
I1
tRI00
S''
tb."""


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps([VALUES[0], Evil()]))
    for format in (None, "theano/parameters"):
        with pytest.raises(SourceError, match="mkdir"):
            inspect(path, format=format)
    assert not (tmp_path / "ran").exists()


def structured(found: Pickle, path: Path) -> Any:
    numpy_pickle.refuse_code(path, found.globals)
    return structure(found.value)


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy.core.multiarray\n_reconstruct\n.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        BY_HAND.replace(b"I6", b"I-6"),
        BY_HAND.replace(b"f4", b"V9999999"),
    ],
    ids=["no array", "eval", "negative size", "no number"],
)
def test_what_is_no_array_is_an_error(data: bytes, tmp_path: Path) -> None:
    assert len(arrays(structure(scan(BY_HAND).value))) == 1
    found = scan(data)
    with pytest.raises((FormatError, RunsCodeError)):
        structured(found, tmp_path)


def test_a_list_that_holds_itself_ends() -> None:
    circular: list[Any] = [VALUES[0]]
    circular.append(circular)
    with pytest.raises(FormatError, match="itself"):
        structure(scan(pickle.dumps(circular)).value)
    bomb: list[Any] = [VALUES[0]]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(FormatError, match="without end"):
        arrays(structure(scan(pickle.dumps(bomb)).value))


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_gives_the_same_arrays(protocol: int) -> None:
    data = {"weights": VALUES, "more": OrderedDict(a=VALUES[0].T.copy(order="F"))}
    found = structure(scan(pickle.dumps(data, protocol)).value)
    stored = [*found["weights"], found["more"]["a"]]
    for one, value in zip(stored, [*VALUES, VALUES[0].T], strict=True):
        assert isinstance(one, StoredArray)
        assert isinstance(one.data, bytes)
        made = np.frombuffer(one.data, one.dtype).reshape(
            one.shape, order="F" if one.fortran else "C"
        )
        np.testing.assert_array_equal(made, value)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_python_2_wrote_it(protocol: int) -> None:
    path = FIXTURES / f"python2_{protocol}.pkl"
    found = inspect(path)
    assert (found.format, found.framework, found.parameters) == (
        "theano/parameters",
        "Theano",
        1935 if protocol < 2 else 1939,
    )
    described = structure(scan(path.read_bytes()).value)
    stored = arrays(described["param values"] if protocol == 2 else described)
    with np.load(FIXTURES / "lasagne.npz") as written:
        assert len(stored) == len(written.files)
        for number, one in enumerate(stored):
            assert isinstance(one.data, bytes)
            value = np.frombuffer(one.data, one.dtype).reshape(one.shape)
            np.testing.assert_array_equal(value, written[f"arr_{number}"])


def test_pytorch_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"text": "no arrays at all"}))
    with pytest.raises(SourceError, match="without any tensor"):
        inspect(path)


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_a_damaged_pickle_is_an_error(extra: bytes, at: int, flip: int) -> None:
    data = bytearray(pickle.dumps(VALUES, 2))
    data[at % len(data)] ^= flip
    for damaged in (bytes(data), bytes(data[: at % len(data)]) + extra):
        try:
            found = scan(damaged)
            numpy_pickle.refuse_code(Path("model.pkl"), found.globals)
            stored = arrays(structure(found.value))
        except (FormatError, RunsCodeError):
            continue
        assert all(isinstance(one.data, bytes) for one in stored)


def test_texts_of_protocol_0_keep_their_bytes() -> None:
    every = bytes(range(256))
    stream = io.BytesIO(b"S" + repr(every)[1:].encode() + b"\n.")
    assert scan(stream.getvalue()).value == every.decode("latin-1")
    for broken in (b"Sabc\n.", b"S'abc\n.", b"S'abc'", b"S'\n."):
        with pytest.raises(FormatError):
            scan(broken)
