"""Operators that move, cut, join or make values: pytensor's into ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph.emission import described, rank

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission


def same(emission: Emission, node: Any) -> list[str]:
    """Emit nothing: the value is its first input's."""
    return [emission.value(node.inputs[0])]


def dimshuffle(emission: Emission, node: Any) -> list[str]:
    """Emit a `DimShuffle`: axes dropped (of size one), moved, and new ones put in."""
    op, x = node.op, node.inputs[0]
    build, name = emission.build, emission.value(node.inputs[0])
    kept = [int(one) for one in op.new_order if one != "x"]
    dropped = [axis for axis in range(rank(x)) if axis not in kept]
    if dropped:
        name = build.add("Squeeze", name, build.shape_constant(dropped))
    left = sorted(kept)
    perm = [left.index(axis) for axis in kept]
    if perm != sorted(perm):
        name = build.add("Transpose", name, perm=perm)
    new = [at for at, one in enumerate(op.new_order) if one == "x"]
    return [build.add("Unsqueeze", name, build.shape_constant(new)) if new else name]


def reshape(emission: Emission, node: Any) -> list[str]:
    """Emit a `Reshape`."""
    x, shape = node.inputs
    known = emission.known(shape)
    if known is not None:
        sizes = emission.build.shape_constant([int(n) for n in known.reshape(-1)])
    else:
        sizes = emission.as_type(shape, "int64")
    return [emission.build.add("Reshape", emission.value(x), sizes)]


def shape(emission: Emission, node: Any) -> list[str]:
    """Emit the sizes of all axes."""
    return [emission.build.add("Shape", emission.value(node.inputs[0]))]


def size_of_axis(emission: Emission, node: Any) -> list[str]:
    """Emit the size of one axis."""
    build = emission.build
    sizes = build.add("Shape", emission.value(node.inputs[0]))
    return [build.add("Gather", sizes, build.constant(int(node.op.i), dtype="int64"), axis=0)]


def vector(emission: Emission, node: Any) -> list[str]:
    """Emit numbers as a vector."""
    dtype = node.outputs[0].type.dtype
    build = emission.build
    one = build.shape_constant([1])
    parts = [build.add("Reshape", emission.as_type(part, dtype), one) for part in node.inputs]
    if not parts:
        import numpy as np

        return [build.constant(np.zeros(0, dtype))]
    return [build.add("Concat", *parts, axis=0)]


def join(emission: Emission, node: Any) -> list[str]:
    """Emit a `Join` along an axis that is known."""
    (axis,) = emission.integers(node.inputs[0], node, "the axis")
    dtype = node.outputs[0].type.dtype
    parts = [emission.as_type(one, dtype) for one in node.inputs[1:]]
    return [emission.build.add("Concat", *parts, axis=axis % rank(node.outputs[0]))]


def split(emission: Emission, node: Any) -> list[str]:
    """Emit a `Split` into parts along an axis that is known."""
    x, axis, sizes = node.inputs
    (at,) = emission.integers(axis, node, "the axis")
    lengths = emission.as_type(sizes, "int64")
    return list(
        emission.build.add_many(
            "Split", emission.value(x), lengths, count=len(node.outputs), axis=at % rank(x)
        )
    )


def alloc(emission: Emission, node: Any) -> list[str]:
    """Emit a value repeated to a shape."""
    dtype = node.outputs[0].type.dtype
    value = emission.as_type(node.inputs[0], dtype)
    if len(node.inputs) == 1:
        return [value]
    return [emission.build.add("Expand", value, emission.vector(node.inputs[1:]))]


def alloc_empty(emission: Emission, node: Any) -> list[str]:
    """Emit zeros for memory that the source fills afterwards."""
    zero = emission.scalar(0, node.outputs[0].type.dtype)
    if not node.inputs:
        return [zero]
    return [emission.build.add("Expand", zero, emission.vector(node.inputs))]


def arange(emission: Emission, node: Any) -> list[str]:
    """Emit the numbers from start to stop by step."""
    dtype = node.outputs[0].type.dtype
    held = dtype if dtype in ("float32", "float64", "int16", "int32", "int64") else "int64"
    # a step beyond the numbers of its dtype would be lost in it
    parts = [emission.as_type(one, held) for one in node.inputs]
    build = emission.build
    scalars = [build.add("Reshape", one, build.constant([], dtype="int64")) for one in parts]
    return [emission.cast(build.add("Range", *scalars), held, dtype)]


