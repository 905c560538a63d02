# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["onnxruntime>=1.22", "onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "onnxruntime"
# summary = "ONNX Runtime: the model saved in its optimised form, on any execution provider"
# devices = ["cpu", "cuda", "tensorrt", "openvino", "dml", "coreml", "qnn"]
# newest_opset = 23
# functions = ["probe", "compile", "load", "operators"]
# cross = true
#
# [tool.deploykit.environments]
# cuda = ["onnxruntime-gpu[cuda,cudnn]>=1.24; sys_platform != 'darwin'", "onnx>=1.18", "numpy>=1.26"]
# tensorrt = ["onnxruntime-gpu[cuda,cudnn]>=1.24; sys_platform != 'darwin'", "onnx>=1.18", "numpy>=1.26"]
# openvino = ["onnxruntime-openvino>=1.24; sys_platform != 'darwin'", "onnx>=1.18", "numpy>=1.26"]
# dml = ["onnxruntime-directml>=1.24; sys_platform == 'win32'", "onnx>=1.18", "numpy>=1.26"]
# qnn = ["onnxruntime-qnn>=2.7; sys_platform != 'darwin' and python_version >= '3.11'", "onnxruntime>=1.24.2", "onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit.settings]
# format = "onnx (default) or ort: the ORT format for phones, with the operators that a build needs"
# optimization = "all (default; its layout may suit one kind of processor), extended, basic or none"
# execution = "sequential (default) or parallel: run independent branches at the same time"
# inter_threads = "threads over branches when parallel; 0 (default): the runtime's choice"
# spinning = "true (default): threads wait for work busily, the lowest latency; false: they sleep"
# device_id = "cuda, tensorrt, dml: the number of the GPU, 0 by default"
# context = "qnn, tensorrt: true keeps what the provider compiled; false (default) compiles at load"
# openvino_device = "openvino: CPU (default), GPU or NPU"
# qnn_backend = "qnn: htp (default, the NPU), gpu or cpu"
# qnn_performance = "qnn: default, burst, balanced, high_performance, power_saver and their kin"
# qnn_soc = "qnn: the number of the chip in Qualcomm's list (43, 57, 60, 69, ...); 0 (default): this one"
# coreml_units = "coreml: ALL (default), CPUOnly, CPUAndGPU or CPUAndNeuralEngine"
# ///
"""ONNX Runtime: the graph is optimised once, saved, and loaded as it is.

Its execution providers are the devices. What a provider does not take runs on the CPU, and
`operators` says what that was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit._plugins.targets.ort import (
    audit,
    layout,
    nodes,
    precision,
    probing,
    providers,
    saving,
)
from deploykit._plugins.targets.ort.session import OrtSession, open_model

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.onnx_graph import fixed_inputs, set_inputs
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
    Signature,
    TensorSpec,
)
from deploykit.tensors import read_tensors

if TYPE_CHECKING:
    import onnx
    import onnxruntime

SETTINGS = {
    "format": Setting(default="onnx", choices=("onnx", "ort")),
    "optimization": Setting(default="all", choices=("all", "extended", "basic", "none")),
    "execution": Setting(default="sequential", choices=("sequential", "parallel")),
    "inter_threads": Setting(default="0"),
    "spinning": Setting(default="true", choices=("true", "false")),
    "device_id": Setting(default="0"),
    "context": Setting(default="false", choices=("true", "false")),
    "openvino_device": Setting(default="CPU", choices=("CPU", "GPU", "NPU")),
    "qnn_backend": Setting(default="htp", choices=("htp", "gpu", "cpu")),
    "qnn_performance": Setting(
        default="default",
        choices=(
            *("default", "burst", "balanced", "high_performance", "sustained_high_performance"),
            *("high_power_saver", "low_balanced", "low_power_saver", "power_saver"),
            "extreme_power_saver",
        ),
    ),
    "qnn_soc": Setting(default="0"),
    "coreml_units": Setting(
        default="ALL", choices=("ALL", "CPUOnly", "CPUAndGPU", "CPUAndNeuralEngine")
    ),
}

# ONNX Runtime's names of element types, as session.get_inputs() gives them.
DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "string": "string",
    "bool": "bool",
    **{f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}


def probe() -> tuple[Availability, ...]:
    """Return whether each of ONNX Runtime's devices runs a model here."""
    settings = in_force({}, SETTINGS, plugin="onnxruntime")
    return tuple(probing.probe(device, settings) for device in providers.PROVIDERS)


