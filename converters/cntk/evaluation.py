"""A CNTK network computed operator by operator by definition, in numpy and float64.

Written from CNTK's sources, apart from the mapping to ONNX, and in CNTK's own order of axes: an
array is [batch, step, *shape], the axis that changes fastest first among those of `shape`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.evaluation_sequences import COMPUTE as SEQUENCES
from deploykit._plugins.converters.cntk.evaluation_sequences import level
from deploykit._plugins.converters.cntk.evaluation_shapes import COMPUTE as SHAPING
from deploykit._plugins.converters.cntk.evaluation_shapes import Compute, Datum, axes_of, column
from deploykit._plugins.converters.cntk.evaluation_windows import convolution, pooling
from deploykit._plugins.converters.cntk.graph import ALL_STATIC, Graph, Leaf, Node
from deploykit._plugins.converters.cntk.ordering import Loop, steps

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def evaluate(
    graph: Graph, feed: Mapping[str, Array], wanted: Sequence[str], *, alone: bool
) -> dict[str, Array]:
    """Return the values `wanted`, by uid, of a network fed with `feed`, in the layout of the ONNX model.

    That is [batch, sequence, *static axes slowest first], without a batch axis for sequences
    where one is computed `alone`.
    """
    data = {
        uid: _leaf(leaf, feed.get(uid), alone)
        for uid, leaf in graph.leaves.items()
        if leaf.values is not None or uid in feed
    }
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
    array: Array = one.array.transpose(0, 1, *range(one.array.ndim - 1, 1, -1))
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


def _unary(function: Callable[[Array], Any]) -> Compute:
    return lambda _node, ins: replace(ins[0], array=function(ins[0].array))


def _nary(function: Callable[..., Any]) -> Compute:
    def compute(_node: Node, ins: list[Datum]) -> Any:
        import numpy as np

        return np.asarray(function(*level(ins)), np.float64)

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
        right = right.reshape(*right.shape[:2], -1, order="F") if right.ndim == 3 else column(right)
    batch, length = (max(a, b) for a, b in zip(left.shape[:2], right.shape[:2], strict=True))
    left = np.broadcast_to(left, (batch, length, *left.shape[2:]))
    right = np.broadcast_to(right, (batch, length, *right.shape[2:]))
    rows = left.shape[2 : 2 + out]
    maps = right.shape[2 + summed :]
    a = left.reshape(batch, length, int(np.prod(rows)), -1)
    b = right.reshape(batch, length, a.shape[-1], -1)
    return np.asarray((a @ b).reshape(batch, length, *rows, *maps))


def _reduce(node: Node, ins: list[Datum]) -> Any:
    import numpy as np

    one = ins[0]
    axes = axes_of(node)
    keep = bool(node.attributes.get("reductionKeepDimensions", True))
    kind = node.attributes["reductionOpName"]
    named = [axis for axis in axes if axis.index is None]
    if named and named[0].name == ALL_STATIC:
        flat = column(one.array)
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


def _batch_normalization(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    x = ins[0].array
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    shape = (
        [1, 1, *[1] * (x.ndim - 3), -1] if node.attributes.get("spatial") else [1, 1, *x.shape[2:]]
    )
    scale, shift, mean, variance = (
        column(one.array).reshape(-1) if node.attributes.get("spatial") else one.array.reshape(-1)
        for one in ins[1:5]
    )
    if not node.attributes.get("spatial"):
        # stored as one column, or in the shape of the data
        flat = column(x)
        normal = (flat - _plain(ins[3])) / np.sqrt(_plain(ins[4]) + epsilon)
        return replace(ins[0], array=_uncolumn(normal * _plain(ins[1]) + _plain(ins[2]), x.shape))
    normal = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + epsilon)
    return replace(ins[0], array=normal * scale.reshape(shape) + shift.reshape(shape))


def _plain(one: Datum) -> Array:
    vector: Array = column(one.array).reshape(-1)
    return vector


def _uncolumn(x: Array, shape: tuple[int, ...]) -> Array:
    turned = x.reshape(*x.shape[:2], *shape[:1:-1])
    return turned.transpose(0, 1, *range(turned.ndim - 1, 1, -1))


def _cosine(_node: Node, ins: list[Datum]) -> Array:
    import numpy as np

    a, b = (column(one.array) for one in ins)
    lengths = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.asarray((a * b).sum(-1) / np.maximum(lengths, 1e-30))


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
        array=convolution(node.attributes, ins[0].array[0, 0], ins[1].array),
    ),
    "Pooling": lambda node, ins: replace(ins[0], array=pooling(node.attributes, ins[0].array)),
    **SHAPING,
    "CosDistance": _cosine,
    "ConstantOp": lambda node, ins: replace(
        ins[0], array=ins[0].array * 0 + float(node.attributes.get("fillValue", 0.0))
    ),
    **SEQUENCES,
}
