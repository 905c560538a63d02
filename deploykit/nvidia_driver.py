"""The NVIDIA GPU of this machine, as its driver's `nvidia-smi` tells it; nothing is measured on it.

Written against the documented queries (`nvidia-smi --help-query-gpu`).
"""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import dataclass

from deploykit.errors import DeploykitError
from deploykit.processes import run_command

QUERIES = ("name", "compute_cap", "memory.total", "driver_version")
LIMIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class NvidiaGpu:
    """What this machine's GPUs are: `count` of one kind. `architecture` is like `sm_90`."""

    name: str
    count: int
    architecture: str
    memory_bytes: int | None
    """Of one of them; None where it shares the machine's."""
    driver: str


def nvidia_gpu() -> NvidiaGpu | None:
    """Return the GPUs of the first one's kind; None where there is no driver, or no GPU it tells of."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = f"--query-gpu={','.join(QUERIES)}"
    try:
        done = run_command([program, query, "--format=csv,noheader,nounits"], timeout_s=LIMIT_S)
    except DeploykitError:
        return None  # a driver that does not answer runs no model either
    if done.returncode != 0:
        return None
    rows = [
        tuple(cell.strip() for cell in row)
        for row in csv.reader(done.stdout.splitlines())
        if len(row) == len(QUERIES)
    ]
    # unknown values come as `[N/A]` or `[Not Supported]`
    capable = [row for row in rows if re.fullmatch(r"\d+\.\d+", row[1])]
    if not capable:
        return None
    name, capability, memory, driver = capable[0]
    return NvidiaGpu(
        name=name,
        count=sum(row[:2] == (name, capability) for row in capable),
        architecture=f"sm_{capability.replace('.', '')}",
        memory_bytes=int(memory) << 20 if memory.isdigit() and int(memory) else None,
        driver=driver,
    )
