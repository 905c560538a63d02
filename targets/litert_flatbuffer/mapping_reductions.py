"""Reductions, and what else works along an axis: Softmax, ArgMax, TopK, CumSum, products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer.emitting import NeedsSizeError
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Permutation

Map = Callable[[Graph, Node], None]

REDUCTIONS = {
    "ReduceMax": "REDUCE_MAX",
    "ReduceMean": "MEAN",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "ReduceSum": "SUM",
}
# ONNX's reduction -> what comes before the sum, and after it
SUMS = {
    "ReduceL1": ("ABS", None),
    "ReduceL2": ("SQUARE", "SQRT"),
    "ReduceLogSum": (None, "LOG"),
    "ReduceSumSquare": ("SQUARE", None),
}


def _places(graph: Graph, node: Node) -> list[int] | None:
    """Return the axes to reduce, None where nothing is to be done."""
    axes = graph.axes(node)
    if axes is None or (not axes and "axes" not in node.attributes):
        if node.attribute("noop_with_empty_axes", 0):
            return None
        return list(range(graph.rank(node.input(0))))
    return axes


def _reduced(graph: Graph, node: Node, make: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    """Put what `make` gives for the tensor, the axes in its form, and whether they stay."""
    name = node.input(0)
    axes = _places(graph, node)
    if axes is None:
        graph.values.same(node.outputs[0], name)
        return
    order = graph.values.first(name)
    keep = bool(node.attribute("keepdims", 1))
    made = make(graph.form(name, order), [order.index(axis) for axis in axes], keep)
    graph.put(node.outputs[0], made, order if keep else _left(order, axes))


def _left(order: Permutation, axes: list[int]) -> Permutation:
    """Return the form of what remains when `axes` are gone."""
    stay = [axis for axis in order if axis not in axes]
    return tuple(sorted(stay).index(axis) for axis in stay)


def reduction(kind: str) -> Map:
    """Return the map of a reduction that is one of TensorFlow Lite's."""

    def apply(graph: Graph, node: Node) -> None:
        _reduced(graph, node, lambda x, axes, keep: graph.emit.reduce(kind, x, axes, keep=keep))

    return apply


def sum_of(before: str | None, after: str | None) -> Map:
    """Return the map of a sum with an operator before and one after."""

    def apply(graph: Graph, node: Node) -> None:
        def make(x: Tensor, axes: list[int], keep: bool) -> Tensor:
            inner = x if before is None else graph.emit.unary(before, x)
            total = graph.emit.reduce("SUM", inner, axes, keep=keep)
            return total if after is None else graph.emit.unary(after, total)

        _reduced(graph, node, make)

    return apply


