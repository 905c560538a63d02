"""A journal of finished steps that survives `kill -9`: append-only JSON lines, each on the disk.

The first line names the version. A record counts once its line ends with a newline: a torn last
line, left by a process that died while writing it, is cut off when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any

from deploykit.errors import OutputError, UsageError

VERSION = 1


class Journal:
    """The journal at `path`, made where there is none; a context manager.

    Raises UsageError where another process has it open, or it is damaged before its last line,
    OutputError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._finished: dict[str, dict[str, Any]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise UsageError(f"the journal `{self.path}` is not a regular file")
            self._lock()
            self._read()
        except BaseException:
            self.close()
            raise

    def finished(self, key: str) -> dict[str, Any] | None:
        """Return what was last recorded under `key`, or None where that step has not finished."""
        return self._finished.get(key)

    def record(self, key: str, value: dict[str, Any]) -> None:
        """Record that the step `key` has finished with `value` (JSON values).

        When this returns, the record is on the disk. Raises OutputError where it could not be
        written; the journal is then as it was.
        """
        self._append({"key": key, "value": value})
        self._finished[key] = value

    def close(self) -> None:
        """Close the file and let others open it. Can be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            # the kernel gives it back when the process dies, however it dies
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"the journal `{self.path}` is in use by another process",
                hint="wait until that run has ended, or give this one another journal",
            ) from error

    def _read(self) -> None:
        with os.fdopen(os.dup(self._descriptor), "rb") as stream:
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check_version(entry["journal"])
                else:
                    self._finished[str(entry["key"])] = dict(entry["value"])
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"line {number} of the journal `{self.path}` is damaged",
                    hint="remove the journal to start over",
                ) from error
        try:
            os.ftruncate(self._descriptor, len(whole))
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError as error:
            raise self._cannot_write(error) from error
        if not whole:
            self._append({"journal": VERSION})
            self._sync_folder()

    def _check_version(self, found: object) -> None:
        if found != VERSION:
            raise UsageError(
                f"the journal `{self.path}` has version {found}, this deploykit reads {VERSION}",
                hint="remove the journal to start over",
            )

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        begun = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            # half a line (a full disk) would damage the one that is written next
            os.ftruncate(self._descriptor, begun)
            raise self._cannot_write(error) from error

    def _sync_folder(self) -> None:
        """Put the file's name on the disk too: a new file may vanish with the power."""
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write the journal `{self.path}`: {error.strerror or error}")
