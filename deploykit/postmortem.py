"""Why a worker ended without an answer: from its exit status, its log and the kernel's counters."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from deploykit.errors import PluginError, StepError, StepOutOfMemory, StepSignal
from deploykit.frames import frame_in_dump

_TAIL_BYTES = 2**18
_ALLOCATION_FAILED = ("std::bad_alloc", "MemoryError", "Cannot allocate memory")


def read_tail(log: Path, since: int = 0) -> str:
    """Return the end of `log` as text, at most 256 KiB, of what was written after byte `since`."""
    with log.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(since, size - _TAIL_BYTES))
        return stream.read().decode("utf-8", "replace")


def kernel_kills() -> int:
    """Return how many processes the kernel has killed for want of memory, as far as we may see.

    Counted for our own control group (v2) and for the whole machine.
    """
    counters = [Path("/proc/vmstat")]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            if line.startswith("0::"):
                counters.append(Path("/sys/fs/cgroup") / line[3:].lstrip("/") / "memory.events")
    total = 0
    for path in counters:
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                total += int(value) if name == "oom_kill" else 0
    return total


def explain(
    label: str, returncode: int, *, phase: str, log: Path, since: int, kills_before: int
) -> StepError:
    """Return the error that says why the worker of `label` ended with `returncode`.

    `since` is where in `log` this call began, `kills_before` the `kernel_kills()` of that moment.
    """
    tail = read_tail(log, since)
    doing = f" while {phase}" if phase else ""
    frame = frame_in_dump(tail)
    again = f"`{log.with_name('reproduce.sh')}` runs it again; its log is `{log}`"
    if returncode >= 0:
        return PluginError(
            f"{label}: the process ended by itself with exit status {returncode}{doing}",
            hint=again,
            phase=phase,
            frame=frame,
            log=str(log),
        )
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"SIG{-returncode}"
    if name == "SIGKILL" and kernel_kills() > kills_before:
        return StepOutOfMemory(
            f"{label}: the kernel killed the process for want of memory{doing}",
            hint="use a machine with more memory, or a smaller batch",
            phase=phase,
            frame=frame,
            log=str(log),
        )
    if name == "SIGABRT" and any(sign in tail for sign in _ALLOCATION_FAILED):
        return StepOutOfMemory(
            f"{label}: an allocation failed{doing}",
            hint="use a machine with more memory, or a smaller batch",
            phase=phase,
            frame=frame,
            log=str(log),
        )
    return StepSignal(
        f"{label}: native code crashed with {name}{doing}",
        signal=name,
        hint=again,
        phase=phase,
        frame=frame,
        log=str(log),
    )
