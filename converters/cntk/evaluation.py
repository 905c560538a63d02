"""A CNTK network computed operator by operator by definition, in numpy and float64.

Written from CNTK's sources, apart from the mapping to ONNX, and in CNTK's own order of axes: an
array is [batch, step, *shape], the axis that changes fastest first among those of `shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.evaluation_windows import convolution, pooling
from deploykit._plugins.converters.cntk.graph import ALL_STATIC, FREE, Axis, Graph, Leaf, Node
from deploykit._plugins.converters.cntk.ordering import Loop, steps

from deploykit import definitions as define

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


def evaluate(
    graph: Graph, feed: Mapping[str, Array], wanted: Sequence[str], *, alone: bool
) -> dict[str, Array]:
    """Return the values `wanted`, by uid, of a network fed with `feed`, in the layout of the ONNX model.

    That is [batch, sequence, *static axes slowest first], without a batch axis for sequences
    where one is computed `alone`.
    """
    data = {uid: _leaf(leaf, feed.get(uid), alone) for uid, leaf in graph.leaves.items() if leaf.values is not None or uid in feed}
    for step in steps(graph, wanted):
        if isinstance(step, Loop):
            _loop(step, data)
        else:
            _run(step, data)
    return {uid: _shown(data[uid], alone) for uid in wanted}


def _leaf(leaf: Leaf, fed: Array | None, alone: bool) -> Datum:
    import numpy as np

    array = np.asarray(leaf.values if leaf.values is not None else fed, np.float64)
    if not leaf.batch or (alone and leaf.sequence):
        array = array[None]
    if not leaf.sequence:
        array = array[:, None]
    array = array.transpose(0, 1, *range(array.ndim - 1, 1, -1))
    return Datum(array, leaf.batch, leaf.sequence)


def _shown(one: Datum, alone: bool) -> Array:
    array = one.array.transpose(0, 1, *range(one.array.ndim - 1, 1, -1))
    if not one.sequence:
        array = array[:, 0]
    if not one.batch or (alone and one.sequence):
        array = array[0]
    return array


def _run(node: Node, data: dict[str, Datum]) -> None:
    import numpy as np

    ins = [data[uid] for uid in node.inputs]
    found = COMPUTE[node.op](node, ins)
    for uid, made in zip(node.outputs, found if isinstance(found, list) else [found], strict=False):
        if isinstance(made, Datum):
            data[uid] = made
        else:
            sequence = next((one.sequence for one in ins if one.sequence), "")
            data[uid] = Datum(np.asarray(made), any(one.batch for one in ins), sequence)


def _loop(loop: Loop, data: dict[str, Datum]) -> None:
    import numpy as np

    outer = {uid: data[uid] for uid in loop.inputs()}
    sequence = next(one.sequence for one in outer.values() if one.sequence)
    length = next(one.array.shape[1] for one in outer.values() if one.sequence)
    batch = max(one.array.shape[0] for one in outer.values())
    made: dict[str, list[Any]] = {uid: [None] * length for uid in loop.outputs}
    for t in range(length)[:: -1 if loop.reverse else 1]:
        now = {
            uid: replace(one, array=one.array[:, t : t + 1], sequence="") if one.sequence else one
            for uid, one in outer.items()
        }
        for node in loop.delays:
            offset = int(node.attributes.get("offset", 1))
            source = t + offset if loop.reverse else t - offset
            if 0 <= source < length:
                now[node.outputs[0]] = made[node.inputs[0]][source]
            else:
                first = data[node.inputs[1]].array
                shape = node.shape if node.shape is not None else first.shape[2:]
                first = first.reshape(*first.shape, *[1] * (len(shape) + 2 - first.ndim))
                now[node.outputs[0]] = Datum(np.broadcast_to(first, (batch, 1, *shape)), True)
        for node in loop.body:
            _run(node, now)
        for uid in loop.outputs:
            made[uid][t] = now[uid]
    for uid, parts in made.items():
        arrays = np.broadcast_arrays(*(one.array for one in parts))
        data[uid] = Datum(np.concatenate(arrays, axis=1), True, sequence)


def _level(ins: Sequence[Datum]) -> list[Array]:
    """Return arrays that broadcast as CNTK does it: shapes begin at the same axis."""
    rank = max(one.rank for one in ins)
    return [one.array.reshape(*one.array.shape, *[1] * (rank - one.rank)) for one in ins]


def _unary(function: Callable[[Array], Any]) -> Compute:
    return lambda _node, ins: replace(ins[0], array=function(ins[0].array))


def _nary(function: Callable[..., Any]) -> Compute:
    def compute(_node: Node, ins: list[Datum]) -> Any:
        import numpy as np

        return np.asarray(function(*_level(ins)), np.float64)

    return compute


def _numpy(name: str) -> Callable[..., Any]:
    def call(*arrays: Array) -> Any:
        import numpy as np

        with np.errstate(all="ignore"):
            return getattr(np, name)(*arrays)

    return call


def _log(x: Array) -> Any:
    import numpy as np

    return np.where(x < 1e-37, -85.1, np.log(np.maximum(x, 1e-37)))


def _sqrt(x: Array) -> Any:
    import numpy as np

    return np.sqrt(np.where(x > 0, x, 0))


def _reciprocal(x: Array) -> Any:
    import numpy as np

    return np.divide(1.0, x, out=np.zeros_like(x), where=x != 0)


def _power(base: Array, exponent: Array) -> Any:
    import numpy as np

    base, exponent = np.broadcast_arrays(base, exponent)
    with np.errstate(all="ignore"):
        found = np.power(base, exponent)
    found = np.where(base == 0, 0.0, found)
    return np.where(exponent == 0, 1.0, found)


def _elu(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    x = ins[0].array
    alpha = float(node.attributes.get("alpha", 1.0))
    return replace(ins[0], array=np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _clip(x: Array, low: Array, high: Array) -> Any:
    import numpy as np

    return np.where(x < low, low, np.where(x > high, high, x))


def _over_sample(function: Callable[[Array], Array]) -> Compute:
    """Apply `function` to each sample as one vector."""

    def compute(_node: Node, ins: list[Datum]) -> Datum:
        x = ins[0].array
        flat = x.reshape(*x.shape[:2], -1)
        return replace(ins[0], array=function(flat).reshape(x.shape))

    return compute


def _hardmax(x: Array) -> Array:
    import numpy as np

    found = np.zeros_like(x)
    np.put_along_axis(found, x.argmax(axis=-1)[..., None], 1.0, axis=-1)
    return found


def _log_softmax(x: Array) -> Array:
    import numpy as np

    top = x.max(axis=-1, keepdims=True)
    return np.asarray(x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True)))


def _times(node: Node, ins: list[Datum]) -> Array:
    import numpy as np

    left, right = ins[0].array, ins[1].array
    if node.op == "TransposeTimes":
        if left.ndim == 3:
            left = left[..., None]
        left = left.swapaxes(2, 3)
    out = int(node.attributes.get("outputRank", 1))
    summed = left.ndim - 2 - out
    if summed == 1 and left.shape[-1] != right.shape[2]:
        right = right.reshape(*right.shape[:2], -1, order="F") if right.ndim == 3 else _column(right)
    batch, length = (max(a, b) for a, b in zip(left.shape[:2], right.shape[:2], strict=True))
    left = np.broadcast_to(left, (batch, length, *left.shape[2:]))
    right = np.broadcast_to(right, (batch, length, *right.shape[2:]))
    rows = left.shape[2 : 2 + out]
    maps = right.shape[2 + summed :]
    a = left.reshape(batch, length, int(np.prod(rows)), -1)
    b = right.reshape(batch, length, a.shape[-1], -1)
    return (a @ b).reshape(batch, length, *rows, *maps)


def _column(x: Array) -> Array:
    """Return each sample as one vector, in the order of CNTK's memory."""
    turned = x.transpose(0, 1, *range(x.ndim - 1, 1, -1))
    return turned.reshape(*x.shape[:2], -1)


