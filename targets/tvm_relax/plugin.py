# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["apache-tvm==0.27.0.post1", "apache-tvm-ffi>=0.1.14.post0,<0.1.15", "ziglang==0.17.1", "onnx>=1.18", "onnxruntime>=1.22", "numpy>=1.26", "platformdirs>=4"]
#
# [tool.deploykit]
# name = "tvm"
# summary = "Apache TVM: a shared library of machine code, for this processor or another, or for NVIDIA's GPUs"
# devices = ["cpu", "cuda"]
# newest_opset = 21
# functions = ["probe", "compile", "load"]
# cross = true
#
# [tool.deploykit.settings]
# tune = "seconds to spend on finding better loops than the rule's, 60 by default; 0: none; what was found is kept"
# schedule = "fixed (default): vectors, registers and threads by rule; plain: TVM's own loops, for comparison"
# ///
"""Apache TVM: the ONNX graph becomes one shared library of machine code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tvm_relax import (
    cuda,
    graphs,
    linking,
    machine,
    runtime,
)
from deploykit._plugins.targets.tvm_relax.building import Building
from deploykit._plugins.targets.tvm_relax.session import TvmSession

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_graph import NUMBERS, check_dtypes, fixed_inputs
from deploykit.payload_files import read_record, write_record
from deploykit.plugin_settings import Setting, in_force
from deploykit.processor import require
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    Signature,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SETTINGS = {
    "schedule": Setting(default="fixed", choices=("fixed", "plain")),
    "tune": Setting(default="60"),
}
LIBRARY = "model.so"
BUILD = "build.json"


def probe() -> tuple[Availability, ...]:
    """Return whether TVM can compile for, and run on, this processor and a GPU."""
    try:
        import tvm
    except ImportError as error:
        return _nowhere(f"apache-tvm: {error}", {})
    if tvm.target.codegen.llvm_version_major(allow_none=True) is None:
        return _nowhere("this build of TVM has no LLVM", {"apache-tvm": tvm.__version__})
    detail = f"LLVM {tvm.target.codegen.llvm_version_major()} for {machine.name_of_this_one()}"
    if linking.linker() is None:
        detail += "; loads only: to compile, install a C++ compiler (g++, clang++ or ziglang)"
    return (
        Availability(device="cpu", available=True, detail=detail, versions=_versions()),
        _probe_cuda(),
    )


def _nowhere(detail: str, versions: dict[str, str]) -> tuple[Availability, ...]:
    return tuple(
        Availability(device=device, available=False, detail=detail, versions=versions)
        for device in ("cpu", "cuda")
    )


def _probe_cuda() -> Availability:
    lacking = cuda.missing_to_run()
    if lacking is None:
        detail = "untested here"
    else:
        compiler = cuda.missing_to_compile()
        detail = f"lacks {lacking}; " + (
            f"to compile it lacks {compiler}" if compiler else f"{cuda.nvcc()} compiles for it"
        )
    return Availability(
        device="cuda", available=lacking is None, detail=detail, versions=_versions()
    )


def compile(request: CompileRequest) -> CompileResult:
    """Compile the model to a shared library in the payload, for this machine or for `hardware`.

    Where sizes are dynamic and TVM cannot keep them so, the first axis of each input is fixed to 1
    and a note says so. Raises UnsupportedError naming every operator that TVM lacks, or hardware
    that it cannot compile for, UnavailableError without a C++ compiler to link with.
    """
    settings = in_force(request.settings, SETTINGS, plugin="tvm")
    if request.precision not in ("fp32", "fp16"):
        raise UnsupportedError(
            f"target tvm has no precision `{request.precision}`", hint="it has fp32 and fp16"
        )
    specs = (*request.signature.inputs, *request.signature.outputs)
    check_dtypes(specs, NUMBERS, target="tvm")
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    phase("importing tvm")
    runtime.make_room_for_threads()
    here = machine.this_one(request.threads)
    processor = machine.another(request.hardware, request.threads) if request.hardware else here
    if linking.linker(processor.triple) is None:
        raise UnavailableError(
            "target tvm links its library with a C++ compiler, and there is none"
            + (f" for {processor.triple}" if processor.triple else ""),
            hint="install the package ziglang, "
            + (f"or {processor.triple}-g++" if processor.triple else "g++ or clang++"),
        )
    gpus = cuda.architectures(request.hardware) if request.device == "cuda" else ()
    if gpus:
        cuda.prepare(gpus)
    building = Building(request, settings, processor, here, gpus)
    with graphs.quiet():
        library, model, inputs = building.library(inputs)
        phase("linking")
        payload = Path(request.payload)
        library.export_library(
            str(payload / LIBRARY), fcompile=linking.compile_function(processor.triple)
        )
    build = {
        "architecture": processor.architecture,
        "cpu_flags": processor.cpu_flags,
        "gpus": gpus,
        "inputs": [value.name for value in model.graph.input],
    }
    write_record(payload / BUILD, build)
    return CompileResult(
        signature=Signature(
            inputs=inputs, outputs=graphs.outputs(model, request.signature.outputs)
        ),
        settings=settings,
        versions=_versions(),
        notes=tuple(building.notes),
        cpu_flags=processor.cpu_flags,
    )


def load(request: LoadRequest) -> TvmSession:
    """Return the compiled library of the payload, ready to run; TVM's compiler is not loaded.

    TVM has one pool of threads per process: the last session loaded decides its size. Raises
    UnavailableError where the library uses instructions that this processor lacks, or the runtime
    is missing, BundleError where the payload is damaged.
    """
    in_force(request.settings, SETTINGS, plugin="tvm")
    payload = Path(request.payload)
    build = read_record(payload / BUILD, dict)
    require("the library", build["architecture"], build["cpu_flags"])
    lacking = cuda.missing_to_run() if request.device == "cuda" else None
    if lacking:
        raise UnavailableError(f"target tvm:cuda needs {lacking}")
    phase("loading TVM's runtime")
    runtime.start(request.device)
    runtime.use_threads(request.threads)
    phase("loading")
    with graphs.silent():
        made = runtime.machine_of(payload / LIBRARY, request.device)
    return TvmSession(made, build["inputs"], request.signature, request.device)


def _versions() -> dict[str, str]:
    import tvm

    return {"apache-tvm": tvm.__version__, "llvm": str(tvm.target.codegen.llvm_version_major())}
