"""The options of custom operators: a FlexBuffer that holds a map of numbers.

https://flatbuffers.dev/internals/ (FlexBuffers): the root comes last; offsets point backwards.
"""

from __future__ import annotations

import struct

INTEGER, UNSIGNED, REAL, MAP, BOOL = 1, 2, 3, 9, 26
INDIRECT = {6: INTEGER, 7: UNSIGNED, 8: REAL}
FORMATS = {2: "<e", 4: "<f", 8: "<d"}
MOST_FIELDS = 256


def numbers(content: bytes) -> dict[str, float]:
    """Return the numbers of a map by name; what is no number is left out.

    Raises ValueError where the bytes are no map of FlexBuffers.
    """
    if len(content) < 3:
        raise ValueError("the options of a custom operator are empty")
    width, kind = content[-1], content[-2]
    if kind >> 2 != MAP or width not in (1, 2, 4, 8):
        raise ValueError("the options of a custom operator are no map")
    at = len(content) - 2 - width
    start = at - _unsigned(content, at, width)
    size_width = 1 << (kind & 3)
    size = _unsigned(content, start - size_width, size_width)
    if size > MOST_FIELDS:
        raise ValueError(f"{size} options of a custom operator")
    keys_at = start - 3 * size_width
    keys = keys_at - _unsigned(content, keys_at, size_width)
    key_width = _unsigned(content, start - 2 * size_width, size_width)
    found: dict[str, float] = {}
    for number in range(size):
        place = keys + number * key_width
        begin = place - _unsigned(content, place, key_width)
        end = content.find(b"\0", max(begin, 0))
        if begin < 0 or end < 0:
            raise ValueError("an option of a custom operator has no name")
        packed = _byte(content, start + size * size_width + number)
        value = _number(content, start + number * size_width, size_width, packed)
        if value is not None:
            found[content[begin:end].decode("utf-8", "replace")] = value
    return found


def _byte(content: bytes, at: int) -> int:
    return _unsigned(content, at, 1)


def _unsigned(content: bytes, at: int, width: int) -> int:
    if width not in (1, 2, 4, 8) or at < 0 or at + width > len(content):
        raise ValueError("the options of a custom operator point outside")
    return int.from_bytes(content[at : at + width], "little")


def _number(content: bytes, at: int, width: int, packed: int) -> float | None:
    kind = packed >> 2
    if kind in INDIRECT:
        kind, at, width = INDIRECT[kind], at - _unsigned(content, at, width), 1 << (packed & 3)
    raw = _unsigned(content, at, width)
    if kind == INTEGER:
        return raw - (1 << 8 * width) if raw >> (8 * width - 1) else raw
    if kind in (UNSIGNED, BOOL):
        return raw
    if kind == REAL and width in FORMATS:
        (value,) = struct.unpack_from(FORMATS[width], content, at)
        return float(value)
    return None