def _reduce(node: Node, ins: list[Datum]) -> Any:
    import numpy as np

    one = ins[0]
    axes = _axes(node)
    keep = bool(node.attributes.get("reductionKeepDimensions", True))
    kind = node.attributes["reductionOpName"]
    named = [axis for axis in axes if axis.index is None]
    if named and named[0].name == ALL_STATIC:
        flat = _column(one.array)
        found = _reduced(kind, flat, (2,))
        return found.reshape(*found.shape[:2], *[1] * (one.rank if keep else 0))
    if named:
        return Datum(_reduced(kind, one.array, (1,)), one.batch)
    places = tuple(2 + (axis.index or 0) % one.rank for axis in axes)
    found = _reduced(kind, one.array, places)
    return found if keep else np.squeeze(found, places)


def _reduced(kind: str, x: Array, axes: tuple[int, ...]) -> Array:
    import numpy as np

    if kind in ("Argmax", "Argmin"):
        find = np.argmax if kind == "Argmax" else np.argmin
        return np.asarray(find(x, axis=axes[0], keepdims=True), np.float64)
    if kind == "LogSum":
        top = x.max(axis=axes, keepdims=True)
        return np.asarray(top + np.log(np.exp(x - top).sum(axis=axes, keepdims=True)))
    name = {"Sum": "sum", "Mean": "mean", "Max": "max", "Min": "min", "Prod": "prod"}[kind]
    return np.asarray(getattr(x, name)(axis=axes, keepdims=True))


