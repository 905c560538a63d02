"""Activations that TensorFlow Lite has no operator for, written out by their definitions.

https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Emitter
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor


def times(emit: Emitter, x: Tensor, factor: float) -> Tensor:
    """Return `x` times a number."""
    return x if factor == 1 else emit.binary("MUL", x, emit.scalar(factor, x))


def plus(emit: Emitter, x: Tensor, term: float) -> Tensor:
    """Return `x` plus a number."""
    return x if term == 0 else emit.binary("ADD", x, emit.scalar(term, x))


def leaky_relu(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """LeakyRelu."""
    return graph.emit.unary("LEAKY_RELU", x, alpha=float(node.attribute("alpha", 0.01)))


def _negative_part(emit: Emitter, x: Tensor) -> Tensor:
    return emit.binary("MINIMUM", x, emit.scalar(0, x))


def _exponential(emit: Emitter, x: Tensor, alpha: float, scale: float) -> Tensor:
    """alpha * (exp(min(x, 0) / scale) - 1): TensorFlow Lite's ELU is exact near zero."""
    below = emit.unary("ELU", times(emit, _negative_part(emit, x), 1 / scale))
    return times(emit, below, alpha)


def elu(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Elu: x above zero, alpha (e^x - 1) below."""
    alpha = float(node.attribute("alpha", 1.0))
    if alpha == 1:
        return graph.emit.unary("ELU", x)
    above = graph.emit.unary("RELU", x)
    return graph.emit.binary("ADD", above, _exponential(graph.emit, x, alpha, 1))


def celu(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Celu: x above zero, alpha (e^(x / alpha) - 1) below."""
    alpha = float(node.attribute("alpha", 1.0))
    above = graph.emit.unary("RELU", x)
    return graph.emit.binary("ADD", above, _exponential(graph.emit, x, alpha, alpha))


def selu(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Selu: gamma times Elu."""
    alpha = float(node.attribute("alpha", 1.67326319217681884765625))
    gamma = float(node.attribute("gamma", 1.05070102214813232421875))
    above = graph.emit.unary("RELU", x)
    whole = graph.emit.binary("ADD", above, _exponential(graph.emit, x, alpha, 1))
    return times(graph.emit, whole, gamma)


def clamped_line(emit: Emitter, x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return alpha x + beta, within 0 and 1."""
    return emit.unary("RELU_0_TO_1", plus(emit, times(emit, x, alpha), beta))


def hard_sigmoid(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """HardSigmoid."""
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    return clamped_line(graph.emit, x, alpha, beta)


def softplus(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Softplus: log(1 + e^x), as max(x, 0) + log(1 + e^-|x|), which cannot overflow."""
    emit = graph.emit
    fading = emit.unary("EXP", emit.unary("NEG", emit.unary("ABS", x)))
    return emit.binary("ADD", emit.unary("RELU", x), emit.unary("LOG", plus(emit, fading, 1)))


def softsign(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Softsign: x / (1 + |x|)."""
    return graph.emit.binary("DIV", x, plus(graph.emit, graph.emit.unary("ABS", x), 1))


def mish(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Mish: x tanh(softplus(x))."""
    return graph.emit.binary("MUL", x, graph.emit.unary("TANH", softplus(graph, node, x)))


def swish(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Swish: x sigmoid(alpha x)."""
    inner = times(graph.emit, x, float(node.attribute("alpha", 1.0)))
    return graph.emit.binary("MUL", x, graph.emit.unary("LOGISTIC", inner))


def thresholded_relu(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """ThresholdedRelu: x above alpha, else 0."""
    limit = graph.emit.scalar(float(node.attribute("alpha", 1.0)), x)
    above = graph.emit.binary("GREATER", x, limit, "bool")
    return graph.emit.select(above, x, graph.emit.scalar(0, x))


def reciprocal(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Reciprocal."""
    return graph.emit.binary("DIV", graph.emit.scalar(1, x), x)


def tan(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Tan."""
    return graph.emit.binary("DIV", graph.emit.unary("SIN", x), graph.emit.unary("COS", x))


def _angle(emit: Emitter, y: Tensor, x: Tensor) -> Tensor:
    return emit.add("ATAN2", [y, x], y.shape)


def atan(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Atan: the angle of (1, x)."""
    ones = plus(graph.emit, graph.emit.add("ZEROS_LIKE", [x], x.shape), 1)
    return _angle(graph.emit, x, ones)


def _leg(emit: Emitter, x: Tensor) -> Tensor:
    """sqrt(1 - x^2), as sqrt((1 - x) (1 + x)), which keeps its digits near one."""
    below = emit.binary("SUB", emit.scalar(1, x), x)
    return emit.unary("SQRT", emit.binary("MUL", below, plus(emit, x, 1)))


def asin(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Asin: the angle of (sqrt(1 - x^2), x)."""
    return _angle(graph.emit, x, _leg(graph.emit, x))


def acos(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Acos: the angle of (x, sqrt(1 - x^2))."""
    return _angle(graph.emit, _leg(graph.emit, x), x)


def is_nan(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """IsNaN: only that differs from itself."""
    return graph.emit.binary("NOT_EQUAL", x, x, "bool")


def gelu(graph: Graph, node: Node, x: Tensor) -> Tensor:
    """Gelu, by the error function or by tanh."""
    return graph.emit.unary("GELU", x, approximate=node.attribute("approximate", "none") == "tanh")


def erf(graph: Graph, _node: Node, x: Tensor) -> Tensor:
    """Erf, from Gelu where that is well conditioned, from its series near zero.

    gelu(x) = x (1 + erf(x / sqrt 2)) / 2, so erf(z) = sqrt(2) gelu(sqrt(2) z) / z - 1. Below |z| = 0.5
    that loses digits, and the series 2 / sqrt(pi) (z - z^3/3 + z^5/10 - ...) is exact to 1e-8.
    """
    emit = graph.emit
    # erf is odd: what is beyond the limit is 1 in float32
    z = emit.binary("MINIMUM", emit.binary("MAXIMUM", x, emit.scalar(-4, x)), emit.scalar(4, x))
    square = emit.binary("MUL", z, z)
    series: Tensor | None = None
    for term in range(7, -1, -1):
        factor = (-1) ** term / (math.factorial(term) * (2 * term + 1)) * 2 / math.sqrt(math.pi)
        if series is None:
            series = times(emit, square, factor)
            continue
        series = plus(emit, series, factor)
        series = emit.binary("MUL", series, square if term else z)
    near = emit.binary("LESS", emit.unary("ABS", z), emit.scalar(0.5, z), "bool")
    divisor = emit.select(near, emit.scalar(1, z), z)
    smooth = emit.unary("GELU", times(emit, z, math.sqrt(2)), approximate=False)
    far = plus(emit, times(emit, emit.binary("DIV", smooth, divisor), math.sqrt(2)), -1)
    assert series is not None
    return emit.select(near, series, far)
