"""torch's exporter of TorchScript: it keeps loops, branches and axes of any size.

It is deprecated in favour of torch.export, and still the better one for scripts.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.pytorch.axes import program_of
from deploykit._plugins.converters.pytorch.blame import no_onnx_form
from deploykit._plugins.converters.pytorch.program import Input, Program, first_line
from deploykit._plugins.converters.pytorch.script_graph import nodes

from deploykit.errors import UnsupportedError
from deploykit.onnx_file import strip_traces, write_model, write_streamed
from deploykit.progress import phase
from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX model with the source's names, and what was mended on the way.

    Of a model too large for one message, `weights` holds the large constants apart, uncopied.
    """

    model: onnx.ModelProto
    repairs: tuple[str, ...] = ()
    weights: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    def write(self, output: str) -> Signature:
        """Write the model to `output`; see `deploykit.onnx_file`."""
        strip_traces(self.model)
        if self.weights:
            return write_streamed(self.model, self.weights, output)
        return write_model(self.model, output)


def legacy_export(program: Program, outputs: list[str], opset: int) -> onnx.ModelProto:
    import onnx
    import torch

    buffer = io.BytesIO()
    axes = {item.name: dict(item.axes) for item in program.inputs if item.axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program.model,
            program.arguments(program.leaves)[0],
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=[item.name for item in program.inputs],
            output_names=outputs,
            dynamic_axes=axes or None,
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    examples = dict(program.example_outputs())
    for value in model.graph.output:
        # the exporter keeps example sizes where it could not follow an axis, and makes up names
        # for sizes that are fixed
        shape = value.type.tensor_type.shape
        shape.ClearField("dim")
        for size in examples[value.name].shape:
            dim = shape.dim.add()
            if not axes:
                dim.dim_value = int(size)
    return _all_inputs(program.inputs, program.leaves, model)


def _all_inputs(
    inputs: tuple[Input, ...], leaves: tuple[Any, ...], model: onnx.ModelProto
) -> onnx.ModelProto:
    """Keep the inputs that the graph does not use, which the exporter drops, in the source's order."""
    import onnx

    found = {value.name: value for value in model.graph.input}
    ordered = []
    for item in inputs:
        if item.name in found:
            ordered.append(found[item.name])
            continue
        tensor = leaves[item.leaf]
        dtype = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        shape = [item.axes.get(axis, int(size)) for axis, size in enumerate(tensor.shape)]
        ordered.append(onnx.helper.make_tensor_value_info(item.name, dtype, shape))
    del model.graph.input[:]
    model.graph.input.extend(ordered)
    return model


def is_quantised(script: Any) -> bool:
    """Say whether a script has quantised layers, whose rounding this exporter does not keep."""
    return any(node.kind().startswith("quantized::") for node in nodes(script.inlined_graph))


def with_constants(program: Program) -> Program:
    """Return the program of a script that takes tensors only, its other arguments written into it."""
    import torch

    args, _ = program.arguments(program.leaves)
    schema = [one for one in program.model.forward.schema.arguments if one.name != "self"]
    if all(
        "Tensor" in str(one.type) and one_value is not None
        for one, one_value in zip(schema, args, strict=False)
    ):
        return program
    taken, given = [], []
    for argument, value in zip(schema, args, strict=False):
        if isinstance(value, torch.Tensor):
            taken.append(argument.name)
            given.append(argument.name)
        elif value is None or isinstance(value, (bool, int, float, str)):
            given.append(repr(value))
        else:
            return program

    class Fixed(torch.jit.ScriptModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.source = program.model

    fixed = Fixed()
    head = ", ".join(["self", *(f"{name}: Tensor" for name in taken)])
    fixed.define(f"def forward({head}):\n    return self.source.forward({', '.join(given)})\n")
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    by_name = {item.name: item for item in program.inputs}
    made = program_of("script", fixed.eval(), fixed, tuple(tensors), {}, taken)
    inputs = tuple(
        dataclasses.replace(item, axes=by_name[item.name].axes, marks=by_name[item.name].marks)
        for item in made.inputs
    )
    return dataclasses.replace(
        made, inputs=inputs, output_names=program.output_names, outputs=program.outputs
    )


def export_by_trace(program: Program, outputs: list[str], opset: int) -> Exported:
    """Trace a module as TorchScript does and export that.

    Raises UnsupportedError where the trace depends on the values or sizes of the examples.
    """
    import torch

    phase("tracing as TorchScript")
    args, kwargs = program.arguments(program.leaves)
    if kwargs or any(not isinstance(leaf, torch.Tensor) for leaf in program.leaves):
        raise UnsupportedError("a trace takes tensors by position only")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # a value of the example that python saw would be a constant in the graph
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(program.model, args, check_trace=False, strict=False)
    except Exception as error:  # whatever the model's own code raises under the tracer
        raise UnsupportedError(f"the model cannot be traced: {first_line(error)}") from error
    by_trace = dataclasses.replace(program, kind="script", model=traced)
    try:
        model = legacy_export(by_trace, outputs, opset)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise no_onnx_form(error, traced) from error
    note = "traced as TorchScript, as torch.export could not follow it"
    return Exported(model=model, repairs=(note,))
