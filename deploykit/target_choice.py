"""Which targets were asked for, on which devices, with which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deploykit import plugins
from deploykit.errors import DeploykitError, UsageError
from deploykit.events import Event
from deploykit.probing import probe
from deploykit.protocol import Availability

if TYPE_CHECKING:
    from deploykit.options import Conditions
    from deploykit.plugins import Plugin

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")


def choose_targets(names: Sequence[str], conditions: Conditions) -> list[tuple[Plugin, str]]:
    """Return plugin and device for each name; `all` is every target that can run here.

    Raises UsageError for an unknown name, an unknown device or none at all.
    """
    if not names:
        raise UsageError(
            "no target given",
            hint=f"targets: {', '.join(plugin.name for plugin in plugins.plugins('target'))}, all",
        )
    chosen: list[tuple[Plugin, str]] = []
    for name in names:
        if name == "all":
            chosen += available_targets(conditions)
        else:
            chosen.append(plugins.parse_target(name))
    return list({(plugin.name, device): (plugin, device) for plugin, device in chosen}.values())


def available_targets(conditions: Conditions) -> list[tuple[Plugin, str]]:
    """Return every target and device that can run here; the listener hears why others cannot."""
    found = []
    for plugin in plugins.plugins("target"):
        try:
            devices = probe(plugin, install=conditions.install, listen=conditions.listen)
        except DeploykitError as error:
            devices = (Availability(device="*", available=False, detail=error.message),)
        for device in devices:
            if plugins.takes_arguments(device.device) or device.device == plugins.AUTO:
                continue  # it stands for others, which are here by their own names
            if device.available:
                found.append((plugin.on(device.device), device.device))
            else:
                left_out = f"{plugin.name}:{device.device} cannot run here: {device.detail}"
                conditions.listen(Event(kind="note", step="probe", message=left_out))
    return found


def settings_for(plugin: Plugin, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that concern `plugin`: `key=value`, and its own `plugin.key=value`.

    A name before the dot that is no target at all belongs to the key.
    """
    others = {other.name for other in plugins.plugins("target")} - {plugin.name}
    own: dict[str, str] = {}
    for key, value in settings.items():
        owner, dot, rest = key.partition(".")
        if dot and owner == plugin.name:
            own[rest] = value
        elif not (dot and owner in others):
            own.setdefault(key, value)
    return own


def check_precision(precision: str) -> None:
    """Raise UsageError for a precision that no target knows."""
    if precision not in PRECISIONS:
        raise UsageError(
            f"precision `{precision}` is unknown", hint=f"precisions: {', '.join(PRECISIONS)}"
        )
