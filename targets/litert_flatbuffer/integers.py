"""Quantised graphs in integers: which nodes between DequantizeLinear and QuantizeLinear have kernels.

An ONNX graph in QDQ form says `y = Q(op(DQ(a), DQ(b)))`. Where TensorFlow Lite has an integer kernel
for `op`, the three become that kernel; its rounding may differ from the definition by one step of the
output. Anything else is computed in float32 between DEQUANTIZE and QUANTIZE.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.node import Node
from deploykit._plugins.targets.litert_flatbuffer.writing import Quantization

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.values import Values

    Array = np.ndarray[Any, Any]

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
SUMS = frozenset({"Add", "Mul", "Sub"})
# these keep the numbers that are stored, so that both sides must have one scale
MOVES = frozenset(
    ["MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Identity"]
)
AVERAGES = frozenset({"GlobalAveragePool"})
ACTIVATIONS = {"Relu": "RELU"}


@dataclass(frozen=True)
class Stored:
    """A real tensor as it is stored: `name` is the integer value, real = scale (stored - zero)."""

    name: str
    scale: Array
    zero: Array
    axis: int
    dtype: str

    @property
    def whole(self) -> bool:
        """Whether one scale is for all."""
        return bool(self.scale.size == 1)

    def same(self, other: Stored) -> bool:
        """Whether both store a number alike."""
        return bool(
            self.whole
            and other.whole
            and self.scale.reshape(-1)[0] == other.scale.reshape(-1)[0]
            and self.zero.reshape(-1)[0] == other.zero.reshape(-1)[0]
            and self.dtype == other.dtype
        )

    def quantization(self) -> Quantization:
        """Return scale and zero point of a tensor of int8: what is uint8 in ONNX is moved by 128."""
        moved = 128 if self.dtype == "uint8" else 0
        return Quantization(
            tuple(float(each) for each in self.scale.reshape(-1)),
            tuple(int(each) - moved for each in self.zero.reshape(-1)),
        )


@dataclass(frozen=True)
class IntegerNode:
    """A node whose tensors are stored: inputs and output by their integer values."""

    node: Node
    inputs: tuple[Stored | None, ...]
    output: Stored
    activation: str = ""


def stored_by(node: Node, name: str, values: Values) -> Stored | None:
    """Return how a QuantizeLinear or DequantizeLinear stores `name`, where scales are constants."""
    import numpy as np

    scale = values.constant(node.input(1))
    if scale is None or node.attribute("block_size", 0):
        return None
    zero = values.constant(node.input(2)) if node.input(2) else None
    if node.input(2) and zero is None:
        return None
    dtype = "uint8" if zero is None else zero.dtype.name
    if node.operator == "DequantizeLinear":
        known = values.constant(name)
        dtype = values.dtype(name) if known is None else known.dtype.name
    if zero is None:
        zero = np.zeros(scale.shape, np.int64)
    scale = scale.astype(np.float32)
    return Stored(name, scale, zero.astype(np.int64), int(node.attribute("axis", 1)), dtype)


def joined(nodes: Iterable[Node], values: Values, outputs: set[str]) -> list[Node | IntegerNode]:
    """Return the nodes with those that have an integer kernel in place of what they stand for."""
    nodes = list(nodes)
    makers = {name: node for node in nodes for name in node.outputs if name}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in filter(None, node.inputs):
            readers.setdefault(name, []).append(node)

    def only_reader(name: str) -> Node | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    def source(name: str) -> Stored | None:
        maker = makers.get(name)
        if maker is None or maker.operator != "DequantizeLinear":
            return None
        return stored_by(maker, maker.input(0), values)

    gone: set[int] = set()
    made: dict[int, IntegerNode] = {}
    for node in nodes:
        if node.operator not in PRODUCTS | SUMS | MOVES | AVERAGES or len(node.outputs) != 1:
            continue
        following = only_reader(node.outputs[0])
        between: Node | None = None
        if (
            following is not None
            and following.operator in ACTIVATIONS
            and node.operator in PRODUCTS | SUMS
        ):
            between, following = following, only_reader(following.outputs[0])
        if following is None or following.operator != "QuantizeLinear":
            continue
        output = stored_by(following, following.outputs[0], values)
        sources = tuple(source(name) for name in node.inputs)
        if output is None or not _fits(node, sources, output, values):
            continue
        made[id(node)] = IntegerNode(
            node, sources, output, ACTIVATIONS[between.operator] if between else ""
        )
        gone |= {id(following)} | ({id(between)} if between else set())
    return [made.get(id(node), node) for node in nodes if id(node) not in gone]


def _fits(node: Node, sources: tuple[Stored | None, ...], output: Stored, values: Values) -> bool:
    if not output.whole or output.dtype not in ("int8", "uint8"):
        return False
    if node.operator in PRODUCTS:
        return _product_fits(node, sources, values)
    moving = sources if node.operator in SUMS else sources[:1]
    if any(one is None or not one.whole or one.dtype not in ("int8", "uint8") for one in moving):
        return False
    if any(one is not None and one.name in values.constants for one in moving):
        return False
    first = sources[0]
    return node.operator not in MOVES or (first is not None and first.same(output))


def _product_fits(node: Node, sources: tuple[Stored | None, ...], values: Values) -> bool:
    x, weight = sources[0], sources[1]
    if x is None or weight is None or not x.whole or x.dtype not in ("int8", "uint8"):
        return False
    array = values.constant(weight.name)
    if array is None or x.name in values.constants or weight.dtype not in ("int8", "uint8"):
        return False
    # kernels know weights around zero only
    if (weight.zero != (128 if weight.dtype == "uint8" else 0)).any():
        return False
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = sources[2]
        if values.constant(node.inputs[2]) is None and (
            bias is None or values.constant(bias.name) is None
        ):
            return False
    if node.operator == "Conv":
        return weight.whole or weight.axis % array.ndim == 0
    if array.ndim != 2 or node.attribute("transA", 0):
        return False
    if node.attribute("alpha", 1.0) != 1 or node.attribute("beta", 1.0) != 1:
        return False
    channel = 0 if node.attribute("transB", 0) else 1
    return weight.whole or weight.axis % 2 == channel


def renamed(found: IntegerNode) -> Node:
    """Return the node on the integer values."""
    names = [
        own if one is None else one.name
        for own, one in zip(found.node.inputs, found.inputs, strict=True)
    ]
    return replace(found.node, inputs=tuple(names), outputs=(found.output.name,))
