"""The one place that prints: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit.cli.heartbeat import Heartbeat
from deploykit.errors import DeploykitError
from deploykit.events import Event, Listener
from deploykit.protocol import to_json

if TYPE_CHECKING:
    from rich.console import RenderableType


class Console:
    """Prints for people, or one JSON document for machines (`--json`)."""

    def __init__(self) -> None:
        self.json = False
        self.quiet = False
        self._started: dict[str, float] = {}
        self._live = ""
        self._heartbeat = Heartbeat(self.line)

    def emit(self, result: Any, human: Callable[[], RenderableType]) -> None:
        """Print the result of a command: `result` as JSON, or what `human` draws."""
        if self.json:
            value = result.to_json() if hasattr(result, "to_json") else to_json(result)
            sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            return
        from rich.console import Console as Rich

        width = None if sys.stdout.isatty() else 160
        # no markup: `[1,3]` is a shape and `:x:` a name
        drawn = Rich(width=width, highlight=False, soft_wrap=True, markup=False, emoji=False)
        drawn.print(human())

    def line(self, text: str) -> None:
        """Print one line on stderr, clear of the progress line."""
        self._clear()
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def error(self, error: DeploykitError) -> None:
        """Print a foreseen error: one line, then the hint."""
        message = " ".join(error.message.split())
        self.line(f"error: {message}")
        if error.hint:
            self.line(f"  hint: {error.hint}")

    def listener(self) -> Listener:
        """Return what shows the events of long work on stderr."""
        return self._hear

    def _hear(self, event: Event) -> None:
        if self.quiet:
            return
        if event.kind == "start":
            self._started[event.step] = time.monotonic()
            if sys.stderr.isatty():
                self._show(f"… {event.step}")
            else:
                self._heartbeat.start(event)
        elif event.kind == "progress":
            count = f" {event.done}/{event.total}" if event.total else ""
            if sys.stderr.isatty():
                self._show(f"… {event.step}: {event.message}{count}")
            else:
                self._heartbeat.progress(event)
        elif event.kind == "note":
            self.line(f"  {event.message}")
        else:
            self._heartbeat.end(event)
            took = time.monotonic() - self._started.pop(event.step, time.monotonic())
            detail = f": {event.message}" if event.message else ""
            self.line(f"{event.outcome or 'ok':<5} {event.step} ({took:.1f} s){detail}")

    def _show(self, text: str) -> None:
        """Show what is going on now: a line on the terminal that the next one replaces."""
        self._clear()
        self._live = text[:110]
        sys.stderr.write(self._live)
        sys.stderr.flush()

    def _clear(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[2K")
            self._live = ""


console = Console()
