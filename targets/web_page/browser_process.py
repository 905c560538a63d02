"""The browser's process: two pipes to it, and a folder for all that it writes, which ends with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from deploykit.family import descendants, is_running, kill

LONGEST_FOLDER = 45

# The shell outlives the browser only to remove its folder: also when we are killed.
_RUN_AND_TIDY = '"$@"; rm -rf -- "$0"'


class Ended(Exception):
    """The browser is gone, or does not answer. `said` is the reason as far as it told one."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class BrowserProcess:
    """The process, its two pipes, and its folder, where all that it writes goes."""

    def __init__(self, program: Path, flags: Sequence[str]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="web-", dir=_short_folder()))
        self._folder = folder
        # a file without a name: its last words are still there when the folder is gone
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        variables = {**os.environ, "TMPDIR": str(folder), "HOME": str(folder)}
        for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            variables.pop(name, None)
        argv = ["sh", "-c", _RUN_AND_TIDY, str(folder), str(program), *flags]
        argv += [f"--user-data-dir={folder / 'profile'}", "about:blank"]
        commands, self._write = _pipe()
        self._read, answers = _pipe()
        log = _above(os.dup(self._log.fileno()))
        nothing = _above(os.open(os.devnull, os.O_RDONLY))
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, commands, 3),
            (os.POSIX_SPAWN_DUP2, answers, 4),
        ]
        try:
            self.pid = os.posix_spawn("/bin/sh", argv, variables, file_actions=actions, setpgroup=0)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self._log.close()
            os.close(self._write)
            os.close(self._read)
            raise
        finally:
            for descriptor in (commands, answers, log, nothing):
                os.close(descriptor)
        self.running = True
        # for one that nobody closed, also at the interpreter's exit
        self._finalizer = weakref.finalize(
            self, _end, self.pid, (self._read, self._write), self._log, folder, 0.0
        )

    def write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except OSError as error:
            raise Ended(self._last_words()) from error

    def read(self, until: float | None) -> bytes:
        if until is not None:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._read], [], [], left)[0]:
                raise Ended(f"it does not answer. {self._last_words()}")
        data = os.read(self._read, 1 << 20)
        if not data:
            raise Ended(self._last_words())
        return data

    def end(self, patience_s: float) -> None:
        if self._finalizer.detach() is not None:
            self.running = False
            _end(self.pid, (self._read, self._write), self._log, self._folder, patience_s)

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 1 << 16, max(0, size - (1 << 16)))
        lines = text.decode("utf-8", "replace").splitlines()
        fatal = [line for line in lines if "FATAL" in line or "sandbox" in line.lower()]
        return " ".join((fatal or lines or ["it said nothing"])[-3:])[-500:]


def _end(
    pid: int, descriptors: tuple[int, ...], log: IO[bytes], folder: Path, patience_s: float
) -> None:
    """End the process `pid` and all that it started, at the latest after `patience_s`."""
    for descriptor in descriptors:
        os.close(descriptor)  # which is how the browser learns of it
    family = descendants(pid)
    until = time.monotonic() + patience_s
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() >= until:
                family += descendants(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.01)
    kill(member for member in family if is_running(member))
    for _ in range(200):
        if not any(is_running(member) for member in family):
            break
        time.sleep(0.01)
    log.close()
    shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> str | None:
    """Return where to make the browser's folder, None for the usual place.

    It makes `org.chromium.Chromium.XXXXXX/SingletonSocket` there, whose whole path may have 107 bytes.
    """
    return "/tmp" if len(tempfile.gettempdir()) > LONGEST_FOLDER else None


def _pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    return _above(reading), _above(writing)


def _above(descriptor: int) -> int:
    """Return a duplicate above 9, not inherited: the child's own descriptors are 0 to 4."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(descriptor)
