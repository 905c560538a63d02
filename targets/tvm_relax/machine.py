"""What TVM shall compile for: this processor or another one, as LLVM knows it, and its threads."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit._plugins.targets.tvm_relax import vectors

from deploykit import llvm_names
from deploykit.errors import UnsupportedError
from deploykit.processor import architecture

if TYPE_CHECKING:
    import tvm

    from deploykit.protocol import Hardware

# LLVM's spelling where the kernel's differs.
KERNEL_NAMES = {"arm64": "aarch64", "amd64": "x86_64"}

# What the library is linked for and its loader runs on; the runtime has wheels for the first two.
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What code is made for: `target` is TVM's, `features` LLVM's names of the instruction sets.

    `triple` is None for the machine that compiles.
    """

    target: tvm.target.Target
    architecture: str
    features: tuple[str, ...]
    triple: str | None

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """The instruction sets in the kernel's words."""
        return llvm_names.in_the_kernels_words(self.features, self.architecture)

    @property
    def lanes(self) -> int:
        """How many float32 a vector register holds."""
        return vectors.lanes(self.features)

    @property
    def registers(self) -> int:
        """How many vector registers there are."""
        return vectors.registers(self.features, self.architecture)

    @property
    def halves(self) -> bool:
        """Whether it computes in float16."""
        return bool({"avx512fp16", "fullfp16", "zvfh"} & set(self.features))


def name_of_this_one() -> str:
    """Return LLVM's name of this processor, such as `znver4`."""
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


def _present() -> dict[str, bool]:
    """Return LLVM's instruction-set features, each with whether this processor has it."""
    import tvm

    found = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return {str(name): bool(value) for name, value in found.items()}


def _features(target: tvm.target.Target) -> set[str]:
    """Return the features that LLVM uses for `target`."""
    from tvm.target import codegen

    return {str(name) for name in codegen.llvm_get_cpu_features(target)}


def this_one(threads: int | None) -> Processor:
    """Return the processor that we run on.

    A virtual machine may hide what a processor of that name has (AMX, AVX512-FP16): what is not
    there is switched off, or the library would die of an illegal instruction.
    """
    import tvm

    named = {"kind": "llvm", "mcpu": name_of_this_one()}
    present = _present()
    implied = _features(tvm.target.Target(named))
    hidden = sorted(name for name in implied if present.get(name) is False)
    return Processor(
        target=tvm.target.Target(
            {
                **named,
                "mattr": [f"-{name}" for name in hidden],
                "num-cores": threads or len(os.sched_getaffinity(0)),
            }
        ),
        architecture=architecture(),
        features=tuple(sorted(name for name in implied if present.get(name))),
        triple=None,
    )


def another(hardware: Hardware, threads: int | None) -> Processor:
    """Return the processor that `hardware` describes.

    Raises UnsupportedError for a system, architecture, processor or feature that cannot be
    compiled for: LLVM would only print a warning, and take the least that the architecture has.
    """
    import tvm

    system = KERNEL_NAMES.get(hardware.architecture, hardware.architecture)
    parts = hardware.triple.split("-")
    if "linux" not in parts or not {"gnu", "musl"} & set(parts):
        raise UnsupportedError(
            f"target tvm cannot compile for {hardware.name}: its loader is made for Linux, "
            f"not for `{hardware.triple}`",
            hint="it takes triples such as aarch64-linux-gnu",
        )
    if system not in ARCHITECTURES:
        raise UnsupportedError(
            f"target tvm cannot compile for {hardware.name}: `{system}` is not among its "
            f"architectures, {', '.join(ARCHITECTURES)}"
        )
    described: dict[str, object] = {
        "kind": "llvm",
        "mtriple": "-".join([system, *parts[1:]]),
        "num-cores": threads or hardware.cores or len(os.sched_getaffinity(0)),
    }
    if hardware.cpu:
        _check_cpu(hardware, described)
        described["mcpu"] = hardware.cpu
    attributes = [name if name.startswith(("+", "-")) else f"+{name}" for name in hardware.features]
    _check_features(hardware, described, attributes)
    if system == "riscv64":
        # else doubles would be passed in integer registers, which no Linux does
        described["mabi"] = "lp64d"
    target = tvm.target.Target({**described, "mattr": attributes})
    features = _features(target)
    if system == "riscv64" and "d" not in features:
        raise UnsupportedError(
            f"target tvm cannot compile for {hardware.name}: Linux on riscv64 needs the "
            "extensions +m, +a, +f, +d and +c",
            hint="name them among the features of the hardware profile",
        )
    return Processor(
        target=target,
        architecture=system,
        features=tuple(sorted(features)),
        triple=str(described["mtriple"]),
    )


def _check_cpu(hardware: Hardware, described: dict[str, object]) -> None:
    import tvm
    from tvm.target import codegen

    known = [str(name) for name in codegen.llvm_get_cpu_archlist(tvm.target.Target(described))]
    if hardware.cpu not in known:
        close = difflib.get_close_matches(hardware.cpu, known, n=3)
        raise UnsupportedError(
            f"target tvm cannot compile for {hardware.name}: LLVM "
            f"{codegen.llvm_version_major()} knows no processor `{hardware.cpu}`",
            hint=f"did you mean {' or '.join(close)}?" if close else f"it knows {', '.join(known)}",
        )


def _check_features(
    hardware: Hardware, described: dict[str, object], attributes: list[str]
) -> None:
    """Refuse a feature that makes no difference: LLVM does not know it."""
    import tvm

    for name in attributes:
        word = name[1:]
        if re.fullmatch(r"[a-z0-9._-]+", word):
            on, off = (
                _features(tvm.target.Target({**described, "mattr": [f"{sign}{word}"]}))
                for sign in "+-"
            )
            if word in on and word not in off:
                continue
        raise UnsupportedError(
            f"target tvm cannot compile for {hardware.name}: LLVM knows no feature `{word}` "
            f"of {hardware.triple}",
            hint="features are LLVM's, such as +dotprod",
        )


def half_precision_notes(processor: Processor | None) -> list[str]:
    """Return what to know about float16 on this processor, None for a GPU."""
    notes = ["convolutions and matrix products in float16, inputs and outputs as they were"]
    if processor is not None and not processor.halves:
        notes.append("the processor has no float16 arithmetic: converted each time, slower")
    return notes
