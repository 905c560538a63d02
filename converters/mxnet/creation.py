"""MXNet operators that make arrays, or stretch them to another shape, as ONNX nodes."""

from __future__ import annotations

from deploykit._plugins.converters.mxnet.emission import Emit, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

DTYPES = ("float32", "int32", "int64")


def _refused(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(f"node `{node.name}` {what}", operators=(node.op,))


def _held(build: GraphBuilder, node: Node, array: object) -> list[Value]:
    import numpy as np

    dtype = node.value("dtype", "float32")
    dtype = "float32" if dtype in ("None", "-1") else dtype
    if dtype not in DTYPES:
        raise _refused(node, f"makes an array of {dtype}")
    made = np.asarray(array, dtype=dtype)
    return [Value(build.constant(made), made.shape, dtype, made)]


def _filled(number: float) -> Emit:
    """A size of zero is one that MXNet infers, as the batch of a first state: one, which broadcasts."""

    def emit(build: GraphBuilder, node: Node, _ins: list[Value]) -> list[Value]:
        import numpy as np

        value = node.value("value", number)
        sizes = [size or 1 for size in node.value("shape", ())] or [1]
        return _held(build, node, np.full(sizes, value))

    return emit


def _arange(build: GraphBuilder, node: Node, _ins: list[Value]) -> list[Value]:
    import numpy as np

    start, stop = node.value("start", 0.0), node.value("stop", None)
    if stop is None:
        start, stop = 0.0, start
    if node.value("infer_range", False):
        raise _refused(node, "counts to a number that is inferred")
    steps = np.arange(start, float(stop), node.value("step", 1.0))
    return _held(build, node, np.repeat(steps, node.value("repeat", 1)))


def _like(number: float) -> Emit:
    def emit(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
        from onnx import helper

        value = helper.make_tensor("value", 1, [1], [number])
        name = build.add("ConstantOfShape", build.add("Shape", ins[0].name), value=value)
        return [Value(name, ins[0].shape)]

    return emit


def _arange_like(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, axis = ins[0], node.value("axis", None)
    if node.value("repeat", 1) != 1:
        raise _refused(node, "repeats each number")
    size = build.add("Size", x.name)
    if axis is not None:
        place = build.constant(axis % x.rank, dtype="int64")
        size = build.add("Gather", build.add("Shape", x.name), place)
    zero, one = (build.constant(number, dtype="int64") for number in (0, 1))
    name = build.add("Cast", build.add("Range", zero, size, one), to=1)
    name = build.add("Mul", name, build.constant(node.value("step", 1.0)))
    name = build.add("Add", name, build.constant(node.value("start", 0.0)))
    if axis is None:
        return [Value(build.add("Reshape", name, build.add("Shape", x.name)), x.shape)]
    return [Value(name, (x.shape[axis % x.rank],))]


def _broadcast_axis(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = [axis % x.rank for axis in node.value("axis", ())]
    sizes = dict(zip(axes, node.value("size", ()), strict=True))
    return [_expanded(build, x, sizes)]


def _expanded(build: GraphBuilder, x: Value, sizes: dict[int, int]) -> Value:
    target = build.shape_constant([sizes.get(at, 1) for at in range(x.rank)])
    shape = tuple(sizes.get(at, size) for at, size in enumerate(x.shape))
    return Value(build.add("Expand", x.name, target), shape)


def _broadcast_like(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, like = ins
    ours, theirs = node.value("lhs_axes", ()), node.value("rhs_axes", ())
    if not ours:
        shape = tuple(b if a == 1 else a for a, b in zip(x.shape, like.shape, strict=True))
        return [Value(build.add("Expand", x.name, build.add("Shape", like.name)), shape)]
    sizes: dict[int, int] = {}
    for a, b in zip(ours, theirs, strict=True):
        size = like.shape[b % like.rank]
        if size is None:
            raise _refused(node, "broadcasts to a size that is not fixed")
        sizes[a % x.rank] = size
    return [_expanded(build, x, sizes)]


def _slice_like(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, like = ins
    axes = [axis % x.rank for axis in node.value("axes", ())] or list(range(x.rank))
    places = build.shape_constant(axes)
    ends = build.add("Gather", build.add("Shape", like.name), places)
    name = build.add("Slice", x.name, build.shape_constant([0] * len(axes)), ends, places)
    shape = tuple(like.shape[at] if at in axes else size for at, size in enumerate(x.shape))
    return [Value(name, shape)]


def _reshape_like(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, like = ins
    if any(node.value(f"{side}_{end}", None) is not None for side in ("lhs", "rhs") for end in ("begin", "end")):  # fmt: skip
        raise _refused(node, "takes over a part of a shape")
    return [Value(build.add("Reshape", x.name, build.add("Shape", like.name)), like.shape)]


def _repeat(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    import numpy as np

    x, axis = ins[0], node.value("axis", None)
    if axis is None:
        flat = build.add("Reshape", x.name, build.shape_constant([-1]))
        known = [size for size in x.shape if size is not None]
        total = int(np.prod(known)) if len(known) == x.rank else None
        x, axis = Value(flat, (total,)), 0
    axis %= x.rank
    size, times = x.shape[axis], node.value("repeats", 1)
    if size is None:
        raise _refused(node, "repeats along a size that is not fixed")
    index = build.shape_constant([int(at) for at in np.repeat(np.arange(size), times)])
    shape = (*x.shape[:axis], size * times, *x.shape[axis + 1 :])
    return [Value(build.add("Gather", x.name, index, axis=axis), shape)]


def _reverse(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = [axis % x.rank for axis in node.value("axis", ())]
    count = len(axes)
    limits = ([2**31 - 1] * count, [-(2**31)] * count, axes, [-1] * count)
    name = build.add("Slice", x.name, *(build.shape_constant(one) for one in limits))
    return [Value(name, x.shape)]


EMIT: dict[str, Emit] = {
    "_zeros": _filled(0.0),
    "_ones": _filled(1.0),
    "_full": _filled(0.0),
    "_arange": _arange,
    "zeros_like": _like(0.0),
    "ones_like": _like(1.0),
    "_contrib_arange_like": _arange_like,
    **dict.fromkeys(("broadcast_axis", "broadcast_axes"), _broadcast_axis),
    "broadcast_like": _broadcast_like,
    "slice_like": _slice_like,
    "reshape_like": _reshape_like,
    "repeat": _repeat,
    **dict.fromkeys(("reverse", "flip"), _reverse),
}
