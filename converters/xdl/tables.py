"""Embedding tables: which row belongs to which id, and the text files that the export writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.formats.content import open_content, shown

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MOST_COLUMNS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows [n, width] of the ids `keys`, in ascending order: [n] int64, or [n, 2] for 128 bits."""

    name: str
    keys: Array
    rows: Array

    @property
    def width(self) -> int:
        return int(self.rows.shape[1])

    @property
    def is_pair(self) -> bool:
        """Whether an id is two numbers."""
        return bool(self.keys.ndim == 2)


def table_of(name: str, keys: Array, rows: Array) -> Table:
    """Return a table of `rows`, put in the order of `keys`.

    Raises SourceError where an id comes twice, or a row is no vector of finite numbers.
    """
    import numpy as np

    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise SourceError(f"`{shown(name)}` is no table of vectors: {rows.dtype}{list(rows.shape)}")
    order = np.lexsort((keys[:, 1], keys[:, 0])) if keys.ndim == 2 else np.argsort(keys)
    if not np.array_equal(order, np.arange(len(order))):
        keys, rows = keys[order], rows[order]
    same = keys[1:] == keys[:-1]
    if (same.all(axis=1) if keys.ndim == 2 else same).any():
        raise SourceError(f"the table `{shown(name)}` has an id twice")
    if not np.isfinite(rows).all():
        # sums run over all rows of a batch, so that one such row would spoil the others
        raise SourceError(f"the table `{shown(name)}` holds values that are no finite numbers")
    return Table(name=name, keys=keys, rows=np.asarray(rows, np.float32))


def read_text(path: Path, name: str, width: int) -> Table:
    """Read `ID,v0,v1…` or `ID1,ID2,v0,v1…` a line; `width`, the length of a vector, says which.

    Raises SourceError, naming the line, where the file is damaged.
    """
    import numpy as np

    content = open_content(path)
    data = bytes(content.view)
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    columns = data.partition(b"\n")[0].count(b",") + 1
    heads = columns - width
    if heads not in (1, 2) or not 2 <= columns <= MOST_COLUMNS:
        raise SourceError(
            f"`{path}` is no embedding table: its first line has {columns} values, "
            f"not an id and {width}",
            hint="copy or export it again",
        )
    try:
        # a line has at least a digit and a comma for each value, so that this never outgrows the file
        if lines * (2 * columns - 1) > len(data) + 1:
            raise ValueError("its lines have different numbers of values")
        keys = np.empty((lines, heads), np.int64)
        rows = np.empty((lines, columns - heads), np.float32)
        for at, line in enumerate(data.splitlines()):
            words = line.split(b",")
            if len(words) != columns:
                raise ValueError(f"line {at + 1} has {len(words)} values, not {columns}")
            keys[at] = [_id(word) for word in words[:heads]]
            rows[at] = [float(word) for word in words[heads:]]
    except (ValueError, OverflowError, IndexError) as error:
        raise SourceError(
            f"`{path}` is a damaged embedding table: {error}"[:300], hint="copy or export it again"
        ) from error
    return table_of(name, keys if heads == 2 else keys[:, 0], rows)


def _id(word: bytes) -> int:
    value = int(word)
    # a hash may be written without a sign
    return value - (1 << 64) if 1 << 63 <= value < 1 << 64 else value
