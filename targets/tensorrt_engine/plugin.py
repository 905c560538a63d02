# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["tensorrt-cu12>=10,<12", "onnx>=1.18", "numpy>=1.26", "platformdirs>=4"]
#
# [tool.deploykit]
# name = "tensorrt"
# summary = "TensorRT: an engine for one NVIDIA GPU (after the documentation: not tried yet)"
# devices = ["gpu"]
# newest_opset = 20
# functions = ["probe", "compile", "load", "operators"]
#
# [tool.deploykit.libraries]
# "libcuda.so.1" = "NVIDIA's driver"
#
# [tool.deploykit.settings]
# axes = "bounds of dynamic axes, NAME=LEAST:BEST:MOST,...; empty (default): batches 1:1:32, lengths 1:128:512"
# workspace = "MiB of GPU memory that a kernel may use for itself; auto (default): all there is"
# optimization = "0 to 5 (default 3): how long the builder looks for faster kernels"
# hardware_compatibility = "none (default): this GPU; same: its compute capability; ampere: Ampere and newer"
# version_compatible = "true or false (default): load with later TensorRT of this major version; runs code of the plan"
# timing_cache = "true (default) or false: keep kernel timings of this GPU for the next build"
# ///
"""TensorRT: an engine built for one GPU from the ONNX model.

**Not tried on a GPU yet.** Written after NVIDIA's documentation of TensorRT 10 and 11, its names
and arguments held against the Python bindings of both; what needs no GPU is tested.
"""

from __future__ import annotations

import platform
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tensorrt_engine import building, layers, narrowing, sizes
from deploykit._plugins.targets.tensorrt_engine.cuda import Driver, Gpu
from deploykit._plugins.targets.tensorrt_engine.inference import TensorrtSession

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.onnx_graph import check_dtypes, every_node, fixed_inputs, set_inputs
from deploykit.payload_files import read_record, write_record, write_whole
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

SETTINGS = {
    "workspace": Setting(default="auto", least=1),
    "optimization": Setting(default="3", choices=("0", "1", "2", "3", "4", "5")),
    "hardware_compatibility": Setting(default="none", choices=("none", "same", "ampere")),
    "version_compatible": Setting(default="false", choices=("true", "false")),
    "timing_cache": Setting(default="true", choices=("true", "false")),
}
AXES = "axes"
PLAN = "model.plan"
BUILD = "build.json"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
DTYPES = ("float32", "float16", "int8", "int32", "int64", "uint8", "bool")
AMPERE = (8, 0)
"""The first compute capability with tf32 and bf16."""
LARGE_BYTES = 1 << 30
"""From here on weights are written beside the model: one message holds 2 GiB."""
RUNS = 5
"""How often an engine is run for the times of its layers, after one run to warm up."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What the payload says of itself: which TensorRT and which GPU it was built with."""

    tensorrt: str
    gpu: str
    capability: tuple[int, int]
    nodes: tuple[str, ...]


def probe() -> tuple[Availability, ...]:
    """Return whether an NVIDIA GPU, its driver and TensorRT are here, or what is missing."""
    try:
        driver = Driver()
        gpu = driver.gpu()
    except UnavailableError as error:
        return (Availability(device="gpu", available=False, detail=error.message),)
    detail = f"{gpu.name} ({gpu.architecture}), driver for CUDA {driver.version()}"
    try:
        trt = _tensorrt()
    except UnavailableError as error:
        return (
            Availability(device="gpu", available=False, detail=f"{error.message}; {error.hint}"),
        )
    return (Availability(device="gpu", available=True, detail=detail, versions=_versions(trt)),)


