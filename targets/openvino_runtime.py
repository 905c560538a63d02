# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["openvino==2026.4.1", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "openvino"
# summary = "OpenVINO: a compiled blob, with the model beside it for other versions and processors"
# devices = ["cpu"]
# newest_opset = 21
# functions = ["probe", "compile", "load"]
#
# [tool.deploykit.settings]
# hint = "latency (default) or throughput: what the runtime plans its threads and streams for"
# streams = "parallel inference streams; auto (default) follows the hint"
# pinning = "auto (default), true or false: bind each thread to one processor core"
# fallback = "true (default): keep the model beside the blob; false: half the size, this machine only"
# ///
"""OpenVINO on the CPU: compiled once to a blob, imported with the same configuration."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.onnx_graph import fixed_inputs
from deploykit.plugin_settings import Setting, in_force
from deploykit.processor import instruction_sets
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np
    import openvino

    Array = np.ndarray[Any, Any]

SETTINGS = {
    "hint": Setting(default="latency", choices=("latency", "throughput")),
    "streams": Setting(default="auto", least=1),
    "pinning": Setting(default="auto", choices=("auto", "true", "false")),
    "fallback": Setting(default="true", choices=("true", "false")),
}
BLOB = "model.blob"
MODEL = "model.xml"

# precision asked for -> OpenVINO's name of the element type that must then do the arithmetic
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}

# Element types as OpenVINO names them. Strings are not among them: a string input frees memory
# that it does not own (seen with 2026.4.1), and the process dies.
DTYPES = {
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "boolean": "bool",
    **{f"{kind[0]}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}


def probe() -> tuple[Availability, ...]:
    """Return whether OpenVINO's CPU device can be used here."""
    try:
        import openvino
    except ImportError as error:
        return (Availability(device="cpu", available=False, detail=f"openvino: {error}"),)
    core = openvino.Core()
    found = core.available_devices
    if "CPU" in found:
        detail = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
    else:
        detail = f"OpenVINO finds only {', '.join(found) or 'no device'}"
    present = "CPU" in found
    return (Availability(device="cpu", available=present, detail=detail, versions=_versions()),)


def compile(request: CompileRequest) -> CompileResult:
    """Compile the model and write the blob, and the model in OpenVINO's form, to the payload.

    Raises UsageError for an unknown setting or shape, UnsupportedError for operators that are not
    known or a precision that did not take effect, SourceError for a file that is no model.
    """
    settings = in_force(request.settings, SETTINGS, plugin="openvino")
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    configuration = _configuration(request.precision, request.threads, settings)
    _check_dtypes(request.signature)
    phase("importing openvino")
    import openvino

    core = openvino.Core()
    phase("reading the model")
    model = _read(core, request.model)
    if request.shapes:
        phase("fixing shapes")
        model.reshape(
            {
                spec.name: openvino.PartialShape(
                    [d if isinstance(d, int) else -1 for d in spec.shape]
                )
                for spec in inputs
                if spec.shape is not None
            }
        )
    payload = Path(request.payload)
    if settings["fallback"] == "true":
        openvino.save_model(model, payload / MODEL, compress_to_fp16=False)
    phase("compiling")
    compiled = _compile(core, model, configuration)
    notes = _audit(compiled, request.precision)
    notes += _width_notes(request.signature)
    if settings["fallback"] == "true":
        notes.append(
            f"the blob is for OpenVINO {_versions()['openvino']} and processors like this one; "
            "elsewhere the model beside it is compiled at load, which takes longer"
        )
    phase("exporting")
    temporary = payload / f"{BLOB}.tmp"
    with temporary.open("wb") as stream:
        stream.write(compiled.export_model().getbuffer())
    temporary.replace(payload / BLOB)
    return CompileResult(
        signature=_signature(compiled, Signature(inputs=inputs, outputs=request.signature.outputs)),
        settings=settings,
        versions=_versions(),
        notes=tuple(notes),
    )


