"""An MXNet model read without MXNet: the symbol's JSON of any age, and the parameters as arrays.

Formats: `src/nnvm/legacy_json_util.cc` (what older symbols call things) and `src/ndarray/ndarray.cc`
(`NDArray::Load`, `LegacyLoad`) of Apache MXNet 1.9.
"""

from __future__ import annotations

import ast
import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?")
MOST_DIMENSIONS = 32
MOST_ELEMENTS = 1 << 40
LARGEST_SYMBOL = 256 << 20
LARGEST_DENSE = 16
"""How many times larger than its file a sparse array may be when it is made dense."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """An operator or (`op` "null") a variable; `inputs` are (node, output) by number."""

    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: tuple[tuple[int, int], ...]

    def value(self, key: str, default: Any) -> Any:
        """Return the attribute `key`, of the type of `default`: number, truth value, text or tuple.

        Raises SourceError, naming the node, where it is none.
        """
        text = self.attrs.get(key)
        if text is None or (text == "None" and not isinstance(default, str)):
            return default
        try:
            if isinstance(default, str):
                return text
            if isinstance(default, bool):
                return text.lower() in ("true", "1")
            found = ast.literal_eval(text.replace("L", ""))
            if default is None:
                return found
            if isinstance(default, tuple):
                return tuple(
                    int(one) for one in (found if isinstance(found, (list, tuple)) else [found])
                )
            return type(default)(found)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise SourceError(
                f"node `{self.name}` ({self.op}): `{key}={text[:80]}` is no value"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """The graph: nodes in an order in which inputs come first, and the outputs asked for."""

    path: Path
    nodes: tuple[Node, ...]
    heads: tuple[tuple[int, int], ...]


def read_symbol(path: Path) -> Symbol:
    """Read `-symbol.json`. Raises SourceError where it is none, or its nodes are in no order."""
    if path.stat().st_size > LARGEST_SYMBOL:
        raise SourceError(f"`{path}` is too large for a symbol")
    try:
        return parse_symbol(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise SourceError(f"`{path}` is no MXNet symbol: {error}") from error


def parse_symbol(text: str, path: Path) -> Symbol:
    """Read the JSON `text` of a symbol; `path` is for messages."""
    try:
        document = json.loads(text)
        nodes = tuple(_node(number, one) for number, one in enumerate(document["nodes"]))
        heads = tuple((int(one[0]), int(one[1])) for one in document["heads"])
        if not heads or any(not 0 <= at < len(nodes) for at, _ in heads):
            raise ValueError("it has no outputs")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"`{path}` is a damaged MXNet symbol: {type(error).__name__}: {error}"[:300],
            hint="copy or download it again",
        ) from error
    return Symbol(path=path, nodes=nodes, heads=heads)


def _node(number: int, value: Mapping[str, Any]) -> Node:
    # `param` until 0.9, `attr` until 1.0, `attrs` since; old files have `param` and `attr` apart
    attrs = {
        str(key): str(item)
        for part in ("param", "attr", "attrs")
        for key, item in (value.get(part) or {}).items()
    }
    inputs = tuple((int(one[0]), int(one[1])) for one in value["inputs"])
    if any(not 0 <= at < number for at, _ in inputs):
        raise ValueError(f"node {number} reads a later one")
    return Node(op=str(value["op"]), name=str(value["name"]), attrs=attrs, inputs=inputs)


def read_parameters(path: Path) -> dict[str, Array]:
    """Return the arrays of a `.params` file by name, without `arg:` and `aux:`, mapped from the file.

    Sparse arrays are made dense. Raises SourceError where the file is damaged.
    """
    try:
        with path.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return _list(data)
    except (struct.error, ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise SourceError(
            f"`{path}` is a damaged MXNet parameter file: {error}"[:300],
            hint="copy or download it again",
        ) from error
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error


def _list(data: memoryview) -> dict[str, Array]:
    magic, _, count = struct.unpack_from("<QQQ", data, 0)
    if magic != LIST_MAGIC:
        raise ValueError("it is no list of arrays")
    if count > len(data):
        raise ValueError(f"{count} arrays in {len(data)} bytes")
    cursor = _Cursor(data, 24)
    arrays = [_array(cursor) for _ in range(count)]
    names = cursor.number("<Q")
    if names not in (0, count):
        raise ValueError(f"{names} names for {count} arrays")
    keys = [bytes(cursor.take(cursor.number("<Q"))).decode("utf-8") for _ in range(names)]
    keys = keys or [str(number) for number in range(count)]
    return {
        (key.partition(":")[2] if key.startswith(("arg:", "aux:")) else key): array
        for key, array in zip(keys, arrays, strict=True)
        if array is not None
    }


class _Cursor:
    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, count: int) -> memoryview:
        if count < 0 or self._at + count > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)}, within an array")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, kind: str) -> int:
        (value,) = struct.unpack(kind, self.take(struct.calcsize(kind)))
        return int(value)

    def shape(self, kind: str, dimensions: int) -> tuple[int, ...]:
        if not 0 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"an array of {dimensions} dimensions")
        sizes = tuple(self.number(kind) for _ in range(dimensions))
        total = 1
        for size in sizes:
            total *= size
            if size < 0 or total > MOST_ELEMENTS:
                raise ValueError(f"an array of shape {sizes}")
        return sizes


def _array(cursor: _Cursor) -> Array | None:
    magic = cursor.number("<I")
    storage, aux = 0, 0
    storage_shape: tuple[int, ...] = ()
    if magic in (V2, V3):
        storage = cursor.number("<i")
        aux = {0: 0, 1: 1, 2: 2}.get(storage, -1)
        if aux < 0:
            raise ValueError(f"an array of unknown storage {storage}")
        if aux:
            storage_shape = cursor.shape("<q", cursor.number("<I"))
        shape = cursor.shape("<q", cursor.number("<I"))
    elif magic == V1:
        shape = cursor.shape("<q", cursor.number("<I"))
    else:
        # the oldest form begins with the number of dimensions
        shape = cursor.shape("<I", magic)
    if not shape and magic != V3:
        return None
    cursor.take(8)  # on which device it was
    dtype = _dtype(cursor.number("<i"))
    if not aux:
        return _dense(cursor, dtype, shape)
    kinds = []
    for _ in range(aux):
        kind = _dtype(cursor.number("<i"))
        kinds.append((kind, cursor.shape("<q", cursor.number("<I"))))
    values = _dense(cursor, dtype, storage_shape)
    indices = [_dense(cursor, kind, sizes) for kind, sizes in kinds]
    return _filled(values, indices, shape, is_rows=aux == 1)


def _dtype(number: int) -> Any:
    import numpy as np

    if not 0 <= number < len(DTYPES):
        raise ValueError(f"an array of unknown dtype {number}")
    return np.dtype(DTYPES[number])


def _dense(cursor: _Cursor, dtype: Any, shape: tuple[int, ...]) -> Array:
    import math

    import numpy as np

    raw = cursor.take(math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _filled(values: Array, indices: list[Array], shape: tuple[int, ...], *, is_rows: bool) -> Array:
    """Return a row-sparse or CSR array as a dense one."""
    import math

    import numpy as np

    stored = values.nbytes + sum(one.nbytes for one in indices)
    if math.prod(shape) * values.itemsize > max(stored * LARGEST_DENSE, 64 << 20):
        raise ValueError(f"a sparse array of shape {shape} with {values.size} values")
    dense = np.zeros(shape, values.dtype)
    if is_rows:
        (rows,) = indices
        if len(rows) and (rows.min() < 0 or rows.max() >= shape[0]):
            raise ValueError("a sparse array with rows outside of its shape")
        dense[rows] = values
        return dense
    starts, columns = indices
    counts = np.diff(starts)
    if len(starts) != shape[0] + 1 or (counts < 0).any() or starts[-1] != len(columns):
        raise ValueError("a sparse array whose rows do not fit its values")
    if len(columns) and (columns.min() < 0 or columns.max() >= shape[1]):
        raise ValueError("a sparse array with columns outside of its shape")
    dense[np.repeat(np.arange(shape[0]), counts), columns] = values
    return dense