def ones(operator: str) -> Callable[[Emission, Any], list[str]]:
    """Emit a matrix with ones where the column less the row is to the offset as `operator` says."""

    def emit(emission: Emission, node: Any) -> list[str]:
        dtype = node.outputs[0].type.dtype
        build = emission.build
        zero, one = build.constant(0, dtype="int64"), build.constant(1, dtype="int64")
        rows, columns, offset = (
            build.add("Reshape", emission.as_type(part, "int64"), build.constant([], dtype="int64"))
            for part in node.inputs
        )
        down = build.add("Range", zero, rows, one)
        down = build.add("Unsqueeze", down, build.shape_constant([1]))
        across = build.add("Range", zero, columns, one)
        is_on = build.add(operator, build.add("Sub", across, down), offset)
        return [emission.cast(is_on, "bool", dtype)]

    return emit


def repeat(emission: Emission, node: Any) -> list[str]:
    """Emit each element of an axis several times: a number of times that is the same for all."""
    x, repeats = node.inputs
    build, name, axis = emission.build, emission.value(x), node.op.axis
    known = emission.known(repeats)
    if rank(repeats) and (known is None or len(set(known.reshape(-1).tolist())) != 1):
        raise UnsupportedError(
            f"a number of its own for each element in {described(node)}",
            operators=("Repeat",),
            hint="take the elements by an index instead",
        )
    if axis is None:
        name, axis, count = build.add("Reshape", name, build.shape_constant([-1])), 0, 1
    else:
        count = rank(x)
    axis = int(axis) % count
    if known is not None:
        times = build.shape_constant([int(known.reshape(-1)[0])])
    else:
        times = emission.as_vector(repeats)
    shape = build.add("Shape", name)

    def part(begin: int, end: int) -> str:
        return build.add("Slice", shape, *(build.shape_constant([at]) for at in (begin, end)))

    before, own, after = part(0, axis), part(axis, axis + 1), part(axis + 1, count)
    apart = build.add("Unsqueeze", name, build.shape_constant([axis + 1]))
    wide = build.add("Expand", apart, build.add("Concat", before, own, times, after, axis=0))
    merged = build.add("Mul", own, times)
    return [build.add("Reshape", wide, build.add("Concat", before, merged, after, axis=0))]


def tile(emission: Emission, node: Any) -> list[str]:
    """Emit a whole array several times along its axes."""
    x, repeats = node.inputs
    return [emission.build.add("Tile", emission.value(x), emission.as_type(repeats, "int64"))]


def specify_shape(emission: Emission, node: Any) -> list[str]:
    """Emit nothing: a promise about the shape."""
    return [emission.value(node.inputs[0])]


def diagonal(emission: Emission, node: Any) -> list[str]:
    """Emit the main diagonal of a matrix."""
    op, x = node.op, node.inputs[0]
    if rank(x) != 2 or op.offset or (op.axis1, op.axis2) not in ((0, 1), (0, -1)):
        raise UnsupportedError(
            f"a diagonal other than the main one of a matrix in {described(node)}",
            operators=("ExtractDiag",),
        )
    build, name = emission.build, emission.value(x)
    sizes = build.add("Shape", name)
    least = build.add("ReduceMin", sizes, axes=[0], keepdims=0)
    zero, one = build.constant(0, dtype="int64"), build.constant(1, dtype="int64")
    places = build.add("Range", zero, least, one)
    column = build.add("Unsqueeze", places, build.shape_constant([1]))
    return [build.add("GatherND", name, build.add("Concat", column, column, axis=1))]


def nonzero(emission: Emission, node: Any) -> list[str]:
    """Emit where the elements are that are not zero, one vector for each axis."""
    x, build = node.inputs[0], emission.build
    found = build.add("NonZero", emission.as_type(x, "bool"))
    return [
        build.add("Gather", found, build.constant(axis, dtype="int64"), axis=0)
        for axis in range(rank(x))
    ]


RULES = {
    **dict.fromkeys(("TensorFromScalar", "ScalarFromTensor", "CheckAndRaise", "Assert"), same),
    **dict.fromkeys(("ViewOp", "DeepCopyOp", "CpuContiguous", "Unbroadcast", "Rebroadcast"), same),
    **dict.fromkeys(("ZeroGrad", "DisconnectedGrad", "GradClip", "UndefinedGrad"), same),
    "SpecifyShape": specify_shape,
    "DimShuffle": dimshuffle,
    "Reshape": reshape,
    "Shape": shape,
    "Shape_i": size_of_axis,
    "MakeVector": vector,
    "Join": join,
    "Split": split,
    "Alloc": alloc,
    "BroadcastTo": alloc,
    "AllocEmpty": alloc_empty,
    "ARange": arange,
    "Eye": ones("Equal"),
    "Tri": ones("LessOrEqual"),
    "Repeat": repeat,
    "Tile": tile,
    "ExtractDiag": diagonal,
    "Nonzero": nonzero,
}
