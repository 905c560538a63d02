# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["openvino==2026.4.1", "onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "openvino"
# summary = "OpenVINO: a compiled blob, with the model beside it for other versions and processors"
# devices = ["cpu", "gpu", "npu", "auto", "hetero:*"]
# newest_opset = 21
# functions = ["probe", "compile", "load", "operators"]
# cross = true
#
# [tool.deploykit.settings]
# hint = "latency (default) or throughput: what the runtime plans its threads and streams for"
# streams = "parallel inference streams; auto (default) follows the hint"
# pinning = "auto (default), true or false: bind each thread to one processor core"
# fallback = "true (default): keep the model beside the blob; false: half the size, this machine only"
# ///
"""OpenVINO: compiled once to a blob, imported with the same configuration.

Run and tested on the CPU, and on `auto` and `hetero` with it. GPU and NPU are written after
OpenVINO's documentation and have not been tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.openvino_runtime import audit, devices, graphs
from deploykit._plugins.targets.openvino_runtime.inference import OpenvinoSession

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_graph import check_dtypes, fixed_inputs
from deploykit.payload_files import read_record, write_record, write_whole
from deploykit.plugin_settings import in_force
from deploykit.processor import architecture
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
    Signature,
)
from deploykit.tensors import read_tensors

if TYPE_CHECKING:
    import openvino

BLOB = "model.blob"
MODEL = "model.xml"
BUILD = "build.json"

# what OpenVINO's CPU device exists for, in the kernel's words; the others are Intel's, beside x86
ARCHITECTURES = {
    "cpu": ("x86_64", "aarch64", "arm64", "armv7l", "riscv64"),
    "gpu": ("x86_64",),
    "npu": ("x86_64",),
}
RUNS = 5
"""How often a model is run for the times of its operations, after one run to warm up."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What the payload says of itself.

    `architecture` is that of the machine which wrote the blob. `nodes` are the ONNX nodes with
    their outputs, `layers` what else of OpenVINO's layers a node became, `placement` the device of
    each layer where there is more than one.
    """

    architecture: str
    nodes: dict[str, tuple[str, ...]]
    layers: dict[str, str]
    placement: dict[str, str] = field(default_factory=dict)


def probe() -> tuple[Availability, ...]:
    """Return for each of OpenVINO's devices whether it can be used here, or what is missing."""
    try:
        import openvino
    except ImportError as error:
        return tuple(
            Availability(device=device, available=False, detail=f"openvino: {error}")
            for device in ("cpu", "gpu", "npu", "auto", f"{devices.HETERO}*")
        )
    return devices.probe(openvino.Core())


def compile(request: CompileRequest) -> CompileResult:
    """Compile the model and write the blob, and the model in OpenVINO's form, to the payload.

    For another machine (`request.hardware`), and for `auto`, which has no blob, the payload is the
    model alone, compiled at load. Raises UsageError for an unknown setting or shape,
    UnsupportedError for operators that are not known or a precision that did not take effect,
    UnavailableError for a device that is not here, SourceError for a file that is no model.
    """
    settings = in_force(request.settings, devices.SETTINGS, plugin="openvino")
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    specs = (*request.signature.inputs, *request.signature.outputs)
    check_dtypes(specs, graphs.DTYPES.values(), target="openvino")
    _check_hardware(request)
    phase("importing openvino")
    import openvino

    core = openvino.Core()
    device = devices.openvino_name(request.device)
    foreign = request.hardware is not None
    here = not foreign or _is_here(core, request.device)
    if here:
        devices.require(core, request.device)
        devices.check_precision(core, request.device, request.precision)
    exports = not foreign and devices.can_export(core, request.device)
    if settings["fallback"] == "false" and not exports:
        raise UnsupportedError(
            f"the device {request.device} has no compiled form to be kept"
            if not foreign
            else "a model for another machine is compiled there",
            hint="leave out fallback=false: the model itself is needed",
        )
    phase("reading the model")
    nodes = graphs.nodes(request.model)
    model = graphs.read(core, request.model)
    layers = audit.inner_layers(model, nodes)
    if request.shapes:
        phase("fixing shapes")
        graphs.fix_sizes(model, inputs)
    payload = Path(request.payload)
    if settings["fallback"] == "true":
        openvino.save_model(model, payload / MODEL, compress_to_fp16=False)
    asked = Signature(inputs=inputs, outputs=request.signature.outputs)
    notes = graphs.width_notes(request.signature)
    placement: dict[str, str] = {}
    if here:
        compiled = _compiled(core, model, request)
        signature = graphs.signature(compiled, asked)
        ran_on = audit.devices_of(compiled)
        notes = _audit_notes(compiled, model, request, ran_on) + notes
        if len(ran_on) > 1:
            placement = audit.placement(model, core.query_model(model, device))
    else:
        signature = graphs.signature(model, asked)
    if exports:
        phase("exporting")
        write_whole(payload / BLOB, compiled.export_model().getbuffer())
    notes.append(_form_note(request, settings, exports=exports))
    build = Build(architecture=architecture(), nodes=nodes, layers=layers, placement=placement)
    write_record(payload / BUILD, build)
    return CompileResult(
        signature=signature,
        settings=settings,
        versions=devices.versions(),
        notes=tuple(note for note in notes if note),
        portable=settings["fallback"] == "true",
    )


