"""The ONNX graph made ready: opset raised, functions written out, constants folded, sizes inferred."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError
from deploykit.onnx_folding import fold
from deploykit.onnx_graph import every_node, read_whole, set_inputs
from deploykit.onnx_opset import opset_of, upgrade
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Shape
    from deploykit._plugins.targets.litert_flatbuffer.writing import Dim

    Array = np.ndarray[Any, Any]

STANDARD = ("", "ai.onnx")
OLDEST = 7
"""Before opset 7 operators broadcast by attributes."""


def folded(path: str, inputs: tuple[TensorSpec, ...], known: Collection[str]) -> onnx.ModelProto:
    """Return the model with constants folded and the inputs' sizes fixed as far as known.

    Operators that are not `known`, and that ONNX defines by others, are written out. ONNX Runtime
    folds, at the level that stays within ONNX's own operators.

    Raises SourceError where the file is no model, UnsupportedError naming all operators that are
    missing, or where ONNX Runtime cannot take it.
    """
    model = read_whole(path)
    set_inputs(model, inputs)
    _name_open_sizes(model)
    model, _ = upgrade(model, None)
    if opset_of(model) < OLDEST:
        raise UnsupportedError(f"target litert takes opset {OLDEST} and newer")
    model = _written_out(model, known)
    _refuse(model, {*known, "Constant"} if _is_flat(model) else None)
    model = _by_onnxruntime(model)
    written = _written_out(model, known)
    _refuse(written, known)
    return model if written is model else _inferred(written)


def _name_open_sizes(model: onnx.ModelProto) -> None:
    """Name every open size of an input, so that inference can follow it."""
    for number, value in enumerate(model.graph.input):
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value") and not size.dim_param:
                size.dim_param = f"input{number}_axis{axis}"


def _is_flat(model: onnx.ModelProto) -> bool:
    """Whether the graph has no branches: what is in one that folds away need not be known."""
    return not any(
        attribute.HasField("g") or attribute.graphs
        for node in model.graph.node
        for attribute in node.attribute
    )


def _written_out(model: onnx.ModelProto, known: Collection[str]) -> onnx.ModelProto:
    """Return the model with functions, its own and ONNX's, in place of calls of them."""
    import onnx
    import onnx.inliner

    def is_function(node: onnx.NodeProto) -> bool:
        if node.domain not in STANDARD or node.op_type in known:
            return False
        try:
            schema: Any = onnx.defs.get_schema(node.op_type, opset_of(model), "")
        except onnx.defs.SchemaError:
            return False
        return bool(schema.has_function or schema.has_context_dependent_function)

    if model.functions:
        model = onnx.inliner.inline_local_functions(model, True)
    if not any(is_function(node) for node in every_node(model.graph)):
        return model
    types = onnx.shape_inference.infer_shapes(model)
    # the inliner looks for the types of constants among those of other values
    types.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(each.name, each.data_type, list(each.dims))
        for each in types.graph.initializer
    )
    kept = [("", name) for name in known]
    try:
        return onnx.inliner.inline_selected_functions(
            types, kept, exclude=True, inline_schema_functions=True
        )
    except RuntimeError:
        return model  # an assertion of the inliner: the operator is refused by its name


def _refuse(model: onnx.ModelProto, known: Collection[str] | None) -> None:
    """Raise UnsupportedError naming all operators that are not known, each with one of its nodes."""
    missing: dict[str, str] = {}
    for node in every_node(model.graph):
        if node.domain not in STANDARD:
            missing.setdefault(f"{node.domain}.{node.op_type}", node.name)
        elif known is not None and node.op_type not in known:
            missing.setdefault(node.op_type, node.name)
    if missing:
        operators = tuple(sorted(missing))
        told = ", ".join(f"{each} (node `{missing[each]}`)" for each in operators)
        raise UnsupportedError(
            f"target litert cannot take operators {told}",
            hint="fixed input sizes (--shape) fold away what only computes sizes",
            operators=operators,
        )


def _by_onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    with tempfile.TemporaryDirectory(prefix="deploykit-litert-") as folder:
        saved = fold(model, Path(folder), target="litert")
        # sizes are inferred while large weights are still in their file
        made = _inferred(onnx.load(saved, load_external_data=False))
        onnx.load_external_data_for_model(made, folder)
        return made


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the sizes of its values, as far as ONNX can infer them."""
    import onnx

    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def shapes_and_dtypes(
    model: onnx.ModelProto,
) -> tuple[dict[str, Shape | None], dict[str, str]]:
    """Return sizes and dtype of every value; an open size without a name gets one of its own."""
    shapes: dict[str, Shape | None] = {}
    dtypes: dict[str, str] = {}
    for value in (*model.graph.value_info, *model.graph.output, *model.graph.input):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            continue
        if kind.elem_type:
            dtypes[value.name] = dtype_name(kind.elem_type)
        if not kind.HasField("shape"):
            shapes.setdefault(value.name, None)
            continue
        found: list[Dim] = []
        for axis, size in enumerate(kind.shape.dim):
            if size.HasField("dim_value"):
                found.append(int(size.dim_value))
            else:
                found.append(size.dim_param or f"{value.name}.{axis}")
        shapes[value.name] = tuple(found)
    for tensor in model.graph.initializer:
        dtypes[tensor.name] = dtype_name(tensor.data_type)
        shapes[tensor.name] = tuple(tensor.dims)
    return shapes, dtypes


def dtype_name(kind: int) -> str:
    """Return numpy's name of an ONNX element type, or ONNX's where numpy has none."""
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(kind).name)
    except (KeyError, ValueError):
        return str(onnx.TensorProto.DataType.Name(kind).lower())


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values: numbers, texts, lists, arrays."""
    import onnx

    made: dict[str, Any] = {}
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        elif isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], bytes):
            value = [each.decode("utf-8", "replace") for each in value]
        made[item.name] = value
    return made
