"""Operators that work on each element alone: they take whichever layout is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

Map = Callable[[Graph, Node], None]

# ONNX's operator -> TensorFlow Lite's, of the same meaning
UNARY = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "HardSwish": "HARD_SWISH",
    "Log": "LOG",
    "Neg": "NEG",
    "Not": "LOGICAL_NOT",
    "Round": "ROUND",
    "Sigmoid": "LOGISTIC",
    "Sign": "SIGN",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}
BINARY = {
    "Add": "ADD",
    "And": "LOGICAL_AND",
    "Div": "DIV",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Mul": "MUL",
    "Or": "LOGICAL_OR",
    "Pow": "POW",
    "Sub": "SUB",
    "Xor": "NOT_EQUAL",
}
VARIADIC = {"Max": "MAXIMUM", "Min": "MINIMUM", "Sum": "ADD"}
ANSWERS = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])


def each(make: Callable[[Graph, Node, Tensor], Tensor]) -> Map:
    """Return the map of an operator of one input, from tensor to tensor."""

    def apply(graph: Graph, node: Node) -> None:
        name = node.input(0)
        order = graph.values.first(name)
        graph.put(node.outputs[0], make(graph, node, graph.form(name, order)), order)

    return apply


def unary(kind: str) -> Map:
    """Return the map of an operator that is one of TensorFlow Lite's."""
    return each(lambda graph, _node, x: graph.emit.unary(kind, x))


def operands(graph: Graph, names: tuple[str, ...]) -> tuple[list[Tensor], Any]:
    """Return the inputs ready to broadcast, and the form that they are in."""
    rank = max(graph.rank(name) for name in names)
    order = graph.values.common(names, rank)
    return [graph.values.aligned(name, rank, order) for name in names], order


def binary(kind: str, *, answer: bool = False) -> Map:
    """Return the map of an operator of two inputs that broadcast."""

    def apply(graph: Graph, node: Node) -> None:
        if node.attribute("broadcast", 0) or "axis" in node.attributes:
            raise UnsupportedError("it broadcasts as opset 6 did")
        (a, b), order = operands(graph, node.inputs)
        if kind == "POW" and a.dtype != b.dtype:
            b = graph.emit.cast(b, a.dtype)
        made = graph.emit.binary(kind, a, b, "bool" if answer else None)
        graph.put(node.outputs[0], made, order)

    return apply


def variadic(kind: str) -> Map:
    """Return the map of an operator that folds its inputs by one of two."""

    def apply(graph: Graph, node: Node) -> None:
        tensors, order = operands(graph, node.inputs)
        made = tensors[0]
        for other in tensors[1:]:
            made = graph.emit.binary(kind, made, other)
        graph.put(node.outputs[0], made, order)

    return apply


def mean(graph: Graph, node: Node) -> None:
    """Map Mean, of several tensors."""
    tensors, order = operands(graph, node.inputs)
    made = tensors[0]
    for other in tensors[1:]:
        made = graph.emit.binary("ADD", made, other)
    share = graph.emit.scalar(1 / len(tensors), made)
    graph.put(node.outputs[0], graph.emit.binary("MUL", made, share), order)