def load(request: LoadRequest) -> OpenvinoSession:
    """Return the compiled model of the payload, ready to run.

    A blob of another OpenVINO or for another processor is refused by OpenVINO itself; then the
    model is compiled anew, with a warning. Raises UnavailableError where it is not there, or the
    device is not.
    """
    return OpenvinoSession(_loaded(request), request.signature)


def operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]:
    """Return what each operation of the compiled model does: precision, device, nodes, median time.

    Times are OpenVINO's own (`PERF_COUNT`), in whole microseconds. Raises what `load` raises.
    """
    compiled = _loaded(request.load, {"PERF_COUNT": True})
    session = OpenvinoSession(compiled, request.load.signature)
    run = session.bind(read_tensors(request.feed))
    phase("timing operations")
    run()
    profiles = []
    for _ in range(RUNS):
        run()
        profiles.append(run.profile())
    build = read_record(Path(request.load.payload, BUILD), Build)
    return audit.operator_runs(
        audit.executed(compiled),
        profiles,
        audit.NodeNames(build.nodes, build.layers),
        audit.devices_of(compiled),
        build.placement,
    )


def _check_hardware(request: CompileRequest) -> None:
    """Raise UnsupportedError where OpenVINO does not run there, or its precision cannot be known."""
    if request.hardware is None:
        return
    name, there = request.hardware.name, request.hardware.architecture
    known = ARCHITECTURES.get(request.device, ARCHITECTURES["cpu"])
    if there not in known:
        raise UnsupportedError(
            f"OpenVINO's device {request.device} does not exist for {there} ({name})",
            hint=f"it exists for {', '.join(known)}; take a target that compiles for {there}",
        )
    if request.precision not in ("fp32", "int8") and request.device not in ("gpu", "npu"):
        raise UnsupportedError(
            f"whether {request.precision} takes effect on {name} shows only there",
            hint="compile on that machine, or with --precision fp32",
        )


def _is_here(core: openvino.Core, device: str) -> bool:
    try:
        devices.require(core, device)
    except UnavailableError:
        return False
    return True


def _compiled(
    core: openvino.Core, model: openvino.Model, request: CompileRequest | LoadRequest, **more: Any
) -> openvino.CompiledModel:
    settings = in_force(request.settings, devices.SETTINGS, plugin="openvino")
    configuration = devices.configuration(
        core, request.device, request.precision, request.threads, settings
    )
    phase("compiling")
    return graphs.compile(
        core, model, devices.openvino_name(request.device), {**configuration, **more}
    )


def _audit_notes(
    compiled: openvino.CompiledModel,
    model: openvino.Model,
    request: CompileRequest,
    ran_on: tuple[str, ...],
) -> list[str]:
    notes = audit.precision_notes(
        audit.executed(compiled),
        request.precision,
        halves=audit.has_halves(model),
        device=ran_on[0] if len(ran_on) == 1 else request.device,
    )
    if request.device == "auto":
        notes.append(f"auto chose {', '.join(ran_on)} here, and chooses again where it is loaded")
    elif request.device.startswith(devices.HETERO):
        notes.append(f"the operations run on {', '.join(ran_on)}")
    return notes


def _form_note(request: CompileRequest, settings: Mapping[str, str], *, exports: bool) -> str:
    """Return the note on where the payload is compiled, where it is more than a blob."""
    if request.hardware is not None:
        return (
            f"the payload is the model itself: it is compiled on {request.hardware.name}, at load"
        )
    if not exports:
        return f"the device {request.device} keeps no compiled form: it is compiled at each load"
    if settings["fallback"] == "false":
        return ""
    return (
        f"the blob is for OpenVINO {devices.versions()['openvino']} and processors like this one; "
        "elsewhere the model beside it is compiled at load, which takes longer"
    )


def _loaded(request: LoadRequest, more: Mapping[str, Any] | None = None) -> openvino.CompiledModel:
    """Return the payload's model, imported or compiled, with the properties `more`."""
    settings = in_force(request.settings, devices.SETTINGS, plugin="openvino")
    payload = Path(request.payload)
    build = read_record(payload / BUILD, Build)
    phase("importing openvino")
    import openvino

    core = openvino.Core()
    devices.require(core, request.device)
    more = more or {}
    if (payload / BLOB).is_file():
        # import_model does not keep the configuration of the compilation: it is passed again
        configuration = devices.configuration(
            core, request.device, request.precision, request.threads, settings
        )
        phase("loading")
        try:
            if build.architecture != architecture():
                raise RuntimeError(f"it was compiled on {build.architecture}")
            return core.import_model(
                (payload / BLOB).read_bytes(),
                devices.openvino_name(request.device),
                {**configuration, **more},
            )
        except RuntimeError as error:
            reason = devices.last_line(error)
            if not (payload / MODEL).is_file():
                raise UnavailableError(
                    f"OpenVINO {devices.versions()['openvino']} refuses the compiled model: {reason}",
                    hint="compile it here, or with fallback=true for a bundle that loads elsewhere",
                ) from error
        phase("compiling again: the blob is for another OpenVINO or processor")
        warnings.warn(
            f"OpenVINO refuses the compiled blob, so the model is compiled anew: {reason}",
            stacklevel=3,
        )
    devices.check_precision(core, request.device, request.precision)
    return _compiled(core, core.read_model(payload / MODEL), request, **more)