def compile(request: CompileRequest) -> CompileResult:
    """Fix the sizes asked for and save the model to the payload; for the CPU, optimised.

    Raises UsageError for an unknown setting or shape, UnsupportedError for an operator that has
    no kernel or a precision that would not take effect, SourceError for a file that is no model,
    UnavailableError where the device is not here.
    """
    settings = in_force(request.settings, SETTINGS, plugin="onnxruntime")
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    _check_form(request, settings)
    if request.device != "cpu":
        providers.check(request.device)
    phase("reading the model")
    model = saving.read(request.model)
    precision.check(
        request.device, request.precision, settings, quantised=precision.is_quantised(model)
    )
    edited = set_inputs(model, inputs)
    notes: list[str] = []
    if precision.converts(request.device, request.precision):
        phase(f"converting to {request.precision}")
        model, note = precision.converted(model, request.model, request.device, request.precision)
        notes.append(note)
        edited = True
    write = _write_optimised if request.device == "cpu" else _write_for_provider
    session, more = write(request, settings, model, edited=edited)
    return CompileResult(
        signature=_signature(session, request.signature),
        settings=settings,
        versions=_versions(request.device),
        notes=(*notes, *more),
    )


def load(request: LoadRequest) -> OrtSession:
    """Return the model of the payload, ready to run.

    Raises UnavailableError where the device is not here, or the saved layout is for another kind of
    processor.
    """
    settings = in_force(request.settings, SETTINGS, plugin="onnxruntime")
    phase("loading")
    session = _open_payload(request, _options(request.threads, settings))
    return OrtSession(session, request.signature, request.device)


def operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]:
    """Return every operation of a run with its device, time and ONNX nodes, by ONNX Runtime's profile.

    Raises as `load` does.
    """
    load = request.load
    options = _options(load.threads, in_force(load.settings, SETTINGS, plugin="onnxruntime"))
    feed = read_tensors(Path(request.feed))
    with tempfile.TemporaryDirectory() as folder:
        audit.prepare(options, Path(folder))
        phase("loading")
        session = _open_payload(load, options)
        phase("profiling")
        return audit.audit(session, feed, _nodes(Path(load.payload)))


def _check_form(request: CompileRequest, settings: Mapping[str, str]) -> None:
    """Raise UnsupportedError for a form that the device, or the machine asked for, does not have."""
    device = request.device
    if settings["format"] == "ort" and device != "cpu":
        raise UnsupportedError(
            f"the ORT format is made for the CPU, not for {device}",
            hint="a phone's ONNX Runtime gives it to its own providers: use onnxruntime:cpu",
        )
    if settings["context"] == "true" and device not in ("qnn", "tensorrt"):
        raise UnsupportedError(
            f"the provider of {device} gives away nothing that it compiled",
            hint="use context=false",
        )
    if request.hardware is not None and device != "cpu":
        raise UnsupportedError(
            f"onnxruntime:{device} compiles for this machine only, not for {request.hardware.name}",
            hint="onnxruntime:cpu makes a bundle for any processor",
        )


def _write_optimised(
    request: CompileRequest, settings: Mapping[str, str], model: onnx.ModelProto, *, edited: bool
) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """Save the model as ONNX Runtime optimises it for its CPU device; return that session, notes."""
    payload = Path(request.payload)
    options = _options(request.threads, settings)
    options.graph_optimization_level = _level(settings["optimization"])
    phase("optimising")
    if settings["format"] == "ort":
        made = saving.mobile(model, request.model, payload, options, edited=edited)
        return made, []
    # its blocks are of this machine's width, and another one is asked for
    without = [] if request.hardware is None else [layout.OPTIMISER]
    made = saving.optimised(model, request.model, payload, options, edited=edited, without=without)
    return made, saving.about(payload, model)


