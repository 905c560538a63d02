"""safetensors: names, dtypes, shapes and places; every lie in a header is found."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import SourceError
from deploykit.formats import inspect
from deploykit.formats.content import Content
from deploykit.formats.reading import FormatError
from deploykit.formats.safetensors_file import DTYPES, tensors

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "a.bias": {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30]},
    "empty": {"dtype": "I64", "shape": [0, 4], "data_offsets": [30, 30]},
}


def packed(header: Any, body: bytes = bytes(30)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def content(data: bytes) -> Content:
    return Content(path=Path("file.safetensors"), view=memoryview(data))


def changed(**entry: Any) -> dict[str, Any]:
    return {**GOOD, "a.weight": {**GOOD["a.weight"], **entry}}


def test_what_it_holds(tmp_path: Path) -> None:
    data = packed(GOOD)
    found = tensors(content(data))
    start = len(data) - 30
    weight, bias = found["a.weight"], found["a.bias"]
    assert (weight.dtype, weight.shape, weight.begin) == ("float32", (2, 3), start)
    assert (bias.dtype, bias.shape, bias.end) == ("bfloat16", (3,), len(data))
    assert found["empty"].shape == (0, 4)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    reading = inspect(path)
    assert (reading.format, reading.parameters) == ("pytorch/state_dict", 9)
    assert reading.details["container"] == "safetensors"
    assert "--set module=" in reading.details["graph"]
    assert reading.converter == "pytorch"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([1], "no JSON object"),
        ({"a": 3}, "`a` is no tensor"),
        (changed(dtype="F128"), "unknown dtype F128"),
        (changed(shape=[2, -3]), "no shape or no place"),
        (changed(shape=[2, True]), "no shape or no place"),
        (changed(shape=[2, 4]), "does not fit its shape"),
        (changed(data_offsets=[0, 24, 30]), "no shape or no place"),
        (changed(data_offsets=[24, 0]), "does not fit"),
        (changed(data_offsets=[7, 31]), "does not fit"),
        (changed(data_offsets=[1, 25]), "overlap"),
        (changed(shape=[1] * 65, data_offsets=[0, 4]), "65 axes"),
        (changed(shape=[2**62, 2**62]), "does not fit"),
    ],
)
def test_a_header_that_lies(header: Any, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        tensors(content(packed(header)))


@pytest.mark.parametrize("length", [0, 1, 31, 1 << 24, 1 << 63])
def test_a_length_that_lies(length: int) -> None:
    data = struct.pack("<Q", length) + packed(GOOD)[8:]
    with pytest.raises(FormatError):
        tensors(content(data))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(packed(GOOD)[:-1])
    with pytest.raises(SourceError, match="damaged or truncated safetensors"):
        inspect(path)
    path.write_bytes(packed({"__metadata__": {}}))
    with pytest.raises(SourceError, match="without any tensor"):
        inspect(path)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=4)),
        max_size=6,
    )
)
def test_what_was_written_is_read(wanted: dict[str, tuple[str, list[int]]]) -> None:
    header, at = {}, 0
    for name, (dtype, shape) in wanted.items():
        size = DTYPES[dtype][1]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    found = tensors(content(packed(header, bytes(at))))
    assert {name: (one.dtype, list(one.shape)) for name, one in found.items()} == {
        name: (DTYPES[dtype][0], shape) for name, (dtype, shape) in wanted.items()
    }


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damage_is_found_or_harmless(data: st.DataObject) -> None:
    damaged = bytearray(packed(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        found = tensors(content(bytes(cut)))
    except FormatError:
        return
    assert all(8 <= one.begin <= one.end <= len(cut) for one in found.values())
