"""FlatBuffers without a schema: tables, vectors and strings, every offset checked.

https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from deploykit.formats.reading import FormatError


class Buffer:
    """The bytes of a FlatBuffer.

    Offsets may point many times to the same place, so that a small file can describe a huge one:
    no more is read out of it than four times its size.
    """

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._left = 4 * len(view)

    def root(self) -> Table:
        """Return the root table."""
        return Table(self, self.unsigned(0, 4))

    def unsigned(self, at: int, width: int) -> int:
        """Return the little-endian number at `at`. Raises FormatError where it is out of bounds."""
        if at < 0 or at + width > len(self.view):
            raise FormatError(f"an offset points to byte {at} of {len(self.view)}")
        return int.from_bytes(self.view[at : at + width], "little")

    def signed(self, at: int, width: int) -> int:
        """Return the little-endian signed number at `at`."""
        value = self.unsigned(at, width)
        return value - (1 << 8 * width) if value >> (8 * width - 1) else value

    def spend(self, size: int) -> None:
        """Count `size` bytes as read. Raises FormatError where that is more than can be."""
        self._left -= size
        if self._left < 0:
            raise FormatError("its parts overlap")


@dataclass(frozen=True)
class Table:
    """The table at byte `at`; fields are numbered from 0 as in the schema."""

    buffer: Buffer
    at: int

    def _field(self, index: int) -> int | None:
        vtable = self.at - self.buffer.signed(self.at, 4)
        if 4 + 2 * index >= self.buffer.unsigned(vtable, 2):
            return None
        offset = self.buffer.unsigned(vtable + 4 + 2 * index, 2)
        return self.at + offset if offset else None

    def number(self, index: int, width: int, default: int = 0) -> int:
        """Return a signed number of `width` bytes."""
        at = self._field(index)
        return default if at is None else self.buffer.signed(at, width)

    def vector(self, index: int, width: int) -> tuple[int, int]:
        """Return place and length of a vector of items of `width` bytes; (0, 0) where absent."""
        at = self._field(index)
        if at is None:
            return 0, 0
        start = at + self.buffer.unsigned(at, 4)
        length = self.buffer.unsigned(start, 4)
        if start + 4 + length * width > len(self.buffer.view):
            raise FormatError(f"a vector of {length} items at byte {start} reaches beyond the end")
        return start + 4, length

    def table(self, index: int) -> Table | None:
        """Return a table; None where absent."""
        at = self._field(index)
        return None if at is None else Table(self.buffer, at + self.buffer.unsigned(at, 4))

    def tables(self, index: int) -> list[Table]:
        """Return the tables of a vector of tables."""
        start, length = self.vector(index, 4)
        self.buffer.spend(4 * length)
        return [
            Table(self.buffer, at + self.buffer.unsigned(at, 4))
            for at in range(start, start + 4 * length, 4)
        ]

    def numbers(self, index: int) -> list[int]:
        """Return a vector of int32."""
        start, length = self.vector(index, 4)
        self.buffer.spend(4 * length)
        return list(struct.unpack_from(f"<{length}i", self.buffer.view, start)) if length else []

    def text(self, index: int) -> str:
        """Return a string; empty where absent."""
        start, length = self.vector(index, 1)
        self.buffer.spend(length)
        return str(self.buffer.view[start : start + length], "utf-8", "replace")
