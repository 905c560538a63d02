# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0", "onnx>=1.18", "onnxruntime>=1.22", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "iree"
# summary = "IREE: one compiled module for its virtual machine; CPU (also another), Vulkan, CUDA"
# devices = ["cpu", "vulkan", "cuda"]
# newest_opset = 21
# functions = ["probe", "compile", "load"]
#
# [tool.deploykit.settings]
# optimization = "O3 (default), O2, O1 or O0: how far the compiler goes"
# data_tiling = "auto (default): the compiler's choice for the level; true or false: matrices in tiles"
# ///
"""IREE: the ONNX graph becomes one module of machine code (or SPIR-V, PTX) for its runtime."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from deploykit._plugins.targets.iree_vm import (
    compiling,
    graphs,
    importing,
    processors,
    running,
)

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_graph import fixed_inputs
from deploykit.plugin_settings import Setting, in_force
from deploykit.processor import architecture
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    Signature,
)

DEVICES = ("cpu", "vulkan", "cuda")
SETTINGS = {
    "optimization": Setting(default="O3", choices=("O3", "O2", "O1", "O0")),
    "data_tiling": Setting(default="auto", choices=("auto", "true", "false")),
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
    if request.precision not in ("fp32", "fp16", "bf16"):
        raise UnsupportedError(
            f"target iree has no precision `{request.precision}`", hint="it has fp32, fp16 and bf16"
        )
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    graphs.check_dtypes(Signature(inputs=inputs, outputs=request.signature.outputs))
    phase("importing iree")
    chosen = _chosen(request)
    phase("reading the model")
    model = graphs.read(request.model, inputs)
    phase("folding the graph")
    model = graphs.folded(model)
    graphs.check_operators(model)
    outputs = graphs.outputs(model, request.signature.outputs, fixed=bool(request.shapes))
    order = [value.name for value in model.graph.input]
    names = graphs.named_nodes(model)
    dynamic = graphs.dynamic_axes(inputs)
    payload = Path(request.payload)
    with tempfile.TemporaryDirectory(prefix="deploykit-iree-") as name:
        folder = Path(name)
        phase("importing the graph")
        importing.write_module(model, folder / "model.mlirbc")
        del model
        phase("compiling")
        compiling.compiled(
            folder / "model.mlirbc",
            folder / MODULE,
            [*chosen.flags, *_flags(settings)],
            names,
            dynamic=bool(dynamic),
        )
        shutil.move(folder / MODULE, payload / MODULE)
    build = {"architecture": chosen.architecture, "cpu_flags": chosen.cpu_flags, "inputs": order}
    temporary = payload / f"{BUILD}.tmp"
    temporary.write_text(json.dumps(build, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(payload / BUILD)
    notes = list(chosen.notes)
    if dynamic:
        notes.append(
            f"{', '.join(dynamic)} may have any size; fixed sizes (--shape) give faster code"
        )
    return CompileResult(
        signature=Signature(inputs=inputs, outputs=outputs),
        settings=settings,
        versions=_versions(),
        notes=tuple(notes),
        cpu_flags=chosen.cpu_flags,
    )


def load(request: LoadRequest) -> running.IreeSession:
    """Return the module of the payload, ready to run.

    Raises UnavailableError where this machine has not the device or the instruction sets that it
    was compiled for.
    """
    in_force(request.settings, SETTINGS, plugin="iree")
    payload = Path(request.payload)
    build = json.loads((payload / BUILD).read_text(encoding="utf-8"))
    if request.device == "cpu":
        processors.require(build["architecture"], build["cpu_flags"])
    phase("importing iree")
    device = running.open_device(request.device, request.threads)
    phase("loading")
    return running.IreeSession(
        payload / MODULE, importing.FUNCTION, device, build["inputs"], request.signature
    )


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


def _flags(settings: dict[str, str]) -> list[str]:
    flags = [f"--iree-opt-level={settings['optimization']}"]
    if settings["data_tiling"] != "auto":
        flags.append(f"--iree-opt-data-tiling={settings['data_tiling']}")
    return flags