def _write_for_provider(
    request: CompileRequest, settings: Mapping[str, str], model: onnx.ModelProto, *, edited: bool
) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """Save the model as it came, for the provider to compile; return a session that did, and notes."""
    payload = Path(request.payload)
    edited = nodes.give_names(model.graph) or edited  # else nobody could tell where they ran
    saving.as_it_came(model, request.model, payload, edited=edited)
    options = _options(request.threads, settings)
    options.graph_optimization_level = _level(settings["optimization"])
    phase(f"compiling for {request.device}")
    whole, kept = payload / saving.MODEL, payload / saving.CONTEXT
    if settings["context"] == "true":
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_embed_mode", "1")
        options.add_session_config_entry("ep.context_file_path", str(kept))
    own = providers.options_for(
        request.device, settings, precision=request.precision, threads=request.threads
    )
    made = open_model(
        str(whole), options, request.model, device=request.device, provider_options=own
    )
    notes = []
    if settings["context"] == "true":
        if not kept.is_file():
            raise UnsupportedError(
                f"the provider of {request.device} took no part of the model, so it compiled none",
                hint="use context=false",
            )
        for file in [path for path in payload.iterdir() if path != kept]:
            file.unlink()
        notes.append(f"keeps what {request.device} compiled, which loads on no other kind of chip")
    if providers.simulated(request.device):
        notes.append(
            "runs in the vendor's simulator here: its times mean nothing; "
            f"it simulates the chip {own.get('soc_model', 'that is its default')}"
        )
    if request.device == "openvino" and _wide(request.signature):
        notes.append("integers are computed in 32 bits: values beyond 2147483647 are wrong")
    return made, notes


def _wide(signature: Signature) -> bool:
    return bool({spec.dtype for spec in signature.inputs} & {"int64", "uint64", "uint32"})


def _open_payload(
    request: LoadRequest, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    payload = Path(request.payload)
    settings = in_force(request.settings, SETTINGS, plugin="onnxruntime")
    if request.device == "cpu":
        layout.check(payload)
        # the saved graph is already optimised: doing it again costs time and changes nothing
        options.graph_optimization_level = _level("none")
        name = saving.MOBILE if settings["format"] == "ort" else saving.MODEL
        return open_model(str(payload / name), options, str(payload / name))
    providers.check(request.device)
    options.graph_optimization_level = _level(settings["optimization"])
    context = settings["context"] == "true"
    path = str(payload / (saving.CONTEXT if context else saving.MODEL))
    own = providers.options_for(
        request.device, settings, precision=request.precision, threads=request.threads
    )
    try:
        return open_model(path, options, path, device=request.device, provider_options=own)
    except (SourceError, UnsupportedError) as error:
        if not context:
            raise
        raise UnavailableError(
            f"what {request.device} compiled does not load here: {error.message}",
            hint="compile it here, or with context=false",
        ) from error


def _nodes(payload: Path) -> dict[str, list[str]]:
    """Return the ONNX nodes behind the names of the operations of the payload's graph."""
    import onnx

    found = nodes.read(payload)
    if found or not (payload / saving.MODEL).is_file():
        return found
    graph = onnx.load(str(payload / saving.MODEL), load_external_data=False).graph
    return {node.name: [node.name] for node in graph.node if node.name}


def _versions(device: str) -> dict[str, str]:
    import onnxruntime

    found = {"onnxruntime": onnxruntime.__version__}
    if device == "qnn":
        import onnxruntime_qnn

        found["onnxruntime-qnn"] = onnxruntime_qnn.__version__
    return found


def _level(name: str) -> onnxruntime.GraphOptimizationLevel:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    return {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "none": levels.ORT_DISABLE_ALL,
    }[name]


def _options(threads: int | None, settings: Mapping[str, str]) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = int(settings["inter_threads"])
    parallel = settings["execution"] == "parallel"
    modes = onnxruntime.ExecutionMode
    options.execution_mode = modes.ORT_PARALLEL if parallel else modes.ORT_SEQUENTIAL
    spinning = "1" if settings["spinning"] == "true" else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    return options


def _signature(session: onnxruntime.InferenceSession, model: Signature) -> Signature:
    """Return the model's signature with the sizes that ONNX Runtime worked out."""
    found = {value.name: value for value in (*session.get_inputs(), *session.get_outputs())}

    def resolved(spec: TensorSpec) -> TensorSpec:
        value = found[spec.name]
        # ONNX Runtime says [] both for a scalar and for an unknown rank
        shape = tuple(value.shape) if value.shape else spec.shape
        if shape is not None:
            shape = tuple(None if isinstance(d, int) and d < 0 else d for d in shape)
        dtype = DTYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if dtype is None:
            raise UnsupportedError(
                f"`{spec.name}` is a {value.type}: only tensors can go in and out of a bundle"
            )
        return TensorSpec(name=spec.name, dtype=dtype, shape=shape)

    return Signature(
        inputs=tuple(resolved(spec) for spec in model.inputs),
        outputs=tuple(resolved(spec) for spec in model.outputs),
    )
