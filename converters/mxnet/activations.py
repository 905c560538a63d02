"""MXNet's activations and softmaxes as ONNX nodes."""

from __future__ import annotations

import math

from deploykit._plugins.converters.mxnet.emission import Emit, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

ACTIVATIONS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softrelu": "Softplus",
    "softsign": "Softsign",
}


def _activation(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    kind = node.value("act_type", "relu")
    if kind not in ACTIVATIONS:
        raise UnsupportedError(f"node `{node.name}` has the activation {kind}", operators=(kind,))
    return [Value(build.add(ACTIVATIONS[kind], ins[0].name), ins[0].shape)]


def _leaky(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    kind, x = node.value("act_type", "leaky"), ins[0]
    slope = node.value("slope", 0.25)
    if kind == "prelu":
        shape = [-1, *[1] * (x.rank - 2)]
        alpha = build.add("Reshape", ins[1].name, build.shape_constant(shape))
        name = build.add("PRelu", x.name, alpha)
    elif kind == "leaky":
        name = build.add("LeakyRelu", x.name, alpha=slope)
    elif kind == "elu":
        name = build.add("Elu", x.name, alpha=slope)
    elif kind == "selu":
        name = build.add("Selu", x.name)
    elif kind == "gelu":
        inner = build.add("Erf", build.add("Mul", x.name, build.constant(math.sqrt(0.5))))
        half = build.add("Mul", x.name, build.constant(0.5))
        name = build.add("Mul", half, build.add("Add", inner, build.constant(1.0)))
    elif kind == "rrelu":  # at inference the mean of its bounds
        bounds = node.value("lower_bound", 0.125) + node.value("upper_bound", 0.334)
        name = build.add("LeakyRelu", x.name, alpha=bounds / 2)
    else:
        raise UnsupportedError(f"node `{node.name}` has the activation {kind}", operators=(kind,))
    return [Value(name, x.shape)]


def _softmax_head(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    if node.value("multi_output", False):
        return [Value(build.add("Softmax", x.name, axis=1), x.shape)]
    if node.value("preserve_shape", False) or x.rank == 2:
        return [Value(build.add("Softmax", x.name, axis=-1), x.shape)]
    return [_flat_softmax(build, x)]


def _flat_softmax(build: GraphBuilder, x: Value) -> Value:
    """Over everything but the batch."""
    flat = build.add("Softmax", build.add("Flatten", x.name, axis=1), axis=-1)
    shape = build.add("Shape", x.name)
    return Value(build.add("Reshape", flat, shape), x.shape)


def _softmax_activation(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    if node.value("mode", "instance") == "channel":
        return [Value(build.add("Softmax", ins[0].name, axis=1), ins[0].shape)]
    # its documentation says that an instance is everything but the batch; it is the last axis
    return [Value(build.add("Softmax", ins[0].name, axis=-1), ins[0].shape)]


def _softmax(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        x = ins[0].name
        axis = node.value("axis", -1) % ins[0].rank
        if len(ins) > 1 and node.op != "softmax":
            raise UnsupportedError(
                f"node `{node.name}` is over parts of given length",
                operators=(f"{node.op}(use_length)",),
            )
        temperature = node.value("temperature", 1.0)
        if temperature != 1.0:
            x = build.add("Div", x, build.constant(temperature))
        if len(ins) > 1:
            return [_partial(build, x, ins, axis)]
        if node.op == "softmin":
            x = build.add("Neg", x)
        return [Value(build.add(operator, x, axis=node.value("axis", -1)), ins[0].shape)]

    return emit_one


def _partial(build: GraphBuilder, x: str, ins: list[Value], axis: int) -> Value:
    """Return the softmax over the first so many of each row, zero behind them."""
    value, lengths = ins
    place = build.constant(axis, dtype="int64")
    size = build.add("Gather", build.add("Shape", value.name), place)
    ends = (build.constant(number, dtype="int64") for number in (0, 1))
    first, step = ends
    times = build.add("Range", first, size, step)
    shape = [-1, *[1] * (value.rank - axis - 1)]
    times = build.add("Reshape", times, build.shape_constant(shape))
    counts = build.add("Cast", lengths.name, to=7)
    counts = build.add("Unsqueeze", counts, build.shape_constant([axis]))
    inside = build.add("Less", times, counts)
    masked = build.add("Where", inside, x, build.constant(-3.0e38))
    found = build.add("Softmax", masked, axis=axis)
    return Value(build.add("Where", inside, found, build.constant(0.0)), value.shape)


EMIT: dict[str, Emit] = {
    "Activation": _activation,
    "LeakyReLU": _leaky,
    **dict.fromkeys(("SoftmaxOutput", "Softmax"), _softmax_head),
    "SoftmaxActivation": _softmax_activation,
    "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "softmin": _softmax("Softmax"),
}
