"""MXNet operators that attention layers and recommenders use, as ONNX nodes."""

from __future__ import annotations

from deploykit._plugins.converters.mxnet.emission import Emit, Value, as_line, broadcast
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

FLOAT32, INT64, BOOL = 1, 7, 9
"""ONNX's numbers of the dtypes."""

COMPARISONS = {
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "lesser": "Less",
    "lesser_equal": "LessOrEqual",
    "equal": "Equal",
}


def _take(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """Rows by number; a number beyond the end is the last (`mode=clip`)."""
    rows, places = ins
    axis = node.value("axis", 0) % rows.rank
    mode = node.value("mode", "clip")
    if mode not in ("clip", "wrap"):
        raise UnsupportedError(
            f"node `{node.name}` takes rows by the mode {node.value('mode', 'clip')}",
            operators=("take(mode)",),
        )
    index = build.add("Cast", places.name, to=INT64)  # MXNet feeds indices as floats
    one = build.constant(1, dtype="int64")
    size = build.add("Gather", build.add("Shape", rows.name), build.constant(axis, dtype="int64"))
    if mode == "wrap":
        index = build.add("Mod", index, size)
    else:
        last = build.add("Sub", size, one)
        index = build.add("Clip", index, build.constant(0, dtype="int64"), last)
    name = build.add("Gather", rows.name, index, axis=axis)
    return [Value(name, (*rows.shape[:axis], *places.shape, *rows.shape[axis + 1 :]))]


def _broadcast_to(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """Zero keeps a size."""
    x, wanted = ins[0], node.value("shape", ())
    if len(wanted) != x.rank:
        raise UnsupportedError(
            f"node `{node.name}` broadcasts {x.rank} axes to {len(wanted)}",
            operators=("broadcast_to",),
        )
    if not any(wanted):
        return [x]
    sizes = build.shape_constant([size or 1 for size in wanted])
    shape = tuple(size or own for size, own in zip(wanted, x.shape, strict=True))
    return [Value(build.add("Expand", x.name, sizes), shape)]


def _is_plain(node: Node, ins: list[Value]) -> bool:
    """Whether a product of any number of axes by one or two is what ONNX's MatMul gives."""
    is_turned = node.value("transpose_a", False) or node.value("transpose_b", False)
    return not is_turned and ins[1].rank <= 2


def _products(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    if node.op == "dot" and _is_plain(node, ins):
        name = build.add("MatMul", *(one.name for one in ins))
        return [as_line(build, Value(name, (*ins[0].shape[:-1], *ins[1].shape[1:])))]
    if node.op == "dot" and any(one.rank != 2 for one in ins):
        raise UnsupportedError(
            f"node `{node.name}` multiplies tensors that are no matrices", operators=("dot(rank)",)
        )
    names, shapes = [], []
    for one, key in zip(ins, ("transpose_a", "transpose_b"), strict=True):
        name, shape = one.name, one.shape
        if node.value(key, False):
            rank = one.rank
            name = build.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])
            shape = (*shape[:-2], shape[-1], shape[-2])
        names.append(name)
        shapes.append(shape)
    outer = broadcast([shape[:-2] for shape in shapes]) if ins[0].rank > 2 else ()
    return [Value(build.add("MatMul", *names), (*outer, shapes[0][-2], shapes[1][-1]))]


def _compare(operator: str, negated: bool = False) -> Emit:
    """Comparisons give numbers, one and zero."""

    def emit_one(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        names = [one.name for one in ins]
        if node.op.endswith("_scalar"):
            names.append(build.constant(node.value("scalar", 0.0)))
        found = build.add(operator, *names)
        if negated:
            found = build.add("Not", found)
        return [Value(build.add("Cast", found, to=FLOAT32), broadcast([one.shape for one in ins]))]

    return emit_one


def _where(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    condition, x, y = ins
    name = build.add("Cast", condition.name, to=BOOL)
    if condition.rank == 1 and x.rank > 1:
        name = build.add("Reshape", name, build.shape_constant([-1, *[1] * (x.rank - 1)]))
    elif condition.rank != x.rank:
        raise UnsupportedError(
            f"node `{node.name}` chooses by another number of axes", operators=("where",)
        )
    return [Value(build.add("Where", name, x.name, y.name), x.shape)]


OPERATORS: dict[str, Emit] = {
    "take": _take,
    "broadcast_to": _broadcast_to,
    **dict.fromkeys(("batch_dot", "dot"), _products),
    "where": _where,
    **{
        f"{prefix}{name}{suffix}": _compare(operator)
        for name, operator in COMPARISONS.items()
        for prefix, suffix in (("broadcast_", ""), ("_", "_scalar"), ("_", ""))
    },
    **{
        f"{prefix}not_equal{suffix}": _compare("Equal", negated=True)
        for prefix, suffix in (("broadcast_", ""), ("_", "_scalar"), ("_", ""))
    },
}
