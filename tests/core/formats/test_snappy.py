from __future__ import annotations

import pytest

from deploykit.formats.reading import FormatError
from deploykit.formats.snappy import unpack


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (b"\x00", b""),
        (b"\x03\x08abc", b"abc"),
        # a literal of 61 bytes has its length in a byte of its own
        (b"\x3d\xf0\x3c" + b"x" * 61, b"x" * 61),
        # "ab", then a copy of 6 from 2 back, which overlaps itself
        (b"\x08\x04ab\x09\x02", b"abababab"),
        (b"\x06\x04ab\x0e\x02\x00", b"ababab"),
        (b"\x06\x04ab\x0f\x02\x00\x00\x00", b"ababab"),
    ],
)
def test_unpacks(packed: bytes, plain: bytes) -> None:
    assert unpack(memoryview(packed)) == plain


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x05\x08abc",
        b"\x03\x10abc",
        b"\x08\x04ab\x09\x03",
        b"\x08\x04ab\x09\x00",
        b"\xff\xff\xff\xff\x7f\x00a",
        b"\x02\x08abc",
    ],
)
def test_damaged_blocks_are_errors(packed: bytes) -> None:
    with pytest.raises(FormatError):
        unpack(memoryview(packed))
