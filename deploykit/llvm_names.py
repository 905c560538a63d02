"""Processors and instruction sets in LLVM's words and in the kernel's.

Names are those of `llvm/lib/TargetParser/Host.cpp` and of `clang -mcpu=help`. A hypervisor may hide
what a processor's name promises (AMX of Sapphire Rapids, say), so the features are always said, the
missing ones with a minus.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence

# Family and model of `/proc/cpuinfo` to LLVM's name.
INTEL = {
    "nehalem": (0x1A, 0x1E, 0x1F, 0x2E),
    "westmere": (0x25, 0x2C, 0x2F),
    "sandybridge": (0x2A, 0x2D),
    "ivybridge": (0x3A, 0x3E),
    "haswell": (0x3C, 0x3F, 0x45, 0x46),
    "broadwell": (0x3D, 0x47, 0x4F, 0x56),
    "skylake": (0x4E, 0x5E, 0x8E, 0x9E, 0xA5, 0xA6),
    "rocketlake": (0xA7,),
    "icelake-client": (0x7D, 0x7E),
    "tigerlake": (0x8C, 0x8D),
    "alderlake": (0x97, 0x9A, 0xBE),
    "raptorlake": (0xB7, 0xBA, 0xBF),
    "meteorlake": (0xAA, 0xAC),
    "arrowlake": (0xC5,),
    "arrowlake-s": (0xC6,),
    "lunarlake": (0xBD,),
    "icelake-server": (0x6A, 0x6C),
    "sapphirerapids": (0x8F,),
    "emeraldrapids": (0xCF,),
    "graniterapids": (0xAD,),
    "graniterapids-d": (0xAE,),
    "sierraforest": (0xAF,),
    "grandridge": (0xB6,),
    "silvermont": (0x37, 0x4A, 0x4C, 0x4D, 0x5A, 0x5D),
    "goldmont": (0x5C, 0x5F),
    "goldmont-plus": (0x7A,),
    "tremont": (0x86, 0x8A, 0x96, 0x9C),
}
AMD = {
    ("znver1", 23): ((0x00, 0x2F),),
    ("znver2", 23): ((0x30, 0x3F), (0x47, 0x47), (0x60, 0x7F), (0x84, 0x87), (0x90, 0xAF)),
    ("znver3", 25): ((0x00, 0x0F), (0x20, 0x5F)),
    ("znver4", 25): ((0x10, 0x1F), (0x60, 0x7F), (0xA0, 0xAF)),
    ("znver5", 26): ((0x00, 0x4F), (0x60, 0x77), (0xD0, 0xD7)),
}

# Implementer and part of `/proc/cpuinfo` to LLVM's name; of cores that share a chip the faster
# comes later.
ARM = {
    ("0x41", "0xd04"): "cortex-a35",
    ("0x41", "0xd03"): "cortex-a53",
    ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd46"): "cortex-a510",
    ("0x41", "0xd80"): "cortex-a520",
    ("0x41", "0xd07"): "cortex-a57",
    ("0x41", "0xd08"): "cortex-a72",
    ("0x41", "0xd09"): "cortex-a73",
    ("0x51", "0x801"): "cortex-a73",
    ("0x51", "0x800"): "cortex-a73",
    ("0x41", "0xd0a"): "cortex-a75",
    ("0x51", "0x803"): "cortex-a75",
    ("0x51", "0x802"): "cortex-a75",
    ("0x51", "0x805"): "cortex-a76",
    ("0x51", "0x804"): "cortex-a76",
    ("0x41", "0xd0b"): "cortex-a76",
    ("0x41", "0xd0d"): "cortex-a77",
    ("0x41", "0xd41"): "cortex-a78",
    ("0x41", "0xd42"): "cortex-a78ae",
    ("0x41", "0xd4b"): "cortex-a78c",
    ("0x41", "0xd47"): "cortex-a710",
    ("0x41", "0xd4d"): "cortex-a715",
    ("0x41", "0xd81"): "cortex-a720",
    ("0x41", "0xd87"): "cortex-a725",
    ("0x41", "0xd44"): "cortex-x1",
    ("0x41", "0xd4c"): "cortex-x1c",
    ("0x41", "0xd48"): "cortex-x2",
    ("0x41", "0xd4e"): "cortex-x3",
    ("0x41", "0xd82"): "cortex-x4",
    ("0x41", "0xd85"): "cortex-x925",
    ("0x41", "0xd4a"): "neoverse-e1",
    ("0x41", "0xd0c"): "neoverse-n1",
    ("0x41", "0xd49"): "neoverse-n2",
    ("0x41", "0xd8e"): "neoverse-n3",
    ("0x41", "0xd40"): "neoverse-v1",
    ("0x41", "0xd4f"): "neoverse-v2",
    ("0x41", "0xd84"): "neoverse-v3",
    ("0x46", "0x001"): "a64fx",
    ("0x48", "0xd01"): "tsv110",
    ("0x4e", "0x004"): "carmel",
    ("0x51", "0x001"): "oryon-1",
    ("0xc0", "0xac3"): "ampere1",
    ("0xc0", "0xac4"): "ampere1a",
    ("0xc0", "0xac5"): "ampere1b",
}

# Features that a compiler uses by itself: LLVM's name to the kernel's.
X86_FEATURES = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "cx16": "cx16",
    "fma4": "fma4",
    "xop": "xop",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "movbe": "movbe",
    "adx": "adx",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "aes": "aes",
    "pclmul": "pclmulqdq",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "gfni": "gfni",
    "sha": "sha_ni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
}
ARM_FEATURES = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "crc": "crc32",
    "aes": "aes",
    "sha2": "sha2",
    "sha3": "sha3",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "jsconv": "jscvt",
    "complxnum": "fcma",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "sme2": "sme2",
}
_RISCV_LETTERS = "mafdcv"
_RISCV_WORDS = ("zba", "zbb", "zbc", "zbs", "zfh", "zvfh", "zvbb")

# Levels of the x86-64 psABI by what they add, in the kernel's words.
X86_LEVELS = (
    ("x86-64", ()),
    ("x86-64-v2", ("cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2")),
    ("x86-64-v3", ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")),
    ("x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
)


def triple(architecture: str, *, pointer_bits: int = 0, musl: bool | None = None) -> str:
    """Return LLVM's triple of a Linux on `architecture`, as the kernel names that.

    `pointer_bits` and `musl` are by default this process's: programs of 32 bits run on kernels of 64.
    """
    bits = pointer_bits or struct.calcsize("P") * 8
    if musl is None:
        musl = platform.libc_ver()[0] == ""
    library = "musl" if musl else "gnu"
    if bits == 32 and architecture in ("aarch64", "armv8l"):
        architecture = "armv7l"
    if bits == 32 and architecture == "x86_64":
        architecture = "i686"
    if architecture.startswith("armv"):
        return f"{architecture}-linux-{library}eabihf"
    return f"{architecture}-linux-{library}"


def cpu_name(architecture: str, cpuinfo: str) -> str:
    """Return LLVM's name of the processor that the text `cpuinfo` (`/proc/cpuinfo`) describes.

    Of cores that differ it is the fastest. A processor that is not known here gets the level of its
    instruction set (`x86-64-v3`); an empty name means LLVM's generic one.
    """
    processors = _processors(cpuinfo)
    if architecture in ("x86_64", "i686"):
        first = processors[0] if processors else {}
        return _x86_name(first)
    if architecture.startswith("riscv"):
        return f"generic-rv{architecture[5:7]}"
    parts = {(cpu.get("CPU implementer", ""), cpu.get("CPU part", "")) for cpu in processors}
    known = [part for part in ARM if part in parts]
    if not known or not parts - {("", "")} <= set(ARM):
        return ""  # a core that we do not know may lack what the known one has
    return ARM[known[-1]]


def features(architecture: str, cpuinfo: str) -> tuple[str, ...]:
    """Return LLVM's features of that processor: what it has (`+avx2`), what it lacks (`-avx512f`)."""
    processors = _processors(cpuinfo)
    if architecture.startswith("riscv"):
        return _riscv_features(processors)
    known = X86_FEATURES if architecture in ("x86_64", "i686") else ARM_FEATURES
    flags = flags_of(cpuinfo)
    if not flags:
        return ()
    there = [f"+{name}" for name, flag in known.items() if flag in flags]
    return (*there, *(f"-{name}" for name, flag in known.items() if flag not in flags))


