"""Which ONNX nodes a kernel stands for, and how long each kernel takes."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import PluginError
from deploykit.protocol import OperatorRun

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# What the compiler is asked for to learn what its kernels do: their source, with places.
SOURCES = "sources"
FLAGS = (f"--iree-hal-dump-executable-sources-to={SOURCES}", "--mlir-print-debuginfo")

# Element types in MLIR's words -> ours, the narrowest that a product is made of first.
PRECISIONS = {"bf16": "bf16", "f16": "fp16", "i8": "int8", "f32": "fp32", "f64": "fp64"}

RUNS = 5
LIMIT_S = 1800


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel: `nodes` are the ONNX nodes that it computes."""

    name: str
    nodes: tuple[str, ...]


def read_sources(folder: Path, names: Sequence[str]) -> tuple[Kernel, ...]:
    """Return the kernels whose sources the compiler left in `folder`.

    `names` are those of the ONNX nodes by their number, as `graphs.named_nodes` gave it to them.
    """
    kernels = []
    for path in sorted(folder.glob("*.mlir")):
        text = path.read_text(encoding="utf-8", errors="replace")
        numbers = {int(number) for number in re.findall(r'loc\("\w+:(\d+)"', text)}
        nodes = tuple(names[number] for number in sorted(numbers) if number < len(names))
        for name in re.findall(r"hal\.executable\.export public @(\"[^\"]+\"|[\w.$-]+)", text):
            kernels.append(Kernel(name=name.strip('"'), nodes=nodes))
    return tuple(kernels)


def computes_in(folder: Path, element: str) -> bool:
    """Say whether any kernel in `folder` computes on `element`, such as `bf16`."""
    word = re.compile(rf"(?<![\w]){element}(?![\w])|x{element}\b")
    return any(
        word.search(path.read_text(encoding="utf-8", errors="replace"))
        for path in folder.glob("*.mlir")
    )


def measured(
    module: Path, function: str, driver: str, threads: int | None, arrays: Sequence[Array]
) -> dict[str, list[float]]:
    """Return the microseconds that each kernel took in RUNS runs on `arrays`, by its name.

    By the runtime's own programs, because its Python interface has no profiler: one run each in a
    process of its own. A kernel that runs several times in a run counts with their sum.
    """
    import numpy as np

    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="deploykit-iree-") as name:
        folder = Path(name)
        inputs = []
        for index, array in enumerate(arrays):
            np.save(folder / f"{index}.npy", array)
            inputs.append(f"--input=@{index}.npy")
        mode = "host-execution" if driver.startswith("local") else "dispatch-events"
        command = [
            _program("iree-run-module"),
            f"--module={module}",
            f"--function={function}",
            f"--device={driver}",
            f"--device_profiling_mode={mode},executable-metadata",
            "--device_profiling_output=run.ireeprof",
            *inputs,
        ]
        if driver.startswith("local") and threads:
            command.append(f"--task_topology_group_count={threads}")
        for run in range(RUNS + 1):
            _done(command, folder)
            said = _done(
                [_program("iree-profile"), "dispatch", "--format=jsonl", "run.ireeprof"], folder
            )
            if run == 0:
                continue  # the first one warms up the files' cache
            for line in said.splitlines():
                row = json.loads(line)
                if row["type"] in ("dispatch_group", "host_dispatch_group") and row["valid"]:
                    times.setdefault(row["key"], []).append(row["total_ns"] / 1000)
    return times


def runs_of(
    times: dict[str, list[float]], kernels: Sequence[Kernel], device: str
) -> tuple[OperatorRun, ...]:
    """Return the kernels that ran, each with its median time, its nodes and its precision."""
    nodes = {kernel.name: kernel.nodes for kernel in kernels}
    return tuple(
        OperatorRun(
            name=name,
            operator=_kind(name),
            nodes=nodes.get(name, ()),
            device=device,
            precision=_precision(name),
            time_us=round(statistics.median(taken), 3),
        )
        for name, taken in times.items()
    )


def _kind(name: str) -> str:
    """Return what a kernel does by the name that the compiler gave it: `matmul`, `conv`."""
    found = re.search(
        r"(?:dispatch_\d+|encoding_\d+)_([a-z][a-z_]*?)(?:_\d|_f\d|_i\d|_bf|_D|$)", name
    )
    return found[1].strip("_") if found else name


def _precision(name: str) -> str:
    """Return the precision of a kernel, by the element types that its name ends with."""
    types = re.findall(r"(?:^|[x_])(bf16|f16|f32|f64|i8)(?![0-9])", name)
    return next((PRECISIONS[word] for word in PRECISIONS if word in types), "")


def _program(name: str) -> str:
    import iree._runtime_libs as libraries

    return str(Path(libraries.__path__[0]) / name)


def _done(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise PluginError(
            f"{Path(command[0]).name} failed: {(done.stderr.strip() or done.stdout.strip())[-300:]}"
        )
    return done.stdout
