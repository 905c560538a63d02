"""CNTK v2's `Dictionary` read without CNTK: named values of a dozen types in a protocol buffer.

Format: `Source/CNTKv2LibraryDll/proto/CNTK.proto` of CNTK 2.7. A file that would pass 2 GB begins
with a magic number and the length of the message, and the arrays follow it one after another
(`Serialization.cpp`).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.graph import ALL_AXES, ALL_STATIC, SEQUENCE, Axis

from deploykit.errors import UnsupportedError
from deploykit.formats.content import damaged, open_content
from deploykit.formats.protobuf_wire import DEEPEST, fields, message, number, numbers, pair, text
from deploykit.formats.reading import MOST_DIMENSIONS, FormatError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAGIC = struct.pack("<I", 0x636E746B)

# dtype, and the field that holds the values; CNTK 2.7 writes float16 as float32
DTYPES = {1: ("float32", 4), 2: ("float64", 5), 4: ("float16", 4), 5: ("int8", 6), 6: ("int16", 7)}

NAMED_AXES = {2**31 - 2: ALL_STATIC, 2**31 - 5: ALL_AXES}
DYNAMIC = 2**31 - 1
UNKNOWN = 2**31 - 3
DYNAMIC_AXES = {
    "defaultBatchAxis": "batch",
    "defaultDynamicAxis": SEQUENCE,
    "staticAxis_2147483646": ALL_STATIC,
    "staticAxis_2147483643": ALL_AXES,
}


def read(path: Path) -> dict[str, Any]:
    """Return the file as plain values; arrays are views of the file, row-major.

    Raises SourceError where it is damaged, UnsupportedError where it holds sparse arrays.
    """
    content = open_content(path)
    try:
        if not content.starts_with(MAGIC):
            return _Reader(None).dictionary(content.view, 0)
        length = int.from_bytes(content.view[4:8], "little")
        if length + 8 > content.size:
            raise FormatError(f"a description of {length} bytes in {content.size} bytes")
        return _Reader(content.view[8 + length :]).dictionary(content.view[8 : 8 + length], 0)
    except (ValueError, OverflowError, struct.error, RecursionError) as error:
        raise damaged(path, "CNTK v2 model", error) from error


class _Reader:
    """Arrays without values take theirs from `tail`, one after another in the file's order."""

    def __init__(self, tail: memoryview | None) -> None:
        self.tail = tail

    def dictionary(self, view: memoryview, depth: int) -> dict[str, Any]:
        if depth > DEEPEST:
            raise FormatError(f"dictionaries within dictionaries, more than {DEEPEST}")
        found = {}
        for key, value in fields(view):
            if key == 2:
                name, content = pair(value)
                found[name] = self.value(message(content), depth + 1)
        return found

    def value(self, view: memoryview, depth: int) -> Any:
        if depth > DEEPEST:
            raise FormatError(f"values within values, more than {DEEPEST}")
        kind, content = 0, None
        for key, item in fields(view):
            if key == 2:
                kind = number(item)
            elif key > 2:
                content = (key, item)
        if kind == 0:
            return None
        if content is None:  # proto3 may leave out what is zero or empty
            plain: dict[int, Any] = {1: False, 2: 0, 3: 0, 4: 0.0, 5: 0.0, 6: "", 7: (), 9: ()}
            if kind not in plain:
                raise FormatError(f"a value of type {kind} is empty")
            return plain[kind]
        key, item = content
        if key != kind + 2:
            raise FormatError(f"a value of type {kind} stands in field {key}")
        if kind == 1:
            return bool(number(item))
        if kind == 2:
            return _signed(number(item), 32)
        if kind == 3:
            return number(item)
        if kind == 4:
            return struct.unpack("<f", struct.pack("<I", number(item)))[0]
        if kind == 5:
            return struct.unpack("<d", struct.pack("<q", number(item)))[0]
        if kind == 6:
            return text(item)
        if kind == 7:
            return _shape(message(item))
        if kind == 8:
            return _axis(message(item))
        if kind == 9:
            return tuple(
                self.value(message(one), depth + 1) for no, one in fields(message(item)) if no == 1
            )
        if kind == 10:
            return self.dictionary(message(item), depth)
        if kind == 11:
            return self.array(message(item))
        raise FormatError(f"a value of the unknown type {kind}")

    def array(self, view: memoryview) -> Array:
        import numpy as np

        kind = storage = 0
        shape: tuple[int, ...] = ()
        parts: dict[int, memoryview] = {}
        for key, item in fields(view):
            if key == 1:
                kind = number(item)
            elif key == 2:
                storage = number(item)
            elif key == 3:
                shape = _shape(message(item))
            else:
                parts[key] = message(item)
        if kind not in DTYPES:
            raise FormatError(f"an array of the unknown type {kind}")
        if storage:
            raise UnsupportedError(
                "the model holds a sparse array, which CNTK itself does not write",
                operators=("NDArrayView(sparse)",),
                hint="make the parameter dense and save the model again",
            )
        dtype, place = DTYPES[kind]
        if any(size < 0 for size in shape):
            raise FormatError(f"an array of shape {shape}")
        size = math.prod(shape)
        if place not in parts and size:
            return self.next(dtype, size).reshape(shape[::-1])
        if place not in parts:
            return np.zeros(shape[::-1], dtype)
        flat = _values(parts[place], kind).astype(dtype, copy=False)
        if flat.size != size:
            raise FormatError(f"an array of {flat.size} values has the shape {shape}")
        return flat.reshape(shape[::-1])

    def next(self, dtype: str, size: int) -> Array:
        """Return the next `size` values behind the message."""
        import numpy as np

        if self.tail is None:
            raise FormatError(f"an array of {size} values has none")
        if dtype not in ("float32", "float64"):
            raise FormatError(f"an array of {dtype} lies behind the message")
        length = size * np.dtype(dtype).itemsize
        if length > len(self.tail):
            raise FormatError(f"an array of {length} bytes begins where {len(self.tail)} are left")
        values = np.frombuffer(self.tail[:length], np.dtype(dtype).newbyteorder("<"))
        self.tail = self.tail[length:]
        return values


