# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0", "onnx>=1.18", "onnxruntime>=1.22", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "iree"
# summary = "IREE: one compiled module for its virtual machine; CPU (also another), Vulkan, CUDA"
# devices = ["cpu", "vulkan", "cuda"]
# newest_opset = 21
# functions = ["probe", "compile", "load", "operators"]
# cross = true
#
# [tool.deploykit.settings]
# opt_level = "O1 (default), O0, O2 or O3: from O2 on it fuses more, which fails on some graphs"
# data_tiling = "true (default): matrices are laid out in tiles, several times faster; or false"
# ///
"""IREE: the ONNX graph becomes one module of machine code (or SPIR-V, PTX) for its runtime."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from deploykit._plugins.targets.iree_vm import (
    compiling,
    graphs,
    importing,
    kernels,
    processors,
    running,
)

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_graph import fixed_inputs
from deploykit.payload_files import read_record, write_record
from deploykit.plugin_settings import Setting, in_force
from deploykit.processor import architecture, require
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

DEVICES = ("cpu", "vulkan", "cuda")

# precision -> MLIR's element type of the factors of convolutions and matrix products
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
SETTINGS = {
    "opt_level": Setting(default="O1", choices=("O0", "O1", "O2", "O3")),
    "data_tiling": Setting(default="true", choices=("true", "false")),
}
MODULE = "model.vmfb"
BUILD = "build.json"

# Where no GPU is named and none is here: PTX that everything since A100 runs.
DEFAULT_GPU = "sm_80"


def probe() -> tuple[Availability, ...]:
    """Return for each device whether IREE's runtime finds it here."""
    try:
        import iree.compiler
        import iree.runtime  # noqa: F401
    except ImportError as error:
        return tuple(
            Availability(device=device, available=False, detail=f"iree: {error}")
            for device in DEVICES
        )
    return tuple(_availability(device) for device in DEVICES)


def _availability(device: str) -> Availability:
    try:
        detail = running.device_name(device)
    except UnavailableError as error:
        return Availability(
            device=device,
            available=False,
            detail=f"compiles only: {error.message}",
            versions=_versions(),
        )
    if device == "cpu":
        detail = f"compiled code on {architecture()}"
    elif device == "cuda":
        detail += "; written for it, never tried on one"
    return Availability(device=device, available=True, detail=detail, versions=_versions())


def compile(request: CompileRequest) -> CompileResult:
    """Compile the model to a module of IREE's virtual machine in the payload.

    Raises UsageError for an unknown setting or shape, UnsupportedError naming the operator that
    IREE lacks, a precision that would take no effect or hardware that it has no code for,
    SourceError for a file that is no model.
    """
    settings = in_force(request.settings, SETTINGS, plugin="iree")
    if request.precision not in PRECISIONS:
        raise UnsupportedError(
            f"target iree has no precision `{request.precision}`",
            hint=f"it has {', '.join(PRECISIONS)}",
        )
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    graphs.check_tensors(Signature(inputs=inputs, outputs=request.signature.outputs))
    phase("importing iree")
    chosen = _chosen(request)
    _check_precision(request, chosen)
    phase("reading the model")
    model = graphs.read(request.model, inputs)
    phase("folding the graph")
    model = graphs.folded(model)
    graphs.check_operators(model)
    outputs = graphs.outputs(model, request.signature.outputs, fixed=bool(request.shapes))
    graphs.flattened_first(model)
    order = [value.name for value in model.graph.input]
    names = graphs.named_nodes(model)
    doubles = graphs.has_doubles(model)
    notes = list(chosen.notes)
    payload = Path(request.payload)
    with tempfile.TemporaryDirectory(prefix="deploykit-iree-") as name:
        folder = Path(name)
        phase("importing the graph")
        importing.write_module(model, folder / "model.mlirbc")
        del model
        phase("compiling")
        settings = _compiled(
            folder,
            [*chosen.flags, *_types(request.precision, doubles=doubles)],
            settings,
            names,
            notes,
        )
        if request.precision != "fp32":
            notes.append(_effect(folder / kernels.SOURCES, request.precision))
        made = kernels.read_sources(folder / kernels.SOURCES, names)
        shutil.move(folder / MODULE, payload / MODULE)
    build = {
        "architecture": chosen.architecture,
        "cpu_flags": chosen.cpu_flags,
        "inputs": order,
        "kernels": {kernel.name: kernel.nodes for kernel in made},
    }
    write_record(payload / BUILD, build)
    dynamic = graphs.dynamic_axes(inputs)
    if dynamic:
        notes.append(
            f"{', '.join(dynamic)} may have any size; fixed sizes (--shape) give faster code, and "
            "are the way out where outputs come out wrong: IREE takes unknown axes that meet for "
            "equal, so none of them can be broadcast from 1"
        )
    return CompileResult(
        signature=Signature(inputs=inputs, outputs=outputs),
        settings=settings,
        versions=_versions(),
        notes=tuple(notes),
        cpu_flags=chosen.cpu_flags,
        portable=request.device != "cpu",  # a GPU's code, and a program for a virtual machine
    )


