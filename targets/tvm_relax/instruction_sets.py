"""LLVM's names of instruction sets in the kernel's words, as `/proc/cpuinfo` lists them.

Sources: the kernel's `arch/x86/include/asm/cpufeatures.h` and `Documentation/arch/arm64/elf_hwcaps.rst`,
LLVM's `X86.td` and `AArch64Features.td`. Only what compiled code can use is listed: a bundle must
not be refused for an instruction that no compiler emits.
"""

from __future__ import annotations

from collections.abc import Iterable

X86 = {
    **{
        name: name
        for name in (
            *("ssse3", "sse4a", "avx", "avx2", "fma", "fma4", "xop", "f16c", "bmi2", "popcnt"),
            *("movbe", "adx", "aes", "gfni", "vaes", "vpclmulqdq", "cx16"),
            *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
            *("avx512ifma", "avx512vbmi"),
        )
    },
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "pclmul": "pclmulqdq",
    "sha": "sha_ni",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
}

ARM = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "rdm": "asimdrdm",
    "lse": "atomics",
    "rcpc": "lrcpc",
    "crc": "crc32",
    "jsconv": "jscvt",
    "complxnum": "fcma",
    "sve2": "sve2",
    "sve": "sve",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sme": "sme",
    "sme2": "sme2",
}

# RISC-V has one word for all (`isa : rv64imafdcv_zba`): no list to compare with.
WORDS: dict[str, dict[str, str]] = {"x86_64": X86, "aarch64": ARM}


def in_the_kernels_words(features: Iterable[str], architecture: str) -> tuple[str, ...]:
    """Return those of LLVM's `features` that the kernel tells of, in its words, in order."""
    words = WORDS.get(architecture, {})
    return tuple(sorted({words[name] for name in features if name in words}))


def lanes(features: Iterable[str]) -> int:
    """Return how many float32 a vector register of a processor with these `features` holds."""
    present = set(features)
    if "avx512f" in present:
        return 16
    if "avx" in present:
        return 8
    # RISC-V names the least length of its vectors: zvl256b
    lengths = [
        int(name[3:-1])
        for name in present
        if name.startswith("zvl") and name.endswith("b") and name[3:-1].isdigit()
    ]
    return min(16, max([128, *lengths]) // 32)


def registers(features: Iterable[str], architecture: str) -> int:
    """Return how many vector registers there are: 32 but for x86 before AVX-512."""
    return 16 if architecture == "x86_64" and "avx512f" not in set(features) else 32
