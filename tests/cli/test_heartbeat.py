"""Signs of life in a log file: after a second, then ever more rarely, and never from a spinning thread."""

from __future__ import annotations

import threading
import time

import pytest

from deploykit.cli import heartbeat
from deploykit.cli.heartbeat import Heartbeat
from deploykit.events import Event


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(heartbeat, "FIRST_S", 0.1)
    return []


def start(step: str, total: int = 0) -> Event:
    return Event(kind="start", step=step, total=total)


def test_a_short_step_says_nothing(lines: list[str]) -> None:
    beat = Heartbeat(lines.append)
    beat.start(start("convert"))
    beat.end(Event(kind="end", step="convert"))
    time.sleep(0.2)
    assert lines == []
    assert [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)] == []


def test_a_long_step_says_what_it_is_doing_ever_more_rarely(lines: list[str]) -> None:
    beat = Heartbeat(lines.append)
    beat.start(start("convert"))
    # the phases of a worker go by the worker's own name
    beat.progress(Event(kind="progress", step="pytorch net.pt2", message="exporting"))
    time.sleep(0.25)
    assert lines == ["…     convert: exporting (0 s)"]
    time.sleep(0.35)  # 0.1 + 0.3
    assert len(lines) == 2
    beat.end(Event(kind="end", step="convert"))


def test_a_step_that_counts_is_woken_by_its_own_events(lines: list[str]) -> None:
    beat = Heartbeat(lines.append)
    beat.start(start("measure", total=2))
    time.sleep(0.2)
    assert len(lines) == 1
    time.sleep(0.5)
    assert len(lines) == 1, "no thread wakes while it measures"
    for number in (7, 8):
        beat.progress(Event(kind="progress", step="measure", message="round", done=number, total=9))
    assert lines[1:] == ["…     measure: round 7/9 (1 s)"]
    beat.end(Event(kind="end", step="measure"))


def test_phases_without_a_step_are_nobodys(lines: list[str]) -> None:
    Heartbeat(lines.append).progress(Event(kind="progress", step="probe", message="looking"))
    assert lines == []
