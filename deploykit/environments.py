"""The isolated environments of plugins: looked up, made on first use, listed, removed.

One folder each, `<home>/environments/<key>`, keyed by what the plugin needs, so that equal needs
share one. Making follows pre-commit: look up, lock, look up again, build, check health, and write
the state file last and atomically. Where `deploykit.json` is present the environment is whole; a
folder without it is rubbish of an interrupted build, and is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import InstallError, OutputError, UnavailableError, UsageError
from deploykit.events import Event, Listener, silent
from deploykit.home import home
from deploykit.plugins import Plugin, survey
from deploykit.requirements import canonical, unmet, unmet_in
from deploykit.system_libraries import missing_libraries

STATE_FILE = "deploykit.json"
_SCHEMA = 1
_TAG_FILE = "CACHEDIR.TAG"
# the first line is fixed by https://bford.info/cachedir/; the second is how we know our own
_OURS = "# made by deploykit: the environment of a plugin, remove it with `deploykit env remove`"
_TAG = f"Signature: 8a477f597d28d172789f06886806bc55\n{_OURS}\n"
_HEALTH_S = 120.0

# runs in the new environment, on any Python that a plugin may ask for
_HEALTH = """
import json, sys
from importlib.metadata import distributions
print(json.dumps({
    "python": "%d.%d.%d" % sys.version_info[:3],
    "versions": {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]},
}))
"""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment of deploykit's own.

    `plugins` names those that use it now; none means that nothing needs it any more. `created` is
    empty where the build was interrupted (or goes on in another process). `size_bytes` counts each
    file in full, although uv shares most of them with its cache.
    """

    key: str
    folder: Path
    plugins: tuple[str, ...]
    dependencies: tuple[str, ...] = ()
    requires_python: str = ""
    python_version: str = ""
    installer: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    size_bytes: int = 0

    @property
    def python(self) -> Path:
        """The interpreter of this environment."""
        return self.folder / "bin" / "python"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "key": self.key,
            "folder": str(self.folder),
            "python": str(self.python),
            "plugins": list(self.plugins),
            "dependencies": list(self.dependencies),
            "requires_python": self.requires_python,
            "python_version": self.python_version,
            "installer": self.installer,
            "versions": dict(self.versions),
            "created": self.created,
            "size_bytes": self.size_bytes,
        }


def interpreter(plugin: Plugin, *, install: bool = True, listen: Listener = silent) -> Path:
    """Return a Python that has what `plugin` needs: this one where it does, else a managed one.

    Raises UnavailableError where there is none and `install` is False, or where the system lacks a
    library that it declares; InstallError where it cannot be made.
    """
    if not unmet(plugin):
        return Path(sys.executable)
    ready = lookup(plugin)
    if ready is not None:
        return ready.python
    missing = missing_libraries(plugin)
    if missing:
        raise UnavailableError(
            f"{plugin} cannot run here: {missing}", hint="install what is named; then it is made"
        )
    if not install:
        raise UnavailableError(
            f"the environment of {plugin} is not made yet, and installing is not allowed",
            hint=f"make it with `deploykit env create {plugin.name}`",
        )
    return create(plugin, listen=listen).python


def can_have(plugin: Plugin, *, install: bool = True) -> bool:
    """Return whether `interpreter(plugin, install=install)` has a chance here, without trying."""
    if not unmet(plugin) or lookup(plugin) is not None:
        return True
    if not install or missing_libraries(plugin):
        return False
    from deploykit.installing import find_python, find_uv

    try:
        find_python(plugin.requires_python, uv=find_uv())
    except InstallError:
        return False
    return True


def lookup(plugin: Plugin) -> Environment | None:
    """Return the environment of `plugin` where it is whole, else None."""
    found = _read(folder_of(plugin))
    # a base interpreter that was uninstalled leaves a dangling link behind
    return found if found is not None and found.created and found.python.exists() else None


def create(plugin: Plugin, *, listen: Listener = silent) -> Environment:
    """Return the environment of `plugin`, made now where it is not there yet.

    Safe against other processes that do the same: one builds, the others wait. A failure or an
    interrupt leaves no half environment.

    Raises InstallError with the reason and the log file.
    """
    ready = lookup(plugin)
    if ready is not None:
        return ready
    folder = folder_of(plugin)
    with _locked(folder.name, f"environment of {plugin}", listen):
        ready = lookup(plugin)
        if ready is not None:
            return ready
        step = f"environment of {plugin}"
        listen(Event(kind="start", step=step))
        try:
            made = _build(plugin, folder, listen)
        except BaseException as error:
            listen(Event(kind="end", step=step, outcome="error", message=type(error).__name__))
            raise
        size = f"{made.size_bytes / 1e6:.0f} MB in {folder}"
        listen(Event(kind="end", step=step, outcome="ok", message=size))
        return made


def environments() -> tuple[Environment, ...]:
    """Return every environment that deploykit made, also those whose build was interrupted."""
    users: dict[str, list[str]] = {}
    for plugin in survey()[0]:
        users.setdefault(key_of(plugin), []).append(str(plugin))
    root = _root()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    found = (_read(folder, tuple(users.get(folder.name, ()))) for folder in folders)
    return tuple(item for item in found if item is not None)


