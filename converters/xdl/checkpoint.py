"""A checkpoint of XDL's parameter servers: `checkpoints`, `VERSION/__meta__`, `VERSION/NAME^PART`.

Format: `ps-plus/server/checkpoint_utils.cc` and `ps-plus/message/variable_info.h` of
x-deeplearning 1.x. All numbers are little-endian; a text is its length in 8 bytes, then itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl.tables import Table, table_of

from deploykit.errors import SourceError
from deploykit.formats.content import Content, open_content, shown

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

DTYPES = ("i1", "<i2", "<i4", "<i8", "<f4", "<f8")
INDEX, HASH128, HASH64 = 0, 1, 2
MOST_DIMENSIONS = 32
MOST_PARTS = 1 << 16
MOST_VARIABLES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Variable:
    """What `__meta__` says of a variable: its kind, number of parts and whole shape."""

    name: str
    kind: int
    parts: int
    shape: tuple[int, ...]

    @property
    def is_hash(self) -> bool:
        return self.kind in (HASH128, HASH64)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The newest version of a checkpoint: its folder, and its variables by name."""

    folder: Path
    variables: Mapping[str, Variable]

    def path(self, name: str, part: int) -> Path:
        """Return the file of one part. Raises SourceError for a name that leaves the folder."""
        file = f"{name.replace('/', '$')}^{part}"
        if "\\" in file or "\0" in file or len(file.encode()) > 255:
            raise SourceError(f"the checkpoint has a variable `{shown(name)}`, which is no name")
        return self.folder / file

    def has(self, name: str) -> bool:
        """Whether the files of the variable `name` are there."""
        found = self.variables.get(name)
        return found is not None and found.parts > 0 and self.path(name, 0).is_file()

    def dense(self, name: str) -> Array:
        """Return the variable `name`, its parts one after another.

        Raises SourceError where a part is missing or damaged, or where it is a hash table.
        """
        import numpy as np

        parts = [_part(self.path(name, at)) for at in range(self._known(name).parts)]
        if any(part.keys is not None for part in parts):
            raise SourceError(f"the variable `{shown(name)}` is a hash table, not an array")
        if len(parts) == 1:
            return parts[0].data
        return np.concatenate([part.data for part in parts], axis=0)

    def table(self, name: str) -> Table:
        """Return the embedding table `name`. Raises SourceError as `dense` does."""
        import numpy as np

        variable = self._known(name)
        parts = [_part(self.path(name, at)) for at in range(variable.parts)]
        if all(part.keys is None for part in parts):
            whole = np.concatenate([part.data for part in parts], axis=0)
            return table_of(name, np.arange(len(whole), dtype=np.int64), whole)
        keys = [part.keys for part in parts if part.keys is not None]
        if len(keys) != len(parts) or len({one.ndim for one in keys}) != 1:
            raise SourceError(f"the parts of `{shown(name)}` are of different kinds")
        rows = [part.data[part.rows] for part in parts if part.rows is not None]
        return table_of(name, np.concatenate(keys), np.concatenate(rows))

    def _known(self, name: str) -> Variable:
        if name not in self.variables:
            raise SourceError(
                f"the checkpoint `{self.folder}` has no variable `{shown(name)}`",
                hint=f"it has {', '.join(map(shown, sorted(self.variables)[:20]))}",
            )
        return self.variables[name]


def read(folder: Path) -> Checkpoint:
    """Read the list of variables of the newest version in `folder`. Raises SourceError."""
    listing = folder / "checkpoints"
    try:
        cursor = _Cursor(open_content(listing))
        versions = [cursor.text() for _ in range(cursor.count(8, MOST_VARIABLES))]
        if not versions:
            raise ValueError("it lists no version")
        version = versions[-1]
        if Path(version).name != version or version in ("", ".", ".."):
            raise ValueError(f"the version `{shown(version)}` is no name of a folder")
    except (ValueError, struct.error) as error:
        raise _damaged(listing, error) from error
    meta = folder / version / "__meta__"
    try:
        variables = _meta(open_content(meta))
    except (ValueError, struct.error) as error:
        raise _damaged(meta, error) from error
    return Checkpoint(folder=folder / version, variables=variables)


