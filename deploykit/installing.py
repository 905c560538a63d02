"""Fill an environment with what a plugin's block asks for: by uv, or by venv and pip without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import InstallError, StepTimeout, UnavailableError
from deploykit.events import Event, Listener
from deploykit.package_index import (
    PackageIndex,
    constraints,
    package_index,
    pip_variables,
    uv_variables,
)
from deploykit.processes import Completed, clean_environment, run_command
from deploykit.requirements import python_satisfies

if TYPE_CHECKING:
    from deploykit.plugins import Plugin

_INSTALL_S = 3600.0
_BUILDS = "DEPLOYKIT_BUILDS"
_QUERY_S = 60.0

# settings for the user's own projects, which would send uv elsewhere or ask it for a lock file
_PROJECT_VARIABLES = (
    "UV_FROZEN",
    "UV_LOCKED",
    "UV_NO_SYNC",
    "UV_PROJECT",
    "UV_WORKING_DIR",
    "UV_WORKING_DIRECTORY",
)
_UNREACHABLE = re.compile(
    r"error sending request|client error \(Connect\)|tcp connect error|dns error"
    r"|connection refused|operation timed out|network is unreachable|connection reset",
    re.IGNORECASE,
)
# what uv and pip say while all is well
_CHATTER = re.compile(
    r"(Using |Creating |Resolved |Prepared |Installed |Audited |Download|Building |Built |Collecting "
    r"|Looking |Requirement already|Saved |\[notice\]|Activate with)"
)


def end_orphans(folder: Path) -> None:
    """End what a killed deploykit left at work on `folder`; call it while holding the folder's lock."""
    wanted = f"{_BUILDS}={folder}".encode()
    proc = Path("/proc")
    for _ in range(100):
        orphans = []
        for entry in proc.glob("[0-9]*") if proc.is_dir() else ():
            # it may end meanwhile, or be somebody else's
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    orphans.append(int(entry.name))
        if not orphans:
            return
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def find_uv() -> str | None:
    """Return the path of uv: the one installed with deploykit, else the one on PATH."""
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def install(plugin: Plugin, folder: Path, *, log: Path, listen: Listener) -> str:
    """Make a virtual environment in the existing `folder` and install the needs of `plugin` there.

    Returns what did it, such as `uv`. Raises InstallError with the reason that uv or pip gave.
    """
    index = package_index()
    uv = find_uv()
    python = find_python(plugin.requires_python, uv=uv, log=log)
    try:
        if uv is None:
            _install_with_pip(plugin, folder, python=python, index=index, log=log, listen=listen)
            return "pip"
        _install_with_uv(uv, plugin, folder, python=python, index=index, log=log, listen=listen)
        return "uv"
    except StepTimeout as error:
        raise InstallError(
            f"cannot install what {plugin} needs: {error}", hint=f"log: {log}"
        ) from error


def find_python(requires_python: str, *, uv: str | None, log: Path | None = None) -> Path:
    """Return an interpreter within `requires_python`: this one, or another of this machine.

    Raises InstallError where there is none; interpreters are never downloaded.
    """
    if python_satisfies(requires_python):
        return Path(sys.executable)
    for candidate in _candidates(requires_python, uv):
        asked = [str(candidate), "-I", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
        try:
            answer = run_command(asked, timeout_s=_QUERY_S, log=log)
        except UnavailableError:
            continue
        version = answer.stdout.strip()
        if answer.returncode == 0 and version and python_satisfies(requires_python, version):
            return candidate
    raise InstallError(
        f"no Python {requires_python} was found on this machine",
        hint=f"install one, for instance by `uv python install '{requires_python}'`",
    )


def _candidates(requires_python: str, uv: str | None) -> Iterator[Path]:
    if uv is not None:
        asked = [uv, "python", "find", "--no-project", "--no-python-downloads", requires_python]
        answer = run_command(asked, timeout_s=_QUERY_S, env=_uv_environment({}))
        if answer.returncode == 0:
            yield Path(answer.stdout.strip())
    for minor in range(30, 5, -1):
        on_path = shutil.which(f"python3.{minor}")
        if on_path and python_satisfies(requires_python, f"3.{minor}.99"):
            yield Path(on_path)
    # uv does not look here, and pyenv's names on PATH work only for versions the user switched on
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for folder in sorted(pyenv.glob("3.*"), key=lambda path: _numbers(path.name), reverse=True):
        if python_satisfies(requires_python, ".".join(map(str, _numbers(folder.name)))):
            yield folder / "bin" / "python"


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name))


def _install_with_uv(
    uv: str,
    plugin: Plugin,
    folder: Path,
    *,
    python: Path,
    index: PackageIndex,
    log: Path,
    listen: Listener,
) -> None:
    step = f"environment of {plugin}"
    environment = _uv_environment(
        {**uv_variables(index), "VIRTUAL_ENV": str(folder), _BUILDS: str(folder)}
    )
    common = ["--no-python-downloads", "--no-progress"]
    made = run_command(
        [uv, "venv", "--allow-existing", "--no-project", "--python", python, *common, folder],
        timeout_s=_QUERY_S,
        env=environment,
        log=log,
        cwd=folder,
    )
    _check(made, plugin, log)
    script = _script(plugin, folder, constraints(index), listen)
    command = [uv, "sync", "--active", "--script", str(script)]
    command += ["--python", str(folder / "bin" / "python")]
    command += [*common, *(["--no-index"] if index.no_index else [])]

    def sync(*more: str) -> Completed:
        return run_command(
            [*command, *more], timeout_s=_INSTALL_S, env=environment, log=log, cwd=folder
        )

    with _ticking(step, "downloading and installing", listen):
        done = sync()
    if done.returncode != 0 and _UNREACHABLE.search(done.stderr):
        message = "the package index cannot be reached: trying with what the cache holds"
        listen(Event(kind="note", step=step, message=message))
        with _ticking(step, "installing from the cache", listen):
            offline = sync("--offline")
        if offline.returncode == 0:
            return
    _check(done, plugin, log)