def _axes(node: Node) -> list[Axis]:
    given = node.attributes.get("axisVec") or node.attributes.get("axis") or ()
    return list(given) if isinstance(given, tuple) else [given]


def _batch_normalization(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    x = ins[0].array
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    shape = [1, 1, *[1] * (x.ndim - 3), -1] if node.attributes.get("spatial") else [1, 1, *x.shape[2:]]
    scale, shift, mean, variance = (
        _column(one.array).reshape(-1) if node.attributes.get("spatial") else one.array.reshape(-1)
        for one in ins[1:5]
    )
    if not node.attributes.get("spatial"):
        # stored as one column, or in the shape of the data
        flat = _column(x)
        normal = (flat - _plain(ins[3])) / np.sqrt(_plain(ins[4]) + epsilon)
        return replace(ins[0], array=_uncolumn(normal * _plain(ins[1]) + _plain(ins[2]), x.shape))
    normal = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    return replace(ins[0], array=normal * scale.reshape(shape) + shift.reshape(shape))


def _plain(one: Datum) -> Array:
    return _column(one.array).reshape(-1)


def _uncolumn(x: Array, shape: tuple[int, ...]) -> Array:
    turned = x.reshape(*x.shape[:2], *shape[:1:-1])
    return turned.transpose(0, 1, *range(turned.ndim - 1, 1, -1))


def _splice(node: Node, ins: list[Datum]) -> Array:
    import numpy as np

    axis = _axes(node)[0].index or 0
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

    bounds = zip(
        _axes(node), several("beginIndex"), several("endIndex"), strict=True
    )
    strides = several("sliceStrides") if _has_strides(node) else [1] * len(_axes(node))
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
        return axis.index % rank if axis.index < 0 else axis.index

    begin, end = edge("beginAxis", 0), edge("endAxis", rank)
    new = [-1 if size in (-1, FREE) else size for size in node.attributes["newShape"]]
    target = [*shape[:begin], *new, *shape[end:]]
    flat = _column(x)
    turned = flat.reshape(*x.shape[:2], *target[::-1])
    return replace(ins[0], array=turned.transpose(0, 1, *range(turned.ndim - 1, 1, -1)))


def _transpose(node: Node, ins: list[Datum]) -> Datum:
    x = ins[0].array
    if "axisVec" in node.attributes:
        order = [(axis.index or 0) % ins[0].rank for axis in _axes(node)]
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
    given = [2 + (axis.index or 0) % ins[0].rank for axis in _axes(node)]
    places = given or [at for at, n in enumerate(ins[0].array.shape) if at > 1 and n == 1]
    return replace(ins[0], array=ins[0].array.squeeze(tuple(places)))


def _cosine(_node: Node, ins: list[Datum]) -> Array:
    import numpy as np

    a, b = (_column(one.array) for one in ins)
    lengths = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.asarray((a * b).sum(-1) / np.maximum(lengths, 1e-20))


def _delay(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    data, initial = _level(ins)
    offset, length = int(node.attributes.get("offset", 1)), data.shape[1]
    shape = np.broadcast_shapes(data.shape, initial.shape)
    data = np.broadcast_to(data, shape)
    found = np.array(np.broadcast_to(initial, shape), np.float64)
    kept = max(length - offset, 0)
    if node.op == "PastValue":
        found[:, length - kept :] = data[:, :kept]
    else:
        found[:, :kept] = data[:, length - kept :]
    return replace(ins[0], array=found)


def _reconcile(_node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    data, like = ins
    batch, length = (
        max(a, b) for a, b in zip(data.array.shape[:2], like.array.shape[:2], strict=True)
    )
    wide = np.broadcast_to(data.array, (batch, length, *data.array.shape[2:]))
    return Datum(wide, like.batch, like.sequence)


def _where(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    mask = ins[0].array.reshape(*ins[0].array.shape[:2]) != 0
    axes = node.attributes.get("newDynamicAxes")
    if axes:
        sequence = next((axis.name for axis in axes if axis.name != "batch"), "")
    else:
        single = node.attributes.get("newSequenceAxisLengthScalingFactor") == 0
        sequence = "" if single else f"{ins[0].sequence}_where"
    places = tuple(tuple(int(at) for at in np.flatnonzero(row)) for row in mask)
    return Datum(ins[0].array, ins[0].batch, sequence, places)


def _gather_packed(_node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    data, places = ins
    rows = places.places * (len(data.array) if len(places.places) == 1 else 1)
    kept = [row[:1] or (0,) for row in rows] if not places.sequence else list(rows)
    parts = [one[list(row)] for one, row in zip(data.array, kept, strict=True)]
    return Datum(np.stack(parts), data.batch, places.sequence)


def _unpack(_node: Node, ins: list[Datum]) -> list[Datum]:
    import numpy as np

    x = ins[0].array
    made = np.moveaxis(x, 1, -1)[:, None]
    return [Datum(made, ins[0].batch), Datum(np.ones((len(x), 1, x.shape[1])), ins[0].batch)]


def _to_sequence(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    name = ins[1].sequence if len(ins) > 1 else node.attributes.get("sequenceAxis") or "sequence"
    return Datum(np.moveaxis(ins[0].array[:, 0], -1, 1), ins[0].batch, str(name))


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(
        ("Dropout", "StopGradient", "Pass", "NoOp", "LabelsToGraph", "Cast"), lambda _n, ins: ins[0]
    ),
    **dict.fromkeys(("Sigmoid", "StableSigmoid"), _unary(define.sigmoid)),
    "Negate": _unary(_numpy("negative")),
    "Tanh": _unary(_numpy("tanh")),
    "ReLU": _unary(lambda x: x * (x > 0)),
    "Exp": _unary(_numpy("exp")),
    "Log": _unary(_log),
    "Sqrt": _unary(_sqrt),
    "Floor": _unary(_numpy("floor")),
    "Abs": _unary(_numpy("abs")),
    "Reciprocal": _unary(_reciprocal),
    "Sin": _unary(_numpy("sin")),
    "Cos": _unary(_numpy("cos")),
    "Tan": _unary(_numpy("tan")),
    "Asin": _unary(_numpy("arcsin")),
    "Acos": _unary(_numpy("arccos")),
    "Atan": _unary(_numpy("arctan")),
    "Sinh": _unary(_numpy("sinh")),
    "Cosh": _unary(_numpy("cosh")),
    "Asinh": _unary(_numpy("arcsinh")),
    "Atanh": _unary(_numpy("arctanh")),
    "StraightThrough": _unary(lambda x: 2.0 * (x > 0) - 1),
    "ELU": _elu,
    "Plus": _nary(lambda a, b: a + b),
    "Minus": _nary(lambda a, b: a - b),
    "ElementTimes": _nary(lambda a, b: a * b),
    "LogPlus": _nary(_numpy("logaddexp")),
    "Pow": _nary(_power),
    "Equal": _nary(lambda a, b: a == b),
    "NotEqual": _nary(lambda a, b: a != b),
    "Less": _nary(lambda a, b: a < b),
    "LessEqual": _nary(lambda a, b: a <= b),
    "Greater": _nary(lambda a, b: a > b),
    "GreaterEqual": _nary(lambda a, b: a >= b),
    "Clip": _nary(_clip),
    "Select": _nary(lambda which, a, b: _numpy("where")(which != 0, a, b)),
    "Softmax": _over_sample(define.softmax),
    "LogSoftmax": _over_sample(_log_softmax),
    "Hardmax": _over_sample(_hardmax),
    **dict.fromkeys(("Times", "TransposeTimes"), _times),
    "ReduceElements": _reduce,
    "BatchNormalization": _batch_normalization,
    "Convolution": lambda node, ins: replace(
        ins[1],
        array=convolution(node.attributes, ins[0].array[0, 0], ins[1].array, bool(ins[1].sequence)),
    ),
    "Pooling": lambda node, ins: replace(ins[0], array=pooling(node.attributes, ins[0].array)),
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
    "CosDistance": _cosine,
    "ConstantOp": lambda node, ins: replace(
        ins[0], array=ins[0].array * 0 + float(node.attributes.get("fillValue", 0.0))
    ),
    **dict.fromkeys(("PastValue", "FutureValue"), _delay),
    "ReconcileDynamicAxis": _reconcile,
    "Where": _where,
    "PackedIndex": lambda _node, ins: ins[1],
    "GatherPacked": _gather_packed,
    "UnpackSequence": _unpack,
    **dict.fromkeys(("ToSequence", "ToSequenceLike"), _to_sequence),
}
