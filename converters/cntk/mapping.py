"""CNTK's operators as ONNX nodes: tables where one stands for one, small functions where not.

Corner cases are those of `Source/Math/TensorOps.h` of CNTK 2.7: the logarithm and the square root
are clipped, the reciprocal of zero is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploykit._plugins.converters.cntk.emission import (
    Emission,
    Emit,
    Value,
    broadcast,
    listed,
    static_axis,
    whole_number,
)
from deploykit._plugins.converters.cntk.graph import ALL_STATIC, FREE, INFERRED, Axis, Node, Shape
from deploykit._plugins.converters.cntk.windows import convolution, pooling

from deploykit.errors import UnsupportedError

SMALLEST_IN_LOG = 1e-37
LOG_OF_SMALLEST = -85.1

UNARY = {
    "Negate": "Neg",
    "Sigmoid": "Sigmoid",
    "StableSigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "ReLU": "Relu",
    "Exp": "Exp",
    "Floor": "Floor",
    "Abs": "Abs",
    "Sin": "Sin",
    "Cos": "Cos",
    "Tan": "Tan",
    "Asin": "Asin",
    "Acos": "Acos",
    "Atan": "Atan",
    "Sinh": "Sinh",
    "Cosh": "Cosh",
    "Asinh": "Asinh",
    "Atanh": "Atanh",
}

IDENTITY = ("Dropout", "StopGradient", "Pass", "NoOp", "LabelsToGraph")

BINARY = {"Plus": "Add", "Minus": "Sub", "ElementTimes": "Mul"}

COMPARISON = {
    "Equal": "Equal",
    "NotEqual": "Not(Equal)",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
}

REDUCTION = {
    "Sum": "ReduceSum",
    "Mean": "ReduceMean",
    "Max": "ReduceMax",
    "Min": "ReduceMin",
    "Prod": "ReduceProd",
    "LogSum": "ReduceLogSumExp",
    "Argmax": "ArgMax",
    "Argmin": "ArgMin",
}

OVER_SAMPLE = {"Softmax": "Softmax", "LogSoftmax": "LogSoftmax", "Hardmax": "Hardmax"}


def _unary(operator: str) -> Emit:
    def emit(to: Emission, _node: Node, ins: list[Value]) -> Value:
        return replace(ins[0], name=to.add(operator, ins[0].name), constant=None)

    return emit


def _same(_to: Emission, _node: Node, ins: list[Value]) -> Value:
    return ins[0]


def _binary(operator: str) -> Emit:
    def emit(to: Emission, _node: Node, ins: list[Value]) -> Value:
        (a, b), whole = to.aligned(ins)
        return replace(whole, name=to.add(operator, a, b))

    return emit


def _comparison(operator: str) -> Emit:
    def emit(to: Emission, _node: Node, ins: list[Value]) -> Value:
        (a, b), whole = to.aligned(ins)
        if operator == "Not(Equal)":
            found = to.add("Not", to.add("Equal", a, b))
        else:
            found = to.add(operator, a, b)
        return replace(whole, name=to.cast(found))

    return emit


def _log(to: Emission, _node: Node, ins: list[Value]) -> Value:
    x = ins[0].name
    low = to.add("Less", x, to.real(SMALLEST_IN_LOG))
    safe = to.add("Where", low, to.real(1.0), x)
    name = to.add("Where", low, to.real(LOG_OF_SMALLEST), to.add("Log", safe))
    return replace(ins[0], name=name, constant=None)


def _sqrt(to: Emission, _node: Node, ins: list[Value]) -> Value:
    name = to.add("Sqrt", to.add("Max", ins[0].name, to.real(0.0)))
    return replace(ins[0], name=name, constant=None)


def _reciprocal(to: Emission, _node: Node, ins: list[Value]) -> Value:
    x, zero = ins[0].name, to.real(0.0)
    none = to.add("Equal", x, zero)
    found = to.add("Reciprocal", to.add("Where", none, to.real(1.0), x))
    return replace(ins[0], name=to.add("Where", none, zero, found), constant=None)


def _elu(to: Emission, node: Node, ins: list[Value]) -> Value:
    alpha = float(node.attributes.get("alpha", 1.0))
    return replace(ins[0], name=to.add("Elu", ins[0].name, alpha=alpha), constant=None)


def _straight_through(to: Emission, _node: Node, ins: list[Value]) -> Value:
    above = to.add("Greater", ins[0].name, to.real(0.0))
    name = to.add("Where", above, to.real(1.0), to.real(-1.0))
    return replace(ins[0], name=name, constant=None)


def _log_plus(to: Emission, _node: Node, ins: list[Value]) -> Value:
    (a, b), whole = to.aligned(ins)
    apart = to.add("Neg", to.add("Abs", to.add("Sub", a, b)))
    rest = to.add("Log", to.add("Add", to.add("Exp", apart), to.real(1.0)))
    return replace(whole, name=to.add("Add", to.add("Max", a, b), rest))


def _pow(to: Emission, _node: Node, ins: list[Value]) -> Value:
    (a, b), whole = to.aligned(ins)
    # CNTK: zero to any power but zero is zero, to negative ones too
    none = to.add("Equal", a, to.real(0.0))
    power = to.add("Pow", to.add("Where", none, to.real(1.0), a), b)
    at_zero = to.cast(to.add("Equal", b, to.real(0.0)))
    return replace(whole, name=to.add("Where", none, at_zero, power))


def _clip(to: Emission, _node: Node, ins: list[Value]) -> Value:
    (x, low, high), whole = to.aligned(ins)
    # as CNTK writes it: where low is above high, low wins
    below = to.add("Less", x, low)
    name = to.add("Where", below, low, to.add("Min", x, high))
    return replace(whole, name=name)


def _select(to: Emission, _node: Node, ins: list[Value]) -> Value:
    (which, a, b), whole = to.aligned(ins)
    no = to.add("Equal", which, to.real(0.0))
    return replace(whole, name=to.add("Where", no, b, a))


def _flat(to: Emission, value: Value) -> Value:
    """Return the value with all its static axes as one."""
    if len(value.shape) == 1:
        return value
    size = FREE if FREE in value.shape else math.prod(value.shape)
    return replace(value, name=to.reshape(value, (size,)), shape=(size,), constant=None)


def _over_sample(operator: str) -> Emit:
    def emit(to: Emission, _node: Node, ins: list[Value]) -> Value:
        flat = _flat(to, ins[0])
        made = replace(flat, name=to.add(operator, flat.name, axis=-1), constant=None)
        return replace(ins[0], name=to.reshape(made, ins[0].shape), constant=None)

    return emit


def times(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit Times or TransposeTimes: the last axes of the left by the first axes of the right."""
    left, right = ins
    out = whole_number(node, "outputRank", 1)
    shape = left.shape
    if whole_number(node, "inferInputRankToMap", -1) == -2:
        raise UnsupportedError(
            f"`{node.name or node.uid}` sums over the sequence within Times",
            operators=("Times(reduce sequence)",),
            hint="write it as a Times and a `sequence.reduce_sum`",
        )
    if node.op == "TransposeTimes":
        if len(shape) > 2:
            raise ValueError(f"TransposeTimes takes a matrix, not {shape}")
        if len(shape) == 2:
            order = [*range(left.dynamic), left.dynamic + 1, left.dynamic]
            left = replace(left, name=to.add("Transpose", left.name, perm=order))
            shape = shape[::-1]
        else:
            shape = (1, *shape)
            left = replace(left, name=to.reshape(left, shape))
    summed = len(shape) - out
    if not 0 <= out <= len(shape):
        raise ValueError(f"it keeps {out} axes of {shape}")
    joint = shape[out:]
    ours = right.shape[:summed]
    if joint != ours and summed == 1 and math.prod(right.shape) == joint[0]:
        summed, ours = len(right.shape), right.shape  # CNTK 1 flattens what a matrix multiplies
    if math.prod(joint) != math.prod(ours) or (joint != ours and len(joint) > 1):
        raise ValueError(f"{shape} cannot be multiplied with {right.shape}")
    is_lookup = right.index and left.constant is not None and node.op == "Times"
    if is_lookup and len(joint) == 1 and joint == ours:
        return _embedding(to, left, right, out)
    rows, inner, maps = math.prod(shape[:out]), math.prod(joint), right.shape[summed:]
    if FREE in shape:
        raise UnsupportedError(
            f"`{node.name or node.uid}` multiplies with a matrix of a size known only at run time",
            operators=(f"{node.op}(free size)",),
        )
    # the left, rows the faster axis, is [inner, rows] in ONNX
    matrix = replace(left, name=to.reshape(replace(left, shape=shape), (rows, inner)), shape=(rows, inner))
    if left.dynamic and FREE not in maps:
        flat = (inner, math.prod(maps))
    else:
        flat = (inner, *maps) if maps else (inner,)
    data = replace(right, name=to.reshape(right, flat), shape=flat)
    if left.dynamic:
        (a, b), whole = to.aligned([replace(matrix, shape=(1, 1)), replace(data, shape=(1, 1))])
        name = to.add("MatMul", b, a)
        made = replace(whole, name=name, shape=(rows, *flat[1:]))
    else:
        made = replace(data, name=to.add("MatMul", data.name, matrix.name), shape=(rows, *flat[1:]))
    result = (*shape[:out], *maps)
    return replace(made, name=to.reshape(made, result), shape=result, constant=None, positional=False)


