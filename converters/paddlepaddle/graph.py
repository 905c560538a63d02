"""The exported graph, given the source's names and sizes, checked, and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle import exported_forms
from deploykit._plugins.converters.paddlepaddle.program import Inferred

from deploykit.errors import PluginError
from deploykit.onnx_file import opset_of, write_model
from deploykit.protocol import Signature, TensorSpec

if TYPE_CHECKING:
    import onnx


def finish(exported: bytes, inferred: Inferred, output: Path) -> tuple[Signature, int, list[str]]:
    """Write the model `exported` to `output` with the inputs and outputs of the program `inferred`.

    Returns the signature and opset of the file, and the repairs made. Raises PluginError where the
    graph is not what `signature` says or does not pass ONNX's checker with full shape inference.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(exported)
    except Exception as error:  # protobuf's DecodeError, of varying module
        raise PluginError(f"paddle2onnx wrote no ONNX model: {error}") from error
    graph = model.graph
    signature = inferred.signature
    done = exported_forms.correct(model, inferred.document)
    for kind, found, wanted in (
        ("input", graph.input, signature.inputs),
        ("output", graph.output, signature.outputs),
    ):
        names = [value.name for value in found]
        expected = [spec.name for spec in wanted]
        unused = [spec for spec in wanted if spec.name not in names]
        if kind == "input" and unused and set(names) < set(expected):
            for spec in unused:
                found.append(_value(spec))
            done.append(f"inputs that no operator uses kept: {', '.join(s.name for s in unused)}")
        elif set(names) != set(expected):
            raise PluginError(
                f"paddle2onnx wrote the {kind}s {', '.join(names)}, not {', '.join(expected)}"
            )
        by_name = {value.name: value for value in found}
        for spec in wanted:
            _set_shape(by_name[spec.name], spec)
        ordered = [by_name[name] for name in expected]
        del found[:]
        found.extend(ordered)
    _drop_unused_constants(graph)
    scalars = [spec.name for spec in signature.outputs if spec.shape == ()]
    scalars = _make_scalar(model, scalars)
    if scalars:
        done.append(f"scalar outputs exported with one axis, reshaped: {', '.join(scalars)}")
    # they were inferred from the sizes before ours and may contradict them now
    del graph.value_info[:]
    return write_model(model, output), opset_of(model), done


def _value(spec: TensorSpec) -> Any:
    import numpy as np
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return onnx.helper.make_tensor_value_info(spec.name, kind, spec.shape)


def _set_shape(value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for size in spec.shape or ():
        dim = shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def _make_scalar(model: onnx.ModelProto, names: list[str]) -> list[str]:
    """Reshape those of the outputs `names` that the graph computes with one axis; return them.

    paddle2onnx gives `[1]` where Paddle gives a scalar.
    """
    import onnx

    if not names:
        return []
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in inferred.graph.output
        if value.type.tensor_type.HasField("shape")
    }
    wrong = [name for name in names if ranks.get(name) == 1]
    for name in wrong:
        inner, shape = f"{name}.with_axis", f"{name}.no_axes"
        for node in model.graph.node:
            node.output[:] = [inner if output == name else output for output in node.output]
            node.input[:] = [inner if item == name else item for item in node.input]
        model.graph.initializer.append(
            onnx.helper.make_tensor(shape, onnx.TensorProto.INT64, [0], [])
        )
        model.graph.node.append(
            onnx.helper.make_node("Reshape", [inner, shape], [name], name=f"Reshape.{name}")
        )
    return wrong


def _drop_unused_constants(graph: onnx.GraphProto) -> None:
    """Remove initializers and Constant nodes of the outer graph that nothing reads."""
    used = {value.name for value in graph.output} | _reads(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] in used]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(graph: onnx.GraphProto) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        names |= set(node.input)
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                names |= _reads(inner) | {value.name for value in inner.output}
    return names
