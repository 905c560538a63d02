"""From ONNX to the form that IREE's importer reads right: folded, typed, of one operator set."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UnsupportedError
from deploykit.onnx_folding import LARGE_BYTES, fold
from deploykit.onnx_graph import NUMBERS, check_dtypes, every_node, read_whole, set_inputs
from deploykit.protocol import Dimension, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx

# The importer reads older forms of some operators wrongly or not at all (a Slice with attributes);
# from 18 on, the reductions take their axes as inputs, which it knows for some of them only.
OPSET = 17


def check_tensors(signature: Signature) -> None:
    """Raise UnsupportedError for an input or output that has no place in IREE's buffers."""
    specs = (*signature.inputs, *signature.outputs)
    check_dtypes(specs, NUMBERS, target="iree")
    for spec in specs:
        if spec.shape is None:
            raise UnsupportedError(
                f"target iree needs to know how many axes a tensor has: `{spec}`",
                hint="give its sizes with --shape"
                if spec in signature.inputs
                else "export the model with the shapes of its outputs",
            )


def _wrong(node: onnx.NodeProto) -> str:
    """Return the form in which IREE takes the operator and then computes it wrong, without a word.

    Found by onnx's own test cases of operators and by real models, with 3.13.0.
    """
    if node.op_type in ("Det", "Scan"):
        return "in every form"
    words = {attribute.name: attribute.s for attribute in node.attribute}
    if (
        node.op_type == "Resize"
        and words.get("coordinate_transformation_mode") == b"align_corners"
        and len(node.input) > 2
        and node.input[2]
    ):
        return "where corners are aligned and a scale is given"
    if node.op_type == "LSTM" and len(node.input) > 7 and node.input[7]:
        return "where it has peepholes"
    if node.op_type == "GridSample" and words.get("mode") == b"nearest":
        return "where it takes the nearest point"
    if node.op_type == "QLinearMatMul":
        return "where there are more than two axes"
    return ""


def check_operators(model: onnx.ModelProto) -> None:
    """Raise UnsupportedError for operators outside ONNX's own domain.

    The importer drops the domain: `example.Add` would be read as ONNX's Add.
    """
    functions = {(function.domain, function.name) for function in model.functions}
    foreign = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in every_node(model.graph)
            if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in functions
        }
    )
    if foreign:
        raise UnsupportedError(
            f"target iree cannot take operators {', '.join(foreign)}", operators=tuple(foreign)
        )
    for node in every_node(model.graph):
        reason = _wrong(node)
        if reason:
            raise UnsupportedError(
                f"target iree computes operator {node.op_type} (node `{node.name}`) wrong "
                f"{reason}, so it does not take it",
                operators=(node.op_type,),
            )


