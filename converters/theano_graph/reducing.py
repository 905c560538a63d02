"""Sums, extremes, sorting and products of matrices: pytensor's operators over axes into ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph.emission import (
    SLOW_TYPES,
    described,
    operator_name,
    rank,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission

REDUCTIONS = {
    "Add": "ReduceSum",
    "Mul": "ReduceProd",
    "ScalarMaximum": "ReduceMax",
    "ScalarMinimum": "ReduceMin",
    "Mean": "ReduceMean",
    "OR": "ReduceMax",
    "AND": "ReduceMin",
}
"""What is folded over the axes, and the reduction of ONNX that does so."""


def _axes(given: Any, size: int) -> list[int]:
    if given is None:
        return list(range(size))
    return sorted(int(axis) % size for axis in ([given] if isinstance(given, int) else given))


def reduce(emission: Emission, node: Any) -> list[str]:
    """Emit a `CAReduce`: a scalar operator folded over axes."""
    folded = type(node.op.scalar_op).__name__
    name = REDUCTIONS.get(folded)
    if name is None:
        raise UnsupportedError(
            f"no ONNX form for a reduction by {folded} in {described(node)}", operators=(folded,)
        )
    x, result = node.inputs[0], node.outputs[0].type.dtype
    axes = _axes(node.op.axis, rank(x))
    if not axes:
        return [emission.as_type(x, result)]
    dtype = "int64" if result in SLOW_TYPES or result == "bool" else result
    if folded in ("AND", "OR"):
        # all and any of whole numbers ask whether they are zero
        if result != "bool":
            raise UnsupportedError(
                f"no ONNX form for {folded} of whole numbers, bit by bit, in {described(node)}",
                operators=(folded,),
            )
        value = emission.cast(emission.as_type(x, "bool"), "bool", "int64")
    else:
        value = emission.as_type(x, dtype)
    build = emission.build
    if name == "ReduceSum":
        found = build.add(name, value, build.shape_constant(axes), keepdims=0)
    else:
        found = build.add(name, value, axes=axes, keepdims=0)
    return [emission.cast(found, dtype, result)]


def _last(emission: Emission, x: Any, axes: Sequence[int]) -> tuple[str, int]:
    """Return `x` with `axes` as one, and that one's number."""
    build, name = emission.build, emission.value(x)
    dtype = x.type.dtype
    if dtype in SLOW_TYPES or dtype == "bool":
        name = emission.cast(name, dtype, "int64")
    if len(axes) == 1:
        return name, axes[0]
    kept = [axis for axis in range(rank(x)) if axis not in axes]
    if not kept:
        return build.add("Reshape", name, build.shape_constant([-1])), 0
    moved = build.add("Transpose", name, perm=[*kept, *axes])
    # zero keeps a size
    shape = build.shape_constant([0] * len(kept) + [-1])
    return build.add("Reshape", moved, shape), len(kept)


def argmax(emission: Emission, node: Any) -> list[str]:
    """Emit `MaxAndArgmax` (both outputs) or `Argmax`, over one axis or several."""
    x = node.inputs[0]
    name, axis = _last(emission, x, _axes(node.op.axis, rank(x)))
    build = emission.build
    position = build.add("ArgMax", name, axis=axis, keepdims=0)
    if len(node.outputs) == 1:
        return [emission.cast(position, "int64", node.outputs[0].type.dtype)]
    largest = build.add("ReduceMax", name, axes=[axis], keepdims=0)
    dtype = x.type.dtype
    held = "int64" if dtype in SLOW_TYPES or dtype == "bool" else dtype
    return [emission.cast(largest, held, dtype), position]


def softmax(emission: Emission, node: Any) -> list[str]:
    """Emit `Softmax` or `LogSoftmax` over an axis, or over all elements together."""
    name = "LogSoftmax" if "Log" in type(node.op).__name__ else "Softmax"
    x = node.inputs[0]
    axis = getattr(node.op, "axis", -1)
    if axis is not None:
        return [emission.build.add(name, emission.value(x), axis=int(axis))]
    build = emission.build
    flat = build.add("Reshape", emission.value(x), build.shape_constant([-1]))
    shape = build.add("Shape", emission.value(x))
    return [build.add("Reshape", build.add(name, flat, axis=0), shape)]


def softmax_with_bias(emission: Emission, node: Any) -> list[str]:
    """Emit Theano's softmax of each row of `x + b`."""
    x, bias = emission.values(node.inputs)
    return [emission.build.add("Softmax", emission.build.add("Add", x, bias), axis=-1)]