def compile(request: CompileRequest) -> CompileResult:
    """Build the engine for this machine's GPU and write it to the payload.

    Raises UsageError for an unknown setting or shape, UnsupportedError for operators that TensorRT
    cannot take, a precision that would take no effect, sizes without bounds or another machine,
    UnavailableError without GPU, driver or TensorRT.
    """
    settings = settings_in_force(request.settings)
    if request.precision not in PRECISIONS:
        raise UnsupportedError(
            f"target tensorrt has no precision `{request.precision}`",
            hint=f"it has {', '.join(PRECISIONS)}",
        )
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    specs = (*request.signature.inputs, *request.signature.outputs)
    check_dtypes(specs, DTYPES, target="tensorrt", hint=f"it takes {', '.join(DTYPES)}")
    bounds = sizes.ranges(inputs, settings[AXES])
    model = _read(request.model)
    nodes = node_names(model)
    notes = prepare(model, inputs, request.precision)
    if bounds:
        written = ", ".join(f"{name}={each}" for name, each in bounds.items())
        notes.append(f"sizes least:best:most are {written}; others are refused")
    phase("opening the GPU")
    driver = Driver()
    gpu = driver.gpu()
    _check_gpu(request, gpu)
    driver.enter()
    phase("importing tensorrt")
    trt = _tensorrt()
    log = building.collecting_logger(trt)
    with tempfile.TemporaryDirectory(prefix="deploykit-tensorrt-") as folder:
        path = Path(folder) / "model.onnx"
        _write(model, path)
        del model
        plan, shapes = building.build(
            trt,
            log,
            path,
            profile=sizes.profile(inputs, bounds),
            settings=settings,
            tf32=request.precision == "tf32",
            gpu=gpu,
        )
    payload = Path(request.payload)
    write_whole(payload / PLAN, plan)
    made_with = {"tensorrt": trt.__version__, "gpu": gpu.name, "capability": gpu.capability}
    build = Build(**made_with, nodes=tuple(nodes))
    write_record(payload / BUILD, build)
    return CompileResult(
        signature=Signature(inputs=inputs, outputs=_outputs(request.signature.outputs, shapes)),
        settings=settings,
        versions=_versions(trt),
        notes=(*notes, _where_note(gpu, settings)),
    )


def load(request: LoadRequest) -> TensorrtSession:
    """Return the engine, ready to run on this machine's GPU.

    Raises UnavailableError where GPU, driver or TensorRT are missing or others than it was built for.
    """
    trt, driver, engine = _loaded(request)
    return TensorrtSession(trt, driver, engine, request.signature)


def operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]:
    """Return the engine's layers with their types, ONNX nodes and median times (`IProfiler`)."""
    trt, driver, engine = _loaded(request.load)
    session = TensorrtSession(trt, driver, engine, request.load.signature)
    bound = session.bind(read_tensors(request.feed))
    bound()
    profiler = layers.collecting_profiler(trt)
    bound.context.profiler = profiler
    phase("timing layers")
    for _ in range(RUNS):
        bound()
    inspector = engine.create_engine_inspector()
    told = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    build = read_record(Path(request.load.payload, BUILD), Build)
    found = layers.operator_runs(profiler.times, layers.layers(told, frozenset(build.nodes)))
    bound.close()
    session.close()
    return found


def settings_in_force(asked: dict[str, str]) -> dict[str, str]:
    """Return every setting with the value asked for or its default. Raises UsageError."""
    known = {AXES: Setting(default=""), **SETTINGS}
    # the bounds are text of their own, read where the axes are known
    checked = in_force({**asked, AXES: ""} if AXES in asked else asked, known, plugin="tensorrt")
    return {**checked, AXES: asked.get(AXES, "")}


def node_names(model: onnx.ModelProto) -> list[str]:
    """Return the names of the model's nodes; of one without, its first output."""
    names = {node.name or next(iter(node.output), ""): None for node in every_node(model.graph)}
    return list(filter(None, names))


def prepare(model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], precision: str) -> list[str]:
    """Give `model` the sizes of `inputs` and the types of `precision`, in place; return notes.

    A network is typed by its graph. Raises UnsupportedError where the precision has no effect.
    """
    set_inputs(model, inputs)
    kinds = {node.op_type for node in every_node(model.graph)}
    quantised = "QuantizeLinear" in kinds
    if precision == "int8":
        if not quantised:
            raise UnsupportedError(
                "the model is not quantised: int8 comes from the model itself",
                hint="quantise it first (QuantizeLinear and DequantizeLinear nodes)",
            )
        return ["what lies between QuantizeLinear and DequantizeLinear runs in int8"]
    if precision == "tf32":
        return ["float32 products may be rounded to tf32, where TensorRT finds that faster"]
    if precision == "fp32":
        return ["quantised parts of the model run in int8"] if quantised else []
    phase(f"typing the graph in {precision}")
    if precision == "bf16":
        narrowing.lift(model)
    changed = narrowing.narrow(model, precision)
    total = sum(node.op_type in narrowing.PRODUCTS for node in model.graph.node)
    if not changed:
        raise UnsupportedError(
            f"the model has no convolution or matrix product that could run in {precision}: "
            "it would take no effect",
            hint="use --precision fp32",
        )
    return [f"{changed} of {total} convolutions and matrix products run in {precision}"]


