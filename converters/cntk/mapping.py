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
    listed,
    static_axis,
    whole_number,
)
from deploykit._plugins.converters.cntk.graph import ALL_STATIC, FREE, Axis, Node
from deploykit._plugins.converters.cntk.shaping import EMIT as SHAPING
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
    matrix = replace(
        left, name=to.reshape(replace(left, shape=shape), (rows, inner)), shape=(rows, inner)
    )
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
    return replace(
        made, name=to.reshape(made, result), shape=result, constant=None, positional=False
    )


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
    made: str
    if operator in ("ArgMax", "ArgMin"):
        made = to.cast(to.add(operator, name, axis=axes[0], keepdims=int(keep)))
    elif operator == "ReduceSum":
        made = to.add(operator, name, to.sizes(*axes), keepdims=int(keep))
    else:
        made = to.add(operator, name, axes=axes, keepdims=int(keep))
    return made


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


def _cosine(to: Emission, _node: Node, ins: list[Value]) -> Value:
    (a, b), whole = to.aligned([_flat(to, one) for one in ins])

    def total(x: str, y: str) -> str:
        made: str = to.add("ReduceSum", to.add("Mul", x, y), to.sizes(-1), keepdims=0)
        return made

    norms = to.add("Mul", to.add("Sqrt", total(a, a)), to.add("Sqrt", total(b, b)))
    # CNTK clips what it inverts, so that a vector of zeros is at no angle to anything
    name = to.add("Div", total(a, b), to.add("Max", norms, to.real(1e-30)))
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
    "CosDistance": _cosine,
    "ConstantOp": _constant_like,
    "Cast": _cast,
    **SHAPING,
}
