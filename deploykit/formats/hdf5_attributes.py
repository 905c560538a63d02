"""Text attributes of HDF5 files, found by their names, without parsing the rest.

https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html (attribute message, global heap)
"""

from __future__ import annotations

import mmap

from deploykit.formats.content import LARGEST_DOCUMENT, Content, damaged

MAGIC = b"\x89HDF\r\n\x1a\n"
VARIABLE_LENGTH, FIXED_STRING = 9, 3
MOST_TRIES = 64
MOST_OBJECTS = 100_000


def check_end(content: Content) -> None:
    """Raise SourceError where the file ends before the end that its superblock declares."""
    view = content.view
    version = view[8] if content.size > 48 else 255
    # superblock versions 0 and 1 carry more before the addresses than 2 and 3
    at = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    if at is None:
        raise damaged(content.path, "HDF5 file", "its first block is not whole")
    end = int.from_bytes(view[at : at + 8], "little")
    if end > content.size:
        raise damaged(content.path, "HDF5 file", f"{content.size} bytes of {end} are there")


def find(content: Content, text: bytes, start: int = 0) -> int:
    """Return where `text` is in the file from `start` on, -1 where it is not."""
    mapped = content.view.obj
    return mapped.find(text, start) if isinstance(mapped, mmap.mmap) else -1


def text_attribute(content: Content, name: str) -> str | None:
    """Return the attribute `name` of whichever object has it first; None where it has no text."""
    at = -1
    for _ in range(MOST_TRIES):
        at = find(content, name.encode() + b"\0", at + 1)
        if at < 0:
            return None
        if (data := _value(content.view, at, len(name) + 1)) is not None:
            return data.decode("utf-8", "replace")
    return None


def _number(view: memoryview, at: int, width: int) -> int:
    return int.from_bytes(view[at : at + width], "little")


def _value(view: memoryview, at: int, length: int) -> bytes | None:
    """Return the text of the attribute message whose name is at byte `at`."""
    start = next(
        (
            at - size
            for size, version in ((8, 1), (9, 3))
            if _is_header(view, at, size, version, length)
        ),
        None,
    )
    if start is None:
        return None
    # in version 1 each part is padded to eight bytes
    step = 8 if view[start] == 1 else 1
    sizes = [_number(view, start + 4, 2), _number(view, start + 6, 2)]
    kind = at + -(-length // step) * step
    data = kind + sum(-(-size // step) * step for size in sizes)
    element = _number(view, kind + 4, 4)
    if view[kind] & 15 == FIXED_STRING and data + element <= len(view):
        return bytes(view[data : data + element]).split(b"\0", 1)[0]
    if view[kind] & 15 == VARIABLE_LENGTH:
        size, heap, index = (
            _number(view, data + skip, width) for skip, width in ((0, 4), (4, 8), (12, 4))
        )
        return _heap_object(view, heap, index, size)
    return None


def _is_header(view: memoryview, at: int, size: int, version: int, length: int) -> bool:
    start = at - size
    return (
        start >= 0
        and at + length + 24 < len(view)
        and view[start] == version
        and _number(view, start + 2, 2) == length
    )


def _heap_object(view: memoryview, heap: int, index: int, size: int) -> bytes | None:
    """Return `size` bytes of object number `index` of the global heap collection at `heap`."""
    if bytes(view[heap : heap + 4]) != b"GCOL" or size > LARGEST_DOCUMENT:
        return None
    at = heap + 16
    for _ in range(MOST_OBJECTS):
        number, length = _number(view, at, 2), _number(view, at + 8, 8)
        if number == 0 or at + 16 + length > len(view):
            return None
        if number == index:
            return bytes(view[at + 16 : at + 16 + min(size, length)])
        at += 16 + -(-length // 8) * 8
    return None
