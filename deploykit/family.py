"""The descendants of a process, and their end.

This file also runs inside plugin environments: standard library only, and little of it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import time
from collections.abc import Iterable


def descendants(pid: int) -> list[int]:
    """Return the pids of the children of `pid` and theirs. Where there is no `/proc`, none."""
    found: list[int] = []
    parents = [pid]
    while parents:
        for path in glob.glob(f"/proc/{parents.pop()}/task/*/children"):  # noqa: PTH207
            with contextlib.suppress(OSError), open(path, encoding="ascii") as stream:  # noqa: PTH123
                children = [int(word) for word in stream.read().split()]
                found += children
                parents += children
    return found


def is_running(pid: int) -> bool:
    """Return whether `pid` is a process that has not ended. Where there is no `/proc`: True."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pids: Iterable[int]) -> None:
    """Kill each of `pids` that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def end_own_descendants() -> None:
    """Kill and reap all that descends from this process, until nothing is left."""
    # one may fork while we look, so look again; a bound, for a process that the kernel holds
    for _ in range(200):
        kill(descendants(os.getpid()))
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        time.sleep(0.005)
