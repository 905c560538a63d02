"""An ONNX graph with its arithmetic in fp16 or bf16, as a strongly typed network wants it.

Inputs and outputs stay as they are. Convolutions, matrix products and what lies between them are
computed in the narrow type; sums over many values, powers and the like stay in float32, as does
what is computed in branches and loops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deploykit.onnx_graph import every_node
from deploykit.onnx_opset import STANDARD, opset_of, upgrade

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

PREFIX = "deploykit_cast_"
"""Of the names of casts that were put in."""

WITH_BFLOAT16 = 22
"""The opset since which convolutions and poolings take bfloat16."""

LARGEST = {"fp16": 65504.0, "bf16": float("inf")}

# All of their float inputs and outputs have one type, the ONNX specification's `T`.
PRODUCTS = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
BETWEEN = {
    *("Add", "Sub", "Mul", "Div", "Min", "Max", "Neg", "Abs", "Where", "Clip"),
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish"),
    *("Erf", "Gelu", "Mish", "Softplus", "Softmax", "BatchNormalization"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"),
    *("Squeeze", "Tile", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
}


def narrow(model: onnx.ModelProto, precision: str) -> int:
    """Rewrite `model` in place to compute in `precision`; return how many products now do.

    `precision` is `fp16` or `bf16`. A node with a weight beyond the largest fp16 stays as it is.
    """
    import onnx

    element = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision]
    rewriting = _Rewriting(model, precision, element)
    return rewriting.run()


def lift(model: onnx.ModelProto) -> None:
    """Bring `model`, in place, to the opset in which all that is to be narrowed takes bfloat16.

    Convolutions do since 22, matrix products since 13. Raises UnsupportedError where ONNX's own
    converter cannot get there.
    """
    from onnx import defs

    own = opset_of(model)
    kinds = {node.op_type for node in model.graph.node if node.domain in STANDARD}
    for kind in kinds & (PRODUCTS | BETWEEN):
        schema = defs.get_schema(kind, own, "")
        newest = defs.get_schema(kind, min(WITH_BFLOAT16, defs.onnx_opset_version()), "")
        if not _takes_bfloat16(schema) and _takes_bfloat16(newest):
            lifted, _ = upgrade(model, WITH_BFLOAT16)
            model.CopyFrom(lifted)
            return


def _takes_bfloat16(schema: onnx.defs.OpSchema) -> bool:
    return any(
        "tensor(bfloat16)" in constraint.allowed_type_strs
        for constraint in schema.type_constraints
        if "tensor(float)" in constraint.allowed_type_strs
    )


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value of the main graph that can be told."""
    import onnx

    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "types"
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        # types need no values: gigabytes of them would be copied
        graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    graph.node.extend(model.graph.node)
    inferred = onnx.shape_inference.infer_shapes(light).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