def remove(environment: Environment, *, listen: Listener = silent) -> None:
    """Delete `environment` from disk.

    Raises UsageError where its folder is none that deploykit made, OutputError where it cannot be
    deleted.
    """
    folder = environment.folder
    if not _is_ours(folder):
        raise UsageError(
            f"`{folder}` was not made by deploykit: nothing removed",
            hint="`deploykit env list` shows what was",
        )
    with _locked(environment.key, f"environment {environment.key}", listen):
        _delete(folder)


def folder_of(plugin: Plugin) -> Path:
    """Return the folder of the environment of `plugin`, whether or not it is there."""
    return _root() / key_of(plugin)


def key_of(plugin: Plugin) -> str:
    """Return 16 hexadecimal digits that stand for all that decides the environment's content."""
    needs = [
        sorted(plugin.dependencies),
        plugin.requires_python,
        plugin.tool_uv(),
        # a home folder may be shared by machines of several kinds
        sysconfig.get_platform(),
    ]
    text = json.dumps(needs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _root() -> Path:
    return home() / "environments"


def _build(plugin: Plugin, folder: Path, listen: Listener) -> Environment:
    from deploykit.installing import end_orphans, install

    if folder.exists():
        if not _is_ours(folder):
            raise InstallError(
                f"`{folder}` is in the way: deploykit did not make it",
                hint="move it, or let DEPLOYKIT_HOME name another folder",
            )
        end_orphans(folder)
        _delete(folder)
    wanted = ", ".join(plugin.dependencies) or "nothing"
    note = f"installing {wanted} for {plugin} into {folder}"
    listen(Event(kind="note", step=f"environment of {plugin}", message=note))
    log = home() / "logs" / f"environment-{folder.name}.log"
    try:
        with _writing(folder):
            folder.mkdir(parents=True)
            (folder / _TAG_FILE).write_text(_TAG, encoding="utf-8")
            log.parent.mkdir(exist_ok=True)
            log.unlink(missing_ok=True)
            installer = install(plugin, folder, log=log, listen=listen)
            listen(Event(kind="progress", step=f"environment of {plugin}", message="checking"))
            return _finish(plugin, folder, installer=installer, log=log)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _finish(plugin: Plugin, folder: Path, *, installer: str, log: Path) -> Environment:
    """Check that the environment works, and write its state file, which makes it whole."""
    from deploykit.processes import run_command

    python = folder / "bin" / "python"
    done = run_command([python, "-I", "-c", _HEALTH], timeout_s=_HEALTH_S)
    if done.returncode != 0:
        raise InstallError(
            f"the new environment of {plugin} does not work: {done.stderr.strip()[-300:]}",
            hint=f"log: {log}",
        )
    health = json.loads(done.stdout)
    versions = {canonical(name): version for name, version in health["versions"].items()}
    lacking = unmet_in(plugin.dependencies, versions, python_version=health["python"])
    if lacking:
        raise InstallError(
            f"{installer} ended well, but the new environment of {plugin} lacks {', '.join(lacking)}",
            hint=f"log: {log}",
        )
    made = Environment(
        key=folder.name,
        folder=folder,
        plugins=(str(plugin),),
        dependencies=plugin.dependencies,
        requires_python=plugin.requires_python,
        python_version=health["python"],
        installer=installer,
        versions=dict(sorted(versions.items())),
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        size_bytes=_size(folder),
    )
    temporary = folder / f"{STATE_FILE}.tmp"
    text = json.dumps({"schema": _SCHEMA, **made.to_json()}, indent=2)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / STATE_FILE)
    return made


def _read(folder: Path, users: tuple[str, ...] = ()) -> Environment | None:
    """Return the environment in `folder`, or None where deploykit made none there."""
    if not _is_ours(folder):
        return None
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
        return Environment(key=folder.name, folder=folder, plugins=users)
    return Environment(
        key=folder.name,
        folder=folder,
        plugins=users,
        dependencies=tuple(state["dependencies"]),
        requires_python=state["requires_python"],
        python_version=state["python_version"],
        installer=state["installer"],
        versions=state["versions"],
        created=state["created"],
        size_bytes=state["size_bytes"],
    )


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink():
        return False
    try:
        return _OURS in (folder / _TAG_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _delete(folder: Path) -> None:
    with _writing(folder, verb="remove"):
        # first: an interrupt must leave rubbish, not half an environment that passes for whole
        (folder / STATE_FILE).unlink(missing_ok=True)
        tag = folder / _TAG_FILE
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != tag:
                entry.unlink()
        # last: what an interrupt leaves is still known as ours
        tag.unlink()
        folder.rmdir()


def _size(folder: Path) -> int:
    return sum(
        Path(parent, name).lstat().st_size for parent, _, names in os.walk(folder) for name in names
    )


@contextlib.contextmanager
def _writing(path: Path, *, verb: str = "write") -> Iterator[None]:
    """Turn an OSError into an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot {verb} `{path}`: {error.strerror or error}",
            hint="let DEPLOYKIT_HOME name a folder that you can write to",
        ) from error


@contextlib.contextmanager
def _locked(key: str, step: str, listen: Listener) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = home() / "locks" / f"{key}.lock"
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = "waiting for another process that is at work on it"
            listen(Event(kind="note", step=step, message=f"{step}: {message}"))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