def _values(view: memoryview, kind: int) -> Array:
    import numpy as np

    dtype = np.dtype("float32" if kind == 4 else DTYPES[kind][0]).newbyteorder("<")
    chunks: list[Array] = []
    singles: list[int] = []
    for key, item in fields(view):
        if key != 1:
            continue
        if isinstance(item, int):  # one value apart: proto3 allows it
            singles.append(item)
        elif kind == 6:
            singles += _zigzag(item)
        else:
            chunks.append(np.frombuffer(item, dtype))
    if singles:
        if kind == 6:
            chunks.append(np.array([(one >> 1) ^ -(one & 1) for one in singles], np.int64))
        else:
            raw = np.array(singles, "<u8" if kind == 2 else "<u4")
            chunks.append(raw.view(dtype))
    if not chunks:
        return np.zeros(0, dtype)
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _zigzag(view: memoryview) -> list[int]:
    from deploykit.formats.protobuf_wire import varint

    found, at = [], 0
    while at < len(view):
        one, at = varint(view, at)
        found.append(one)
    return found


def _shape(view: memoryview) -> tuple[int, ...]:
    sizes: list[int] = []
    for key, item in fields(view):
        if key == 1:
            sizes += numbers(item)
    if len(sizes) > MOST_DIMENSIONS:
        raise FormatError(f"a shape of {len(sizes)} axes")
    return tuple(sizes)


def _axis(view: memoryview) -> Axis:
    index, name = 0, ""
    for key, item in fields(view):
        if key == 1:
            index = _signed(number(item), 32)
        elif key == 2:
            name = text(item)
    if index in NAMED_AXES:
        return Axis(name=NAMED_AXES[index])
    if index == DYNAMIC:
        return Axis(name=DYNAMIC_AXES.get(name, name))
    return Axis(index=index)


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