def read(path: str, inputs: tuple[TensorSpec, ...]) -> onnx.ModelProto:
    """Return the model with its weights, its inputs exactly `inputs`, its functions written out.

    Raises SourceError where the file is no model, UnsupportedError for a foreign operator.
    """
    model = read_whole(path)
    check_operators(model)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
        check_operators(model)
    set_inputs(model, inputs)
    return model


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in the operator set read best, constants folded, every shape inferred.

    ONNX Runtime folds, at the level that stays within ONNX's own operators; a model that it cannot
    take is only given its inferred shapes.
    """
    import onnx

    model = _upgraded(model)
    with tempfile.TemporaryDirectory(prefix="deploykit-iree-") as folder:
        try:
            made = onnx.load(fold(model, Path(folder), target="iree"))
        except UnsupportedError:
            return inferred(model)
    if any(node.domain not in ("", "ai.onnx") for node in every_node(made.graph)):
        return inferred(model)  # a fusion of its own
    return inferred(made)


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the shape of every tensor that onnx can tell."""
    import onnx

    if model.ByteSize() >= LARGE_BYTES:
        return model  # ONNX Runtime wrote the shapes down
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return model


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in the operator set OPSET, where it is older and onnx can do that."""
    from onnx import version_converter

    opset = next((each for each in model.opset_import if each.domain in ("", "ai.onnx")), None)
    if opset is None or opset.version >= OPSET or model.ByteSize() >= LARGE_BYTES:
        return model
    # before version 4 the format wanted every constant among the inputs, and so does the converter
    model.ir_version = max(model.ir_version, 8)
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, version_converter.ConvertError):
        # no rule from here to there; the importer then says itself what it cannot read
        return model


def flattened_first(model: onnx.ModelProto) -> None:
    """Let a Reshape that has to find out a size start from one axis; changes `model`.

    The importer lines up unknown axes before and after, one by one: [batch, length, heads, 8] to
    [-1, 16] kept the batch as it was (seen with 3.13.0), and computed something else.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    known = {
        value.name: value.type.tensor_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    names = {*constants, *known, *(name for node in graph.node for name in node.output)}
    flat = next(name for name in (f"flat{'_' * n}" for n in range(99)) if name not in names)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            sizes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            kind = known.get(node.input[0])
            unknown = [
                axis
                for axis, size in enumerate(kind.shape.dim if kind is not None else ())
                if not size.HasField("dim_value")
            ]
            if kind is not None and -1 in sizes and 0 not in sizes and len(unknown) > 1:
                name = f"{flat}.{len(nodes)}"
                nodes.append(
                    onnx.helper.make_node("Reshape", [node.input[0], flat], [name], name=node.name)
                )
                node.input[0] = name
                made = graph.value_info.add()
                made.name = name
                made.type.tensor_type.elem_type = kind.elem_type
                made.type.tensor_type.shape.dim.add()
        nodes.append(node)
    if len(nodes) > len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), flat))


def named_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Give every node a name that says which it is; return the names as they were.

    The compiler's messages and its list of kernels carry the name: `Conv:7` is the eighth node, a
    Conv. Changes `model`.
    """
    names = []
    for index, node in enumerate(every_node(model.graph)):
        names.append(node.name or (node.output[0] if node.output else ""))
        node.name = f"{node.op_type}:{index}"
    return tuple(names)


def has_doubles(model: onnx.ModelProto) -> bool:
    """Say whether any tensor of the model is float64."""
    import onnx

    double = onnx.TensorProto.DOUBLE
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    if any(value.type.tensor_type.elem_type == double for value in values):
        return True
    if any(tensor.data_type == double for tensor in graph.initializer):
        return True
    return any(
        (attribute.name in ("to", "dtype") and attribute.i == double)
        or (attribute.HasField("t") and attribute.t.data_type == double)
        for node in every_node(graph)
        for attribute in node.attribute
    )


def outputs(
    model: onnx.ModelProto, asked: tuple[TensorSpec, ...], *, fixed: bool
) -> tuple[TensorSpec, ...]:
    """Return the outputs with the sizes worked out while folding; a name of an axis is kept.

    `fixed` says that sizes were fixed, so that a size known now replaces the name it had.
    """
    found = {value.name: value.type.tensor_type for value in model.graph.output}
    made = []
    for spec in asked:
        kind = found[spec.name]
        shape = spec.shape
        if kind.HasField("shape"):
            sizes = tuple(
                size.dim_value
                if size.HasField("dim_value") and size.dim_value >= 0
                else (size.dim_param or None)
                for size in kind.shape.dim
            )
            shape = sizes if shape is None or fixed else _merged(shape, sizes)
        made.append(TensorSpec(name=spec.name, dtype=spec.dtype, shape=shape))
    return tuple(made)


def _merged(declared: tuple[Dimension, ...], found: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    if len(declared) != len(found):
        return found
    return tuple(
        new if isinstance(new, int) or old is None else old
        for old, new in zip(declared, found, strict=True)
    )


def dynamic_axes(inputs: tuple[TensorSpec, ...]) -> list[str]:
    """Return the axes without a size, each as `input:axis`."""
    return [
        f"{spec.name}:{axis}"
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    ]
