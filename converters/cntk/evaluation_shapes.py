"""CNTK's operators that move values about, by definition, in CNTK's order of axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.graph import FREE, Axis, Node

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Datum:
    """A value: `array` has batch and step axes always, of size 1 where the value has none.

    `places` are the steps that a Where found in each sequence.
    """

    array: Array
    batch: bool = False
    sequence: str = ""
    places: tuple[tuple[int, ...], ...] = ()

    @property
    def rank(self) -> int:
        return self.array.ndim - 2


Compute = Callable[[Node, list[Datum]], Any]


def column(x: Array) -> Array:
    """Return each sample as one vector, in the order of CNTK's memory."""
    turned = x.transpose(0, 1, *range(x.ndim - 1, 1, -1))
    return turned.reshape(*x.shape[:2], -1)


def axes_of(node: Node) -> list[Axis]:
    given = node.attributes.get("axisVec") or node.attributes.get("axis") or ()
    return list(given) if isinstance(given, tuple) else [given]


def _splice(node: Node, ins: list[Datum]) -> Array:
    import numpy as np

    axis = axes_of(node)[0].index or 0
    rank = max([one.rank for one in ins] + [axis + 1])
    arrays = [one.array.reshape(*one.array.shape, *[1] * (rank - one.rank)) for one in ins]
    at = 2 + axis % rank
    sizes = np.max([[1 if d == at else n for d, n in enumerate(a.shape)] for a in arrays], axis=0)
    wide = [
        np.broadcast_to(a, [a.shape[at] if d == at else n for d, n in enumerate(sizes)])
        for a in arrays
    ]
    return np.concatenate(wide, axis=at)


def _slice(node: Node, ins: list[Datum]) -> Datum:
    x = ins[0].array

    def several(key: str) -> list[int]:
        given = node.attributes.get(f"{key}Vec") or node.attributes.get(key, 1)
        return list(given) if isinstance(given, tuple) else [given]

    bounds = zip(axes_of(node), several("beginIndex"), several("endIndex"), strict=True)
    strides = several("sliceStrides") if _has_strides(node) else [1] * len(axes_of(node))
    for (axis, begin, end), stride in zip(bounds, strides, strict=True):
        at = 2 + (axis.index or 0) % ins[0].rank
        size = x.shape[at]
        begin = begin if begin >= 0 else begin + size
        end = end if end > 0 else end + size
        x = x.take(range(begin, end, stride), axis=at)
    return replace(ins[0], array=x)


def _has_strides(node: Node) -> bool:
    return "sliceStridesVec" in node.attributes or "sliceStrides" in node.attributes


def _reshape(node: Node, ins: list[Datum]) -> Datum:
    x = ins[0].array
    shape, rank = x.shape[2:], ins[0].rank

    def edge(key: str, default: int) -> int:
        axis = node.attributes.get(key)
        if not isinstance(axis, Axis):
            return default
        if axis.index is None or abs(axis.index) > rank:
            return rank
        index: int = axis.index
        return index % rank if index < 0 else index

    begin, end = edge("beginAxis", 0), edge("endAxis", rank)
    new = [-1 if size in (-1, FREE) else size for size in node.attributes["newShape"]]
    target = [*shape[:begin], *new, *shape[end:]]
    flat = column(x)
    turned = flat.reshape(*x.shape[:2], *target[::-1])
    return replace(ins[0], array=turned.transpose(0, 1, *range(turned.ndim - 1, 1, -1)))


def _transpose(node: Node, ins: list[Datum]) -> Datum:
    x = ins[0].array
    if "axisVec" in node.attributes:
        order = [(axis.index or 0) % ins[0].rank for axis in axes_of(node)]
        return replace(ins[0], array=x.transpose(0, 1, *(2 + at for at in order)))
    one, two = (node.attributes[key].index for key in ("axis1", "axis2"))
    rank = max(ins[0].rank, one + 1, two + 1)
    x = x.reshape(*x.shape, *[1] * (rank - ins[0].rank))
    return replace(ins[0], array=x.swapaxes(2 + one % rank, 2 + two % rank))


def _one_hot(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    at = 2 + (node.attributes["onehotAxis"].index or 0) % (ins[0].rank + 1)
    hot = ins[0].array.astype(np.int64)[..., None] == np.arange(node.attributes["numClass"])
    return replace(ins[0], array=np.moveaxis(hot.astype(np.float64), -1, at))


def _gather(_node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    index, table = ins
    rows = np.moveaxis(table.array[0, 0], -1, 0)[index.array.astype(np.int64)]
    # [batch, step, *index shape, *row]: the row comes first in CNTK's order
    order = [0, 1, *range(index.array.ndim, rows.ndim), *range(2, index.array.ndim)]
    return replace(index, array=rows.transpose(order))


def _top_k(node: Node, ins: list[Datum]) -> list[Datum]:
    import numpy as np

    x, count = ins[0].array, int(node.attributes["numItems"])
    order = np.argsort(-x, axis=2, kind="stable").take(range(count), axis=2)
    values = np.take_along_axis(x, order, axis=2)
    return [replace(ins[0], array=values), replace(ins[0], array=order.astype(np.float64))]


def _pad(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    a = node.attributes
    edges = [(0, 0), (0, 0), *zip(a["paddingHead"], a["paddingFoot"], strict=True)]
    if a.get("paddingMode", 0) == 1:
        return replace(ins[0], array=np.pad(ins[0].array, edges, mode="reflect"))
    value = float(a.get("paddingConstantValue", 0.0))
    return replace(ins[0], array=np.pad(ins[0].array, edges, constant_values=value))


def _crop(node: Node, ins: list[Datum]) -> Datum:
    (x, y), (w, h) = node.attributes["offset"], ins[1].array.shape[2:4]
    return replace(ins[0], array=ins[0].array[:, :, x : x + w, y : y + h])


def _squeeze(node: Node, ins: list[Datum]) -> Datum:
    given = [2 + (axis.index or 0) % ins[0].rank for axis in axes_of(node)]
    places = given or [at for at, n in enumerate(ins[0].array.shape) if at > 1 and n == 1]
    return replace(ins[0], array=ins[0].array.squeeze(tuple(places)))


COMPUTE: dict[str, Compute] = {
    "Splice": _splice,
    "Slice": _slice,
    "Reshape": _reshape,
    "TransposeAxes": _transpose,
    "OneHot": _one_hot,
    "Gather": _gather,
    "TopK": _top_k,
    "Pad": _pad,
    "Crop": _crop,
    "Squeeze": _squeeze,
}
