"""Normalisations, written out: mean, squared difference, scale and shift.

https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer.emitting import NeedsSizeError
from deploykit._plugins.targets.litert_flatbuffer.mapping_activations import plus
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.values import channels_last

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor


def normalised(graph: Graph, x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """Return `x` with mean 0 and variance 1 over `axes`."""
    emit = graph.emit
    mean = emit.reduce("MEAN", x, axes, keep=True)
    variance = emit.reduce("MEAN", emit.binary("SQUARED_DIFFERENCE", x, mean), axes, keep=True)
    scale = emit.unary("RSQRT", plus(emit, variance, epsilon))
    return emit.binary("MUL", emit.binary("SUB", x, mean), scale)


def batch_normalization(graph: Graph, node: Node) -> None:
    """Map BatchNormalization: one factor and one term per channel."""
    import numpy as np

    if node.attribute("training_mode", 0) or any(node.outputs[1:]):
        raise UnsupportedError("it is in training mode")
    scale, bias, mean, variance = (graph.known(node, at) for at in range(1, 5))
    epsilon = np.float32(node.attribute("epsilon", 1e-5))
    factor = scale / np.sqrt(variance.astype(np.float32) + epsilon)
    term = bias - mean * factor
    name = node.input(0)
    rank = graph.rank(name)
    order = graph.values.first(name)
    x = graph.form(name, order)
    shape = [len(factor) if axis == 1 else 1 for axis in order[:rank]]
    for kind, array in (("MUL", factor), ("ADD", term)):
        x = graph.emit.binary(kind, x, graph.emit.constant(array.reshape(shape), "float32"))
    graph.put(node.outputs[0], x, order)


def instance_normalization(graph: Graph, node: Node) -> None:
    """Map InstanceNormalization, over space."""
    name = node.input(0)
    order = graph.values.first(name)
    x = graph.form(name, order)
    axes = [at for at, axis in enumerate(order) if axis >= 2]
    made = normalised(graph, x, axes, float(node.attribute("epsilon", 1e-5)))
    shape = tuple(graph.shape(name)[1] if axis == 1 else 1 for axis in order)
    for kind, at in (("MUL", 1), ("ADD", 2)):
        made = graph.emit.binary(kind, made, graph.emit.reshape(graph.own(node.input(at)), shape))
    graph.put(node.outputs[0], made, order)


def layer_normalization(graph: Graph, node: Node) -> None:
    """Map LayerNormalization, over the axes from `axis` on."""
    if any(node.outputs[1:]):
        raise UnsupportedError("its mean or deviation is read")
    x = graph.own(node.input(0))
    axes = list(range(graph.axis(node, -1), x.rank))
    made = normalised(graph, x, axes, float(node.attribute("epsilon", 1e-5)))
    made = graph.emit.binary("MUL", made, graph.own(node.input(1)))
    if node.input(2):
        made = graph.emit.binary("ADD", made, graph.own(node.input(2)))
    graph.put(node.outputs[0], made)


def rms_normalization(graph: Graph, node: Node) -> None:
    """Map RMSNormalization: divided by the root of the mean square."""
    emit = graph.emit
    x = graph.own(node.input(0))
    axes = list(range(graph.axis(node, -1), x.rank))
    square = emit.reduce("MEAN", emit.unary("SQUARE", x), axes, keep=True)
    scale = emit.unary("RSQRT", plus(emit, square, float(node.attribute("epsilon", 1e-5))))
    made = emit.binary("MUL", emit.binary("MUL", x, scale), graph.own(node.input(1)))
    graph.put(node.outputs[0], made)


def group_normalization(graph: Graph, node: Node) -> None:
    """Map GroupNormalization; scale and shift are per channel since opset 21, before per group."""
    name = node.input(0)
    x = graph.own(name)
    groups = int(node.attributes["num_groups"])
    (channels,) = graph.sizes(name, [1])
    rest = graph.sizes(name, range(2, x.rank))
    inner = (channels // groups) * math.prod(rest)
    joined = graph.emit.reshape(x, (x.shape[0], groups, inner))
    made = normalised(graph, joined, [2], float(node.attribute("epsilon", 1e-5)))
    per_group = node.opset < 21
    if per_group:
        made = _shifted(graph, node, made, (groups, 1))
    made = graph.emit.reshape(made, x.shape)
    if not per_group:
        made = _shifted(graph, node, made, (channels, *[1] * len(rest)))
    graph.put(node.outputs[0], made)


def _shifted(graph: Graph, node: Node, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    for kind, at in (("MUL", 1), ("ADD", 2)):
        x = graph.emit.binary(kind, x, graph.emit.reshape(graph.own(node.input(at)), shape))
    return x


def lp_normalization(graph: Graph, node: Node) -> None:
    """Map LpNormalization: divided by the sum of sizes, or by the root of the sum of squares."""
    emit = graph.emit
    name = node.input(0)
    order = graph.values.first(name)
    x = graph.form(name, order)
    axes = [order.index(graph.axis(node, -1))]
    if node.attribute("p", 2) == 1:
        norm = emit.reduce("SUM", emit.unary("ABS", x), axes, keep=True)
    else:
        norm = emit.unary("SQRT", emit.reduce("SUM", emit.unary("SQUARE", x), axes, keep=True))
    zero = emit.binary("EQUAL", norm, emit.scalar(0, norm), "bool")
    norm = emit.select(zero, emit.scalar(1, norm), norm)
    graph.put(node.outputs[0], emit.binary("DIV", x, norm), order)


def lrn(graph: Graph, node: Node) -> None:
    """Map LRN: each element divided by a power of the squares of its neighbours in the channels."""
    size = int(node.attributes["size"])
    rank = graph.rank(node.input(0))
    if size % 2 == 0 or rank != 4:
        raise UnsupportedError(f"a window of {size} channels of {rank} axes")
    x = graph.form(node.input(0), channels_last(rank))
    made = graph.emit.add(
        "LOCAL_RESPONSE_NORMALIZATION",
        [x],
        x.shape,
        None,
        "LocalResponseNormalizationOptions",
        radius=size // 2,
        bias=float(node.attribute("bias", 1.0)),
        alpha=float(node.attribute("alpha", 1e-4)) / size,
        beta=float(node.attribute("beta", 0.75)),
    )
    graph.put(node.outputs[0], made, channels_last(rank))


def mean_variance_normalization(graph: Graph, node: Node) -> None:
    """Map MeanVarianceNormalization: (x - mean) / (deviation + 1e-9)."""
    emit = graph.emit
    name = node.input(0)
    order = graph.values.first(name)
    x = graph.form(name, order)
    axes = [order.index(axis % x.rank) for axis in node.attribute("axes", [0, 2, 3])]
    if not axes:
        raise NeedsSizeError("it has no axes")
    mean = emit.reduce("MEAN", x, axes, keep=True)
    variance = emit.reduce("MEAN", emit.binary("SQUARED_DIFFERENCE", x, mean), axes, keep=True)
    deviation = plus(emit, emit.unary("SQRT", variance), 1e-9)
    graph.put(node.outputs[0], emit.binary("DIV", emit.binary("SUB", x, mean), deviation), order)
