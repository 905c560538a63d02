"""From a prepared ONNX graph to the operators of a TensorFlow Lite model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer import graphs, mapping, patterns
from deploykit._plugins.targets.litert_flatbuffer.emitting import Emitter
from deploykit._plugins.targets.litert_flatbuffer.integers import IntegerNode
from deploykit._plugins.targets.litert_flatbuffer.integers import joined as integer_nodes
from deploykit._plugins.targets.litert_flatbuffer.mapping_integers import given as stored_output
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.values import Values
from deploykit._plugins.targets.litert_flatbuffer.writing import DTYPES, Operator, Tensor, write

from deploykit.errors import UnsupportedError
from deploykit.onnx_opset import opset_of

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

ARITHMETIC = frozenset(
    ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL", "SUB", "MEAN"]
)
HALVED = 1024
"""Constants of at least so many bytes are stored as float16 where asked for."""


@dataclass(frozen=True)
class Built:
    """A model's operators, and its inputs and outputs by their ONNX names."""

    operators: list[Operator]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    notes: tuple[str, ...] = ()

    @property
    def integer_kernels(self) -> int:
        """How many operators multiply or add stored integers."""
        return sum(
            operator.kind in ARITHMETIC and operator.outputs[0].dtype == "int8"
            for operator in self.operators
        )

    def write(self, path: Path) -> None:
        """Write the file."""
        write(path, self.operators, self.inputs, self.outputs, description="made by deploykit")


def built(model: onnx.ModelProto, *, integers: bool = False) -> Built:
    """Return the operators of a prepared model; `integers`: quantised nodes as integer kernels.

    Raises UnsupportedError naming the first node that cannot be written as it is.
    """
    import onnx

    shapes, dtypes = graphs.shapes_and_dtypes(model)
    emit = Emitter()
    values = Values(emit, shapes, dtypes)
    graph = Graph(emit, values)
    for tensor in model.graph.initializer:
        values.constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    inputs: dict[str, Tensor] = {}
    for value in model.graph.input:
        tensor = Tensor(value.name, values.shape(value.name), _dtype(values, value.name))
        inputs[value.name] = tensor
        values.put(value.name, tensor)
    nodes = [_node(each, opset_of(model)) for each in model.graph.node]
    for node in nodes:
        for name in filter(None, node.inputs):
            values.readers[name] = values.readers.get(name, 0) + 1
    outputs = [value.name for value in model.graph.output]
    for name in outputs:
        values.readers[name] = values.readers.get(name, 0) + 1
    joined: Sequence[Node | IntegerNode] = patterns.joined(nodes, values, set(outputs))
    if integers:
        joined = integer_nodes(
            [each for each in joined if isinstance(each, Node)], values, set(outputs)
        )
    for node in joined:
        if isinstance(node, IntegerNode):
            mapping.map_integer_node(graph, node)
        elif integers and node.operator in mapping.STORED:
            mapping.map_node(graph, node, mapping.STORED)
        elif not _evaluated(node, values):
            mapping.map_node(graph, node)
    given = _outputs(graph, outputs, inputs)
    return Built(_needed(emit.operators, given), inputs, given)


def _node(node: onnx.NodeProto, opset: int) -> Node:
    return Node(
        node.op_type,
        node.name or (node.output[0] if node.output else ""),
        tuple(node.input),
        tuple(node.output),
        graphs.attributes(node),
        opset,
    )


def _dtype(values: Values, name: str) -> str:
    dtype = values.dtype(name)
    if dtype not in DTYPES or dtype in ("float16", "float64"):
        raise UnsupportedError(
            f"target litert takes no {dtype} tensors: `{name}`",
            hint="convert the model to float32" if "float" in dtype else "",
        )
    return dtype


def _evaluated(node: Node, values: Values) -> bool:
    """Compute a node of constants now, by ONNX's own definition; return whether it was one."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    named = [name for name in node.inputs if name]
    if not named or any(name not in values.constants for name in named):
        return False
    made = onnx.helper.make_node(node.operator, node.inputs, node.outputs, **node.attributes)
    value = onnx.helper.make_tensor_value_info
    kinds = {name: _element(values.constants[name]) for name in named}
    graph = onnx.helper.make_graph(
        [made],
        "constant",
        [value(name, kinds[name], values.constants[name].shape) for name in dict.fromkeys(named)],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
    )
    opsets = [onnx.helper.make_opsetid("", node.opset)]
    try:
        evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
    except RuntimeError:
        return False  # it has no implementation of this opset: the operator is written like others
    found = evaluator.run(None, {name: values.constants[name] for name in named})
    for name, array in zip((each for each in node.outputs if each), found, strict=True):
        values.constants[name] = _array(array)
    return True


def _array(value: Any) -> Array:
    import numpy as np

    return np.asarray(value)


def _element(array: Array) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _outputs(graph: Graph, names: list[str], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the outputs, each one of its own."""
    emit, values = graph.emit, graph.values
    given: dict[str, Tensor] = {}
    taken = {id(tensor) for tensor in inputs.values()}
    for name in names:
        emit.node = name
        tensor = values.own(name)
        if id(tensor) in taken or tensor.data is not None:
            tensor = emit.copy(tensor)
        wanted = _dtype(values, name)
        tensor = stored_output(graph, tensor, wanted)
        if tensor.dtype != wanted:
            raise UnsupportedError(
                f"target litert computes the output `{name}` as {tensor.dtype}, not {wanted}"
            )
        taken.add(id(tensor))
        tensor.name = name
        given[name] = tensor
    return given


def _needed(operators: list[Operator], outputs: dict[str, Tensor]) -> list[Operator]:
    """Return the operators that the outputs depend on."""
    wanted = {id(tensor) for tensor in outputs.values()}
    kept = []
    for operator in reversed(operators):
        if any(id(tensor) in wanted for tensor in operator.outputs):
            kept.append(operator)
            wanted |= {id(tensor) for tensor in operator.inputs if tensor is not None}
    return kept[::-1]


def halved(model: Built) -> Built:
    """Return the model with large weights stored as float16, widened again when it is loaded.

    The arithmetic stays float32; the weights lose digits.
    """
    import numpy as np

    wide: dict[int, Tensor] = {}
    front: list[Operator] = []

    def stored(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.data is None or tensor.dtype != "float32":
            return tensor
        if tensor.data.nbytes < HALVED:
            return tensor
        if id(tensor) not in wide:
            small = np.clip(tensor.data, -65504, 65504).astype(np.float16)
            source = Tensor(f"{tensor.name};half", tensor.shape, "float16", small)
            wide[id(tensor)] = Tensor(tensor.name, tensor.shape, "float32")
            front.append(
                Operator(
                    "DEQUANTIZE", [source], [wide[id(tensor)]], "DequantizeOptions", {}, "weights"
                )
            )
        return wide[id(tensor)]

    operators = [
        Operator(op.kind, [stored(t) for t in op.inputs], op.outputs, op.table, op.options, op.node)
        for op in model.operators
    ]
    return Built([*front, *operators], model.inputs, model.outputs, model.notes)
