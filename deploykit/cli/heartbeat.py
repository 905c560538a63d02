"""Signs of life of long work where stderr is a file or a pipe: few lines, and no thread that spins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from deploykit.events import Event

FIRST_S = 1.0
"""After so many seconds a step is worth a line; a shorter one gets only the line of its end."""
GROWTH = 3.0
"""Each further line of a step comes after this many times the wait before it."""
LONGEST_S = 60.0


class Heartbeat:
    """Says what a step is doing after a second, and ever more rarely while it goes on.

    A timer sleeps until a line is due, so that a step which says nothing of itself is heard of too.
    A step that counts its parts from the start (`total`), such as a measurement, speaks often: after
    its first line the events themselves bring the others, and no thread wakes in between.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._steps: dict[str, _Step] = {}

    def start(self, event: Event) -> None:
        """Begin to watch the step of `event`."""
        with self._lock:
            self._end(event.step)
            step = self._steps[event.step] = _Step(speaks=event.total > 0)
            self._arm(event.step, step)

    def progress(self, event: Event) -> None:
        """Take note of what is being done; phases of a worker belong to the step begun last."""
        with self._lock:
            name = event.step if event.step in self._steps else next(reversed(self._steps), None)
            if name is None:
                return
            step = self._steps[name]
            count = f" {event.done}/{event.total}" if event.total else ""
            step.doing = f"{event.message}{count}"
            if step.speaks and time.monotonic() >= step.due and step.timer is None:
                self._line(name, step)

    def end(self, event: Event) -> None:
        """Watch the step no longer."""
        with self._lock:
            self._end(event.step)

    def _end(self, name: str) -> None:
        step = self._steps.pop(name, None)
        if step is not None and step.timer is not None:
            step.timer.cancel()

    def _arm(self, name: str, step: _Step) -> None:
        step.due = time.monotonic() + step.wait_s
        step.timer = threading.Timer(step.wait_s, self._beat, (name, step))
        step.timer.daemon = True  # an interrupt must not wait for it
        step.timer.start()

    def _beat(self, name: str, step: _Step) -> None:
        with self._lock:
            if self._steps.get(name) is not step:
                return
            step.timer = None
            self._line(name, step)
            if not step.speaks:
                self._arm(name, step)

    def _line(self, name: str, step: _Step) -> None:
        doing = f": {step.doing}" if step.doing else ""
        self._say(f"…     {name}{doing} ({time.monotonic() - step.started:.0f} s)")
        step.wait_s = min(step.wait_s * GROWTH, LONGEST_S)
        step.due = time.monotonic() + step.wait_s


class _Step:
    """A step under way."""

    def __init__(self, *, speaks: bool) -> None:
        self.speaks = speaks
        self.started = time.monotonic()
        self.wait_s = FIRST_S
        self.due = 0.0
        self.doing = ""
        self.timer: threading.Timer | None = None
