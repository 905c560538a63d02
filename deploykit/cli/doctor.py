"""`deploykit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploykit.cli.console import console
from deploykit.cli.options import output_style

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.diagnosis import DeviceFinding, Diagnosis, PluginFinding

_WORDS = {True: "yes", False: "no", None: "not yet"}
_UNAVAILABLE = 7


@click.command("doctor")
@click.argument("name", required=False, metavar="[PLUGIN]")
@click.option("--install", is_flag=True, help="Make the environments that are missing, and look.")
@output_style
def command(name: str | None, install: bool) -> None:
    """Say what can run on this machine, what cannot, and why.

    Plugin by plugin and device by device; with PLUGIN, that one in detail (and exit code 7 where
    it cannot run here). Passwords in pip's settings are not shown.

    \b
    deploykit doctor
    deploykit doctor tvm
    deploykit doctor --install
    """
    from deploykit import plugins
    from deploykit.diagnosis import diagnose

    chosen = None if name is None else (plugins.find(name),)
    found = diagnose(chosen, install=install, listen=console.listener())
    console.emit(found, lambda: _drawn(found, detailed=name is not None))
    if chosen and all(device.runs is False for device in found.plugins[0].devices):
        raise click.exceptions.Exit(_UNAVAILABLE)


def _drawn(found: Diagnosis, *, detailed: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from deploykit.cli.tables import table

    memory_gib = found.memory_bytes / (1 << 30)
    facts = [
        f"deploykit {found.deploykit}, Python {found.python} ({found.executable})",
        f"machine: {found.platform}, {found.processors} processors, {memory_gib:.1f} GiB of memory",
        f"installs with: {found.installer}",
        f"home: {found.home} ({found.home_free_bytes / (1 << 30):.1f} GiB free)",
        *(f"pip's {setting}: {value}" for setting, value in found.package_index.items()),
    ]
    rows = [
        (f"{plugin.kind} {plugin.name}", device.device or "-", _WORDS[device.runs], _why(device))
        for plugin in found.plugins
        for device in plugin.devices
    ]
    parts: list[RenderableType] = [
        Text("\n".join(facts)),
        table("", ["plugin", "device", "runs here", "why"], rows),
    ]
    if detailed:
        parts += [Text(_detail(plugin)) for plugin in found.plugins]
    parts += [Text(f"problem: {problem}") for problem in found.problems]
    return Group(*parts)


def _why(device: DeviceFinding) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in device.versions.items())
    return "; ".join(filter(None, (device.detail, versions)))


def _detail(plugin: PluginFinding) -> str:
    lines = [plugin.summary]
    if plugin.formats:
        lines.append(f"formats: {', '.join(plugin.formats)}")
    lines.append(f"needs: {', '.join(plugin.dependencies) or 'nothing'}")
    if plugin.lacking:
        lines.append(f"this Python lacks: {', '.join(plugin.lacking)}")
    lines.append(f"runs in: {plugin.python or 'an environment of its own, not made yet'}")
    lines += [f"--set {name}=…  {meaning}" for name, meaning in plugin.settings.items()]
    return "\n".join(lines)