def dot(emission: Emission, node: Any) -> list[str]:
    """Emit a product of vectors or matrices; of stacks of them in `MatMul`."""
    result = node.outputs[0].type.dtype
    dtype = "int64" if result in SLOW_TYPES or result == "bool" else result
    values = [emission.as_type(one, dtype) for one in node.inputs]
    return [emission.cast(emission.build.add("MatMul", *values), dtype, result)]


def batched_dot(emission: Emission, node: Any) -> list[str]:
    """Emit one product for each element of the first axis of both."""
    result = node.outputs[0].type.dtype
    first, second = (emission.as_type(one, result) for one in node.inputs)
    ranks = [rank(one) for one in node.inputs]
    build = emission.build
    # a row or a column for a vector
    if ranks[0] == 2:
        first = build.add("Unsqueeze", first, build.shape_constant([1]))
    if ranks[1] == 2:
        second = build.add("Unsqueeze", second, build.shape_constant([2]))
    made = build.add("MatMul", first, second)
    gone = ([1] if ranks[0] == 2 else []) + ([2] if ranks[1] == 2 else [])
    return [build.add("Squeeze", made, build.shape_constant(gone)) if gone else made]


def gemm(emission: Emission, node: Any) -> list[str]:
    """Emit BLAS's `z * beta + a * (x @ y)`, or the same of a vector."""
    z, a, x, y, b = emission.values(node.inputs)
    build = emission.build
    product = build.add("Mul", a, build.add("MatMul", x, y))
    return [build.add("Add", build.add("Mul", z, b), product)]


def cumulative(emission: Emission, node: Any) -> list[str]:
    """Emit a running sum."""
    if node.op.mode != "add":
        raise UnsupportedError(
            f"no ONNX form for a running product in {described(node)}", operators=("CumOp",)
        )
    x, result = node.inputs[0], node.outputs[0].type.dtype
    dtype = "int64" if result in SLOW_TYPES or result == "bool" else result
    build = emission.build
    value = emission.as_type(x, dtype)
    axis = node.op.axis
    if axis is None:
        value, axis = build.add("Reshape", value, build.shape_constant([-1])), 0
    made = build.add("CumSum", value, build.constant(int(axis), dtype="int64"))
    return [emission.cast(made, dtype, result)]


def sort(emission: Emission, node: Any) -> list[str]:
    """Emit `SortOp` or `ArgSortOp`, in rising order."""
    x = node.inputs[0]
    build, name = emission.build, emission.value(x)
    dtype = x.type.dtype
    held = "int64" if dtype in SLOW_TYPES or dtype == "bool" else dtype
    name = emission.cast(name, dtype, held)
    known = emission.known(node.inputs[1]) if len(node.inputs) > 1 else None
    if known is None or known.dtype == object:
        name, axis = build.add("Reshape", name, build.shape_constant([-1])), 0
    else:
        axis = int(known) % rank(x)
    size = build.add("Gather", build.add("Shape", name), build.shape_constant([axis]), axis=0)
    values, places = build.add_many("TopK", name, size, count=2, axis=axis, largest=0)
    if operator_name(node) == "ArgSortOp":
        return [emission.cast(places, "int64", node.outputs[0].type.dtype)]
    return [emission.cast(values, held, dtype)]


def normalise(emission: Emission, node: Any) -> list[str]:
    """Emit batch normalisation by stored moments."""
    dtype = node.outputs[0].type.dtype
    x, scale, bias, mean, variance, epsilon = (emission.as_type(one, dtype) for one in node.inputs)
    build = emission.build
    deviation = build.add("Sqrt", build.add("Add", variance, epsilon))
    factor = build.add("Div", scale, deviation)
    return [build.add("Add", build.add("Mul", build.add("Sub", x, mean), factor), bias)]


def cross_entropy(emission: Emission, node: Any) -> list[str]:
    """Emit `-log` of the probability that each row gives to its class."""
    build = emission.build
    column = build.add(
        "Unsqueeze", emission.as_type(node.inputs[1], "int64"), build.shape_constant([1])
    )
    chosen = build.add("GatherElements", emission.value(node.inputs[0]), column, axis=1)
    flat = build.add("Squeeze", chosen, build.shape_constant([1]))
    return [build.add("Neg", build.add("Log", flat))]


RULES = {
    "CrossentropyCategorical1Hot": cross_entropy,
    "CAReduce": reduce,
    "MaxAndArgmax": argmax,
    "Argmax": argmax,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "SoftmaxWithBias": softmax_with_bias,
    "Dot": dot,
    "Dot22": dot,
    "MatMul": dot,
    "BatchedDot": batched_dot,
    "Gemm": gemm,
    "Gemv": gemm,
    "CumOp": cumulative,
    "SortOp": sort,
    "ArgSortOp": sort,
    "AbstractBatchNormInference": normalise,
}
