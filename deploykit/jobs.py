"""Job folders: one per worker, with its requests, answers, log and `reproduce.sh`.

They lie under `jobs/` of deploykit's home. The newest are kept; large data is removed when the job
ends well, and a log is kept for whoever asks why one did not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploykit.errors import OutputError
from deploykit.home import home

KEPT = 50
"""So many job folders are kept, the newest."""

_LARGE_BYTES = 64 * 2**20
_ABANDONED_S = 3600
_DATA = (".npz", ".bin")
_TEMPORARY = ".tmp"


class Job:
    """A fresh job folder, locked while in use so that no other process prunes it.

    `mark` is the value of `DEPLOYKIT_JOB` in every process of the job. `scratch` is a folder for
    temporary files, apart from the job folder and with a short path: sockets of `multiprocessing`
    live there, whose paths may have 107 bytes at most.
    """

    def __init__(self, label: str) -> None:
        self.mark = uuid.uuid4().hex
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")[:60] or "job"
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{words}-{self.mark[:8]}"
        self.folder = home() / "jobs" / name
        try:
            # a request may name private files: nobody else shall read it
            self.folder.mkdir(mode=0o700, parents=True)
            self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.scratch = Path(tempfile.mkdtemp(prefix="deploykit-"))
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise OutputError(
                f"cannot make the job folder `{self.folder}`: {error.strerror or error}",
                hint="set DEPLOYKIT_HOME to a folder that can be written",
            ) from error
        _prune(self.folder.parent)

    @property
    def log(self) -> Path:
        """The file with everything that the job's processes printed."""
        return self.folder / "log.txt"

    def file(self, name: str) -> Path:
        """Return the path of the file `name` in the job folder."""
        return self.folder / name

    def write(self, name: str, text: str) -> None:
        """Write the file `name`, whole or not at all."""
        temporary = self.folder / f"{name}.tmp"
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write `{self.folder / name}`: {error.strerror or error}"
            ) from error

    def write_reproduce(
        self,
        argv: Sequence[str],
        messages: Sequence[str],
        *,
        variables: Mapping[str, str],
        removed: Sequence[str],
    ) -> None:
        """Write `reproduce.sh`: the worker `argv` again, given the same `messages`.

        Only what deploykit changed in the environment is written down, never all of it: an
        environment may hold secrets.
        """
        lines = [
            "#!/bin/sh",
            "# Runs the worker of this job again with the same requests. Its answers go to stdout",
            "# and to response-*.json beside this file, what it prints to stderr.",
            'cd "$(dirname "$0")" || exit 1',
        ]
        if removed:
            lines.append(f"unset {' '.join(removed)}")
        lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        lines.append(f"{shlex.join(argv)} <<'REQUESTS'")
        lines += [*messages, "REQUESTS", ""]
        self.write("reproduce.sh", "\n".join(lines))
        self.file("reproduce.sh").chmod(0o700)

    def close(self, *, failed: bool) -> None:
        """Remove the scratch folder and large data; where the job `failed`, keep what explains it."""
        # errors ignored: a leftover file is no reason to fail a job that is over
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path == self.log:
                    _keep_end(path)
                elif path.name.endswith(_TEMPORARY) or (
                    path.suffix in _DATA and (not failed or path.stat().st_size > _LARGE_BYTES)
                ):
                    path.unlink(missing_ok=True)
        os.close(self._lock)


def _keep_end(log: Path) -> None:
    size = log.stat().st_size
    if size > _LARGE_BYTES:
        with log.open("rb") as stream:
            stream.seek(size - _LARGE_BYTES // 4)
            end = stream.read()
        log.write_bytes(b"[the beginning was left out]\n" + end)


def _prune(jobs: Path) -> None:
    folders = sorted((path for path in jobs.iterdir() if path.is_dir()), key=lambda path: path.name)
    for folder in folders[:-KEPT]:
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            # being made or removed by another process, or left so by one that was killed
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(lock)
