"""tf2onnx, called by its Python API, and what it leaves undone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tensorflow import operators
from deploykit._plugins.converters.tensorflow.freezing import Frozen

from deploykit.errors import PluginError, UnsupportedError
from deploykit.progress import phase
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import onnx

_OWN = frozenset({"Const", "Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
"""TensorFlow's names that tf2onnx keeps for its own constants and inputs until the end."""

_FAILURES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)
"""What tf2onnx raises where it meets what it did not expect."""

DEFAULT_OPSET = 18
"""The newest that tf2onnx 1.17 writes without known faults."""


def export_graph(frozen: Frozen, opset: int | None) -> onnx.ModelProto:
    """Return `frozen` as ONNX. Raises UnsupportedError for operators that have no ONNX form."""
    import tensorflow as tf
    from tf2onnx import tf_loader, tfonnx

    phase("optimising the TensorFlow graph")
    inputs = [f"input_{number}:0" for number in range(len(frozen.inputs))]
    outputs = [f"output_{number}:0" for number in range(len(frozen.outputs))]
    with tf.Graph().as_default():  # grappler's meta graph needs a graph to be in, any
        optimised = tf_loader.tf_optimize(inputs, outputs, frozen.graph_def)
    names = {old: item.spec.name for old, item in zip(inputs, frozen.inputs, strict=True)}
    names |= {old: item.spec.name for old, item in zip(outputs, frozen.outputs, strict=True)}
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(optimised, name="")
        phase("converting to ONNX")
        present = {node.name for node in optimised.node}
        try:
            converted = tfonnx.process_tf_graph(
                graph,
                opset=opset or DEFAULT_OPSET,
                custom_op_handlers=operators.handlers(opset or DEFAULT_OPSET),
                input_names=[name for name in inputs if name.split(":")[0] in present],
                output_names=outputs,
                tensors_to_rename=names,
            )
        except _FAILURES as error:
            reason = str(error).removeprefix("make_sure failure: ") or type(error).__name__
            raise UnsupportedError(
                f"tf2onnx cannot convert this graph: {reason}", hint=_advice([])
            ) from error
    return finish(
        converted,
        [item.spec for item in frozen.inputs],
        [item.spec for item in frozen.outputs],
    )


def finish(
    converted: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> onnx.ModelProto:
    """Optimise tf2onnx's graph and return the model with inputs and outputs in the source's order."""
    import onnx
    from tf2onnx import optimizer

    refuse_unsupported(converted)
    phase("optimising the ONNX graph")
    # tf2onnx's own way is to log an error and go on with a broken graph; here it is raised
    model: onnx.ModelProto = optimizer.optimize_graph(converted, catch_errors=False).make_model(
        "deploykit"
    )
    del model.graph.value_info[:]  # tf2onnx's counters for unknown sizes; inference does it again
    found_inputs = {value.name: value for value in model.graph.input}
    found_outputs = {value.name: value for value in model.graph.output}
    missing = [spec.name for spec in outputs if spec.name not in found_outputs]
    if missing:
        raise PluginError(f"tf2onnx lost the outputs {', '.join(missing)}")
    ordered = []
    for spec in inputs:
        dtype = (
            found_inputs[spec.name].type.tensor_type.elem_type
            if spec.name in found_inputs
            else _element_type(spec.dtype)
        )
        ordered.append(onnx.helper.make_tensor_value_info(spec.name, dtype, spec.shape))
    del model.graph.input[:]
    model.graph.input.extend(ordered)
    del model.graph.output[:]
    for spec in outputs:
        value = found_outputs[spec.name]
        dims = value.type.tensor_type.shape.dim
        known = spec.shape if spec.shape is not None and len(spec.shape) == len(dims) else ()
        for number, axis in enumerate(dims):
            if axis.HasField("dim_value"):
                continue
            axis.Clear()  # `unk__7` says nothing; inference may find the input's name
            size = known[number] if known else None
            if isinstance(size, int):
                axis.dim_value = size
        model.graph.output.append(value)
    return model


def _element_type(dtype: str) -> int:
    import numpy as np
    import onnx

    if dtype == "string":
        return int(onnx.TensorProto.STRING)
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def refuse_unsupported(converted: Any) -> None:
    """Raise UnsupportedError where tf2onnx left operators of TensorFlow in its graph."""
    import onnx

    left: dict[str, str] = {}
    graphs = [converted]
    while graphs:
        graph = graphs.pop()
        for node in graph.get_nodes():
            standard = node.domain in ("", "ai.onnx")
            if standard and node.type not in _OWN and not onnx.defs.has(node.type):
                name = node.name.removeprefix("model/").replace("PartitionedCall/", "")
                left.setdefault(node.type.removeprefix("TFL_"), name)
            graphs.extend((node.get_body_graphs() or {}).values())
    if left:
        listed = ", ".join(f"{operator} (node `{node}`)" for operator, node in left.items())
        raise UnsupportedError(
            f"tf2onnx has no ONNX form for {listed}", hint=_advice(left), operators=tuple(left)
        )


def _advice(operators: Iterable[str]) -> str:
    if any("Lookup" in name or "HashTable" in name for name in operators):
        return (
            "look words up before the model: take the numbers that the table gives as the input, "
            "`--set inputs=NODE:0`"
        )
    if any(name.startswith(("String", "Decode", "Regex", "Parse")) for name in operators):
        return "prepare text and files before the model: `--set inputs=NODE:0` begins behind that"
    return (
        "take outputs before it (`--set outputs=NODE:0`) or inputs behind it "
        "(`--set inputs=NODE:0`), or write that layer with other operators"
    )