class _Rewriting:
    def __init__(self, model: onnx.ModelProto, precision: str, element: int) -> None:
        self.graph = model.graph
        self.precision = precision
        self.element = element
        self.types = _types(model)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.constants = self.initializers | {
            node.output[0]: attribute.t
            for node in model.graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        self.used = set(self.types) | {
            name for node in every_node(model.graph) for name in (*node.input, *node.output)
        }
        self.low: dict[str, str] = {}  # value to its narrow version
        self.nodes: list[onnx.NodeProto] = []
        self.new: list[onnx.TensorProto] = []

    def run(self) -> int:
        chosen = [self._chosen(node) for node in self.graph.node]
        wanted = self._wanted_wide(chosen)
        products = 0
        for node, narrowed in zip(list(self.graph.node), chosen, strict=True):
            if not narrowed:
                self.nodes.append(node)
                continue
            products += node.op_type in PRODUCTS
            for position, name in enumerate(node.input):
                if self._is_float(name):
                    node.input[position] = self._narrow_value(name)
            self.nodes.append(node)
            for position, name in enumerate(node.output):
                if not self._is_float(name):
                    continue
                node.output[position] = self.low[name] = self._fresh(name)
                if name in wanted:
                    self._cast(node.output[position], name, _FLOAT)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._replace_weights()
        # what was computed before spoke of the wide types
        del self.graph.value_info[:]
        return products

    def _chosen(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in PRODUCTS | BETWEEN or node.domain not in STANDARD:
            return False
        if any(self.types.get(name, 0) == 0 for name in (*node.input, *node.output) if name):
            return False  # a type that cannot be told
        floats = [name for name in (*node.input, *node.output) if self._is_float(name)]
        if not any(name in node.output for name in floats):
            return False
        return all(self._fits(name) for name in floats)

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == _FLOAT

    def _fits(self, name: str) -> bool:
        import numpy as np
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        if tensor is None or self.precision != "fp16":
            return True
        values = numpy_helper.to_array(tensor)
        finite = values[np.isfinite(values)]
        return finite.size == 0 or float(np.abs(finite).max()) <= LARGEST["fp16"]

    def _wanted_wide(self, chosen: Iterable[bool]) -> set[str]:
        """Return the values that something needs in float32: an output, a node left as it is."""
        wanted = {value.name for value in self.graph.output}
        for node, narrowed in zip(self.graph.node, chosen, strict=True):
            if not narrowed:
                wanted.update(node.input)
                for attribute in node.attribute:
                    for inner in (*attribute.graphs, attribute.g):
                        for each in every_node(inner):
                            wanted.update(each.input)
                        wanted.update(value.name for value in inner.output)
        return wanted

    def _narrow_value(self, name: str) -> str:
        if name not in self.low:
            self.low[name] = self._fresh(name)
            if name in self.initializers:
                self.new.append(
                    _narrow_tensor(self.initializers[name], self.low[name], self.element)
                )
            else:
                self._cast(name, self.low[name], self.element)
        return self.low[name]

    def _cast(self, source: str, result: str, to: int) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Cast", [source], [result], PREFIX + result, to=to))

    def _fresh(self, name: str) -> str:
        made = f"{name}_{self.precision}"
        while made in self.used:
            made += "_"
        self.used.add(made)
        return made

    def _replace_weights(self) -> None:
        still = {name for node in every_node(self.graph) for name in node.input}
        still |= {value.name for value in self.graph.output}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in still]
        if len(kept) != len(self.graph.initializer):
            kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
            gone = {tensor.name for tensor in self.graph.initializer} - {t.name for t in kept}
            inputs = [value for value in self.graph.input if value.name not in gone]
            del self.graph.initializer[:]
            self.graph.initializer.extend(kept)
            if len(inputs) != len(self.graph.input):
                inputs = [type(value).FromString(value.SerializeToString()) for value in inputs]
                del self.graph.input[:]
                self.graph.input.extend(inputs)
        self.graph.initializer.extend(self.new)


_FLOAT = 1  # onnx.TensorProto.FLOAT; the module is imported without onnx


def _narrow_tensor(tensor: onnx.TensorProto, name: str, element: int) -> onnx.TensorProto:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    values = np.ascontiguousarray(numpy_helper.to_array(tensor), dtype=np.float32)
    made = onnx.TensorProto(name=name, data_type=element, dims=tensor.dims)
    if element == onnx.TensorProto.FLOAT16:
        made.raw_data = values.astype("<f2").tobytes()
    else:
        made.raw_data = bfloat16_bits(values).astype("<u2").tobytes()
    return made


def bfloat16_bits(values: Array) -> Array:
    """Return float32 `values` as the 16 bits of bfloat16 each, rounded to nearest, ties to even."""
    import numpy as np

    bits = values.reshape(-1).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    # rounding could carry a NaN's digits into its sign; one digit keeps it what it is
    quiet = (bits >> 16) | np.uint32(0x40)
    found: Array = np.where(np.isnan(values.reshape(-1)), quiet, rounded).astype(np.uint16)
    return found
