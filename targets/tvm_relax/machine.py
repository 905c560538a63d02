"""What TVM shall compile for: this processor, as LLVM knows it, and its threads."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from deploykit.errors import UnavailableError
from deploykit.processor import architecture

if TYPE_CHECKING:
    import tvm


def processor() -> str:
    """Return LLVM's name of this processor, such as `znver4`."""
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


def _present() -> dict[str, bool]:
    """Return LLVM's instruction-set features, each with whether this processor has it."""
    import tvm

    found = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(name): bool(value) for name, value in found.items()}


def _implied() -> set[str]:
    """Return the features that LLVM assumes from the processor's name alone."""
    import tvm

    named = tvm.target.Target({"kind": "llvm", "mcpu": processor()})
    return {str(name) for name in tvm.target.codegen.llvm_get_cpu_features(named)}


def features_in_use() -> list[str]:
    """Return the features that code for `target` may use, by LLVM's names."""
    present = _present()
    return sorted(name for name in _implied() if present.get(name))


def target(threads: int | None) -> tvm.target.Target:
    """Return TVM's target for this processor.

    A virtual machine may hide what a processor of that name has (AMX, AVX512-FP16): what is not
    there is switched off, or the library would die of an illegal instruction.
    """
    import tvm

    present = _present()
    hidden = sorted(name for name in _implied() if present.get(name) is False)
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mcpu": processor(),
            "mattr": [f"-{name}" for name in hidden],
            "num-cores": threads or len(os.sched_getaffinity(0)),
        }
    )


def lanes(target: tvm.target.Target) -> int:
    """Return how many float32 a vector register holds."""
    from tvm.target import codegen

    return max(4, int(codegen.llvm_get_vector_width(target)) // 32)


def make_room_for_threads() -> None:
    """Let TVM's pool have a thread per core when it is made; it can shrink later, never grow."""
    os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))


def use_threads(threads: int | None) -> None:
    """Make TVM use that many threads, in the whole process; None leaves them as they are."""
    import tvm

    if threads is None:
        return
    # 1: the big cores first, as the pool does by itself
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    made = int(tvm.get_global_func("runtime.NumThreads")())
    if made < threads:
        warnings.warn(
            f"TVM runs on {made} threads instead of {threads}: its pool was made for that many",
            stacklevel=3,
        )


def require(built_for: str, features: list[str]) -> None:
    """Raise UnavailableError where this machine lacks what a library was compiled for."""
    if built_for != architecture():
        raise UnavailableError(
            f"the library was compiled for {built_for}, this machine is {architecture()}",
            hint="compile it on a machine like this one",
        )
    present = _present()
    missing = [name for name in features if not present.get(name)]
    if missing:
        raise UnavailableError(
            f"the library uses {', '.join(missing)}, which this processor lacks",
            hint="compile it on a machine like this one",
        )


def half_precision_notes() -> list[str]:
    """Return what to know about float16 on this processor."""
    notes = ["convolutions and matrix products in float16, inputs and outputs as they were"]
    present = _present()
    if not (present.get("avx512fp16") or present.get("fullfp16")):
        notes.append("this processor has no float16 arithmetic: converted each time, slower")
    return notes
