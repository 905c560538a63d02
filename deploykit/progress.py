"""How a plugin says what it is doing; the worker passes it on to whoever waits.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

from collections.abc import Callable

Sink = Callable[[str, int, int], None]


def _silent(phase: str, done: int, total: int) -> None:
    """Nobody is listening."""


_sink: Sink = _silent


def listen(sink: Sink) -> None:
    """Send every later phase to `sink(phase, done, total)`."""
    global _sink
    _sink = sink


def phase(name: str, done: int = 0, total: int = 0) -> None:
    """Say that the phase `name` has begun, or that `done` of its `total` parts are finished.

    A failure report names the phase that was current, so name what the user would recognise:
    `importing torch`, `exporting`, `compiling 3 of 12 kernels`.
    """
    _sink(name, done, total)