def identity(graph: Graph, node: Node) -> None:
    """Map what leaves its input as it is."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise UnsupportedError("its mask is read")
    if node.operator == "Dropout" and node.input(2):
        training = graph.constant(node.input(2))
        if training is None or training.any():
            raise UnsupportedError("it is in training mode")
    graph.values.same(node.outputs[0], node.input(0))


def cast(graph: Graph, node: Node) -> None:
    """Map Cast."""
    goal = graph.dtype(node.outputs[0])
    name = node.input(0)
    order = graph.values.first(name)
    tensor = graph.form(name, order)
    if tensor.dtype == goal:
        graph.values.same(node.outputs[0], name)
        return
    graph.put(node.outputs[0], graph.emit.cast(tensor, goal), order)


def activation(graph: Graph, node: Node, kind: str) -> None:
    """Map an activation, done by the operator before it where that can."""
    name = node.input(0)
    order = graph.values.first(name)
    tensor = graph.form(name, order)
    alone = graph.values.readers.get(name, 0) == 1
    if kind in ("RELU", "RELU6", "RELU_N1_TO_1") and alone and graph.emit.fused(tensor, kind):
        graph.put(node.outputs[0], tensor, order)
        return
    graph.put(node.outputs[0], graph.emit.unary(kind, tensor), order)


def relu(graph: Graph, node: Node) -> None:
    """Map Relu; integers have none of their own."""
    if graph.dtype(node.input(0)) == "float32":
        activation(graph, node, "RELU")
    else:
        each(lambda g, _n, x: g.emit.binary("MAXIMUM", x, g.emit.scalar(0, x)))(graph, node)


CLIPS = {
    (0.0, 6.0): "RELU6",
    (0.0, math.inf): "RELU",
    (-1.0, 1.0): "RELU_N1_TO_1",
    (0.0, 1.0): "RELU_0_TO_1",
}


def clip(graph: Graph, node: Node) -> None:
    """Map Clip; bounds are attributes up to opset 10 and inputs since."""
    name = node.input(0)
    bounds: list[Any] = [None, None]
    for at, word in enumerate(("min", "max")):
        if word in node.attributes:
            bounds[at] = node.attributes[word]
        elif node.input(at + 1):
            known = graph.constant(node.input(at + 1))
            bounds[at] = node.input(at + 1) if known is None else known.item()
    if graph.dtype(name) == "float32" and not any(isinstance(each, str) for each in bounds):
        low = -math.inf if bounds[0] is None or bounds[0] < -3e38 else float(bounds[0])
        high = math.inf if bounds[1] is None or bounds[1] > 3e38 else float(bounds[1])
        if (low, high) in CLIPS:
            activation(graph, node, CLIPS[low, high])
            return
        bounds = [low if low > -math.inf else None, high if high < math.inf else None]
    order = graph.values.first(name)
    made = graph.form(name, order)
    # ONNX: Min(max, Max(x, min)), so that the upper bound wins
    for kind, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True):
        if bound is not None:
            limit = graph.own(bound) if isinstance(bound, str) else graph.emit.scalar(bound, made)
            made = graph.emit.binary(kind, made, limit)
    if made is graph.form(name, order):
        graph.values.same(node.outputs[0], name)
    else:
        graph.put(node.outputs[0], made, order)


def where(graph: Graph, node: Node) -> None:
    """Map Where."""
    (condition, a, b), order = operands(graph, node.inputs)
    graph.put(node.outputs[0], graph.emit.select(condition, a, b), order)


def prelu(graph: Graph, node: Node) -> None:
    """Map PRelu; its slopes broadcast to the input."""
    (x, slope), order = operands(graph, node.inputs)
    if slope.rank < x.rank:
        slope = graph.emit.reshape(slope, (1,) * (x.rank - slope.rank) + slope.shape)
    if slope.data is not None and len(set(slope.data.reshape(-1).tolist())) == 1:
        made = graph.emit.unary("LEAKY_RELU", x, alpha=float(slope.data.flat[0]))
    elif x.rank == 4 and slope.data is not None and slope.shape[0] == 1:
        made = graph.emit.add("PRELU", [x, graph.emit.reshape(slope, slope.shape[1:])], x.shape)
    else:
        zero = graph.emit.scalar(0, x)
        below = graph.emit.binary("MUL", slope, graph.emit.binary("MINIMUM", x, zero))
        made = graph.emit.binary("ADD", graph.emit.unary("RELU", x), below)
    graph.put(node.outputs[0], made, order)


def mod(graph: Graph, node: Node) -> None:
    """Map Mod, whose result has the sign of the divisor (`fmod` has that of the dividend)."""
    if node.attribute("fmod", 0):
        raise UnsupportedError("fmod is not among TensorFlow Lite's operators")
    binary("FLOOR_MOD")(graph, node)


def is_infinite(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """IsInf."""
    if not (node.attribute("detect_positive", 1) and node.attribute("detect_negative", 1)):
        raise UnsupportedError("it looks at one sign only")
    size = graph.emit.unary("ABS", x)
    return graph.emit.binary("EQUAL", size, graph.emit.scalar(math.inf, x), "bool")