def load(request: LoadRequest) -> OpenvinoSession:
    """Return the compiled model of the payload, ready to run.

    A blob of another OpenVINO or for another processor is refused by OpenVINO itself; then the
    model is compiled anew, with a warning. Raises UnavailableError where it is not there.
    """
    settings = in_force(request.settings, SETTINGS, plugin="openvino")
    phase("importing openvino")
    import openvino

    core = openvino.Core()
    payload = Path(request.payload)
    # import_model does not keep the configuration of the compilation: it is passed again
    configuration = _configuration(request.precision, request.threads, settings)
    phase("loading")
    try:
        compiled = core.import_model((payload / BLOB).read_bytes(), "CPU", configuration)
    except RuntimeError as error:
        reason = _last_line(error)
        if not (payload / MODEL).is_file():
            raise UnavailableError(
                f"OpenVINO {_versions()['openvino']} refuses the compiled model: {reason}",
                hint="compile it here, or with fallback=true for a bundle that loads elsewhere",
            ) from error
        phase("compiling again: the blob is for another OpenVINO or processor")
        warnings.warn(
            f"OpenVINO refuses the compiled blob, so the model is compiled anew: {reason}",
            stacklevel=2,
        )
        compiled = _compile(core, core.read_model(payload / MODEL), configuration)
    return OpenvinoSession(compiled, request.signature)


class OpenvinoSession:
    """A compiled model in OpenVINO."""

    def __init__(self, compiled: openvino.CompiledModel, signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._inputs = _positions(compiled.inputs, signature.inputs)
        self._outputs = _positions(compiled.outputs, signature.outputs)
        self._compiled: openvino.CompiledModel | None = compiled
        self._request = compiled.create_infer_request()
        self._held: list[openvino.Tensor] = []

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        request = self._request
        self._held = _set_inputs(request, self._inputs, feed)
        request.infer(share_outputs=True)
        # the buffers belong to the request, which writes to them again
        return {name: request.get_output_tensor(i).data.copy() for name, i in self._outputs}

    def bind(self, feed: Mapping[str, Array]) -> BoundRequest:
        """Fix the inputs; calling the result runs one inference on them."""
        if self._compiled is None:
            raise ValueError("the session is closed")
        request = self._compiled.create_infer_request()
        tensors = _set_inputs(request, self._inputs, feed)
        return BoundRequest(request, tensors, self._outputs)

    def close(self) -> None:
        """Give the model's memory back."""
        self._compiled = self._request = None
        self._held = []


class BoundRequest:
    """A request whose tensors stay where they are."""

    def __init__(
        self,
        request: openvino.InferRequest,
        tensors: list[openvino.Tensor],
        outputs: tuple[tuple[str, int], ...],
    ) -> None:
        self._request = request
        self._tensors = tensors
        self._outputs = outputs

    def __call__(self) -> None:
        """Run once."""
        self._request.infer(share_outputs=True)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        tensor = self._request.get_output_tensor
        return {name: tensor(index).data.copy() for name, index in self._outputs}


def _versions() -> dict[str, str]:
    import openvino

    # such as 2026.4.1-22982-e213a147257-releases/2026/4
    return {"openvino": openvino.__version__.split("-")[0]}


def _configuration(
    precision: str, threads: int | None, settings: Mapping[str, str]
) -> dict[str, Any]:
    """Return OpenVINO's properties; the precision is always asked for, it chooses others itself."""
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"target openvino has no precision `{precision}`",
            hint=f"it has {', '.join(PRECISIONS)}",
        )
    found: dict[str, Any] = {
        "PERFORMANCE_HINT": settings["hint"].upper(),
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
    }
    if threads:
        found["INFERENCE_NUM_THREADS"] = threads
    if settings["streams"] != "auto":
        found["NUM_STREAMS"] = settings["streams"]
    if settings["pinning"] != "auto":
        found["ENABLE_CPU_PINNING"] = settings["pinning"] == "true"
    return found


def _check_dtypes(signature: Signature) -> None:
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype not in DTYPES.values():
            raise UnsupportedError(f"target openvino takes no {spec.dtype} tensors: `{spec}`")


