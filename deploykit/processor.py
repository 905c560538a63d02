"""What code compiled here needs of a processor elsewhere: its architecture and instruction sets.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

from deploykit.errors import UnavailableError

CPUINFO = Path("/proc/cpuinfo")

# What the kernel calls the list, by architecture. Under user-mode emulation the file is that of
# the machine below, whose list says nothing about the emulated processor.
FIELDS = {
    "x86_64": "flags",
    "i686": "flags",
    "i386": "flags",
    "aarch64": "Features",
    "armv7l": "Features",
    "armv8l": "Features",
}


def architecture() -> str:
    """Return the architecture of this machine as the kernel names it: `x86_64`, `aarch64`."""
    return platform.machine()


def instruction_sets() -> frozenset[str]:
    """Return the kernel's names of what the processor can do (`avx512f`); empty where unknown."""
    field = FIELDS.get(architecture())
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if field is not None and key.strip() == field:
            return frozenset(value.split())
    return frozenset()


def require(what: str, built_for: str, flags: Collection[str]) -> None:
    """Raise UnavailableError where this machine lacks what `what` (the library) was compiled for.

    `built_for` is an architecture and `flags` are instruction sets, both in the kernel's words.
    """
    hint = "compile it on a machine like this one, or for it (--hardware)"
    if built_for != architecture():
        raise UnavailableError(
            f"{what} was compiled for {built_for}, this machine is {architecture()}", hint=hint
        )
    here = instruction_sets()
    missing = sorted(set(flags) - here) if here else []
    if missing:
        raise UnavailableError(
            f"{what} uses {', '.join(missing)}, which this processor lacks", hint=hint
        )
