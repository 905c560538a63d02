"""Snappy's raw format, unpacked: LevelDB packs the blocks of its tables with it.

https://github.com/google/snappy/blob/main/format_description.txt
"""

from __future__ import annotations

from deploykit.formats.protobuf_wire import varint
from deploykit.formats.reading import FormatError

LARGEST = 64 << 20
"""Bytes of an unpacked block; LevelDB's own are of a few kilobytes."""


def unpack(data: memoryview) -> bytes:
    """Return the unpacked bytes. Raises FormatError where they are not what the header says."""
    size, at = varint(data, 0)
    if size > LARGEST:
        raise FormatError(f"a packed block of {size} bytes")
    out = bytearray()
    while at < len(data) and len(out) <= size:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            length = tag >> 2
            if length >= 60:
                width = length - 59
                length = int.from_bytes(data[at : at + width], "little")
                at += width
            length += 1
            if at + length > len(data):
                raise FormatError("a packed block is cut short")
            out += data[at : at + length]
            at += length
            continue
        if kind == 1:
            length = 4 + (tag >> 2 & 7)
            width, high = 1, tag >> 5 << 8
        else:
            length = 1 + (tag >> 2)
            width, high = (2, 0) if kind == 2 else (4, 0)
        offset = high | int.from_bytes(data[at : at + width], "little")
        at += width
        if not 0 < offset <= len(out):
            raise FormatError("a packed block refers to what is not there")
        start = len(out) - offset
        if offset >= length:
            out += out[start : start + length]
        else:
            # what is copied overlaps what it makes: a run
            out += (out[start:] * (length // offset + 1))[:length]
    if len(out) != size:
        raise FormatError("a packed block has not the size that it says")
    return bytes(out)
