"""From a `Program` to an ONNX model: torch.export and its ONNX exporter, or TorchScript's own."""

from __future__ import annotations

import dataclasses
import re
import warnings
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.pytorch.blame import no_onnx_form
from deploykit._plugins.converters.pytorch.program import Program, first_line
from deploykit._plugins.converters.pytorch.recurrent import kept_whole, translations
from deploykit._plugins.converters.pytorch.torchscript_exporter import (
    Exported,
    export_by_trace,
    is_quantised,
    legacy_export,
    with_constants,
)

from deploykit.errors import PluginError, UnsupportedError
from deploykit.onnx_file import LARGEST_MESSAGE, LARGEST_SHAPE, opset_of, rename_dimensions
from deploykit.progress import phase

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

DEFAULT_OPSET = 18
"""What onnxscript's operators are written in, and every target here reads; others are converted to."""


def export(program: Program, opset: int | None) -> Exported:
    """Export `program`. Raises UnsupportedError where the model or an operator has no ONNX form."""
    outputs = [name for name, _ in program.example_outputs()]
    wanted = opset or DEFAULT_OPSET
    if program.kind == "script":
        exported = export_script(program, outputs, wanted)
    else:
        exported = export_traced(program, outputs, wanted)
    found = [value.name for value in exported.model.graph.output]
    if found != outputs:
        raise PluginError(f"the exporter gave the outputs {found}, the model has {outputs}")
    if opset is not None and opset_of(exported.model) != opset:
        raise UnsupportedError(
            f"the exporter cannot write opset {opset} for this model "
            f"(it wrote {opset_of(exported.model)})",
            hint=f"leave --opset out, or take {opset_of(exported.model)}",
        )
    _refuse_bfloat16(exported.model)
    return dataclasses.replace(exported, repairs=(*program.repairs, *exported.repairs))


def _refuse_bfloat16(model: onnx.ModelProto) -> None:
    import onnx

    tensors = {
        item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.BFLOAT16
    }
    for node in model.graph.node:
        if tensors & set(node.input) and node.op_type in ("Gemm", "MatMul", "Conv"):
            raise UnsupportedError(
                f"the model computes in bfloat16, and ONNX Runtime has no {node.op_type} of that on "
                f"a CPU (node `{node.name}`), so that nothing can be proven",
                hint="let it compute in float32: `module.float()` in the code that returns it",
                operators=(node.op_type,),
            )


# ---- torch.export


def export_traced(program: Program, outputs: list[str], opset: int) -> Exported:
    """Export by way of torch.export; a module that it cannot trace, by tracing as TorchScript does."""
    try:
        return _export_program(program, _traced(program), outputs, opset)
    except UnsupportedError as error:
        dynamic = any(item.axes for item in program.inputs)
        # a trace says nothing about which axes the model fixes
        if program.kind != "module" or program.make_model is not None or dynamic:
            raise
        try:
            return export_by_trace(program, outputs, opset)
        except UnsupportedError:
            raise error from None  # the first reason is the one to act on


def _traced(program: Program) -> Any:
    import torch
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if program.kind == "exported":
        exported = program.model
    else:
        phase("tracing with torch.export")
        args, kwargs = program.arguments(program.leaves)
        try:
            model = program.model
            if program.make_model is not None:
                model = program.make_model()
                with torch.no_grad():
                    model(*args, **kwargs)  # it makes its constants, which must not be traced
            # gradients would be traced too
            with kept_whole(), torch.no_grad():
                exported = torch.export.export(
                    model,
                    args,
                    kwargs,
                    dynamic_shapes=_dynamic_shapes(program, model),
                    strict=False,
                )
        except GuardOnDataDependentSymNode as error:
            raise UnsupportedError(
                f"torch.export cannot trace control flow that depends on values: {first_line(error)}",
                hint="use torch.cond, or convert torch.jit.script of the module (TorchScript)",
            ) from error
        except NotImplementedError as error:
            raise UnsupportedError(
                f"torch.export cannot trace the model: it has {first_line(error)}",
                hint="export the module itself, before it was quantised or scripted",
            ) from error
        except UnsupportedError:
            raise
        except Exception as error:  # torch.export raises whatever the model's own code does
            raise _not_traceable(program, error) from error
    return exported


