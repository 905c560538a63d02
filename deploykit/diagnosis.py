"""What can run on this machine, what cannot, and why: plugin by plugin, device by device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit import environments
from deploykit.errors import DeploykitError, InstallError
from deploykit.events import Event, Listener, silent
from deploykit.home import home
from deploykit.plugins import Plugin, survey
from deploykit.protocol import Availability, to_json
from deploykit.requirements import canonical, unmet
from deploykit.system_libraries import missing_libraries

_PROBE_S = 120.0
NOT_MADE = "environment not made yet: made on first use"


@dataclass(frozen=True, kw_only=True)
class DeviceFinding:
    """One device of a plugin (for a converter: its framework). `runs` None means not known yet."""

    device: str
    runs: bool | None
    detail: str
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PluginFinding:
    """What was found about one plugin.

    `python` is the interpreter that runs it, None where there is none yet; `lacking` says what the
    caller's own environment lacks, which is why the plugin has an environment of its own.
    """

    kind: str
    name: str
    summary: str
    python: str | None
    lacking: tuple[str, ...]
    dependencies: tuple[str, ...]
    formats: tuple[str, ...]
    settings: dict[str, str]
    devices: tuple[DeviceFinding, ...]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The machine, where packages come from, and every plugin."""

    deploykit: str
    python: str
    executable: str
    platform: str
    processors: int
    memory_bytes: int
    installer: str
    home: str
    home_free_bytes: int
    package_index: dict[str, str]
    plugins: tuple[PluginFinding, ...]
    problems: tuple[str, ...]

    def to_json(self) -> Any:
        """Return the fields as JSON values."""
        return to_json(self)


def diagnose(
    names: tuple[Plugin, ...] | None = None, *, install: bool = False, listen: Listener = silent
) -> Diagnosis:
    """Look at the machine and at the plugins `names`, by default all.

    Targets whose environment exists are asked by their own `probe`, in a worker. `install` makes
    the environments that are missing; nothing else here installs anything.
    """
    from deploykit import __version__
    from deploykit.package_index import package_index

    known, errors = survey()
    problems = [error.message for error in errors]
    try:
        index = package_index().described()
    except InstallError as error:
        index = {}
        problems.append(error.message)
    findings = tuple(
        examine(plugin, install=install, listen=listen)
        for plugin in (known if names is None else names)
    )
    return Diagnosis(
        deploykit=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        processors=_processors(),
        memory_bytes=_memory_bytes(),
        installer=_installer(),
        home=str(home()),
        home_free_bytes=_free_bytes(home()),
        package_index=index,
        plugins=findings,
        problems=tuple(problems),
    )


def examine(plugin: Plugin, *, install: bool = False, listen: Listener = silent) -> PluginFinding:
    """Return what can be found out about `plugin` here; what fails becomes part of the finding."""
    lacking = unmet(plugin)
    python: Path | None = None
    try:
        if not lacking or install or environments.lookup(plugin) is not None:
            python = environments.interpreter(plugin, install=install, listen=listen)
            devices = _devices(plugin, python, listen)
        else:
            devices = _unmade(plugin)
    except DeploykitError as error:
        devices = _all_devices(plugin, runs=False, detail=error.message)
    return PluginFinding(
        kind=plugin.kind,
        name=plugin.name,
        summary=plugin.summary,
        python=None if python is None else str(python),
        lacking=lacking,
        dependencies=plugin.dependencies,
        formats=plugin.formats,
        settings=plugin.settings,
        devices=devices,
    )


def _devices(plugin: Plugin, python: Path, listen: Listener) -> tuple[DeviceFinding, ...]:
    versions = _versions(plugin)
    if "probe" not in plugin.functions:
        return _all_devices(plugin, runs=True, detail="", versions=versions)
    from deploykit.steps import Limits, Worker

    step = f"probing {plugin}"
    listen(Event(kind="progress", step=step))
    with Worker(
        plugin, python=python, label=step, limits=Limits(timeout_s=_PROBE_S), listen=silent
    ) as worker:
        answers = worker.call("probe", None, tuple[Availability, ...])
    return tuple(
        DeviceFinding(
            device=answer.device,
            runs=answer.available,
            detail=answer.detail,
            versions=answer.versions or versions,
        )
        for answer in answers
    )


def _unmade(plugin: Plugin) -> tuple[DeviceFinding, ...]:
    from deploykit.installing import find_python, find_uv

    missing = missing_libraries(plugin)
    if missing:
        return _all_devices(plugin, runs=False, detail=missing)
    try:
        find_python(plugin.requires_python, uv=find_uv())
    except InstallError as error:
        return _all_devices(plugin, runs=False, detail=f"{error.message}; {error.hint}")
    return _all_devices(plugin, runs=None, detail=NOT_MADE)


def _all_devices(
    plugin: Plugin, *, runs: bool | None, detail: str, versions: dict[str, str] | None = None
) -> tuple[DeviceFinding, ...]:
    return tuple(
        DeviceFinding(device=device, runs=runs, detail=detail, versions=versions or {})
        for device in plugin.devices or ("",)
    )


def _versions(plugin: Plugin) -> dict[str, str]:
    """Return the version of each distribution that the plugin names, as installed where it runs."""
    from packaging.requirements import Requirement

    made = environments.lookup(plugin) if unmet(plugin) else None
    found = {}
    for text in plugin.dependencies:
        name = canonical(Requirement(text).name)
        try:
            found[name] = made.versions[name] if made else importlib.metadata.version(name)
        except (KeyError, importlib.metadata.PackageNotFoundError):
            continue  # its marker excludes it here
    return found


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _installer() -> str:
    from deploykit.installing import find_uv
    from deploykit.processes import run_command

    uv = find_uv()
    if uv is None:
        return "venv and pip (uv is missing)"
    answer = run_command([uv, "--version"], timeout_s=30.0)
    return f"{answer.stdout.strip()} ({uv})"
