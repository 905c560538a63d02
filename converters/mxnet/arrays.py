"""MXNet operators on whole arrays as ONNX nodes: products, comparisons, slices, lookups, layer norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit._plugins.converters.mxnet.emission import Emit, Sizes, Value, broadcast
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

COMPARISONS = {
    "equal": "Equal",
    "greater": "Greater",
    "lesser": "Less",
    "greater_equal": "GreaterOrEqual",
    "lesser_equal": "LessOrEqual",
}
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10, "float64": 11}


def _refused(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(f"node `{node.name}` {what}", operators=(node.op,))


def _compared(operator: str, *, scalar: bool) -> Emit:
    """A comparison gives 1.0 or 0.0."""

    def emit(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        other = build.constant(node.value("scalar", 1.0)) if scalar else ins[1].name
        shape = ins[0].shape if scalar else broadcast([one.shape for one in ins])
        found = build.add(operator, ins[0].name, other)
        return [Value(build.add("Cast", found, to=1), shape)]

    return emit


def _layer_norm(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, gamma, beta = ins
    if node.value("axis", -1) % x.rank != x.rank - 1 or node.value("output_mean_var", False):
        raise _refused(node, "normalises another axis than the last, or gives its statistics")
    name = build.add(
        "LayerNormalization",
        *(x.name, gamma.name, beta.name),
        axis=-1,
        epsilon=node.value("eps", 1e-5),
    )
    return [Value(name, x.shape)]


def _turned(build: GraphBuilder, x: Value) -> Value:
    axes = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    name = build.add("Transpose", x.name, perm=axes)
    return Value(name, tuple(x.shape[axis] for axis in axes))


def _product(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """`dot` of matrices and `batch_dot`: a product over the last axis and the last but one."""
    a, b = ins
    if node.op == "dot" and (a.rank != 2 or b.rank != 2):
        raise _refused(node, f"multiplies {a.rank} axes by {b.rank}")
    a = _turned(build, a) if node.value("transpose_a", False) else a
    b = _turned(build, b) if node.value("transpose_b", False) else b
    return [Value(build.add("MatMul", a.name, b.name), (*a.shape[:-1], b.shape[-1]))]


def _slice(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    begins, ends = list(node.value("begin", None) or ()), list(node.value("end", None) or ())
    steps = [one or 1 for one in node.value("step", None) or ()] or [1] * len(begins)
    if any(step < 0 for step in steps) or len({len(begins), len(ends), len(steps)}) != 1:
        raise _refused(node, "slices backwards, or names different numbers of axes")
    shape: list[int | None] = list(x.shape)
    for axis, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        size = shape[axis]
        shape[axis] = None if size is None else len(range(size)[begin:end:step])
    limits = (
        [one or 0 for one in begins],
        [2**31 - 1 if one is None else one for one in ends],
        list(range(len(begins))),
        steps,
    )
    name = build.add("Slice", x.name, *(build.shape_constant(one) for one in limits))
    return [Value(name, tuple(shape))]


def _cast(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    dtype = node.value("dtype", "float32")
    if dtype not in DTYPES:
        raise _refused(node, f"casts to {dtype}")
    # the graph computes in float32; a cast to a whole number cuts off what is behind the point
    name = ins[0].name
    if dtype.startswith(("int", "uint")):
        name = build.add("Cast", build.add("Cast", name, to=DTYPES[dtype]), to=1)
    elif dtype == "float16":
        raise _refused(node, "computes in half precision")
    return [Value(name, ins[0].shape)]


def _take(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, index = ins
    if node.value("mode", "clip") != "clip" or node.value("axis", 0) % x.rank != 0:
        raise _refused(node, "takes along another axis than the first, or wraps indices")
    first, one = build.constant(0, dtype="int64"), build.constant(1, dtype="int64")
    last = build.add("Sub", build.add("Shape", x.name, start=0, end=1), one)
    last = build.add("Squeeze", last, build.shape_constant([0]))
    places = build.add("Clip", build.add("Cast", index.name, to=7), first, last)
    return [Value(build.add("Gather", x.name, places, axis=0), (*index.shape, *x.shape[1:]))]


def _stack(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    axis = node.value("axis", 0) % (ins[0].rank + 1)
    parts = [build.add("Unsqueeze", one.name, build.shape_constant([axis])) for one in ins]
    shape = ins[0].shape
    name = build.add("Concat", *parts, axis=axis)
    return [Value(name, (*shape[:axis], len(ins), *shape[axis:]))]


def _tile(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, reps = ins[0], list(node.value("reps", ()))
    if len(reps) > x.rank:
        raise _refused(node, "repeats along more axes than there are")
    reps = [1] * (x.rank - len(reps)) + reps
    shape = tuple(None if s is None else s * r for s, r in zip(x.shape, reps, strict=True))
    return [Value(build.add("Tile", x.name, build.shape_constant(reps)), shape)]


def _where(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    zero = build.constant(0.0)
    chosen = build.add("Not", build.add("Equal", ins[0].name, zero))
    name = build.add("Where", chosen, ins[1].name, ins[2].name)
    return [Value(name, ins[1].shape)]


def _square(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Mul", ins[0].name, ins[0].name), ins[0].shape)]


def _inverse_root(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Reciprocal", build.add("Sqrt", ins[0].name)), ins[0].shape)]


def _hard_sigmoid(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    slope, shift = node.value("alpha", 0.2), node.value("beta", 0.5)
    return [Value(build.add("HardSigmoid", ins[0].name, alpha=slope, beta=shift), ins[0].shape)]


def _scaled(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    width = ins[0].shape[-1]
    if width is None:
        raise _refused(node, "divides by the root of an unknown size")
    root = build.constant(math.sqrt(width))
    return [Value(build.add("Div", ins[0].name, root), ins[0].shape)]


def _blocks(operator: str, grow: Callable[[Sizes, int], Sizes]) -> Emit:
    def emit(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        size = node.value("block_size", 2)
        return [Value(build.add(operator, ins[0].name, blocksize=size), grow(ins[0].shape, size))]

    return emit


def _spread(shape: Sizes, size: int) -> Sizes:
    batch, depth, *space = shape
    return (
        batch,
        None if depth is None else depth // size**2,
        *(None if one is None else one * size for one in space),
    )


def _gathered(shape: Sizes, size: int) -> Sizes:
    batch, depth, *space = shape
    return (
        batch,
        None if depth is None else depth * size**2,
        *(None if one is None else one // size for one in space),
    )


EMIT: dict[str, Emit] = {
    **{f"broadcast_{op}": _compared(name, scalar=False) for op, name in COMPARISONS.items()},
    **{f"_{op}": _compared(name, scalar=False) for op, name in COMPARISONS.items()},
    **{f"_{op}_scalar": _compared(name, scalar=True) for op, name in COMPARISONS.items()},
    **dict.fromkeys(("Cast", "cast"), _cast),
    **dict.fromkeys(("dot", "batch_dot"), _product),
    **dict.fromkeys(("slice", "crop"), _slice),
    "LayerNorm": _layer_norm,
    "_contrib_div_sqrt_dim": _scaled,
    "depth_to_space": _blocks("DepthToSpace", _spread),
    "hard_sigmoid": _hard_sigmoid,
    "rsqrt": _inverse_root,
    "space_to_depth": _blocks("SpaceToDepth", _gathered),
    "square": _square,
    "stack": _stack,
    "take": _take,
    "tile": _tile,
    "where": _where,
}