def _not_traceable(program: Program, error: BaseException) -> UnsupportedError:
    text = str(error)
    axes = [
        f"{item.name}:{axis}={name}" for item in program.inputs for axis, name in item.axes.items()
    ]
    if axes and re.search(r"[Cc]onstraint|speciali|[Dd]ynamic|not all values|mark", text):
        reason = re.sub(r"\s+", " ", text)[:300]
        return UnsupportedError(
            f"the model does not allow all of the dynamic axes {', '.join(axes)}: {reason}",
            hint="leave out the axis that it names",
        )
    return UnsupportedError(
        f"torch.export cannot trace the model: {first_line(error)}",
        hint="convert torch.jit.script or torch.jit.trace of the module (TorchScript)",
    )


def _dynamic_shapes(program: Program, model: Any) -> dict[str, Any] | None:
    """Return torch.export's `dynamic_shapes`, by argument name, in the structure of the arguments."""
    import inspect

    import torch

    if not any(item.axes for item in program.inputs):
        return None
    marks: list[Any] = [None] * len(program.leaves)
    for item in program.inputs:
        # DYNAMIC and not Dim(name): it finds out bounds and equalities by itself
        marks[item.leaf] = {
            axis: item.marks.get(axis, torch.export.Dim.DYNAMIC) for axis in item.axes
        }
    args, kwargs = program.arguments(marks)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return dict(bound)


def _export_program(program: Program, exported: Any, outputs: list[str], opset: int) -> Exported:
    import torch

    phase("exporting to ONNX")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            made = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=opset,
                input_names=[item.name for item in program.inputs],
                output_names=outputs,
                custom_translation_table=translations(),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise no_onnx_form(error, exported) from error
    model, weights = _apart(made)
    repairs = _name_axes(program, model)
    return Exported(model=model, repairs=repairs, weights=weights)


def _apart(made: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return the exporter's model, and its large weights apart where one message cannot hold all."""
    import onnx_ir

    large = [
        value
        for value in made.model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > LARGEST_SHAPE
    ]
    if sum(value.const_value.nbytes for value in large) <= LARGEST_MESSAGE:
        return made.model_proto, {}
    weights = {}
    for value in large:
        tensor = value.const_value
        weights[value.name] = tensor.numpy()  # torch's own memory
        value.const_value = onnx_ir.ExternalTensor(
            "apart", 0, tensor.nbytes, dtype=tensor.dtype, shape=tensor.shape, name=value.name
        )
    model = onnx_ir.to_proto(made.model)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("external_data")
    return model, weights


def _name_axes(program: Program, model: onnx.ModelProto) -> tuple[str, ...]:
    """Give torch's symbols (`s77`) the names that the axes have in `program`."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    names: dict[str, str] = {}
    notes = []
    for item in program.inputs:
        dims = shapes.get(item.name, [])
        for axis, name in item.axes.items():
            symbol = dims[axis].dim_param if axis < len(dims) else ""
            if not symbol:
                raise UnsupportedError(
                    f"the model fixes axis {axis} of `{item.name}`: it cannot stay dynamic "
                    f"as `{name}`"
                )
            if names.setdefault(symbol, name) != name:
                notes.append(f"axis `{name}` of `{item.name}` is always `{names[symbol]}`")
    rename_dimensions(model, {old: new for old, new in names.items() if old.isidentifier()})
    return tuple(notes)


# ---- TorchScript


def export_script(program: Program, outputs: list[str], opset: int) -> Exported:
    """Export TorchScript with its own exporter, which keeps loops and branches, else node by node."""
    import torch
    from deploykit._plugins.converters.pytorch.scripted import traceable

    refused: UnsupportedError | None = None
    if program.legacy and not is_quantised(program.model):
        phase("exporting TorchScript to ONNX")
        try:
            return Exported(model=legacy_export(with_constants(program), outputs, opset))
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            refused = no_onnx_form(error, program.model)
    phase("running TorchScript node by node")
    script = program.model
    program = dataclasses.replace(
        program, kind="module", make_model=lambda: traceable(script, {}, ())
    )
    try:
        made = _export_program(program, _traced(program), outputs, opset)
    except UnsupportedError as error:
        # an operator that is known to neither is named best by the first
        raise (refused if refused is not None and refused.operators else error) from error
    if refused is None:
        return made
    note = "exported by way of torch.export, as TorchScript's own exporter could not"
    return dataclasses.replace(made, repairs=(*made.repairs, note))
