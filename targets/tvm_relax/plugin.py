# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["apache-tvm==0.27.0.post1", "ziglang==0.17.1", "onnx>=1.18", "onnxruntime>=1.22", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "tvm"
# summary = "Apache TVM: a shared library compiled by LLVM for this processor"
# devices = ["cpu"]
# newest_opset = 21
# functions = ["probe", "compile", "load"]
#
# [tool.deploykit.settings]
# schedule = "fixed (default): vectors, registers and threads by rule; plain: TVM's own loops, for comparison"
# ///
"""Apache TVM on the CPU: the ONNX graph becomes one shared library of machine code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tvm_relax import graphs, linking, machine, schedules

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
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SETTINGS = {"schedule": Setting(default="fixed", choices=("fixed", "plain"))}
LIBRARY = "model.so"
BUILD = "build.json"

UNTUNED = {
    "fixed": "built without tuning, with loops ordered by rule: "
    "up to ten times slower than a hand-written runtime; tuning is planned",
    "plain": "built without tuning: 40 to 140 times slower than a hand-written runtime is usual",
}


def probe() -> tuple[Availability, ...]:
    """Return whether TVM can compile for, and run on, this processor."""
    try:
        import tvm
    except ImportError as error:
        return (Availability(device="cpu", available=False, detail=f"apache-tvm: {error}"),)
    if tvm.target.codegen.llvm_version_major(allow_none=True) is None:
        return (
            Availability(
                device="cpu",
                available=False,
                detail="this build of TVM has no LLVM",
                versions={"apache-tvm": tvm.__version__},
            ),
        )
    detail = f"LLVM {tvm.target.codegen.llvm_version_major()} for {machine.processor()}"
    if linking.linker() is None:
        detail += "; loads only: to compile, install a C++ compiler (g++, clang++ or ziglang)"
    return (Availability(device="cpu", available=True, detail=detail, versions=_versions()),)


def compile(request: CompileRequest) -> CompileResult:
    """Compile the model to a shared library in the payload.

    Where sizes are dynamic and TVM cannot keep them so, the first axis of each input is fixed to 1
    and a note says so. Raises UnsupportedError naming every operator that TVM lacks,
    UnavailableError without a C++ compiler to link with.
    """
    settings = in_force(request.settings, SETTINGS, plugin="tvm")
    if request.precision not in ("fp32", "fp16"):
        raise UnsupportedError(
            f"target tvm has no precision `{request.precision}`", hint="it has fp32 and fp16"
        )
    graphs.check_dtypes(request.signature)
    if linking.linker() is None:
        raise UnavailableError(
            "target tvm links its library with a C++ compiler, and there is none",
            hint="install g++, clang++ or the package ziglang",
        )
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    notes: list[str] = []
    phase("importing tvm")
    machine.make_room_for_threads()
    with graphs.quiet():
        library, model, inputs = _build(request, inputs, settings, notes)
        phase("linking")
        payload = Path(request.payload)
        library.export_library(str(payload / LIBRARY), fcompile=linking.compile_function())
    build = {
        "architecture": architecture(),
        "features": machine.features_in_use(),
        "inputs": [value.name for value in model.graph.input],
    }
    temporary = payload / f"{BUILD}.tmp"
    temporary.write_text(json.dumps(build, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(payload / BUILD)
    return CompileResult(
        signature=Signature(
            inputs=inputs, outputs=graphs.outputs(model, request.signature.outputs)
        ),
        settings=settings,
        versions=_versions(),
        notes=(UNTUNED[settings["schedule"]], *notes),
    )


def load(request: LoadRequest) -> TvmSession:
    """Return the compiled library of the payload, ready to run.

    TVM has one pool of threads per process: the last session loaded decides its size. Raises
    UnavailableError where the library uses instructions that this processor lacks.
    """
    in_force(request.settings, SETTINGS, plugin="tvm")
    payload = Path(request.payload)
    build = json.loads((payload / BUILD).read_text(encoding="utf-8"))
    phase("importing tvm")
    machine.make_room_for_threads()
    import tvm
    import tvm_ffi
    from tvm import relax

    machine.require(build["architecture"], build["features"])
    machine.use_threads(request.threads)
    phase("loading")
    with tempfile.TemporaryDirectory(prefix="deploykit-tvm-") as folder, graphs.silent():
        # The system's loader takes a path that it knows for the library that it knows: a bundle
        # replaced since would give the old one's results. So each load has a name of its own
        # (tvm.runtime.load_module would resolve the link).
        link = Path(folder) / LIBRARY
        link.symlink_to((payload / LIBRARY).resolve())
        library = tvm_ffi.load_module(str(link))
    main = relax.VirtualMachine(library, tvm.cpu())["main"]
    return TvmSession(main, build["inputs"], request.signature)


class TvmSession:
    """A compiled library in TVM's virtual machine."""

    def __init__(self, function: Any, order: list[str], signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._function = function
        self._order = order
        self._names = [spec.name for spec in signature.outputs]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        return _named(self._names, self._function(*_arguments(feed, self._order)))

    def bind(self, feed: Mapping[str, Array]) -> BoundCall:
        """Fix the inputs; calling the result runs one inference on them."""
        return BoundCall(self._function, _arguments(feed, self._order), self._names)

    def close(self) -> None:
        """Give the library and its constants back."""
        self._function = None


class BoundCall:
    """The compiled function with its arguments in TVM's memory."""

    def __init__(self, function: Any, arguments: list[Any], names: list[str]) -> None:
        self._function = function
        self._arguments = arguments
        self._names = names
        self._result: Any = None

    def __call__(self) -> None:
        """Run once."""
        self._result = self._function(*self._arguments)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return _named(self._names, self._result)


def _versions() -> dict[str, str]:
    import tvm

    return {"apache-tvm": tvm.__version__, "llvm": str(tvm.target.codegen.llvm_version_major())}


def _arguments(feed: Mapping[str, Array], order: list[str]) -> list[Any]:
    import tvm

    # copied, because kernels rely on an alignment of 64 bytes that numpy does not promise
    return [tvm.runtime.tensor(feed[name]) for name in order]


def _named(names: list[str], result: Any) -> dict[str, Array]:
    results = [result] if hasattr(result, "numpy") else list(result)
    return {name: each.numpy() for name, each in zip(names, results, strict=True)}


def _build(
    request: CompileRequest,
    inputs: tuple[TensorSpec, ...],
    settings: Mapping[str, str],
    notes: list[str],
) -> tuple[Any, Any, tuple[TensorSpec, ...]]:
    """Return the compiled module, the ONNX model it came from, and the inputs it takes."""
    dynamic = graphs.dynamic_axes(inputs)
    try:
        library, model = _build_for(request, inputs, settings, notes)
        if not dynamic:
            return library, model, inputs
        phase("trying dynamic sizes")
        graphs.try_run(library, model, inputs)
        notes.append(
            f"{', '.join(dynamic)} may have any size; fixed sizes let TVM order the loops better"
        )
        return library, model, inputs
    except MemoryError:
        raise
    except Exception as error:
        # whatever TVM raises here (it has no class of its own): sizes unknown at compile time
        fixed = graphs.with_batch_of_one(inputs)
        if not dynamic or (fixed is None and isinstance(error, UnsupportedError)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if fixed is None:
            raise UnsupportedError(
                f"target tvm cannot keep {', '.join(dynamic)} dynamic: {reason}",
                hint="give their sizes with --shape",
            ) from error
    notes.append(f"TVM cannot keep {', '.join(dynamic)} dynamic: fixed to 1 ({reason})")
    library, model = _build_for(request, fixed, settings, notes)
    return library, model, fixed


def _build_for(
    request: CompileRequest,
    inputs: tuple[TensorSpec, ...],
    settings: Mapping[str, str],
    notes: list[str],
) -> tuple[Any, Any]:
    phase("folding the graph")
    model = graphs.folded(request.model, inputs)
    graphs.check_operators(model)
    phase("importing the graph")
    module = graphs.imported(model)
    import tvm
    from tvm import relax

    target = machine.target(request.threads)
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.get_pipeline("zero"),
    ]
    with target:
        if request.precision == "fp16":
            module = graphs.in_float16(module)
            notes += machine.half_precision_notes()
        phase("lowering")
        module = tvm.transform.Sequential(passes)(module)
        if settings["schedule"] == "fixed":
            module = schedules.schedule(module, lanes=machine.lanes(target))
    phase("compiling")
    with tvm.transform.PassContext(opt_level=3):
        return tvm.compile(module, target), model
