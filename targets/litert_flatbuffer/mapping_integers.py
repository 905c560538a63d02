"""Integer kernels, and the borders between stored and real numbers: QUANTIZE and DEQUANTIZE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer import mapping_shapes as shapes
from deploykit._plugins.targets.litert_flatbuffer import mapping_slices as slices
from deploykit._plugins.targets.litert_flatbuffer import mapping_windows as windows
from deploykit._plugins.targets.litert_flatbuffer.emitting import FUSED, broadcast
from deploykit._plugins.targets.litert_flatbuffer.integers import (
    AVERAGES,
    SUMS,
    IntegerNode,
    Stored,
    renamed,
    stored_by,
)
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.writing import Quantization

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Permutation
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

    Array = np.ndarray[Any, Any]

SUM_TABLES = {"Add": "AddOptions", "Mul": "MulOptions", "Sub": "SubOptions"}
MOVERS = {
    "Identity": lambda graph, node: graph.values.same(node.outputs[0], node.inputs[0]),
    "MaxPool": windows.max_pool,
    "Slice": slices.slice_,
    "Transpose": shapes.transpose,
}


def quantize(graph: Graph, node: Node) -> None:
    """Map QuantizeLinear to QUANTIZE where one scale is for all."""
    stored = stored_by(node, node.outputs[0], graph.values)
    if stored is None or not stored.whole or stored.dtype not in ("int8", "uint8"):
        raise UnsupportedError("it is none of 8 bits with one constant scale")
    name = node.input(0)
    order = graph.values.first(name)
    x = graph.form(name, order)
    made = graph.emit.add(
        "QUANTIZE", [x], x.shape, "int8", "QuantizeOptions", stored.quantization()
    )
    graph.put(node.outputs[0], made, order)


def dequantize(graph: Graph, node: Node) -> None:
    """Map DequantizeLinear: constants now, anything else when somebody wants real numbers."""
    import numpy as np

    name = node.input(0)
    stored = stored_by(node, name, graph.values)
    if stored is None:
        raise UnsupportedError("its scale is no constant")
    known = graph.constant(name)
    if known is not None:
        shape = [1] * known.ndim
        if not stored.whole:
            shape[stored.axis] = -1
        zero, scale = (
            each.reshape(shape if each.size > 1 else ()) for each in (stored.zero, stored.scale)
        )
        whole = (known.astype(np.int64) - zero).astype(np.float32) * scale
        graph.values.constants[node.outputs[0]] = whole.astype(np.float32)
        return
    if not stored.whole:
        raise UnsupportedError("it has a scale for each channel of what is no constant")
    _store(graph, stored)
    graph.values.deferred[node.outputs[0]] = name


def _store(graph: Graph, stored: Stored) -> None:
    """Give an input of the model its scale, and move it to int8."""
    order = graph.values.first(stored.name)
    tensor = graph.form(stored.name, order)
    if tensor.quantization is not None:
        return
    if stored.dtype == "int8":
        tensor.quantization = stored.quantization()
        return
    if stored.dtype != "uint8":
        raise UnsupportedError(f"it stores {stored.dtype}")
    tensor.quantization = Quantization(
        (float(stored.scale.reshape(-1)[0]),), (int(stored.zero.reshape(-1)[0]),)
    )
    made = graph.emit.add(
        "QUANTIZE", [tensor], tensor.shape, "int8", "QuantizeOptions", stored.quantization()
    )
    graph.values.replace(stored.name, made, order)


def given(graph: Graph, tensor: Tensor, dtype: str) -> Tensor:
    """Return an output as ONNX has it: uint8 where it is moved to int8 here."""
    if tensor.quantization is None or dtype != "uint8" or tensor.dtype != "int8":
        return tensor
    own = tensor.quantization
    moved = Quantization(own.scale, tuple(each + 128 for each in own.zero_point))
    return graph.emit.add("QUANTIZE", [tensor], tensor.shape, "uint8", "QuantizeOptions", moved)


def map_integers(graph: Graph, found: IntegerNode) -> None:
    """Write one node as an integer kernel."""
    graph.emit.node = found.node.name
    node = renamed(found)
    for one in found.inputs:
        if one is not None and one.name not in graph.values.constants:
            _store(graph, one)
    activation = FUSED.get(found.activation, 0)
    if node.operator == "Conv":
        _conv(graph, found, node, activation)
    elif node.operator in SUMS:
        _sum(graph, found, node, activation)
    elif node.operator in AVERAGES:
        _average(graph, found, node)
    elif node.operator in ("Gemm", "MatMul"):
        _product(graph, found, node, activation)
    else:
        MOVERS.get(node.operator, shapes.reshape)(graph, node)


def _conv(graph: Graph, found: IntegerNode, node: Node, activation: int) -> None:
    weight = found.inputs[1]
    assert weight is not None

    def stored(transposed: Array, channel: int) -> tuple[Tensor, Tensor]:
        array = _signed(transposed, weight)
        scales = tuple(float(each) for each in weight.scale.reshape(-1))
        quantization = Quantization(scales, (0,) * len(scales), channel if len(scales) > 1 else 0)
        count = array.shape[channel]
        return (
            graph.emit.constant(array, quantization=quantization),
            _bias(graph, found, count),
        )

    windows.conv(
        graph,
        node,
        windows.Integers(stored, found.output.quantization(), activation),
    )


def _signed(array: Array, stored: Stored) -> Array:
    import numpy as np

    if stored.dtype == "uint8":
        return (array.astype(np.int16) - 128).astype(np.int8)
    return array


def _bias(graph: Graph, found: IntegerNode, count: int) -> Tensor:
    """Return the bias in steps of the product of both scales, as kernels add it up."""
    import numpy as np

    x, weight = found.inputs[0], found.inputs[1]
    assert x is not None
    assert weight is not None
    scales = np.broadcast_to(
        (x.scale.reshape(-1)[0] * weight.scale.reshape(-1)).astype(np.float32), (count,)
    )
    whole = np.zeros(count, np.int32)
    if len(found.node.inputs) > 2 and found.node.inputs[2]:
        bias = found.inputs[2]
        if bias is None:
            real = graph.constant(found.node.inputs[2])
        else:
            known = graph.constant(bias.name)
            assert known is not None
            real = (known.astype(np.float64) - bias.zero) * bias.scale
        assert real is not None
        steps = np.rint(np.broadcast_to(real.reshape(-1), (count,)) / scales.astype(np.float64))
        whole = np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32)
    several = weight.scale.size > 1
    quantization = Quantization(
        tuple(float(each) for each in (scales if several else scales[:1])),
        (0,) * (count if several else 1),
    )
    return graph.emit.constant(whole, quantization=quantization)


def _product(graph: Graph, found: IntegerNode, node: Node, activation: int) -> None:
    weight = found.inputs[1]
    assert weight is not None
    array = graph.known(node, 1)
    array = _signed(array if node.attribute("transB", 0) else array.T, weight)
    scales = tuple(float(each) for each in weight.scale.reshape(-1))
    x = graph.own(node.input(0))
    inputs = [
        x,
        graph.emit.constant(array, quantization=Quantization(scales, (0,) * len(scales))),
        _bias(graph, found, len(array)),
    ]
    made = graph.emit.add(
        "FULLY_CONNECTED",
        inputs,
        (*x.shape[:-1], len(array)),
        "int8",
        "FullyConnectedOptions",
        found.output.quantization(),
        keepNumDims=True,
        fusedActivationFunction=activation,
    )
    graph.put(node.outputs[0], made)


def _sum(graph: Graph, found: IntegerNode, node: Node, activation: int) -> None:
    names = [one.name for one in found.inputs if one is not None]
    rank = max(graph.rank(name) for name in names)
    order: Permutation = graph.values.common(names, rank)
    a, b = (graph.values.aligned(name, rank, order) for name in names)
    shape = broadcast(a.shape, b.shape)
    if len(shape) > 4 and a.shape != b.shape:
        raise UnsupportedError(f"a broadcast to {len(shape)} axes")
    made = graph.emit.add(
        node.operator.upper(),
        [a, b],
        shape,
        "int8",
        SUM_TABLES[node.operator],
        found.output.quantization(),
        fusedActivationFunction=activation,
    )
    graph.put(node.outputs[0], made, order)


def _average(graph: Graph, found: IntegerNode, node: Node) -> None:
    name = node.input(0)
    order = graph.values.first(name)
    x = graph.form(name, order)
    axes = [at for at, axis in enumerate(order) if axis >= 2]
    made = graph.emit.add(
        "MEAN",
        [x, graph.emit.constant(axes, "int32")],
        [1 if at in axes else size for at, size in enumerate(x.shape)],
        "int8",
        "ReducerOptions",
        found.output.quantization(),
        keepDims=True,
    )
    graph.put(node.outputs[0], made, order)
