"""This machine as a hardware profile: what it is, and how fast it was measured to be."""

from __future__ import annotations

import datetime
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import __version__, llvm_names, peak_rates
from deploykit.errors import PluginError, StepError
from deploykit.events import Event, Listener, silent
from deploykit.hardware_profile import Device, Figure, Profile, Source
from deploykit.machine import FLAGS, Machine, fingerprint
from deploykit.nvidia_driver import NvidiaGpu, nvidia_gpu
from deploykit.processes import clean_environment, run_command

BUDGET_S = 0.3
"""Of one measurement's repetitions; there are about eight."""
LIMIT_S = 120.0
"""A measurement that takes longer has failed."""
SMALLEST_ARRAYS_BYTES = 192 << 20
WIDE = 1.3
"""Median over best: where it is more, something else was running."""

# By these a user bends the choice of kernels; the rates are measured with and without them.
KERNEL_VARIABLES = (
    "OPENBLAS_CORETYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "BLIS_ARCH_TYPE",
)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One measurement: operations or bytes a second, of the fastest, middle and slowest repetition."""

    what: str
    """`fp32`, `fp64`, `int8`, or `memory`."""
    about: str
    """The library, its version, the kernels where they are known, and the sizes."""
    threads: int
    repetitions: int
    best: float
    median: float
    worst: float

    def __str__(self) -> str:
        unit = "GB/s" if self.what == "memory" else "GFLOP/s" if self.what[0] == "f" else "GOP/s"
        return (
            f"{self.about}, {_threads(self.threads)}, best of {self.repetitions} repetitions; "
            f"median {self.median / 1e9:.3g}, slowest {self.worst / 1e9:.3g} {unit}"
        )


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """This machine: the profile, every measurement behind it, and what to know about them."""

    profile: Profile
    rates: tuple[Rate, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        from deploykit.protocol import to_json

        value: dict[str, Any] = to_json(self)
        return value


def this_hardware(
    name: str = "this-machine", *, listen: Listener = silent, budget_s: float = BUDGET_S
) -> Fingerprint:
    """Return a profile called `name` of the machine that this runs on.

    Its rates are measured, in a few seconds, with all cores that the affinity mask and the
    container's quota allow: matrix products of numpy's BLAS and of ONNX Runtime, and passes over
    memory; of each the best repetition of the best library counts. Raises PluginError where no
    library could be measured.
    """
    machine = fingerprint()
    cpuinfo = _text(Path("/proc/cpuinfo"))
    rates, notes = measure(machine, listen=listen, budget_s=budget_s)
    gpu = nvidia_gpu()
    if gpu is not None:
        notes += (f"the GPU ({gpu.name}) is described, not measured",)
    return Fingerprint(
        profile=profile_of(machine, cpuinfo, rates, name=name, gpu=gpu), rates=rates, notes=notes
    )


def profile_of(
    machine: Machine,
    cpuinfo: str,
    rates: tuple[Rate, ...],
    *,
    name: str,
    gpu: NvidiaGpu | None = None,
    today: str = "",
) -> Profile:
    """Return the profile of `machine`, whose `/proc/cpuinfo` is `cpuinfo`, with `rates` as peaks.

    `today` is the date of its sources, by default the date.
    """
    today = today or datetime.datetime.now(datetime.UTC).date().isoformat()
    kernel = ("kernel",)
    title = _line(machine.cpu_model) or f"processor of kind {machine.architecture}"
    memory = min(filter(None, (machine.memory_bytes, machine.memory_limit_bytes)), default=None)
    by = {what: max(_of(rates, what), key=lambda rate: rate.best) for what in _kinds(rates)}
    bandwidth = by.pop("memory", None)
    flags = llvm_names.flags_of(cpuinfo)
    sources = {
        "kernel": Source(
            title="/proc and /sys of the machine itself",
            publisher=f"Linux {machine.kernel}",
            date=today,
        )
    }
    if rates:
        sources["measured"] = Source(
            title="best repetition of matrix products and of passes over memory; see the notes",
            publisher=f"measured by deploykit {__version__}",
            date=today,
        )
    devices = {
        "cpu": Device(
            title=title,
            apis=("cpu",),
            bandwidth_bytes_per_s=None if bandwidth is None else _figure(bandwidth),
            peak_ops_per_s={what: _figure(rate) for what, rate in by.items()},
        )
    }
    if gpu is not None:
        sources["driver"] = Source(
            title="nvidia-smi", publisher="NVIDIA", document=f"driver {gpu.driver}", date=today
        )
        own = gpu.memory_bytes
        devices["gpu"] = Device(
            title=_line(gpu.name if gpu.count == 1 else f"{gpu.count} x {gpu.name}"),
            apis=("cuda",),
            architecture=gpu.architecture,
            memory_bytes=None if own is None else Figure(value=own, sources=("driver",)),
        )
    return Profile(
        name=name,
        summary=f"{title}, {_cores(machine.cores_usable)} usable, measured",
        kind="cpu",
        triple=llvm_names.triple(machine.architecture),
        cpu=llvm_names.cpu_name(machine.architecture, cpuinfo),
        features=llvm_names.features(machine.architecture, cpuinfo),
        flags=tuple(sorted(FLAGS & flags)),
        cores=Figure(
            value=machine.cores_usable,
            sources=kernel,
            note="what the affinity mask and the control group's quota leave",
        ),
        threads=Figure(value=machine.cores_logical, sources=kernel),
        memory_bytes=None if memory is None else Figure(value=memory, sources=kernel),
        devices=devices,
        sources=sources,
    )


def measure(
    machine: Machine, *, listen: Listener = silent, budget_s: float = BUDGET_S
) -> tuple[tuple[Rate, ...], tuple[str, ...]]:
    """Return what was measured on this machine, and what to know about it.

    Raises PluginError where not one measurement succeeded.
    """
    threads = machine.cores_usable
    free = min(
        filter(None, (machine.memory_available_bytes, machine.memory_limit_bytes)),
        default=8 * SMALLEST_ARRAYS_BYTES,
    )
    cache = last_level_cache_bytes()
    arrays = min(max(12 * cache, SMALLEST_ARRAYS_BYTES), free // 8)
    plan = list(_plan(threads, arrays, free // 8))
    rates: list[Rate] = []
    notes: list[str] = []
    step = "measuring this machine"
    listen(Event(kind="start", step=step, total=len(plan)))
    for done, (request, variables) in enumerate(plan):
        doing = f"{request['library']} {request.get('dtype', '')}".strip()
        listen(Event(kind="progress", step=step, message=doing, done=done, total=len(plan)))
        try:
            rates += _measured(request, variables, budget_s)
        except StepError as error:
            notes.append(f"not measured: {error.message}")
    listen(Event(kind="end", step=step, outcome="ok" if rates else "error"))
    if not rates:
        raise PluginError("nothing could be measured on this machine", hint="; ".join(notes))
    notes += _bent_kernels()
    if arrays < 6 * cache:
        notes.append("little memory is free: the bandwidth may be partly that of the caches")
    load = machine.load_average
    busy = sorted({rate.what for rate in rates if rate.best > WIDE * rate.median})
    if busy or (load is not None and load[0] > 0.5 * threads):
        told = "" if load is None else f" (load {load[0]:.1f} on {_cores(threads)})"
        unsteady = f"; repetitions of {', '.join(busy)} differ much" if busy else ""
        notes.append(
            f"the machine was busy{told}{unsteady}: take the rates as lower bounds, "
            "and measure again when it is idle"
        )
    return tuple(rates), tuple(notes)


def last_level_cache_bytes(*, root: Path = Path("/")) -> int:
    """Return the size of all last-level caches of the machine together, 0 where it is not told."""
    sizes: dict[tuple[int, str], int] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = _text(index / "level").strip(), _text(index / "size").strip()
        if level.isdigit() and size[:-1].isdigit() and size[-1] in "KMG":
            scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[-1]]
            shared = _text(index / "shared_cpu_list").strip() or index.parent.parent.name
            sizes[int(level), shared] = int(size[:-1]) * scale
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last)


def _plan(
    threads: int, arrays_bytes: int, memory_bytes: int
) -> Iterator[tuple[dict[str, Any], Mapping[str, str]]]:
    """Yield the measurements: a request to `peak_rates`, and the environment it runs in."""
    bent = dict(clean_environment(threads=threads))
    straight = {name: value for name, value in bent.items() if name not in KERNEL_VARIABLES}
    limits = {"threads": threads, "memory_bytes": memory_bytes}
    for dtype in ("fp32", "fp64"):
        yield {"library": "numpy", "dtype": dtype, **limits}, straight
        if bent != straight:
            yield {"library": "numpy", "dtype": dtype, **limits}, bent
        yield {"library": "onnxruntime", "dtype": dtype, **limits}, straight
    if (
        threads > 1
    ):  # where others keep some cores busy, threads that wait for each other show little
        alone = {**straight, **clean_environment({}, threads=1)}
        yield {"library": "numpy", "dtype": "fp32", **limits, "threads": 1}, alone
    yield {"library": "onnxruntime", "dtype": "int8", **limits}, straight
    yield {"library": "memory", "threads": threads, "memory_bytes": arrays_bytes}, straight


def _measured(
    request: Mapping[str, Any], variables: Mapping[str, str], budget_s: float
) -> list[Rate]:
    """Return what the measurement `request` gives; raise StepError where it fails."""
    text = json.dumps({**request, "budget_s": budget_s})
    # the same packages as ours, whatever the folder we are called in
    search = json.dumps([path for path in sys.path if path and Path(path).exists()])
    start = (
        "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    done = run_command(
        [sys.executable, "-I", "-c", start, search, peak_rates.__file__, text],
        timeout_s=LIMIT_S,
        env=variables,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PluginError(f"{request['library']} {request.get('dtype', '')}: {last}")
    found = []
    for answer in json.loads(done.stdout.splitlines()[-1]).values():
        seconds = sorted(answer["seconds"])
        found.append(
            Rate(
                what="memory" if request["library"] == "memory" else request["dtype"],
                about=answer["about"],
                threads=request["threads"],
                repetitions=len(seconds),
                best=answer["amount"] / seconds[0],
                median=answer["amount"] / statistics.median(seconds),
                worst=answer["amount"] / seconds[-1],
            )
        )
    return found


def _bent_kernels() -> list[str]:
    return [
        f"{name}={os.environ[name]} is set: numpy was measured with it and without"
        for name in KERNEL_VARIABLES
        if name in os.environ
    ]


def _figure(rate: Rate) -> Figure:
    # four digits: more would be noise
    value = float(f"{rate.best:.4g}")
    return Figure(value=value, sources=("measured",), note=str(rate))


def _of(rates: tuple[Rate, ...], what: str) -> list[Rate]:
    return [rate for rate in rates if rate.what == what]


def _kinds(rates: tuple[Rate, ...]) -> list[str]:
    return list(dict.fromkeys(rate.what for rate in rates))


def _line(text: str) -> str:
    """Return what firmware says as one plain line: it is padded with blanks, and now and then worse."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cores(count: int) -> str:
    return f"{count} core" if count == 1 else f"{count} cores"


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