def _damaged(path: Path, error: object) -> SourceError:
    return SourceError(
        f"`{path}` is a damaged file of an XDL checkpoint: {error}"[:400],
        hint="copy or download the checkpoint again",
    )


def _meta(content: Content) -> dict[str, Variable]:
    outer = _Cursor(content)
    outer.number("<Q")  # the number of servers
    outer.number("<Q")  # the type's hash
    length = outer.count(1)
    cursor = _Cursor(Content(content.path, outer.take(length)))
    found: dict[str, Variable] = {}
    for _ in range(cursor.count(8, MOST_VARIABLES)):
        kind = cursor.number("<i")
        name = cursor.text()
        parts = [cursor.take(16) for _ in range(cursor.count(16, MOST_PARTS))]
        shape = tuple(cursor.number("<q") for _ in range(cursor.count(8, MOST_DIMENSIONS)))
        cursor.number("<i")
        args = {}
        for _ in range(cursor.count(16)):
            key = cursor.text()
            args[key] = cursor.text()
        if args.get("save") == "false":
            continue
        found[name] = Variable(name=name, kind=kind, parts=len(parts), shape=shape)
    return found


@dataclass(frozen=True)
class _Part:
    """One file: the data, and of a hash table the keys ([n] or [n, 2]) with the row of each."""

    data: Array
    keys: Array | None = None
    rows: Array | None = None


def _part(path: Path) -> _Part:
    import numpy as np

    try:
        cursor = _Cursor(open_content(path))
        slicer = cursor.number("<i")
        if slicer == INDEX:
            cursor.number("<Q")  # where the part begins in the whole
            return _Part(cursor.tensor())
        if slicer not in (HASH128, HASH64):
            raise ValueError(f"a slicer of the unknown kind {slicer}")
        cursor.number("<q")
        width = 3 if slicer == HASH128 else 2
        count = cursor.count(8 * width)
        items = np.frombuffer(cursor.take(8 * width * count), "<i8").reshape(count, width)
        data = cursor.tensor()
        rows = items[:, -1]
        if data.ndim < 1 or (count and not 0 <= rows.min() <= rows.max() < len(data)):
            raise ValueError("a key points to a row that is not there")
        keys = items[:, :2] if slicer == HASH128 else items[:, 0]
        return _Part(data, keys, rows)
    except (ValueError, struct.error) as error:
        raise _damaged(path, error) from error


class _Cursor:
    def __init__(self, content: Content) -> None:
        self._view = content.view
        self._at = 0

    def take(self, size: int) -> memoryview:
        if size < 0 or self._at + size > len(self._view):
            raise ValueError(f"it ends at byte {len(self._view)}, within a value")
        self._at += size
        return self._view[self._at - size : self._at]

    def number(self, kind: str) -> int:
        (value,) = struct.unpack(kind, self.take(struct.calcsize(kind)))
        return int(value)

    def count(self, least: int, most: int | None = None) -> int:
        """Return a number of things of `least` bytes each, which must fit into what is left."""
        value = self.number("<Q")
        if value * least > len(self._view) - self._at or (most is not None and value > most):
            raise ValueError(f"{value} things where {len(self._view) - self._at} bytes are left")
        return value

    def text(self) -> str:
        return bytes(self.take(self.count(1))).decode("utf-8")

    def tensor(self) -> Array:
        import numpy as np

        dtype = self.number("<i")
        if not 0 <= dtype < len(DTYPES):
            raise ValueError(f"a tensor of the unknown dtype {dtype}")
        shape = tuple(self.number("<Q") for _ in range(self.count(8, MOST_DIMENSIONS)))
        self.number("<Q")  # the initializer's hash
        self.take(self.count(1))  # and its settings
        width = np.dtype(DTYPES[dtype]).itemsize
        size = math.prod(shape)
        if size * width > len(self._view):
            raise ValueError(f"a tensor of shape {shape}")
        return np.frombuffer(self.take(size * width), DTYPES[dtype]).reshape(shape)