def _uv_environment(more: Mapping[str, str]) -> dict[str, str]:
    environment = clean_environment()
    for name in _PROJECT_VARIABLES:
        environment.pop(name, None)
    return {**environment, **more}


def _script(plugin: Plugin, folder: Path, limits: tuple[str, ...], listen: Listener) -> Path:
    """Return the script for uv: the plugin itself, or what of its block is needed for a device's own
    environment or with pip's constraints added.
    """
    table = plugin.tool_uv()
    if not plugin.own_environment_of and (not limits or Path(f"{plugin.path}.lock").exists()):
        return plugin.path
    if "sources" in table and not plugin.own_environment_of:
        # paths in it are relative to the plugin's own file
        message = "pip's constraints are not applied: this plugin names its own sources"
        listen(Event(kind="note", step=f"environment of {plugin}", message=message))
        return plugin.path
    table["constraint-dependencies"] = [*table.get("constraint-dependencies", []), *limits]
    lines = [f"dependencies = {_toml(list(plugin.dependencies))}", f"tool = {_toml({'uv': table})}"]
    if plugin.requires_python:
        lines.insert(0, f"requires-python = {_toml(plugin.requires_python)}")
    script = folder / "deploykit-script.py"
    block = "".join(f"# {line}\n" for line in lines)
    script.write_text(f"# /// script\n{block}# ///\n", encoding="utf-8")
    return script


def _toml(value: Any) -> str:
    """Return a value that came out of TOML as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, (str, bool, int, float)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)  # a date


def _install_with_pip(
    plugin: Plugin,
    folder: Path,
    *,
    python: Path,
    index: PackageIndex,
    log: Path,
    listen: Listener,
) -> None:
    if plugin.tool_uv().get("override-dependencies"):
        raise InstallError(
            f"{plugin} replaces what its packages ask for, which pip cannot do", hint="install uv"
        )
    step = f"environment of {plugin}"
    environment = clean_environment()
    for name in [name for name in environment if name.startswith("PIP_")]:
        del environment[name]
    environment.update({**pip_variables(index), _BUILDS: str(folder)})
    made = run_command(
        [python, "-I", "-m", "venv", folder], timeout_s=_QUERY_S * 5, env=environment, log=log
    )
    _check(made, plugin, log)
    if not plugin.dependencies:
        return
    table = plugin.tool_uv()
    command = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    for item in table.get("index", []):
        command += ["--extra-index-url", str(item["url"])]
    if table.get("constraint-dependencies"):
        limits = folder / "deploykit-constraints.txt"
        limits.write_text("\n".join(table["constraint-dependencies"]) + "\n", encoding="utf-8")
        command += ["--constraint", str(limits)]
    command += ["--", *plugin.dependencies]
    with _ticking(step, "downloading and installing by pip", listen):
        done = run_command(command, timeout_s=_INSTALL_S, env=environment, log=log)
    _check(done, plugin, log)


@contextlib.contextmanager
def _ticking(step: str, message: str, listen: Listener) -> Iterator[None]:
    """Say each second that the work goes on, and for how long it has."""
    over = threading.Event()
    begun = time.monotonic()

    def tick() -> None:
        while not over.wait(1.0):
            spent = f"{message} ({time.monotonic() - begun:.0f} s)"
            listen(Event(kind="progress", step=step, message=spent))

    listen(Event(kind="progress", step=step, message=message))
    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()


def _check(done: Completed, plugin: Plugin, log: Path) -> None:
    if done.returncode == 0:
        return
    output = f"{done.stdout}\n{done.stderr}"
    if re.search(r"no space left|disk quota", output, re.IGNORECASE):
        hint = "free disk space, or let DEPLOYKIT_HOME name a folder with more"
    elif _UNREACHABLE.search(output):
        hint = "the package index cannot be reached: connect, or tell pip of one that can be"
    else:
        hint = "pip's settings are in force (`deploykit doctor` shows them)"
    raise InstallError(
        f"cannot install what {plugin} needs: {last_lines(output)}", hint=f"{hint}; log: {log}"
    )


def last_lines(output: str, *, count: int = 6, width: int = 700) -> str:
    """Return the last `count` lines of `output` that mean something, as one, at most `width` long."""
    lines = [re.sub(r"^[\s\u2500-\u25ff\u00d7]+", "", line).strip() for line in output.splitlines()]
    lines = [line for line in lines if line and not _CHATTER.match(line)]
    starts = [number for number, line in enumerate(lines) if line.lower().startswith("error:")]
    lines = lines[starts[-1] :] if starts else lines  # warnings come before it
    if starts and "[stderr]" in lines:
        lines = lines[: lines.index("[stderr]")]  # all that a package's build wrote: the log has it
    text = " ".join(lines[-count:]) or "it gave no reason"
    return text if len(text) <= width else "… " + text[-width:]