def log_sum_exp(graph: Graph, node: Node) -> None:
    """Map ReduceLogSumExp; the largest is taken out first, so that nothing overflows."""

    def make(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        emit = graph.emit
        top = emit.reduce("REDUCE_MAX", x, axes, keep=True)
        inner = emit.unary("EXP", emit.binary("SUB", x, top))
        logarithm = emit.unary("LOG", emit.reduce("SUM", inner, axes, keep=True))
        whole = emit.binary("ADD", logarithm, top)
        if keep:
            return whole
        return graph.reshaped(whole, tuple(s for at, s in enumerate(x.shape) if at not in axes))

    _reduced(graph, node, make)


def arg(kind: str, table: str) -> Map:
    """Return the map of ArgMax or ArgMin."""

    def apply(graph: Graph, node: Node) -> None:
        if node.attribute("select_last_index", 0):
            raise UnsupportedError("select_last_index is set")
        name = node.input(0)
        order = graph.values.first(name)
        own_axis = graph.axis(node, 0)
        axis = order.index(own_axis)
        x = graph.form(name, order)
        where = graph.emit.constant(axis, "int32")
        shape = tuple(size for at, size in enumerate(x.shape) if at != axis)
        # outputType 4 is int64
        made = graph.emit.add(kind, [x, where], shape, "int64", table, outputType=4)
        if node.attribute("keepdims", 1):
            kept = tuple(1 if at == axis else size for at, size in enumerate(x.shape))
            graph.put(node.outputs[0], _unsqueezed(graph, made, kept, axis), order)
        else:
            graph.put(node.outputs[0], made, _left(order, [own_axis]))

    return apply


def _unsqueezed(graph: Graph, x: Tensor, shape: tuple[int | str, ...], axis: int) -> Tensor:
    if sum(not isinstance(size, int) for size in shape) <= 1:
        return graph.emit.reshape(x, shape)
    where = graph.emit.constant(axis, "int32")
    return graph.emit.add("EXPAND_DIMS", [x, where], shape, None, "ExpandDimsOptions")


def softmax(kind: str, table: str) -> Map:
    """Return the map of Softmax or LogSoftmax, done along the last axis of some form."""

    def apply(graph: Graph, node: Node) -> None:
        name = node.input(0)
        rank = graph.rank(name)
        if node.opset < 13:
            axis = graph.axis(node, 1)
            if axis != rank - 1:
                _flat_softmax(graph, node, kind, table, axis)
                return
        axis = graph.axis(node, -1)
        order = graph.values.first(name)
        if order[-1] != axis:
            order = (*(each for each in range(rank) if each != axis), axis)
        x = graph.form(name, order)
        graph.put(node.outputs[0], _softmax(graph, kind, table, x), order)

    return apply


def _softmax(graph: Graph, kind: str, table: str, x: Tensor) -> Tensor:
    options = {"beta": 1.0} if kind == "SOFTMAX" else {}
    if x.rank <= 4:
        return graph.emit.add(kind, [x], x.shape, None, table, **options)
    last = x.shape[-1]
    flat = graph.emit.reshape(x, ("rows", last))
    return graph.reshaped(graph.emit.add(kind, [flat], flat.shape, None, table, **options), x.shape)


def _flat_softmax(graph: Graph, node: Node, kind: str, table: str, axis: int) -> None:
    """Softmax of before opset 13: over all axes from `axis` on."""
    import math

    name = node.input(0)
    x = graph.own(name)
    last = math.prod(graph.sizes(name, range(axis, x.rank)))
    flat = graph.emit.reshape(x, ("rows", last))
    options = {"beta": 1.0} if kind == "SOFTMAX" else {}
    made = graph.emit.add(kind, [flat], flat.shape, None, table, **options)
    graph.put(node.outputs[0], graph.reshaped(made, x.shape))


def cum_sum(graph: Graph, node: Node) -> None:
    """Map CumSum."""
    x = graph.own(node.input(0))
    axis = int(graph.known(node, 1).item()) % x.rank
    made = graph.emit.add(
        "CUMSUM",
        [x, graph.emit.constant(axis, "int32")],
        x.shape,
        None,
        "CumsumOptions",
        exclusive=bool(node.attribute("exclusive", 0)),
        reverse=bool(node.attribute("reverse", 0)),
    )
    graph.put(node.outputs[0], made)


def top_k(graph: Graph, node: Node) -> None:
    """Map TopK of the largest, sorted, along the last axis of some form."""
    if not node.attribute("largest", 1):
        raise UnsupportedError("it takes the smallest")
    name = node.input(0)
    rank = graph.rank(name)
    axis = graph.axis(node, -1)
    count = node.attribute("k", None)
    count = int(graph.known(node, 1).item()) if count is None else int(count)
    order = (*(each for each in range(rank) if each != axis), axis)
    x = graph.form(name, order)
    size = x.shape[-1]
    if isinstance(size, str):
        raise NeedsSizeError("it chooses from an open size")
    shape = (*x.shape[:-1], count)
    values = Tensor(graph.emit.name(node.name), shape, x.dtype)
    indices = Tensor(graph.emit.name(node.name), shape, "int32")
    where = graph.emit.constant(count, "int32")
    graph.emit.write("TOPK_V2", [x, where], [values, indices], "TopKV2Options")
    if node.outputs[0]:
        graph.put(node.outputs[0], values, order)
    if len(node.outputs) > 1 and node.outputs[1]:
        graph.put(node.outputs[1], graph.emit.cast(indices, "int64"), order)
