"""From a `Program` to an ONNX model: torch.export and its ONNX exporter, or TorchScript's own."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.pytorch.program import Input, Program, first_line

from deploykit.errors import PluginError, UnsupportedError
from deploykit.onnx_file import opset_of, rename_dimensions
from deploykit.progress import phase

if TYPE_CHECKING:
    import onnx

DEFAULT_OPSET = 18
"""What onnxscript's operators are written in, and every target here reads; others are converted to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An ONNX model with the source's names, and what was mended on the way."""

    model: onnx.ModelProto
    repairs: tuple[str, ...] = ()


def export(program: Program, opset: int | None) -> Exported:
    """Export `program`. Raises UnsupportedError where the model or an operator has no ONNX form."""
    outputs = [name for name, _ in program.call(program.leaves)]
    if program.kind == "script":
        exported = _export_script(program, outputs, opset or DEFAULT_OPSET)
    else:
        exported = _export_program(program, _traced(program), outputs, opset or DEFAULT_OPSET)
    found = [value.name for value in exported.model.graph.output]
    if found != outputs:
        raise PluginError(f"the exporter gave the outputs {found}, the model has {outputs}")
    if opset is not None and opset_of(exported.model) != opset:
        raise UnsupportedError(
            f"the exporter cannot write opset {opset} for this model "
            f"(it wrote {opset_of(exported.model)})",
            hint=f"leave --opset out, or take {opset_of(exported.model)}",
        )
    return exported


# ---- torch.export


def _traced(program: Program) -> Any:
    import torch

    if program.kind == "exported":
        exported = program.model
    else:
        phase("tracing with torch.export")
        args, kwargs = program.arguments(program.leaves)
        try:
            exported = torch.export.export(
                program.model, args, kwargs, dynamic_shapes=_dynamic_shapes(program), strict=False
            )
        except (torch._dynamo.exc.UserError, torch._dynamo.exc.Unsupported, ValueError) as error:
            raise _not_traceable(program, error) from error
        except torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode as error:
            raise UnsupportedError(
                f"torch.export cannot trace control flow that depends on values: {first_line(error)}",
                hint="use torch.cond, or convert torch.jit.script of the module (TorchScript)",
            ) from error
    written = _written_buffers(exported)
    if written:
        raise UnsupportedError(
            f"the model keeps state between calls (it writes {', '.join(written)}), "
            "an ONNX model does not",
            hint="make the state an input and an output of forward",
        )
    return exported


def _written_buffers(exported: Any) -> list[str]:
    in_place = (
        node.op == "call_function"
        and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        for node in exported.graph.nodes
    )
    if any(in_place):  # only the functional form says what is written in place
        exported = exported.run_decompositions({})
    return list(exported.graph_signature.buffers_to_mutate.values())


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


def _dynamic_shapes(program: Program) -> dict[str, Any] | None:
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
    bound = inspect.signature(program.model.forward).bind(*args, **kwargs).arguments
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
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _no_onnx_form(error) from error
    model = made.model_proto
    repairs = _name_axes(program, model)
    return Exported(model=model, repairs=repairs)


def _no_onnx_form(error: BaseException) -> UnsupportedError:
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(texts)
    operators = re.findall(r"OpOverload\(op='([\w.:]+)'", text)
    operators += re.findall(r"operator '?((?:aten|prim|quantized|\w+)::\w+)'?", text)
    names = tuple(
        dict.fromkeys(
            name.replace(".", "::", 1) if "::" not in name else name for name in operators
        )
    )
    if names:
        return UnsupportedError(
            f"PyTorch's ONNX exporter has no ONNX form for {', '.join(names)}", operators=names
        )
    return UnsupportedError(f"PyTorch's ONNX exporter cannot take the model: {first_line(error)}")


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


def _export_script(program: Program, outputs: list[str], opset: int) -> Exported:
    import torch

    phase("exporting TorchScript to ONNX")
    written = _written_attributes(program.model)
    if written:
        raise UnsupportedError(
            f"the TorchScript keeps state between calls (it writes {', '.join(written)}), "
            "an ONNX model does not",
            hint="script a module whose state is an input and an output of forward",
        )
    try:
        return Exported(model=_legacy_export(program, outputs, opset))
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        if any(item.axes for item in program.inputs):
            raise _no_onnx_form(error) from error  # the second way fixes every axis
        refused = _no_onnx_form(error)
    phase("turning TorchScript into an exported program")
    from torch._export.converter import TS2EPConverter

    args, kwargs = program.arguments(program.leaves)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = TS2EPConverter(program.model, args, kwargs).convert()
            exported = torch.export.export(exported.module(), args, kwargs, strict=False)
    except Exception as error:  # private code of torch: whatever it raises, the first reason stands
        raise refused from error
    made = _export_program(program, exported, outputs, opset)
    return Exported(
        model=made.model,
        repairs=("exported by way of torch.export, as TorchScript's own exporter could not",),
    )


def _legacy_export(program: Program, outputs: list[str], opset: int) -> onnx.ModelProto:
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
    if axes:  # the exporter keeps example sizes where it could not follow an axis
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
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


def _written_attributes(script: Any) -> list[str]:
    """Return the attributes that `forward` of a ScriptModule assigns."""
    names: dict[str, None] = {}
    graph = script.inlined_graph  # its nodes live only as long as it does
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            if node.kind() == "prim::SetAttr":
                names[node.s("name")] = None
            blocks.extend(node.blocks())
    return list(names)