def load(request: LoadRequest) -> running.IreeSession:
    """Return the module of the payload, ready to run.

    Raises UnavailableError where this machine has not the device or the instruction sets that it
    was compiled for.
    """
    in_force(request.settings, SETTINGS, plugin="iree")
    payload = Path(request.payload)
    build = _build_of(payload, request.device)
    phase("loading")
    loaded = running.Loaded(payload / MODULE, importing.FUNCTION, request.device, request.threads)
    return running.IreeSession(loaded, build["inputs"], request.signature)


def _build_of(payload: Path, device: str) -> dict[str, Any]:
    """Return what `compile` wrote beside the module; UnavailableError where it cannot run here."""
    build: dict[str, Any] = read_record(payload / BUILD, dict)
    if device == "cpu":
        require("the module", build["architecture"], build["cpu_flags"])
    return build


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("iree-base-compiler", "iree-base-runtime")}


def _chosen(request: CompileRequest) -> processors.Chosen:
    """Return what to compile for: the machine asked for, or this one."""
    if request.device == "cpu":
        return processors.processor(request.hardware)
    if request.device == "vulkan":
        return processors.vulkan(request.hardware)
    return processors.cuda(request.hardware, running.nvidia_architecture() or DEFAULT_GPU)


def _compiled(
    folder: Path,
    flags: list[str],
    settings: dict[str, str],
    names: tuple[str, ...],
    notes: list[str],
) -> dict[str, str]:
    """Compile in `folder`; return the settings that did it.

    What fails in the making of kernels is tried again without tiles, and with less fusion: both
    have limits that the plain way does not have. A note says so.
    """
    attempts = [settings]
    if settings["data_tiling"] == "true":
        attempts.append({**settings, "data_tiling": "false"})
    if settings["opt_level"] in ("O2", "O3"):
        attempts.append({"data_tiling": "false", "opt_level": "O1"})
    first: compiling.KernelError | None = None
    for tried in attempts:
        shutil.rmtree(folder / kernels.SOURCES, ignore_errors=True)
        phase(f"compiling with {', '.join(f'{name}={value}' for name, value in tried.items())}")
        try:
            compiling.compiled(
                folder / "model.mlirbc",
                folder / MODULE,
                [*flags, *_flags(tried), *kernels.FLAGS],
                names,
            )
        except compiling.KernelError as error:
            first = first or error
            continue
        if first is not None:
            changed = [f"{name}={tried[name]}" for name in tried if tried[name] != settings[name]]
            notes.append(f"compiled with {', '.join(changed)}, because: {first.message}")
        return tried
    assert first is not None
    raise first


def _flags(settings: dict[str, str]) -> list[str]:
    return [
        f"--iree-opt-level={settings['opt_level']}",
        f"--iree-opt-data-tiling={settings['data_tiling']}",
    ]


def _check_precision(request: CompileRequest, chosen: processors.Chosen) -> None:
    """Raise UnsupportedError where the processor would convert each number to float32 and back."""
    if request.precision == "fp32" or request.precision in chosen.halves:
        return
    others = ["fp32", *sorted(chosen.halves)]
    raise UnsupportedError(
        f"target iree:{request.device} does not compute in {request.precision} on {chosen.name}: "
        "each number would be converted to float32 first",
        hint=f"use --precision {' or '.join(others)}",
    )


def _types(precision: str, *, doubles: bool) -> list[str]:
    """Return the flags that say in which types to compute.

    The compiler would compute float64 in float32; a model without any gets that, for its own
    constants (a MaxPool's lowest number) are float64 and fail otherwise. `precision` narrows the
    factors of convolutions and matrix products.
    """
    flags = [f"--iree-input-demote-f64-to-f32={'false' if doubles else 'true'}"]
    if precision == "fp32":
        return [*flags, "--iree-global-opt-demote-contraction-inputs-operations=none"]
    return [
        *flags,
        "--iree-global-opt-demote-contraction-inputs-operations=all",
        f"--iree-global-opt-demote-contraction-inputs-type={PRECISIONS[precision]}",
    ]


def _effect(sources: Path, precision: str) -> str:
    """Return a note about what is computed in `precision`; raise UnsupportedError where nothing is."""
    if not kernels.computes_in(sources, PRECISIONS[precision]):
        raise UnsupportedError(
            f"target iree finds no product to compute in {precision}: it would take no effect",
            hint="use --precision fp32",
        )
    return (
        f"the factors of convolutions and matrix products in {precision}, their sums and all else "
        "in the model's own types"
    )


def operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]:
    """Return the kernels of a run with their times, and the ONNX nodes that each computes.

    Raises UnavailableError as `load` does.
    """
    load_request = request.load
    payload = Path(load_request.payload)
    build = _build_of(payload, load_request.device)
    feed = read_tensors(Path(request.feed))
    if load_request.device != "cpu":
        running.device_name(load_request.device)
    phase("timing the kernels")
    times = kernels.measured(
        (payload / MODULE).resolve(),
        importing.FUNCTION,
        running.DRIVERS[load_request.device],
        load_request.threads,
        [feed[name] for name in build["inputs"]],
    )
    made = [
        kernels.Kernel(name=name, nodes=tuple(nodes)) for name, nodes in build["kernels"].items()
    ]
    return kernels.runs_of(times, made, load_request.device)
