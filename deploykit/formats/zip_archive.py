"""Zip archives: their members by name, read only so far as they are small enough to be a graph."""

from __future__ import annotations

import zipfile
import zlib
from types import TracebackType

from deploykit.errors import SourceError
from deploykit.formats.content import LARGEST_DOCUMENT, Content, damaged, shown

MAGIC = b"PK\x03\x04"
BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    KeyError,
    IndexError,
    OverflowError,
)
"""What zipfile raises on archives that are damaged, encrypted, or packed in a way it lacks."""


class Archive:
    """An open zip archive; `names` are its members without a folder common to all."""

    def __init__(self, content: Content) -> None:
        self.path = content.path
        try:
            self._zip = zipfile.ZipFile(content.path)
        except BROKEN as error:
            raise damaged(content.path, "zip archive", error) from error
        members = [name for name in self._zip.namelist() if not name.endswith("/")]
        folders = {name.split("/", 1)[0] for name in members if "/" in name}
        nested = len(folders) == 1 and all("/" in name for name in members)
        self.prefix = f"{folders.pop()}/" if nested else ""
        self.names = tuple(name[len(self.prefix) :] for name in members)

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def under(self, folder: str, suffix: str = "") -> list[str]:
        """Return the members below `folder` whose names end in `suffix`."""
        return [name for name in self.names if name.startswith(folder) and name.endswith(suffix)]

    def read(self, name: str) -> bytes:
        """Return one member. Raises SourceError where it is damaged or unreasonably large."""
        try:
            with self._zip.open(self.prefix + name) as stream:
                data = stream.read(LARGEST_DOCUMENT + 1)
        except BROKEN as error:
            raise damaged(self.path, "zip archive", f"member `{name}`: {error}") from error
        if len(data) > LARGEST_DOCUMENT:
            raise SourceError(f"`{shown(name)}` in `{self.path}` is too large to inspect")
        return data


def recognises(content: Content) -> bool:
    """Whether the file begins as a zip archive does."""
    return content.starts_with(MAGIC)
