"""What a worker does with a request, where no second process is needed to see it."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit import errors
from deploykit.protocol import TensorSpec
from deploykit.serving import MAX_LINE_BYTES, MAX_SAMPLES, Channel, OpenModel, describe, measure


class Counted:
    """An inference of a known duration."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.runs = 0
        self.collecting: set[bool] = set()

    def __call__(self) -> None:
        self.runs += 1
        self.collecting.add(gc.isenabled())
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass

    def outputs(self) -> dict[str, Any]:
        return {}


def test_measure_runs_so_many_times() -> None:
    bound = Counted(0.001)
    latencies, begun, ended = measure(bound, 50, None)
    assert bound.runs == len(latencies) == 50
    assert min(latencies) >= 1_000_000
    assert sum(latencies) <= ended - begun <= sum(latencies) * 1.2 + 1_000_000


def test_measure_runs_so_long_and_at_least_once() -> None:
    latencies, begun, ended = measure(Counted(0.002), None, 0.05)
    assert 0.05e9 <= ended - begun < 0.15e9
    assert 1 <= len(latencies) <= 25
    assert len(measure(Counted(), None, 0.0)[0]) == 1


def test_measure_ends_with_whichever_comes_first() -> None:
    assert len(measure(Counted(0.001), 5, 10.0)[0]) == 5
    assert len(measure(Counted(0.01), 10**6, 0.03)[0]) <= 3


def test_measure_keeps_the_collector_off_and_turns_it_on_again() -> None:
    bound = Counted()
    measure(bound, 3, None)
    assert bound.collecting == {False}
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure(Failing(), 3, None)
    assert gc.isenabled()


class Failing(Counted):
    def __call__(self) -> None:
        raise ZeroDivisionError


def test_measure_itself_costs_little() -> None:
    # the least that a call through it can take: what every latency is too long by
    latencies, begun, ended = measure(Nothing(), 20_000, None)
    assert np.median(latencies) < 2_000
    assert (ended - begun) / len(latencies) < 5_000


class Elsewhere(Counted):
    """An inference behind a connection, which is timed at its other end."""

    def measure(self, iterations: int, duration_s: float | None) -> list[int]:
        self.asked: tuple[int, float | None] = iterations, duration_s
        return [7, 8, 9]


def test_a_bound_inference_that_measures_itself_is_believed() -> None:
    bound = Elsewhere()
    latencies, begun, ended = measure(bound, 3, 0.5)
    assert list(latencies) == [7, 8, 9]
    assert bound.asked == (3, 0.5)
    assert bound.runs == 0
    assert begun < ended
    assert len(measure(bound, None, 1.5)[0]) == 3
    assert bound.asked == (MAX_SAMPLES, 1.5)


class Nothing(Counted):
    def __call__(self) -> None:
        pass


class Session:
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self) -> None:
        self.bound = Counted(0.02)

    def run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        return dict(feed)

    def bind(self, feed: Mapping[str, Any]) -> Counted:
        assert feed == {}
        return self.bound

    def close(self) -> None:
        pass


def test_the_first_inference_is_timed_once() -> None:
    model = OpenModel(Session())
    assert model.first_inference_ms is None
    model.bind({})
    first = model.first_inference_ms
    assert first is not None
    assert 20 <= first < 200
    model.run({})
    assert model.first_inference_ms == first


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x" * 10**6),
        RuntimeError("\U0001f600" * 10**6),
        RuntimeError("\0" * 10**6),
        errors.UnsupportedError("\0" * 10**6, hint="\0" * 10**6, operators=("\0" * 10**6,) * 10**3),
    ],
)
def test_no_error_is_too_long_for_the_channel(error: Exception, tmp_path: Path) -> None:
    message = {"id": 1, "error": describe(error)}
    with (tmp_path / "lines").open("wb") as stream:
        Channel(stream.fileno()).send(message)
    assert json.loads((tmp_path / "lines").read_bytes()) == message


def test_the_channel_refuses_a_line_that_is_too_long(tmp_path: Path) -> None:
    with (tmp_path / "lines").open("wb") as stream:
        channel = Channel(stream.fileno())
        with pytest.raises(ValueError, match="too long"):
            channel.send({"x": "y" * MAX_LINE_BYTES})
        channel.send({"x": 1})
    assert (tmp_path / "lines").read_bytes() == b'{"x": 1}\n'


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


class OwnUnsupported(errors.UnsupportedError):
    """A plugin's own subclass, which the parent does not know."""


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("no"), "PluginError", "ValueError: no"),
        (ValueError(), "PluginError", "ValueError"),
        (Mute(), "PluginError", "Mute: (its message cannot be shown: ValueError)"),
        (MemoryError(), "StepOutOfMemory", "MemoryError"),
        (RuntimeError("CUDA out of memory"), "StepOutOfMemory", "RuntimeError: CUDA out of memory"),
        (OwnUnsupported("no"), "UnsupportedError", "no"),
        (OSError(28, "full"), "OutputError", "the result cannot be written: [Errno 28] full"),
        (OSError(2, "gone"), "PluginError", "FileNotFoundError: [Errno 2] gone"),
    ],
)
def test_an_error_is_described_as_its_nearest_known_class(
    error: BaseException, kind: str, said: str
) -> None:
    found = describe(error)
    assert (found["class"], found["message"]) == (kind, said)
