from __future__ import annotations

import struct

import pytest

from deploykit.formats.flatbuffer import Buffer
from deploykit.formats.reading import FormatError


def overlapping(count: int, length: int) -> bytes:
    """A table whose vector has `count` tables, all of them one, with a text of `length` bytes."""
    # root at 8: vtable at 4 bytes before it
    parts = bytearray(struct.pack("<I", 12))
    parts += struct.pack("<HHHH", 6, 8, 4, 0)  # vtable of 6 bytes at 4; padding
    parts += struct.pack("<iI", 8, 4)  # root at 12: vtable 8 back; field 0 -> vector at 20
    start = len(parts)
    inner = start + 4 + 4 * count + 8
    parts += struct.pack("<I", count)
    for index in range(count):
        at = start + 4 + 4 * index
        parts += struct.pack("<I", inner - at)
    parts += struct.pack("<HHHH", 6, 8, 4, 0)  # the inner table's vtable, 8 back
    parts += struct.pack("<iI", 8, 4)
    parts += struct.pack("<I", length) + b"a" * length
    return bytes(parts)


def texts(data: bytes) -> list[str]:
    return [table.text(0) for table in Buffer(memoryview(data)).root().tables(0)]


def test_reads_tables_and_texts() -> None:
    assert texts(overlapping(2, 5)) == ["aaaaa", "aaaaa"]
    root = Buffer(memoryview(overlapping(2, 5))).root()
    assert root.text(1) == ""
    assert root.number(7, 4, default=3) == 3


def test_a_small_file_cannot_describe_a_huge_one() -> None:
    with pytest.raises(FormatError, match="overlap"):
        texts(overlapping(10_000, 40_000))


@pytest.mark.parametrize("end", [0, 3, 4, 11, 13, 19, 22, 30, 40])
def test_offsets_beyond_the_end_are_errors(end: int) -> None:
    with pytest.raises(FormatError):
        texts(overlapping(2, 5)[:end])
