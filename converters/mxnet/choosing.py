"""MXNet operators that choose, sort and measure along an axis, as ONNX nodes."""

from __future__ import annotations

from deploykit._plugins.converters.mxnet.emission import Emit, Value, as_line
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

FLOAT32, INT64 = 1, 7
"""ONNX's numbers of the dtypes."""


def _refused(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(f"node `{node.name}` {what}", operators=(node.op,))


def _without(value: Value, axis: int, keep: bool) -> tuple[int | None, ...]:
    rest = value.shape[axis + 1 :]
    return (*value.shape[:axis], 1, *rest) if keep else (*value.shape[:axis], *rest)


def _line(build: GraphBuilder, x: Value) -> Value:
    size = 1
    for one in x.shape:
        size = size * one if one is not None and size else 0
    return Value(build.add("Reshape", x.name, build.shape_constant([-1])), (size or None,))


def _place(operator: str) -> Emit:
    """Return where the largest or smallest is, as a number."""

    def emit(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        x, axis = ins[0], node.value("axis", None)
        if node.op == "argmax_channel":
            axis = 1
        keep = node.value("keepdims", False)
        if axis is None:
            rank, x, axis = x.rank, _line(build, x), 0
            name = build.add("Cast", build.add(operator, x.name, axis=0, keepdims=1), to=FLOAT32)
            if keep:
                return [
                    Value(build.add("Reshape", name, build.shape_constant([1] * rank)), (1,) * rank)
                ]
            return [Value(name, (1,))]
        axis = axis % x.rank
        name = build.add(
            "Cast", build.add(operator, x.name, axis=axis, keepdims=int(keep)), to=FLOAT32
        )
        return [as_line(build, Value(name, _without(x, axis, keep)))]

    return emit


def _norm(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, kind, wanted = ins[0], node.value("ord", 2), node.value("axis", ())
    axes = [axis % x.rank for axis in wanted] or list(range(x.rank))
    if kind not in (1, 2) or (kind == 1 and len(axes) > 1):
        raise _refused(node, f"measures by the norm {kind} over {len(axes)} axes")
    keep = node.value("keepdims", False)
    operator = "ReduceL2" if kind == 2 else "ReduceL1"
    name = build.add(operator, x.name, axes=axes, keepdims=int(keep))
    shape = tuple(1 if at in axes else s for at, s in enumerate(x.shape) if keep or at not in axes)
    return [as_line(build, Value(name, shape))]


def _top(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, axis = ins[0], node.value("axis", -1)
    if node.attrs.get("axis") == "None":
        x, axis = _line(build, x), 0
    axis, is_sort = axis % x.rank, node.op in ("sort", "argsort")
    up, count = node.value("is_ascend", is_sort), 0 if is_sort else node.value("k", 1)
    size = x.shape[axis]
    kind = {"sort": "value", "argsort": "indices"}.get(node.op) or node.value("ret_typ", "indices")
    if node.value("dtype", "float32") != "float32" or kind not in ("value", "indices", "both"):
        raise _refused(node, f"gives {kind} as {node.value('dtype', 'float32')}")
    if count < 1:
        place = build.shape_constant([axis])
        number = build.add("Gather", build.add("Shape", x.name), place)
    else:
        number = build.shape_constant([count])
    values, index = build.add_many(
        "TopK", x.name, number, count=2, axis=axis, largest=int(not up), sorted=1
    )
    shape = (*x.shape[:axis], size if count < 1 else count, *x.shape[axis + 1 :])
    both = [Value(values, shape), Value(build.add("Cast", index, to=FLOAT32), shape)]
    return {"value": both[:1], "indices": both[1:], "both": both}[kind]


def _pick(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """One element along an axis; a number beyond the end is the last (`mode=clip`)."""
    x, places = ins
    axis, keep = node.value("axis", -1) % x.rank, node.value("keepdims", False)
    size = x.shape[axis]
    if node.value("mode", "clip") != "clip" or size is None:
        raise _refused(node, "wraps around, or picks along a size that is not fixed")
    index = build.add("Cast", places.name, to=INT64)
    index = build.add("Clip", index, *(build.constant(at, dtype="int64") for at in (0, size - 1)))
    if places.rank < x.rank:
        index = build.add("Unsqueeze", index, build.shape_constant([axis]))
    name = build.add("GatherElements", x.name, index, axis=axis)
    if not keep:
        name = build.add("Squeeze", name, build.shape_constant([axis]))
    return [as_line(build, Value(name, _without(x, axis, keep)))]


def _one_hot(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """A number outside of the range has no one."""
    x, depth = ins[0], node.value("depth", 1)
    if node.value("dtype", "float32") != "float32":
        raise _refused(node, f"gives {node.value('dtype', 'float32')}")
    index = build.add("Cast", x.name, to=INT64)
    index = build.add("Unsqueeze", index, build.shape_constant([-1]))
    found = build.add("Equal", index, build.shape_constant(list(range(depth))))
    values = (build.constant(node.value(*one)) for one in (("on_value", 1.0), ("off_value", 0.0)))
    return [Value(build.add("Where", found, *values), (*x.shape, depth))]


def _gather_nd(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """MXNet has the axis of coordinates first, ONNX has it last."""
    x, places = ins
    depth = places.shape[0]
    if depth is None:
        raise _refused(node, "gathers by a number of coordinates that is not fixed")
    index = build.add("Cast", places.name, to=INT64)
    index = build.add("Transpose", index, perm=[*range(1, places.rank), 0])
    name = build.add("GatherND", x.name, index)
    return [Value(name, (*places.shape[1:], *x.shape[depth:]))]


EMIT: dict[str, Emit] = {
    **dict.fromkeys(("argmax", "argmax_channel"), _place("ArgMax")),
    "argmin": _place("ArgMin"),
    "norm": _norm,
    **dict.fromkeys(("topk", "sort", "argsort"), _top),
    "pick": _pick,
    "one_hot": _one_hot,
    "gather_nd": _gather_nd,
}
