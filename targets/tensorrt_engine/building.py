"""From an ONNX file to a serialized engine: parse, profile, configure, build.

Names are those of TensorRT's Python API, 10 and 11. In both the network is strongly typed, so that
types are the ONNX graph's: in 11 there is nothing else, in 10 a flag asks for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnsupportedError
from deploykit.home import home
from deploykit.progress import phase

if TYPE_CHECKING:
    from deploykit._plugins.targets.tensorrt_engine.cuda import Gpu
    from deploykit._plugins.targets.tensorrt_engine.sizes import Shapes

CACHES = "tensorrt"
"""Folder of the timing caches in deploykit's home."""


def collecting_logger(trt: Any) -> Any:
    """Return a logger for TensorRT that keeps what it says of errors in its list `errors`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def last_error(log: Any) -> str:
    """Return the last line that TensorRT logged as an error."""
    lines = [line.strip() for text in log.errors for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"


def build(
    trt: Any,
    log: Any,
    model: Path,
    *,
    profile: Mapping[str, Shapes],
    settings: Mapping[str, str],
    tf32: bool,
    gpu: Gpu,
) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Return the serialized engine of the ONNX file `model`, and the shape of each output, -1 dynamic.

    Raises UnsupportedError naming the operators that TensorRT cannot take.
    """
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    phase("parsing the model")
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise refusal([parser.get_error(number) for number in range(parser.num_errors)])
    for number in range(network.num_inputs):
        value = network.get_input(number)
        if value.is_shape_tensor:
            raise UnsupportedError(
                f"the values of input `{value.name}` are sizes: TensorRT needs bounds for them",
                hint="make them constants of the model",
            )
    config = builder.create_builder_config()
    configure(trt, config, settings, tf32=tf32)
    if profile:
        shapes = builder.create_optimization_profile()
        for name, (least, best, most) in profile.items():
            shapes.set_shape(name, least, best, most)
        if config.add_optimization_profile(shapes) < 0:
            raise UnsupportedError(
                f"TensorRT takes no such sizes: {last_error(log)}",
                hint="give others with `--set tensorrt.axes=...`",
            )
    cache = cache_path(trt.__version__, gpu) if settings["timing_cache"] == "true" else None
    if cache is not None:
        known = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
        if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
            # a damaged one, or of another GPU after all: begin anew
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    phase("building the engine")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UnsupportedError(
            f"TensorRT cannot build the engine: {last_error(log)}",
            hint="fix sizes with --shape, or give their bounds with `--set tensorrt.axes=...`",
        )
    if cache is not None:
        _replace(cache, config.get_timing_cache().serialize())
    outputs = (network.get_output(number) for number in range(network.num_outputs))
    return plan, {value.name: tuple(value.shape) for value in outputs}


def _strongly_typed(trt: Any) -> int:
    # deprecated in 11, where it is always so
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def configure(trt: Any, config: Any, settings: Mapping[str, str], *, tf32: bool) -> None:
    """Put the settings into TensorRT's builder configuration."""
    if settings["workspace"] != "auto":
        limit = int(settings["workspace"]) << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    config.builder_optimization_level = int(settings["optimization"])
    # what the inspector and the profiler say of layers, at no cost to their speed
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # on by default: fp32 that is none
    if tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    levels = trt.HardwareCompatibilityLevel
    names = {"none": "NONE", "same": "SAME_COMPUTE_CAPABILITY", "ampere": "AMPERE_PLUS"}
    level = names[settings["hardware_compatibility"]]
    if not hasattr(levels, level):
        raise UnsupportedError(
            f"TensorRT {trt.__version__} has no hardware compatibility level {level}",
            hint="leave out the setting hardware_compatibility, or install a newer TensorRT",
        )
    config.hardware_compatibility_level = getattr(levels, level)
    if settings["version_compatible"] == "true":
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def refusal(errors: list[Any]) -> UnsupportedError | SourceError:
    """Return what the parser's errors come to: the operators and nodes that it cannot take."""
    operators = tuple(sorted({error.node_operator() for error in errors} - {"", None}))
    said = errors[0].desc().strip() if errors else "it gave no reason"
    if not operators:
        return SourceError(f"TensorRT cannot read the ONNX model: {said}")
    node = next((error.node_name() for error in errors if error.node_name()), "")
    where = f" (node `{node}`)" if node else ""
    return UnsupportedError(
        f"target tensorrt cannot take operators {', '.join(operators)}{where}: {said}",
        operators=operators,
    )


def cache_path(version: str, gpu: Gpu) -> Path:
    """Return the file of kernel timings for this GPU and version: TensorRT mixes neither."""
    kind = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.architecture}".lower()).strip("-")
    return home() / CACHES / f"{version}-{kind}.timing"


def _replace(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # several builds may end at once; the last one's timings are as good as any
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
