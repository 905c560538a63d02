"""What code compiled here needs of a processor elsewhere: its architecture and instruction sets.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import platform
from pathlib import Path

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
