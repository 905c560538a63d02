# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = [
#     "ncnn==1.0.20261020",
#     "pnnx==20261020",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "numpy>=1.26",
# ]
#
# [tool.uv]
# # pnnx's wheel asks for PyTorch (gigabytes), which only its Python functions need: its program reads
# # ONNX by itself
# override-dependencies = ["torch ; sys_platform == 'never'"]
#
# [tool.deploykit]
# name = "ncnn"
# summary = "ncnn for phones and boards: graph and weights in two portable files"
# devices = ["cpu", "vulkan"]
# newest_opset = 21
# functions = ["probe", "compile", "load"]
# cross = true
#
# [tool.deploykit.settings]
# winograd = "auto (default), true or false: faster convolutions that round more; auto: while exact"
# ///
"""ncnn: converted by pnnx, tried against ONNX Runtime, run on the CPU or on Vulkan."""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from deploykit._plugins.targets.ncnn_net import conversion, session

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_graph import fixed_inputs
from deploykit.onnx_trial import (
    changes_nothing,
    first_that_agrees,
    outputs_seen,
    reference_runs,
    with_fewest_fixed,
)
from deploykit.parity import default_tolerance
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    Signature,
    TensorSpec,
)

SETTINGS = {"winograd": Setting(default="auto", choices=("auto", "true", "false"))}
PRECISIONS = ("fp32", "fp16", "bf16")


def probe() -> tuple[Availability, ...]:
    """Return whether ncnn runs here on the processor and on a Vulkan device."""
    try:
        ncnn = session.runtime()
    except ImportError as error:
        return tuple(
            Availability(device=device, available=False, detail=f"ncnn: {error}")
            for device in ("cpu", "vulkan")
        )
    versions = _versions()
    cores = ncnn.get_physical_big_cpu_count()
    cpu = Availability(device="cpu", available=True, detail=f"{cores} cores", versions=versions)
    missing = _missing_vulkan()
    if missing:
        return (cpu, Availability(device="vulkan", available=False, detail=missing))
    name = ncnn.get_gpu_info(ncnn.get_default_gpu_index()).device_name()
    return (cpu, Availability(device="vulkan", available=True, detail=name, versions=versions))


def compile(request: CompileRequest) -> CompileResult:
    """Convert the model with pnnx and keep what computes the same as ONNX Runtime.

    Dynamic axes stay dynamic where ncnn is right at several sizes; else first axes are fixed to 1,
    and a note says so. Raises UnsupportedError where an operator has no layer in ncnn, where pnnx
    gives up, where what it made computes something else, or where a precision takes no effect.
    """
    settings = in_force(request.settings, SETTINGS, plugin="ncnn")
    if request.precision not in PRECISIONS:
        raise UnsupportedError(
            f"target ncnn has no precision `{request.precision}`",
            hint=f"it has {', '.join(PRECISIONS)}",
        )
    _require(request.device)
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    session.check_dtypes(inputs, request.signature.outputs)
    phase("reading the model")
    model = conversion.read(request.model)

    def build(inputs: tuple[TensorSpec, ...]) -> _Built:
        with tempfile.TemporaryDirectory(prefix="deploykit-ncnn-") as folder:
            return _build(request, inputs, model, Path(folder), settings["winograd"])

    made, fixed = with_fewest_fixed("ncnn", inputs, build)
    notes = list(fixed)
    settings["winograd"] = "true" if made.winograd else "false"
    if not made.winograd and request.settings.get("winograd", "auto") == "auto":
        notes.append("convolutions run without the Winograd algorithm, which rounds too much here")
    if any(spec.dtype in ("int64", "uint32", "uint64") for spec in inputs):
        notes.append("integers are kept in 32 bits: an input beyond 2147483647 is refused")
    if made.elsewhere:
        notes.append(f"without Vulkan, on the processor: layers {', '.join(made.elsewhere)}")
    return CompileResult(
        signature=made.signature,
        settings=settings,
        versions=_versions(),
        notes=(*notes, *_precision_notes(request)),
        portable=True,
    )


def load(request: LoadRequest) -> session.NcnnSession:
    """Return the network of the payload, ready to run.

    Raises UnavailableError where there is no Vulkan device for one that was compiled for it, or
    where this ncnn cannot read the files.
    """
    settings = in_force(request.settings, SETTINGS, plugin="ncnn")
    _require(request.device)
    phase("loading")
    return session.NcnnSession(request, winograd=settings["winograd"] != "false")


