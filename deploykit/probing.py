"""Ask a target which of its devices run here, each in the environment that it needs."""

from __future__ import annotations

from pathlib import Path

from deploykit import environments
from deploykit.errors import DeploykitError, UnavailableError
from deploykit.events import Listener, silent
from deploykit.plugins import Plugin, target
from deploykit.protocol import Availability
from deploykit.steps import Limits, Worker

_PROBE_S = 120.0


def probe(
    plugin: Plugin, *, install: bool = True, listen: Listener = silent
) -> tuple[Availability, ...]:
    """Return what `plugin` says of every device of it.

    A device with an environment of its own is first asked of in the plugin's: what this machine
    lacks (a driver, a system) can be seen there, and nothing is installed in vain. Without `install`
    it stays `unprobed` where its environment is not made yet.

    Raises what `environments.interpreter` and `Worker.call` raise, of the plugin's own environment.
    """
    found = {each.device: each for each in _ask(plugin, install=install, listen=listen)}
    asked: dict[tuple[str, ...], dict[str, Availability]] = {}
    for device, answer in list(found.items()):
        own = plugin.on(device)
        if own is plugin or not answer.unprobed:
            continue
        if not install and not environments.can_have(own, install=False):
            continue
        try:
            if own.dependencies not in asked:
                answers = _ask(own, install=install, listen=listen)
                asked[own.dependencies] = {each.device: each for each in answers}
            found[device] = asked[own.dependencies].get(device, answer)
        except DeploykitError as error:
            found[device] = Availability(device=device, available=False, detail=error.message)
    return tuple(found.values())


def interpreter(plugin: Plugin, *, install: bool = True, listen: Listener = silent) -> Path:
    """Return the Python that runs `plugin`, made where it is not there yet.

    A device's own environment may be gigabytes: it is made only where nothing speaks against the
    device. Raises UnavailableError where something does, else as `environments.interpreter`.
    """
    device = plugin.own_environment_of
    if device and not environments.can_have(plugin, install=False):
        answers = _ask(target(plugin.name), install=install, listen=listen)
        answer = next(each for each in answers if each.device == device)
        if not (answer.available or answer.unprobed or answer.by_name):
            raise UnavailableError(f"{plugin.name}:{device} cannot run here: {answer.detail}")
    return environments.interpreter(plugin, install=install, listen=listen)


def _ask(plugin: Plugin, *, install: bool, listen: Listener) -> tuple[Availability, ...]:
    python = environments.interpreter(plugin, install=install, listen=listen)
    with Worker(
        plugin, python=python, label=f"probe {plugin}", limits=Limits(timeout_s=_PROBE_S)
    ) as worker:
        return worker.call("probe", None, tuple[Availability, ...])
