"""Vector registers of a processor, by LLVM's names of its instruction sets.

LLVM's own answer is 512 bits for every x86, whatever it has.
"""

from __future__ import annotations

from collections.abc import Iterable


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
