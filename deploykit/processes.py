"""The one place that starts and ends processes: clean environments, time limits, nothing left behind.

Every process that deploykit starts carries `DEPLOYKIT_JOB` in its environment, so that its
descendants are found and ended even where they left its session and lost their parents.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploykit.errors import StepTimeout, UnavailableError
from deploykit.family import descendants, is_running, kill
from deploykit.telemetry import TELEMETRY_OFF

MARKER = "DEPLOYKIT_JOB"

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# Set by launchers of the caller's own Python; they lead another Python to the wrong packages.
# After nox's list of poisonous variables, with those of conda and uv.
POISONOUS = frozenset(
    {
        "CONDA_DEFAULT_ENV",
        "CONDA_PREFIX",
        "CONDA_PYTHON_EXE",
        "PIP_PREFIX",
        "PIP_REQUIRE_VIRTUALENV",
        "PIP_RESPECT_VIRTUALENV",
        "PIP_TARGET",
        "PIP_USER",
        "UV_PROJECT_ENVIRONMENT",
        "UV_PYTHON",
        "UV_SYSTEM_PYTHON",
        "VIRTUAL_ENV",
        "VIRTUAL_ENV_PROMPT",
        "__PYVENV_LAUNCHER__",
    }
)

# A vendor's SDK is found by these, so they stay, less what lies inside the caller's environment.
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES")

# The names under which math libraries, compilers and runtimes look for a number of threads.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TVM_NUM_THREADS",
    "CPU_NUM",
)


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A command that has ended. `stdout` and `stderr` are whole; `wall_s` is its duration."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    wall_s: float


def run_command(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float | None,
    env: Mapping[str, str] | None = None,
    log: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Completed:
    """Run `argv` to its end, whatever its exit status, and return what it printed.

    `env` is the whole environment, by default `clean_environment()`; what the command prints is
    appended to the file `log` too. stdin is empty. The command's descendants end with it, also on
    an interrupt.

    Raises StepTimeout after `timeout_s`, UnavailableError where the program cannot be started.
    """
    words = tuple(os.fspath(word) for word in argv)
    mark = uuid.uuid4().hex
    begun = time.monotonic()
    # files, not pipes: a daemon that keeps a pipe open would make us wait for it
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**(clean_environment() if env is None else env), MARKER: mark},
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot start `{words[0]}`: {error.strerror or error}"
            ) from error
        timed_out = False
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            end_processes(mark, process.pid if process.poll() is None else None)
            process.wait()
            completed = Completed(
                argv=words,
                returncode=process.returncode,
                stdout=_text(stdout),
                stderr=_text(stderr),
                wall_s=time.monotonic() - begun,
            )
            if log is not None:
                with Path(log).open("a", encoding="utf-8") as stream:
                    stream.write(f"$ {shlex.join(words)}\n{completed.stdout}{completed.stderr}")
    if timed_out:
        raise StepTimeout(
            f"`{shlex.join(words)}` did not end within {timeout_s:g} s",
            hint="give it more time with `--timeout`",
            log="" if log is None else os.fspath(log),
        )
    return completed


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def clean_environment(
    base: Mapping[str, str] | None = None, *, threads: int | None = None
) -> dict[str, str]:
    """Return a child's environment: `base` (by default our own) without what misleads another Python.

    Removed are `PYTHON*`, the `POISONOUS` names, and library paths inside the caller's own
    environment. Telemetry is switched off by every name known. `threads` is set under every name
    by which libraries read it.
    """
    variables = dict(os.environ if base is None else base)
    for name in list(variables):
        if name.startswith("PYTHON") or name in POISONOUS:
            del variables[name]
    for name in _LIBRARY_PATHS:
        if name in variables:
            entries = variables[name].replace(" ", os.pathsep).split(os.pathsep)
            kept = [entry for entry in entries if entry and not _in_own_environment(entry)]
            if kept:
                variables[name] = os.pathsep.join(kept)
            else:
                del variables[name]
    variables.update(TELEMETRY_OFF)
    if threads is not None:
        variables.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    return variables


def _in_own_environment(path: str) -> bool:
    # the system's own prefix holds libraries that everybody shares
    return sys.prefix not in ("/", "/usr", "/usr/local") and Path(path).is_relative_to(sys.prefix)


def end_processes(mark: str, leader: int | None = None) -> None:
    """Kill the group of `leader`, its descendants, and every process that carries `mark`.

    Returns when none is left. `leader` None means that its pid may belong to somebody else by now.
    """
    ending: set[int] = set()
    if leader is not None:
        # descendants before their parents die: later they could no longer be told apart
        family = descendants(leader)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        kill(family)
        ending.update(family)
    # One may fork while we look, a killed one needs a processor to end, and one that is becoming
    # another program has no environment for a moment: twice in a row none must be there. A bound,
    # for a process that the kernel holds.
    quiet = 0
    for _ in range(400):
        strays = set(marked(mark))
        ending = {pid for pid in ending | strays if is_running(pid)}
        quiet = 0 if ending else quiet + 1
        if quiet == 2:
            return
        kill(strays)
        time.sleep(0.005)


def marked(mark: str) -> Iterator[int]:
    """Yield the pid of each living process that has `mark` as its `DEPLOYKIT_JOB`, save our own.

    Where there is no `/proc`, none is found.
    """
    wanted = f"{MARKER}={mark}".encode()
    own = os.getpid()
    for folder in _process_folders():
        pid = int(folder.name)
        if pid == own:
            continue
        # gone meanwhile, or somebody else's; a zombie's environment is empty, so it is not found
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield pid


def _process_folders() -> list[Path]:
    proc = Path("/proc")
    if not proc.is_dir():
        return []
    return [folder for folder in proc.iterdir() if folder.name.isdigit()]


def tree_resident_bytes(pid: int, *, besides: int | None = None) -> int:
    """Return the resident memory of the process `pid` and its descendants, less that of `besides`.

    A process that ended meanwhile counts nothing. Pages shared between them count for each.
    """
    total = 0
    for member in (pid, *descendants(pid)):
        if member != besides:
            with contextlib.suppress(OSError):
                statm = Path(f"/proc/{member}/statm").read_text(encoding="ascii")
                total += int(statm.split()[1]) * _PAGE_BYTES
    return total
