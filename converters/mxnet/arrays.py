"""MXNet operators on whole arrays as ONNX nodes: slices, casts, blocks, layer norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit._plugins.converters.mxnet.emission import Emit, Sizes, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10, "float64": 11}


def _refused(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(f"node `{node.name}` {what}", operators=(node.op,))


def _layer_norm(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, gamma, beta = ins
    if node.value("output_mean_var", False):
        raise _refused(node, "gives its statistics")
    axis = node.value("axis", -1) % x.rank
    order = list(range(x.rank))
    order[axis], order[-1] = order[-1], order[axis]
    inner = build.add("Transpose", x.name, perm=order) if axis != x.rank - 1 else x.name
    name = build.add(
        "LayerNormalization",
        *(inner, gamma.name, beta.name),
        axis=-1,
        epsilon=node.value("eps", 1e-5),
    )
    if axis != x.rank - 1:
        name = build.add("Transpose", name, perm=order)
    return [Value(name, x.shape)]


def _slice(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    begins, ends = list(node.value("begin", None) or ()), list(node.value("end", None) or ())
    steps = [one or 1 for one in node.value("step", None) or ()] or [1] * len(begins)
    if len({len(begins), len(ends), len(steps)}) != 1:
        raise _refused(node, "names different numbers of axes")
    shape: list[int | None] = list(x.shape)
    for axis, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        size = shape[axis]
        shape[axis] = None if size is None else len(range(size)[begin:end:step])
    limits = (
        [
            (0 if step > 0 else 2**31 - 1) if one is None else one
            for one, step in zip(begins, steps, strict=True)
        ],
        [
            (2**31 - 1 if step > 0 else -(2**31)) if one is None else one
            for one, step in zip(ends, steps, strict=True)
        ],
        list(range(len(begins))),
        steps,
    )
    name = build.add("Slice", x.name, *(build.shape_constant(one) for one in limits))
    return [Value(name, tuple(shape))]


def _cast(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    dtype = node.value("dtype", "float32")
    if dtype not in DTYPES:
        raise _refused(node, f"casts to {dtype}")
    if dtype == "float16":
        raise _refused(node, "computes in half precision")
    if dtype == ins[0].dtype:
        return [ins[0]]
    return [Value(build.add("Cast", ins[0].name, to=DTYPES[dtype]), ins[0].shape, dtype)]


def _stack(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    axis = node.value("axis", 0) % (ins[0].rank + 1)
    parts = [build.add("Unsqueeze", one.name, build.shape_constant([axis])) for one in ins]
    shape = ins[0].shape
    name = build.add("Concat", *parts, axis=axis)
    return [Value(name, (*shape[:axis], len(ins), *shape[axis:]))]


def _tile(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, reps = ins[0], list(node.value("reps", ()))
    if len(reps) > x.rank:
        more = len(reps) - x.rank
        front = build.add("Unsqueeze", x.name, build.shape_constant(list(range(more))))
        x = Value(front, (*[1] * more, *x.shape))
    reps = [1] * (x.rank - len(reps)) + reps
    shape = tuple(None if s is None else s * r for s, r in zip(x.shape, reps, strict=True))
    return [Value(build.add("Tile", x.name, build.shape_constant(reps)), shape)]


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
    **dict.fromkeys(("Cast", "cast", "amp_cast"), _cast),
    **dict.fromkeys(("slice", "crop"), _slice),
    "LayerNorm": _layer_norm,
    "_contrib_div_sqrt_dim": _scaled,
    "depth_to_space": _blocks("DepthToSpace", _spread),
    "hard_sigmoid": _hard_sigmoid,
    "rsqrt": _inverse_root,
    "space_to_depth": _blocks("SpaceToDepth", _gathered),
    "square": _square,
    "stack": _stack,
    "tile": _tile,
}
