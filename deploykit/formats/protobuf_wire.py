"""Protocol buffers on the wire, field by field, without a schema and without copying.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from deploykit.formats.reading import MOST_DIMENSIONS, FormatError


class CutError(FormatError):
    """The message ends within a number."""


Value = int | memoryview
"""A number (varint, fixed32 or fixed64, unsigned) or the bytes of a string or message."""

MOST_FIELDS = 4_000_000
"""In one message: more are no model's, and would take minutes to walk."""

DEEPEST = 64
"""Messages within messages of one kind (graphs in attributes, functions in functions)."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the varint at `at`, at most 64 bits, and the place after it."""
    value = shift = 0
    end = len(data)
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
        if shift > 63:
            raise FormatError(f"a number at byte {at} is longer than 64 bits")
    raise CutError(f"it ends within a number, at byte {at}")


def fields(message: memoryview, *, cut: bool = False) -> Iterator[tuple[int, Value]]:
    """Yield number and value of each field of `message`, in the file's order.

    With `cut`, a value that reaches beyond the end is clipped and is the last: enough to recognise
    a truncated file by its beginning. Raises FormatError where the bytes are no message.
    """
    at = 0
    end = len(message)
    count = 0
    while at < end:
        key = message[at]
        at += 1
        if key >= 0x80:
            key, at = varint(message, at - 1)
        kind = key & 7
        count += 1
        if key < 8 or key >= 1 << 32 or count > MOST_FIELDS:
            raise FormatError(f"no field of a message at byte {at}")
        if kind == 2:
            size = message[at] if at < end else 0x80
            at += 1
            if size >= 0x80:
                size, at = varint(message, at - 1)
            stop = at + size
            if stop > end:
                if cut:
                    yield key >> 3, message[at:]
                    return
                raise FormatError(
                    f"a field of {size} bytes begins where {end - at} are left, at byte {at}"
                )
            yield key >> 3, message[at:stop]
            at = stop
        elif kind == 0:
            value, at = varint(message, at)
            yield key >> 3, value
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            if at + width > end:
                raise CutError(f"it ends within a number, at byte {at}")
            yield key >> 3, int.from_bytes(message[at : at + width], "little")
            at += width
        else:
            raise FormatError(f"wire type {kind} at byte {at} is not in use")


def message(value: Value) -> memoryview:
    """Return a field that must be a string or message."""
    if isinstance(value, int):
        raise FormatError("a number stands where a message belongs")
    return value


def number(value: Value) -> int:
    """Return a field that must be an int64 or int32."""
    if not isinstance(value, int):
        raise FormatError("a message stands where a number belongs")
    return value - (1 << 64) if value >> 63 else value


def text(value: Value) -> str:
    """Return a field that must be a string; bytes that are not UTF-8 are replaced."""
    return str(message(value), "utf-8", "replace")


def numbers(value: Value) -> list[int]:
    """Return the numbers of one occurrence of a repeated int64 field, packed or not."""
    if isinstance(value, int):
        return [number(value)]
    if len(value) > 10 * MOST_DIMENSIONS:
        raise FormatError(f"a shape of {len(value)} bytes")
    found = []
    at = 0
    while at < len(value):
        one, at = varint(value, at)
        found.append(number(one))
    return found


def first(whole: memoryview, wanted: int) -> Value | None:
    """Return the first field of that number, or None."""
    return next((value for found, value in fields(whole) if found == wanted), None)


def pair(entry: Value) -> tuple[str, Value]:
    """Return key and value of one entry of a map with string keys."""
    key, content = "", memoryview(b"")
    found: Value = content
    for field, value in fields(message(entry)):
        if field == 1:
            key = text(value)
        elif field == 2:
            found = value
    return key, found


def beginning(whole: memoryview, count: int = 48) -> list[tuple[int, Value]] | None:
    """Return the first fields of what may be a (truncated) message, None where it is none."""
    found: list[tuple[int, Value]] = []
    try:
        for one in fields(whole, cut=True):
            found.append(one)
            if len(found) == count:
                break
    except CutError:
        # up to there it was a message
        return found
    except FormatError:
        return None
    return found


def is_name(value: Value) -> bool:
    """Whether a field can be the name of something: short printable text."""
    if isinstance(value, int) or not 0 < len(value) <= 1024:
        return False
    try:
        return str(value, "utf-8").isprintable()
    except UnicodeDecodeError:
        return False