def _width_notes(signature: Signature) -> list[str]:
    """Return notes where OpenVINO computes in fewer bits than the model's inputs have."""
    dtypes = {spec.dtype for spec in signature.inputs}
    integers = "integers are computed in 32 bits: values beyond 2147483647 are wrong"
    notes = [integers] if dtypes & {"int64", "uint64", "uint32"} else []
    return [*notes, "float64 is computed in float32"] if "float64" in dtypes else notes


def _read(core: openvino.Core, path: str) -> openvino.Model:
    """Read the ONNX file; operators without a conversion become an UnsupportedError."""
    if not Path(path).is_file():
        raise SourceError(f"there is no ONNX model `{path}`")
    try:
        return core.read_model(path)
    except RuntimeError as error:
        raise _translated(error, path) from error


def _compile(
    core: openvino.Core, model: openvino.Model, configuration: dict[str, Any]
) -> openvino.CompiledModel:
    try:
        return core.compile_model(model, "CPU", configuration)
    except RuntimeError as error:
        named = re.findall(r"[Uu]nsupported operation of type: (\w+)", str(error))
        if not named:
            raise
        operators = tuple(sorted(set(named)))
        said = f"target openvino cannot run operators {', '.join(operators)}"
        raise UnsupportedError(said, operators=operators) from error


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
            f"{reason.group(1) if reason else _last_line(error)}",
            operators=operators,
        )
    return SourceError(f"OpenVINO cannot read `{path}`: {_last_line(error)}")


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _audit(compiled: openvino.CompiledModel, precision: str) -> list[str]:
    """Return notes about the precision that really runs.

    Raises UnsupportedError where no operation runs in the precision asked for.
    """
    if precision == "fp32":
        return []
    wanted = PRECISIONS[precision]
    ran = [
        operation.get_rt_info()["runtimePrecision"].astype(str)
        for operation in compiled.get_runtime_model().get_ops()
    ]
    share = ran.count(wanted)
    if not share:
        raise UnsupportedError(
            f"OpenVINO computes {precision} as float32 on this processor: it would take no effect",
            hint="use --precision fp32",
        )
    notes = [f"{share} of {len(ran)} operations run in {precision}, the others in their own type"]
    if precision == "bf16" and not instruction_sets() & {"amx_bf16", "avx512_bf16", "bf16"}:
        notes.append("this processor has no bf16 instructions: emulated, slower than fp32")
    elif precision == "bf16" and not instruction_sets() & {"amx_bf16"}:
        notes.append("this processor has no AMX: bf16 may be slower than fp32")
    return notes


def _positions(ports: list[Any], specs: tuple[TensorSpec, ...]) -> tuple[tuple[str, int], ...]:
    """Return each name of `specs` with the number of its port."""
    found = {name: index for index, port in enumerate(ports) for name in port.names}
    return tuple((spec.name, found[spec.name]) for spec in specs)


def _signature(compiled: openvino.CompiledModel, asked: Signature) -> Signature:
    """Return the sizes that OpenVINO worked out; it forgets names of axes, so those are kept."""

    def resolved(ports: list[Any], specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        made = []
        for name, index in _positions(ports, specs):
            spec = next(spec for spec in specs if spec.name == name)
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


def _set_inputs(
    request: openvino.InferRequest, inputs: tuple[tuple[str, int], ...], feed: Mapping[str, Array]
) -> list[openvino.Tensor]:
    """Put the arrays of `feed` into the request, copied only where OpenVINO cannot share them.

    The request keeps addresses only: the tensors returned must live until the last inference.
    """
    import numpy as np
    import openvino

    tensors = []
    for name, index in inputs:
        array = feed[name]
        if not (array.flags.c_contiguous and array.flags.writeable):
            array = np.array(array, order="C")
        tensors.append(openvino.Tensor(array, shared_memory=True))
        request.set_input_tensor(index, tensors[-1])
    return tensors