def _tensorrt() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # the package, or a library of it
        raise UnavailableError(
            f"TensorRT cannot be imported: {str(error).splitlines()[0]}",
            hint="install `tensorrt-cu12` (its libraries come from NVIDIA's package index)",
        ) from error
    return tensorrt


def _versions(trt: Any) -> dict[str, str]:
    return {"tensorrt": str(trt.__version__)}


def _check_gpu(request: CompileRequest, gpu: Gpu) -> None:
    there = request.hardware
    if there is not None and (there.gpu, there.architecture) != (
        gpu.architecture,
        platform.machine(),
    ):
        raise UnsupportedError(
            f"TensorRT builds on the GPU that it builds for; this is a {gpu.architecture}, "
            f"{there.name} has {there.gpu or 'none'}",
            hint="compile on that machine",
        )
    if request.precision in ("tf32", "bf16") and gpu.capability < AMPERE:
        raise UnsupportedError(
            f"{gpu.name} ({gpu.architecture}) has no {request.precision}: it begins with sm_80",
            hint="use --precision fp32 or fp16",
        )


def _where_note(gpu: Gpu, settings: dict[str, str]) -> str:
    level = settings["hardware_compatibility"]
    where = {
        "none": f"GPUs like this one ({gpu.name})",
        "same": f"GPUs of {gpu.architecture}",
        "ampere": "GPUs since Ampere (sm_80)",
    }[level]
    later = " and later of its major version" if settings["version_compatible"] == "true" else ""
    return f"the engine is for {where} and this TensorRT{later}"


def _read(path: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    phase("reading the model")
    try:
        return onnx.load(path)
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error


def _write(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) < LARGE_BYTES:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location="weights.bin")


def _outputs(
    asked: tuple[TensorSpec, ...], shapes: dict[str, tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    """Return the outputs with the sizes that TensorRT worked out; it forgets names of axes."""
    found = []
    for spec in asked:
        shape = shapes[spec.name]
        names = spec.shape or (None,) * len(shape)
        found.append(
            TensorSpec(
                name=spec.name,
                dtype=spec.dtype,
                shape=tuple(
                    known if known >= 0 else (None if isinstance(named, int) else named)
                    for known, named in zip(shape, names, strict=True)
                ),
            )
        )
    return tuple(found)


def check_fit(build: Build, gpu: Gpu, version: str, settings: dict[str, str]) -> None:
    """Raise UnavailableError where an engine of `build` is not for this GPU or TensorRT."""
    level = settings["hardware_compatibility"]
    fits = gpu.capability >= AMPERE if level == "ampere" else gpu.capability == build.capability
    if not fits:
        raise UnavailableError(
            f"the engine is for {build.gpu} (sm_{build.capability[0]}{build.capability[1]}), "
            f"this is {gpu.name} ({gpu.architecture})",
            hint="compile it here, or with hardware_compatibility=ampere",
        )
    mine, theirs = _numbers(version), _numbers(build.tensorrt)
    later = mine[:1] == theirs[:1] and mine >= theirs
    if mine != theirs and not (later and settings["version_compatible"] == "true"):
        raise UnavailableError(
            f"the engine is for TensorRT {build.tensorrt}, this is {version}",
            hint="compile it here, or with version_compatible=true",
        )
    if level == "none" and gpu.name != build.gpu:
        warnings.warn(
            f"the engine was tuned on {build.gpu}; on {gpu.name} it may be slower", stacklevel=3
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _loaded(request: LoadRequest) -> tuple[Any, Driver, Any]:
    settings = settings_in_force(request.settings)
    payload = Path(request.payload)
    build = read_record(payload / BUILD, Build)
    phase("opening the GPU")
    driver = Driver()
    driver.enter()
    phase("importing tensorrt")
    trt = _tensorrt()
    check_fit(build, driver.gpu(), str(trt.__version__), settings)
    log = building.collecting_logger(trt)
    runtime = trt.Runtime(log)
    if settings["version_compatible"] == "true":
        # such a plan holds a runtime of its own, which is code
        runtime.engine_host_code_allowed = True
    phase("loading")
    engine = runtime.deserialize_cuda_engine((payload / PLAN).read_bytes())
    if engine is None:
        raise UnavailableError(
            f"TensorRT {trt.__version__} refuses the engine: {building.last_error(log)}",
            hint="compile it here",
        )
    return trt, driver, engine
