"""Work in several steps that survives a kill: what is finished is recorded and not done again.

A run lives in `home()/runs/<key>/` until it succeeds; the key is a hash of what was asked for, so
that the same command with `--resume` finds it. Nothing unfinished ever lies beside the outputs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deploykit.errors import OutputError, StepError, UsageError
from deploykit.home import home
from deploykit.journal import Journal
from deploykit.protocol import to_json

KEPT = 10
"""Runs kept that were broken off or had a failure; older ones are removed."""


class Run:
    """The steps of one piece of work; `folder` is its own until it succeeds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(folder / "journal.jsonl")
        self.anything_finished = False
        self.kept = False

    def keep(self) -> None:
        """Leave the files when the run ends: the `reproduce.sh` of a failed step works on them."""
        self.kept = True

    def step(
        self,
        name: str,
        work: Callable[[], dict[str, Any]],
        *,
        still_good: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[str, Any]:
        """Return what `work` returned, now or in an earlier, interrupted run of the same command.

        An earlier result that is not `still_good`, because its files are gone, say, is made again.
        """
        result = self.journal.finished(name)
        if result is None or not still_good(result):
            result = work()
            self.journal.record(name, result)
        self.anything_finished = True
        return result


@contextlib.contextmanager
def resumable(asked: list[Any], *, resume: bool) -> Iterator[Run]:
    """Open the run of what is `asked`; its folder goes when the block succeeds, unless kept.

    With `resume` the finished steps of an interrupted run are kept, else it starts afresh. Raises
    UsageError where another process is at the same work.
    """
    key = hashlib.sha256(json.dumps(to_json(asked), sort_keys=True).encode()).hexdigest()[:16]
    root = home() / "runs"
    folder = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{key}.lock").touch()
    except OSError as error:
        raise OutputError(
            f"cannot write to `{root}`: {error.strerror or error}",
            hint="set DEPLOYKIT_HOME to a folder that can be written",
        ) from error
    try:
        with FileLock(root / f"{key}.lock", timeout=0):
            if not resume:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            run = Run(folder)
            try:
                yield run
            except BaseException as error:
                if not run.anything_finished and not isinstance(error, StepError):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            finally:
                run.journal.close()
            if run.kept:
                run.journal.path.unlink()  # it is over: nothing to resume
            else:
                shutil.rmtree(folder, ignore_errors=True)
            _prune(root)
    except Timeout as error:
        raise UsageError(
            "another deploykit process is doing the same work",
            hint="wait for it, or choose another output",
        ) from error


def _prune(root: Path) -> None:
    """Remove all but the newest unfinished runs."""
    changed: dict[Path, float] = {}
    for path in root.iterdir():
        # another process may end, and remove its own, at any moment
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                changed[path] = status.st_mtime
    for folder in sorted(changed, key=changed.__getitem__)[:-KEPT]:
        lock = root / f"{folder.name}.lock"
        # a long run may be older than many that were broken off: it is still at work
        with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