@dataclass(frozen=True, kw_only=True)
class _Built:
    """What one attempt came to; `elsewhere` are types of layers that Vulkan lacks."""

    signature: Signature
    winograd: bool
    elsewhere: tuple[str, ...]


def _build(
    request: CompileRequest,
    inputs: tuple[TensorSpec, ...],
    model: conversion.Model,
    folder: Path,
    winograd: str,
) -> _Built:
    """Convert for `inputs`, try the result, and move it into the payload."""
    phase("computing what to expect")
    path = model.write(folder / conversion.SOURCE, inputs)
    runs = reference_runs(request.model, inputs, request.signature.outputs)
    signature = Signature(
        inputs=inputs, outputs=outputs_seen(request.signature.outputs, inputs, runs)
    )
    phase("converting with pnnx")
    shapes = [[run.feed[spec.name].shape for spec in inputs] for run in runs]
    half = request.precision == "fp16"
    tensors = conversion.convert(path, model, signature, shapes, half=half)
    session.write_tensors_file(folder, tensors)
    phase("trying it")
    load = LoadRequest(
        payload=str(folder),
        signature=signature,
        device=request.device,
        precision=request.precision,
        threads=request.threads,
    )

    def network(winograd: bool) -> session.NcnnSession:
        return session.NcnnSession(load, winograd=winograd)

    choices = {"auto": (True, False), "true": (True,), "false": (False,)}[winograd]
    try:
        chosen, reason = first_that_agrees(
            choices, network, runs, default_tolerance(request.precision)
        )
    except UnavailableError as error:
        raise _misread("pnnx wrote a graph that ncnn cannot read", tensors, model) from error
    if reason:
        said = f"what pnnx made of it computes something else: {reason}"
        raise _misread(said, tensors, model)
    if request.precision != "fp32" and request.hardware is None and runs:
        single = session.NcnnSession(replace(load, precision="fp32"), winograd=chosen)
        if changes_nothing(network(chosen), single, runs[0]):
            raise UnsupportedError(
                f"ncnn computes this model the same in {request.precision} and fp32 on this "
                f"{request.device}: {request.precision} takes no effect",
                hint="use --precision fp32",
            )
    elsewhere = network(chosen).without_vulkan() if request.device == "vulkan" else []
    for name in (conversion.PARAM, conversion.BIN, session.TENSORS):
        shutil.move(folder / name, Path(request.payload) / name)
    return _Built(signature=signature, winograd=chosen, elsewhere=tuple(elsewhere))


def _misread(said: str, tensors: conversion.Tensors, model: conversion.Model) -> UnsupportedError:
    """Return the error for a wrong conversion, with what pnnx said that it left out."""
    ignored = f"; pnnx ignored {', '.join(tensors.ignored[:4])}" if tensors.ignored else ""
    kinds = {each.split()[0] for each in tensors.ignored}
    return UnsupportedError(
        f"target ncnn cannot take this model: {said}{ignored}",
        operators=tuple(sorted(kinds & model.operators)),
    )


def _precision_notes(request: CompileRequest) -> list[str]:
    if request.precision == "fp32":
        return []
    kept = f"weights and activations are kept in {request.precision}"
    notes = [f"{kept}; sums are in float32 where the device has no such arithmetic"]
    if request.hardware is not None:
        notes.append(
            f"whether {request.precision} takes effect on {request.hardware.name} shows there"
        )
    return notes


def _require(device: str) -> None:
    missing = _missing_vulkan() if device == "vulkan" else ""
    if missing:
        raise UnavailableError(f"target ncnn finds no Vulkan device: {missing}")


def _missing_vulkan() -> str:
    """Return what Vulkan lacks here, empty where there is a device."""
    ncnn = session.runtime()
    if not hasattr(ncnn, "get_gpu_count"):
        return "this build of ncnn has no Vulkan"
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return "the Vulkan loader libvulkan.so.1 is not installed (Debian's package is libvulkan1)"
    if not ncnn.get_gpu_count():
        return "no Vulkan driver has a device here (Debian's mesa-vulkan-drivers brings one in software)"
    return ""


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("ncnn", "pnnx", "onnxruntime")}