def in_the_kernels_words(features: Iterable[str], architecture: str) -> tuple[str, ...]:
    """Return those of LLVM's `features` (without signs) that the kernel tells of, in its words.

    RISC-V's kernel has one word for all (`isa : rv64imafdcv_zba`), so of it none.
    """
    known = {"x86_64": X86_FEATURES, "aarch64": ARM_FEATURES}.get(architecture, {})
    return tuple(sorted({known[name] for name in features if name in known}))


def flags_of(cpuinfo: str) -> frozenset[str]:
    """Return the kernel's names of what all cores can do."""
    sets = [
        frozenset((cpu.get("flags") or cpu.get("Features") or "").split())
        for cpu in _processors(cpuinfo)
        if "flags" in cpu or "Features" in cpu
    ]
    return frozenset.intersection(*sets) if sets else frozenset()


def _processors(cpuinfo: str) -> Sequence[Mapping[str, str]]:
    """Return the fields of each processor; a paragraph without any of one is not one."""
    found = []
    for paragraph in re.split(r"\n\s*\n", cpuinfo):
        fields = {
            key.strip(): value.strip()
            for key, colon, value in (line.partition(":") for line in paragraph.splitlines())
            if colon
        }
        if fields.keys() & {"processor", "flags", "Features", "CPU part", "isa"}:
            found.append(fields)
    return found


def _x86_name(cpu: Mapping[str, str]) -> str:
    flags = frozenset(cpu.get("flags", "").split())
    try:
        family, model = int(cpu.get("cpu family", "")), int(cpu.get("model", ""))
    except ValueError:
        return _x86_level(flags)
    vendor = cpu.get("vendor_id", "")
    if vendor == "GenuineIntel" and family == 6:
        if model == 0x55:  # three of them share it
            if "avx512_bf16" in flags:
                return "cooperlake"
            return "cascadelake" if "avx512_vnni" in flags else "skylake-avx512"
        for name, models in INTEL.items():
            if model in models:
                return name
    if vendor == "AuthenticAMD":
        for (name, of_family), ranges in AMD.items():
            if family == of_family and any(low <= model <= high for low, high in ranges):
                return name
    return _x86_level(flags)


def _x86_level(flags: Collection[str]) -> str:
    name = ""
    for level, added in X86_LEVELS:
        if not set(added) <= set(flags):
            break
        name = level
    return name


def _riscv_features(processors: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    found: list[set[str]] = []
    for cpu in processors:
        first, *words = cpu.get("isa", "").lower().split("_")
        letters = set(re.sub(r"^rv\d+", "", first).replace("g", "imafd"))
        found.append((letters & set(_RISCV_LETTERS)) | (set(words) & set(_RISCV_WORDS)))
    there = set.intersection(*found) if found else set()
    return tuple(f"+{name}" for name in (*_RISCV_LETTERS, *_RISCV_WORDS) if name in there)
