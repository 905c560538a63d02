"""Sparse tensors of TensorFlow Lite as dense ones.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
(SparsityParameters): the dimensions in the order of `traversal`, blocks after the whole tensor's,
each either dense or a compressed list (segments and indices, as in CSR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit.formats.flatbuffer import Table
from deploykit.formats.reading import FormatError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MOST_ELEMENTS = 1 << 26
WIDTHS = {1: 4, 2: 2, 3: 1}


def dense(name: str, values: Array, shape: Sequence[int], table: Table) -> Array:
    """Return the dense tensor. Raises FormatError where the parts do not fit together."""
    import numpy as np

    order, blocks = table.numbers(0), table.numbers(1)
    dimensions = table.tables(2)
    rank = len(shape)
    if (
        sorted(order) != list(range(rank + len(blocks)))
        or len(dimensions) != len(order)
        or any(not 0 <= axis < rank for axis in blocks)
        or math.prod(shape) > MOST_ELEMENTS
    ):
        raise FormatError(f"the sparse tensor `{name}` has an odd order")
    # one row for each element that exists so far: its number at that level, and its place
    at = np.zeros(1, np.int64)
    places = np.zeros((1, len(order)), np.int64)
    sizes = [0] * len(order)
    for axis, dimension in zip(order, dimensions, strict=True):
        if dimension.number(0, 1) == 0:
            size = dimension.number(1, 4)
            if size < 0 or len(at) * size > MOST_ELEMENTS:
                raise FormatError(f"the sparse tensor `{name}` has a size of {size}")
            sizes[axis] = size
            inner = np.tile(np.arange(size), len(at))
            parents = np.repeat(np.arange(len(at)), size)
            at = at[parents] * size + inner
        else:
            segments = _integers(dimension, 2)
            indices = _integers(dimension, 4)
            if (at + 1 >= len(segments)).any():
                raise FormatError(f"the sparse tensor `{name}` has too few segments")
            counts = segments[at + 1] - segments[at]
            if (counts < 0).any() or counts.sum() > len(indices):
                raise FormatError(f"the sparse tensor `{name}` has odd segments")
            parents = np.repeat(np.arange(len(at)), counts)
            starts = np.repeat(segments[at] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
            at = starts + np.arange(len(parents))
            inner = indices[at]
        places = places[parents]
        places[:, axis] = inner
    if len(at) and (at.min() < 0 or at.max() >= len(values)):
        raise FormatError(f"the sparse tensor `{name}` has too few values")
    index = [places[:, axis] for axis in range(rank)]
    for number, axis in enumerate(blocks):
        index[axis] = index[axis] * sizes[rank + number] + places[:, rank + number]
    if any(len(i) and (i.min() < 0 or i.max() >= n) for i, n in zip(index, shape, strict=True)):
        raise FormatError(f"the sparse tensor `{name}` has elements outside its shape")
    result = np.zeros(shape, values.dtype)
    result[tuple(index)] = values[at]
    return result


def _integers(dimension: Table, field: int) -> Array:
    import numpy as np

    width = WIDTHS.get(dimension.number(field, 1))
    table = dimension.table(field + 1)
    if width is None or table is None:
        raise FormatError("a sparse dimension lacks its indices")
    start, count = table.vector(0, width)
    table.buffer.spend(count * width)
    kind = {4: "<i4", 2: "<u2", 1: "u1"}[width]
    view = table.buffer.view[start : start + count * width]
    return np.frombuffer(view, kind).astype(np.int64)
