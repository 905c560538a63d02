"""Model files opened for looking at: memory-mapped, so that only what is looked at is read."""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from deploykit.errors import SourceError

LARGEST_DOCUMENT = 256 << 20
"""Bytes of JSON, code or pickle that are read as a whole; what is larger is no model's graph."""


@dataclass(frozen=True)
class Content:
    """A file and its bytes, which stay on disk until they are looked at."""

    path: Path
    view: memoryview

    @property
    def size(self) -> int:
        return len(self.view)

    def starts_with(self, *magic: bytes) -> bool:
        return any(self.view[: len(one)] == one for one in magic)

    def document(self) -> bytes:
        """Return the whole file. Raises SourceError where it is larger than any graph."""
        if self.size > LARGEST_DOCUMENT:
            raise SourceError(
                f"`{self.path}` is too large to inspect: {self.size} bytes of text or pickle"
            )
        return bytes(self.view)


def open_content(path: Path) -> Content:
    """Map the file `path`. Raises SourceError where it is empty, unreadable or no regular file."""
    try:
        # without O_NONBLOCK, opening a named pipe would wait for its writer for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"`{path}` is neither a file nor a folder, but a device or a pipe")
        if status.st_size == 0:
            raise SourceError(f"`{path}` is empty", hint="copy or download it again")
        # never closed by hand: it lives as long as a view of it does
        return Content(path, memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the size of the file `path` in bytes. Raises SourceError where it cannot be had."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error


def damaged(path: Path, kind: str, reason: object) -> SourceError:
    """Return the error for a file that is of `kind` ("ONNX model") but not whole."""
    return SourceError(
        f"`{path}` is a damaged or truncated {kind}: {shown(str(reason))}",
        hint="copy or download it again, and compare its size with the original's",
    )


def shown(text: str, limit: int = 120) -> str:
    """Return `text` from a file fit for a terminal: no control characters, not too long."""
    clean = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
