"""Which processor or GPU to compile for, in the compiler's words, and what that needs of a machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit._plugins.targets.iree_vm import compiling

from deploykit import llvm_names
from deploykit.errors import UnsupportedError
from deploykit.processor import architecture, instruction_sets

if TYPE_CHECKING:
    from deploykit.protocol import Hardware

# Architectures that IREE's own ELF loader runs on; its Python runtime has wheels for the first two.
ARCHITECTURES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "riscv64": "riscv64",
}

# What Linux on riscv64 is built for (rv64gc); LLVM's own default has none of it.
RISCV = ("+m", "+a", "+f", "+d", "+c")

FP16 = frozenset(["avx512fp16", "fullfp16", "zvfh"])
BF16 = frozenset(["avx512bf16", "bf16", "zvfbfmin", "amx-bf16"])


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What to compile for: the compiler's `flags`; `halves` are the precisions that it computes in.

    `cpu_flags` are the instruction sets that code for it may use, in the kernel's words.
    """

    flags: tuple[str, ...]
    architecture: str
    name: str
    halves: frozenset[str] = frozenset()
    cpu_flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def processor(hardware: Hardware | None) -> Chosen:
    """Return the processor of `hardware`, this one where that is None.

    Raises UnsupportedError for an architecture that IREE's loader does not run on.
    """
    flags = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    if hardware is None:
        kind = architecture()
        # what a virtual machine hides of a processor of that name is switched off by the compiler
        flags.append("--iree-llvmcpu-target-cpu=host")
    else:
        found = ARCHITECTURES.get(hardware.architecture)
        if found is None:
            raise UnsupportedError(
                f"target iree cannot compile for {hardware.name}: its runtime loads code for "
                f"{', '.join(sorted(set(ARCHITECTURES.values())))}, not `{hardware.architecture}`"
            )
        kind = found
        flags += _flags_for(hardware, kind)
    attribute = compiling.described(flags)
    features = _features(attribute)
    named = re.search(r'\bcpu = "(.*?)"', attribute)
    halves = {precision for precision, sets in (("fp16", FP16), ("bf16", BF16)) if features & sets}
    return Chosen(
        flags=tuple(flags),
        architecture=kind,
        name=named[1] if named and named[1] else f"any {kind}",
        halves=frozenset(halves),
        cpu_flags=_cpu_flags(features, kind, here=hardware is None),
    )


def _flags_for(hardware: Hardware, kind: str) -> list[str]:
    features = [name if name[:1] in "+-" else f"+{name}" for name in hardware.features]
    cpu = hardware.cpu or {"x86_64": "x86-64", "riscv64": "generic-rv64"}.get(kind, "generic")
    flags = [
        f"--iree-llvmcpu-target-triple={'-'.join([kind, *hardware.triple.split('-')[1:]])}",
        f"--iree-llvmcpu-target-cpu={cpu}",
    ]
    if kind == "riscv64":
        # else doubles would be passed in integer registers, which no Linux does
        flags.append("--iree-llvmcpu-target-abi=lp64d")
        if not hardware.cpu:
            features = [*RISCV, *features]
    if features:
        flags.append(f"--iree-llvmcpu-target-cpu-features={','.join(features)}")
    return flags


def _features(attribute: str) -> frozenset[str]:
    """Return the features switched on in the compiler's description; later ones win."""
    listed = re.search(r'cpu_features = "(.*?)"', attribute)
    on: dict[str, bool] = {}
    for feature in listed[1].split(",") if listed else ():
        if feature[:1] in ("+", "-"):
            on[feature[1:]] = feature[0] == "+"
    return frozenset(name for name, value in on.items() if value)


def _cpu_flags(features: frozenset[str], kind: str, *, here: bool) -> tuple[str, ...]:
    """Return the features in the kernel's words; those without a word are left out.

    On this machine only what the kernel lists itself: it may not show all that the processor has.
    """
    known = set(llvm_names.in_the_kernels_words(features, kind))
    if here and instruction_sets():
        known &= instruction_sets()
    return tuple(sorted(known))


def cuda(hardware: Hardware | None, default: str) -> Chosen:
    """Return the NVIDIA GPU of `hardware`, or `default` where none is named.

    The code is PTX, which the driver translates on the machine where it runs: it runs on that
    architecture and every newer one. So an architecture that the compiler does not know gets the
    code of the newest older one. Raises UnsupportedError for what is no architecture of NVIDIA's.
    """
    wanted = hardware.gpu if hardware is not None and hardware.gpu else default
    number = re.fullmatch(r"sm_(\d+)[af]?", wanted)
    if number is None:
        raise UnsupportedError(
            f"target iree:cuda cannot compile for `{wanted}`", hint="it takes names such as sm_80"
        )
    asked = int(number[1])
    for each in (asked, *(lower for lower in SM if lower < asked)):
        flags = ("--iree-hal-target-device=cuda", f"--iree-cuda-target=sm_{each}")
        try:
            attribute = compiling.described(flags)
        except UnsupportedError:
            continue
        if "target_info" not in attribute:
            continue  # a name without the facts that code is made by
        notes = [f"PTX for sm_{each}: runs on NVIDIA GPUs of that architecture and newer ones"]
        if each != asked:
            notes.append(
                f"this release of IREE has no code for sm_{asked}: that of sm_{each} is used, "
                "which the driver translates for it, without what only the newer one has"
            )
        return Chosen(
            flags=flags,
            architecture=architecture(),
            name=f"sm_{each}",
            halves=frozenset(["fp16", *(["bf16"] if each >= 80 else [])]),
            notes=tuple(notes),
        )
    raise UnsupportedError(f"target iree:cuda has no code for `{wanted}`, nor for an older one")


# NVIDIA's architectures, newest first: what to fall back to.
SM = (121, 120, 110, 103, 101, 100, 90, 89, 87, 86, 80, 75, 72, 70, 62, 61, 60)

# What every Android phone of 2022 has: the least that Vulkan devices share.
VULKAN_BASELINE = "vp_android_baseline_2022"


def vulkan(hardware: Hardware | None) -> Chosen:
    """Return the Vulkan device of `hardware`, or what all devices share where none is named."""
    wanted = hardware.gpu if hardware is not None and hardware.gpu else VULKAN_BASELINE
    flags = ("--iree-hal-target-device=vulkan", f"--iree-vulkan-target={wanted}")
    attribute = compiling.described(flags)
    computes = re.search(r"compute = ([\w|]+)", attribute)
    words = computes[1].split("|") if computes else []
    notes: tuple[str, ...] = ()
    if wanted == VULKAN_BASELINE:
        notes = ("compiled for what all Vulkan devices share: a named GPU (--hardware) is faster",)
    return Chosen(
        flags=flags,
        architecture=architecture(),
        name=wanted,
        halves=frozenset(["fp16"] if "fp16" in words else []),
        notes=notes,
    )