def _embedding(to: Emission, table: Value, hot: Value, out: int) -> Value:
    """Look rows up, which is what a matrix times a one-hot vector does; none of them is zeros."""
    import numpy as np

    rows = np.asarray(table.constant)
    padded = np.concatenate([rows, np.zeros((1, *rows.shape[1:]), rows.dtype)])
    name = to.add("Gather", to.real(padded), hot.index, axis=0)
    shape = (*table.shape[:out], *hot.shape[1:])
    return replace(hot, name=name, shape=shape, index="", positional=False)


def reduction(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit ReduceElements along static axes or along the sequence."""
    (x,) = ins
    kind = node.attributes.get("reductionOpName")
    if kind not in REDUCTION:
        raise UnsupportedError(
            f"`{node.name or node.uid}` reduces by {kind}", operators=(f"ReduceElements({kind})",)
        )
    keep = bool(node.attributes.get("reductionKeepDimensions", True))
    axes = listed(node, "axisVec", Axis) or listed(node, "axis", Axis)
    names = {axis.name for axis in axes if axis.index is None}
    if names == {ALL_STATIC}:
        flat = _flat(to, x)
        name = _reduced(to, kind, flat.name, [flat.rank - 1], keep=False)
        made = replace(x, name=name, shape=(), constant=None, positional=False)
        shape = (1,) * len(x.shape) if keep else ()
        return replace(made, name=to.reshape(made, shape), shape=shape)
    if names:
        if len(axes) > 1 or not x.sequence or names <= {"batch", "all axes"}:
            raise UnsupportedError(
                f"`{node.name or node.uid}` reduces along {', '.join(sorted(names))}",
                operators=(f"ReduceElements({', '.join(sorted(names))})",),
                hint="a model cannot mix its samples: choose other outputs, `--set outputs=NAME,...`",
            )
        name = _reduced(to, kind, x.name, [int(x.batch)], keep=False)
        return replace(x, name=name, sequence="", constant=None, positional=False)
    indices = sorted({static_axis(axis, len(x.shape)) for axis in axes})
    if kind in ("Argmax", "Argmin") and len(indices) != 1:
        raise ValueError(f"it looks for the place along {len(indices)} axes")
    name = _reduced(to, kind, x.name, [x.place(at) for at in indices], keep=keep)
    if keep:
        shape = tuple(1 if at in indices else size for at, size in enumerate(x.shape))
    else:
        shape = tuple(size for at, size in enumerate(x.shape) if at not in indices)
    return replace(x, name=name, shape=shape, constant=None)


def _reduced(to: Emission, kind: str, name: str, axes: list[int], *, keep: bool) -> str:
    operator = REDUCTION[kind]
    if operator in ("ArgMax", "ArgMin"):
        return to.cast(to.add(operator, name, axis=axes[0], keepdims=int(keep)))
    if operator == "ReduceSum":
        return to.add(operator, name, to.sizes(*axes), keepdims=int(keep))
    return to.add(operator, name, axes=axes, keepdims=int(keep))


def _batch_normalization(to: Emission, node: Node, ins: list[Value]) -> Value:
    import numpy as np

    x, *rest = ins
    stored = [one.constant for one in rest[:4]]
    if len(stored) < 4 or any(one is None for one in stored):
        raise UnsupportedError(
            f"the parameters of `{node.name or node.uid}` are computed by the network",
            operators=("BatchNormalization(computed parameters)",),
        )
    scale, shift, mean, variance = (np.asarray(one, np.float64).reshape(-1) for one in stored)
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    spatial = bool(node.attributes.get("spatial", False))
    size = x.shape[-1] if spatial else math.prod(x.shape)
    if not x.shape or any(one.size != size for one in (scale, shift, mean, variance)):
        raise ValueError(f"it has {scale.size} scales for data of shape {x.shape}")
    if spatial and x.dynamic == 1:
        parameters = [to.real(one) for one in (scale, shift, mean, variance)]
        name = to.add("BatchNormalization", x.name, *parameters, epsilon=epsilon)
        return replace(x, name=name, constant=None)
    shape = (size, *[1] * (len(x.shape) - 1)) if spatial else x.shape[::-1]
    slope = scale / np.sqrt(variance + epsilon)
    scaled = to.add("Mul", x.name, to.real(slope.reshape(shape)))
    name = to.add("Add", scaled, to.real((shift - mean * slope).reshape(shape)))
    return replace(x, name=name, constant=None)


def _splice(to: Emission, node: Node, ins: list[Value]) -> Value:
    rank = max(len(one.shape) for one in ins)
    axis = node.attributes.get("axis")
    if isinstance(axis, Axis) and axis.index is not None and axis.index >= rank:
        rank = axis.index + 1
    at = static_axis(axis, rank)
    padded = [(*one.shape, *[1] * (rank - len(one.shape))) for one in ins]
    around = broadcast([(*shape[:at], 1, *shape[at + 1 :]) for shape in padded])
    # along the axis itself their sizes may differ
    alike = [
        replace(one, shape=(*one.shape[:at], 1, *one.shape[at + 1 :])[: len(one.shape)])
        for one in ins
    ]
    names, whole = to.aligned(alike, rank=rank)
    like = max(ins, key=lambda one: one.dynamic)
    parts = []
    for one, name, shape in zip(ins, names, padded, strict=True):
        value = replace(whole if one.dynamic else one, name=name, shape=shape)
        if not one.dynamic:
            value = replace(one, name=to.reshape(one, shape), shape=shape)
        wanted = replace(whole, shape=(*around[:at], shape[at], *around[at + 1 :]))
        lacks = (one.batch, one.sequence) != (whole.batch, whole.sequence)
        if lacks or value.shape != wanted.shape:
            source = replace(value, batch=False, sequence="") if not one.dynamic else value
            source = replace(source, batch=one.batch, sequence=one.sequence)
            source = replace(source, name=to.reshape(one, shape))
            value = to.expanded(source, wanted, like)
        parts.append(value)
    sizes = [shape[at] for shape in padded]
    joined = FREE if FREE in sizes else sum(sizes)
    shape = (*around[:at], joined, *around[at + 1 :])
    result = replace(whole, shape=shape)
    return replace(
        result, name=to.add("Concat", *(one.name for one in parts), axis=result.place(at))
    )


def _slice(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    axes = listed(node, "axisVec", Axis) or listed(node, "axis", Axis)
    begins = listed(node, "beginIndexVec", int) or listed(node, "beginIndex", int)
    ends = listed(node, "endIndexVec", int) or listed(node, "endIndex", int)
    strides = listed(node, "sliceStridesVec", int) or listed(node, "sliceStrides", int)
    strides = strides or [1] * len(axes)
    if not axes or not len(axes) == len(begins) == len(ends) == len(strides):
        raise ValueError(f"it slices {len(axes)} axes from {begins} to {ends}")
    shape = list(x.shape)
    places = []
    for number, (axis, begin, end, stride) in enumerate(
        zip(axes, begins, ends, strides, strict=True)
    ):
        at = static_axis(axis, len(shape))
        places.append(x.place(at))
        if stride < 1:
            raise UnsupportedError(
                f"`{node.name or node.uid}` slices by steps of {stride}",
                operators=("Slice(stride)",),
            )
        if end == 0:
            ends[number] = 2**31
        if shape[at] != FREE:
            shape[at] = len(range(*slice(begin, end or None, stride).indices(shape[at])))
            if not shape[at]:
                raise ValueError(f"nothing is left between {begin} and {end}")
    name = to.add(
        "Slice",
        x.name,
        to.sizes(*begins),
        to.sizes(*ends),
        to.sizes(*places),
        to.sizes(*strides),
    )
    return replace(x, name=name, shape=tuple(shape), constant=None)


def _reshape(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    rank = len(x.shape)
    begin, end = (_edge(node, key, rank, default) for key, default in (("beginAxis", 0), ("endAxis", rank)))
    shape = reshaped(x.shape, listed(node, "newShape", int), begin, end)
    return replace(x, name=to.reshape(x, shape), shape=shape, constant=None)


def _edge(node: Node, key: str, rank: int, default: int) -> int:
    axis = node.attributes.get(key)
    if not isinstance(axis, Axis):
        return default
    if axis.index is None or not -rank <= axis.index <= rank:
        # CNTK's mark for "behind the last axis"
        return rank
    return axis.index + rank if axis.index < 0 else axis.index


def reshaped(shape: Shape, new: list[int], begin: int, end: int) -> Shape:
    """Return `shape` with its axes from `begin` to `end` replaced by `new`, one size inferred."""
    if begin > end:
        raise ValueError(f"it replaces the axes from {begin} to {end}")
    middle = shape[begin:end]
    sizes = [size for size in new if size != INFERRED]
    if len(new) - len(sizes) > 1:
        raise ValueError(f"its shape {tuple(new)} has several sizes to be inferred")
    inferred = FREE
    if FREE not in middle and FREE not in sizes:
        known, total = math.prod(sizes), math.prod(middle)
        if len(sizes) < len(new):
            if not known or total % known:
                raise ValueError(f"{middle} cannot have the shape {tuple(new)}")
            inferred = total // known
        elif known != total:
            raise ValueError(f"{middle} cannot have the shape {tuple(new)}")
    made = tuple(inferred if size == INFERRED else size for size in new)
    return (*shape[:begin], *made, *shape[end:])


def _transpose(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    given = listed(node, "axisVec", Axis)
    if given:
        rank = max(len(x.shape), len(given))
        order = [static_axis(axis, rank) for axis in given]
        if sorted(order) != list(range(rank)):
            raise ValueError(f"it orders {rank} axes as {order}")
    else:
        pair = [node.attributes.get(key) for key in ("axis1", "axis2")]
        indices = [one.index for one in pair if isinstance(one, Axis) and one.index is not None]
        rank = max(len(x.shape), *(index + 1 for index in indices), 0)
        a, b = (static_axis(one, rank) for one in pair)
        order = list(range(rank))
        order[a], order[b] = b, a
    shape = (*x.shape, *[1] * (rank - len(x.shape)))
    wide = replace(x, name=to.reshape(x, shape), shape=shape)
    turned = [wide.dynamic + rank - 1 - order[rank - 1 - at] for at in range(rank)]
    name = to.add("Transpose", wide.name, perm=[*range(wide.dynamic), *turned])
    return replace(wide, name=name, shape=tuple(shape[at] for at in order), constant=None)


def _one_hot(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    size = whole_number(node, "numClass")
    at = static_axis(node.attributes.get("onehotAxis"), len(x.shape) + 1)
    if size < 1:
        raise ValueError(f"it has {size} classes")
    index = to.add("Cast", x.name, to=7)
    # an index outside of the classes is none of them; ONNX counts negative ones from the end
    last = to.build.constant(size, dtype="int64")
    index = to.add("Where", to.add("Less", index, to.build.constant(0, dtype="int64")), last, index)
    index = to.add("Min", index, last)
    shape = (*x.shape[:at], size, *x.shape[at:])
    made = replace(x, shape=shape, constant=None)
    depth = to.build.constant([size], dtype="int64")
    name = to.add("OneHot", index, depth, to.real([0.0, 1.0]), axis=made.place(at))
    return replace(made, name=name, index=index if at == 0 else "")


def _gather(to: Emission, node: Node, ins: list[Value]) -> Value:
    index, table = ins
    if table.dynamic or not table.shape:
        raise UnsupportedError(
            f"`{node.name or node.uid}` looks things up in a table that the network computes",
            operators=("Gather(dynamic reference)",),
        )
    at = node.attributes.get("axis")
    place = static_axis(at, len(table.shape)) if isinstance(at, Axis) else len(table.shape) - 1
    if place != len(table.shape) - 1:
        raise UnsupportedError(
            f"`{node.name or node.uid}` looks things up along axis {place}",
            operators=("Gather(axis)",),
        )
    name = to.add("Gather", table.name, to.add("Cast", index.name, to=7), axis=0)
    return replace(index, name=name, shape=(*table.shape[:-1], *index.shape), constant=None)


def _top_k(to: Emission, node: Node, ins: list[Value]) -> list[Value]:
    (x,) = ins
    count = whole_number(node, "numItems")
    if not x.shape:
        raise ValueError("it takes the largest of a single number")
    values, places = to.build.add_many("TopK", x.name, to.sizes(count), count=2, axis=-1)
    made = replace(x, shape=(count, *x.shape[1:]), constant=None, positional=False)
    return [replace(made, name=values), replace(made, name=to.cast(places))]


def _pad(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    head, foot = listed(node, "paddingHead", int), listed(node, "paddingFoot", int)
    mode = whole_number(node, "paddingMode", 0)
    if mode not in (0, 1) or len(head) != len(x.shape) or len(foot) != len(x.shape):
        raise UnsupportedError(
            f"`{node.name or node.uid}` pads {len(head)} axes by mode {mode}",
            operators=("Pad(symmetric)" if mode == 2 else "Pad",),
        )
    none = [0] * x.dynamic
    pads = to.sizes(*none, *head[::-1], *none, *foot[::-1])
    if mode:
        name = to.add("Pad", x.name, pads, mode="reflect")
    else:
        value = to.real(float(node.attributes.get("paddingConstantValue", 0.0)))
        name = to.add("Pad", x.name, pads, value, mode="constant")
    sizes = zip(x.shape, head, foot, strict=True)
    shape = tuple(FREE if size == FREE else size + a + b for size, a, b in sizes)
    return replace(x, name=name, shape=shape, constant=None)


def _crop(to: Emission, node: Node, ins: list[Value]) -> Value:
    x, like = ins[:2]
    offset = listed(node, "offset", int)
    sizes = like.shape[:2]
    if len(offset) != 2 or len(sizes) != 2 or FREE in (*x.shape[:2], *sizes):
        raise UnsupportedError(
            f"`{node.name or node.uid}` crops by what its inputs were made by",
            operators=("Crop(automatic offset)",),
            hint="give the offsets to `crop_manual`",
        )
    if any(o < 0 or o + s > n for o, s, n in zip(offset, sizes, x.shape, strict=False)):
        raise ValueError(f"it crops {sizes} at {offset} from {x.shape}")
    ends = [o + s for o, s in zip(offset, sizes, strict=True)]
    axes = to.sizes(x.place(0), x.place(1))
    name = to.add("Slice", x.name, to.sizes(*offset), to.sizes(*ends), axes)
    return replace(x, name=name, shape=(*sizes, *x.shape[2:]), constant=None)


def _squeeze(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    axes = listed(node, "axisVec", Axis) or listed(node, "axis", Axis)
    rank = len(x.shape)
    gone = {static_axis(axis, rank) for axis in axes} if axes else {
        at for at, size in enumerate(x.shape) if size == 1
    }
    if any(x.shape[at] != 1 for at in gone):
        raise ValueError(f"it squeezes axes {sorted(gone)} of {x.shape}")
    shape = tuple(size for at, size in enumerate(x.shape) if at not in gone)
    if not gone:
        return x
    name = to.add("Squeeze", x.name, to.sizes(*(x.place(at) for at in sorted(gone))))
    return replace(x, name=name, shape=shape, constant=None)


def _cosine(to: Emission, _node: Node, ins: list[Value]) -> Value:
    (a, b), whole = to.aligned([_flat(to, one) for one in ins])

    def total(x: str, y: str) -> str:
        return to.add("ReduceSum", to.add("Mul", x, y), to.sizes(-1), keepdims=0)

    norms = to.add("Sqrt", to.add("Mul", total(a, a), total(b, b)))
    # CNTK adds 1e-10 to the product's roots, so that nothing is divided by zero
    name = to.add("Div", total(a, b), to.add("Max", norms, to.real(1e-20)))
    return replace(whole, name=name, shape=(), positional=False)


def _constant_like(to: Emission, node: Node, ins: list[Value]) -> Value:
    value = to.real(float(node.attributes.get("fillValue", 0.0)))
    name = to.add("Expand", value, to.add("Shape", ins[0].name))
    return replace(ins[0], name=name, constant=None, positional=True)


def _cast(_to: Emission, node: Node, ins: list[Value]) -> Value:
    if whole_number(node, "newDataType", 1) not in (1, 2, 4):
        raise UnsupportedError(
            f"`{node.name or node.uid}` turns its input to integers", operators=("Cast(integer)",)
        )
    return ins[0]


EMIT: dict[str, Callable[[Emission, Node, list[Value]], Any]] = {
    **{name: _unary(operator) for name, operator in UNARY.items()},
    **dict.fromkeys(IDENTITY, _same),
    **{name: _binary(operator) for name, operator in BINARY.items()},
    **{name: _comparison(operator) for name, operator in COMPARISON.items()},
    **{name: _over_sample(operator) for name, operator in OVER_SAMPLE.items()},
    "Log": _log,
    "Sqrt": _sqrt,
    "Reciprocal": _reciprocal,
    "ELU": _elu,
    "StraightThrough": _straight_through,
    "LogPlus": _log_plus,
    "Pow": _pow,
    "Clip": _clip,
    "Select": _select,
    **dict.fromkeys(("Times", "TransposeTimes"), times),
    "ReduceElements": reduction,
    "BatchNormalization": _batch_normalization,
    "Convolution": convolution,
    "Pooling": pooling,
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
    "ConstantOp": _constant_like,
    "Cast": _cast,
}
