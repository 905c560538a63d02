"""A model on its way into OpenVINO: read, compiled, and what goes wrong said in our own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.openvino_runtime.devices import last_line

from deploykit.errors import SourceError, UnsupportedError
from deploykit.onnx_graph import every_node
from deploykit.protocol import Signature, TensorSpec

if TYPE_CHECKING:
    import openvino

# Element types as OpenVINO names them. Strings are not among them: a string input frees memory
# that it does not own (seen with 2026.4.1), and the process dies.
DTYPES = {
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "boolean": "bool",
    **{f"{kind[0]}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


def width_notes(signature: Signature) -> list[str]:
    """Return notes where OpenVINO computes in fewer bits than the model's inputs have."""
    dtypes = {spec.dtype for spec in signature.inputs}
    integers = "integers are computed in 32 bits: values beyond 2147483647 are wrong"
    notes = [integers] if dtypes & {"int64", "uint64", "uint32"} else []
    return [*notes, "float64 is computed in float32"] if "float64" in dtypes else notes


def nodes(path: str) -> dict[str, tuple[str, ...]]:
    """Return the ONNX nodes of the file: name (of one without, its first output) to its outputs.

    Raises SourceError where it cannot be read. Weights beside the file stay there.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise SourceError(f"there is no ONNX model `{path}`")
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error
    found: dict[str, tuple[str, ...]] = {}
    for node in every_node(model.graph):
        outputs = tuple(name for name in node.output if name)
        name = node.name or next(iter(outputs), "")
        found[name] = found.get(name, ()) + outputs
    return found


def read(core: openvino.Core, path: str) -> openvino.Model:
    """Read the ONNX file; operators without a conversion become an UnsupportedError."""
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise _translated(error, path) from error


def fix_sizes(model: openvino.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Give the inputs of `model` the sizes of `inputs`, in place; -1 stays dynamic."""
    import openvino

    model.reshape(
        {
            spec.name: openvino.PartialShape([d if isinstance(d, int) else -1 for d in spec.shape])
            for spec in inputs
            if spec.shape is not None
        }
    )


def compile(
    core: openvino.Core, model: openvino.Model, device: str, configuration: Mapping[str, Any]
) -> openvino.CompiledModel:
    """Compile `model` for OpenVINO's `device`.

    Raises UnsupportedError for operators that it lacks, or, on another device than the CPU, with
    the reason that its compiler gives.
    """
    try:
        return core.compile_model(model, device, dict(configuration))
    except RuntimeError as error:
        named = re.findall(r"[Uu]nsupported operation of type: (\w+)", str(error))
        operators = tuple(sorted(set(named)))
        if operators:
            said = f"target openvino cannot run operators {', '.join(operators)}"
            raise UnsupportedError(said, operators=operators) from error
        # such as "[LSTMCellDecomposition] END: node: opset4::LSTMCell LSTMCell_3983 (": a pass's failure
        failed = re.search(r"node: \w+::(\w+?)(?:Cell|Sequence)? (\S+) \(", str(error))
        if failed:
            raise UnsupportedError(
                f"target openvino cannot compile operator {failed.group(1)} as the model has it: "
                f"{last_line(error)}",
                operators=(failed.group(1),),
            ) from error
        if device == "CPU":
            raise
        dynamic = any(port.partial_shape.is_dynamic for port in model.inputs)
        raise UnsupportedError(
            f"OpenVINO cannot compile the model for {device.lower()}: {last_line(error)}",
            hint="give all sizes with --shape" if dynamic else "use the device cpu",
        ) from error


def _translated(error: RuntimeError, path: str) -> SourceError | UnsupportedError:
    text = str(error)
    unknown = re.search(r"No conversion rule found for operations: (.+)", text)
    if unknown:
        operators = tuple(sorted(name.strip() for name in unknown.group(1).split(",")))
        return UnsupportedError(
            f"target openvino cannot take operators {', '.join(operators)}", operators=operators
        )
    # such as "-- Conv-16 with a message:", some lines of where, then the reason
    failed = re.findall(r"^-- (\w+?)-\d+ with a message", text, flags=re.MULTILINE)
    if failed:
        operators = tuple(sorted(set(failed)))
        reason = re.search(r"GeneralFailure:\n(.+)", text)
        return UnsupportedError(
            f"target openvino cannot convert operators {', '.join(operators)}: "
            f"{reason.group(1) if reason else last_line(error)}",
            operators=operators,
        )
    return SourceError(f"OpenVINO cannot read `{path}`: {last_line(error)}")


def positions(ports: list[Any], specs: tuple[TensorSpec, ...]) -> tuple[tuple[str, int], ...]:
    """Return each name of `specs` with the number of its port."""
    found = {name: index for index, port in enumerate(ports) for name in port.names}
    return tuple((spec.name, found[spec.name]) for spec in specs)


def signature(compiled: openvino.CompiledModel | openvino.Model, asked: Signature) -> Signature:
    """Return the sizes that OpenVINO worked out; it forgets names of axes, so those are kept."""

    def resolved(ports: list[Any], specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        made = []
        for spec, (name, index) in zip(specs, positions(ports, specs), strict=True):
            partial = ports[index].partial_shape
            shape = spec.shape
            if partial.rank.is_static:
                names = shape or (None,) * len(partial)
                shape = tuple(
                    known.get_length()
                    if known.is_static
                    else (None if isinstance(named, int) else named)
                    for known, named in zip(partial, names, strict=True)
                )
            dtype = DTYPES[ports[index].element_type.get_type_name()]
            made.append(TensorSpec(name=name, dtype=dtype, shape=shape))
        return tuple(made)

    return Signature(
        inputs=resolved(compiled.inputs, asked.inputs),
        outputs=resolved(compiled.outputs, asked.outputs),
    )
