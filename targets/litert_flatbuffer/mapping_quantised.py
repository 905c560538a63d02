"""QuantizeLinear and DequantizeLinear, by their definition in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

    Array = np.ndarray[Any, Any]

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def _parameters(graph: Graph, node: Node, rank: int) -> tuple[Array, Array]:
    """Return scale and zero point, shaped to broadcast over the tensor."""
    import numpy as np

    if node.attribute("block_size", 0):
        raise UnsupportedError("it quantises in blocks")
    scale = graph.known(node, 1).astype(np.float32)
    zero = graph.optional(node, 2)
    zero = np.zeros(scale.shape, np.float32) if zero is None else zero.astype(np.float32)
    if scale.size > 1:
        axis = graph.axis(node, 1)
        shape = [1] * rank
        shape[axis] = scale.size
        return scale.reshape(shape), zero.reshape(shape)
    return scale.reshape(()), zero.reshape(())


def quantize(graph: Graph, node: Node) -> None:
    """Map QuantizeLinear: x / scale, rounded half to even, plus the zero point, cut to the range."""
    emit = graph.emit
    name = node.input(0)
    dtype = graph.dtype(node.outputs[0])
    if dtype not in LIMITS:
        raise UnsupportedError(f"it quantises to {dtype}")
    scale, zero = _parameters(graph, node, graph.rank(name))
    order = graph.values.first(name)
    x = graph.form(name, order)
    made = emit.binary("DIV", x, _permuted(graph, scale, order))
    made = emit.unary("ROUND", made)
    if zero.any():
        made = emit.binary("ADD", made, _permuted(graph, zero, order))
    low, high = LIMITS[dtype]
    made = emit.binary("MAXIMUM", made, emit.scalar(low, made))
    made = emit.binary("MINIMUM", made, emit.scalar(high, made))
    graph.put(node.outputs[0], emit.cast(made, dtype), order)


def dequantize(graph: Graph, node: Node) -> None:
    """Map DequantizeLinear: (x - zero point) times scale."""
    emit = graph.emit
    name = node.input(0)
    scale, zero = _parameters(graph, node, graph.rank(name))
    known = graph.constant(name)
    if known is not None:
        import numpy as np

        whole = (known.astype(np.float32) - zero) * scale
        graph.values.constants[node.outputs[0]] = whole.astype(np.float32)
        return
    order = graph.values.first(name)
    made = emit.cast(graph.form(name, order), "float32")
    if zero.any():
        made = emit.binary("SUB", made, _permuted(graph, zero, order))
    graph.put(node.outputs[0], emit.binary("MUL", made, _permuted(graph, scale, order)), order)


def _permuted(graph: Graph, array: Array, order: tuple[int, ...]) -> Tensor:
    return graph.emit.constant(array.transpose(order) if array.ndim else array)
