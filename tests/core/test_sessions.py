"""Sessions that live in a worker: run, bound, measured, reproduced."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploykit import errors
from deploykit.plugins import Plugin
from deploykit.protocol import (
    LoadRequest,
    ReferenceRequest,
    Signature,
    Source,
)
from deploykit.steps import Limits, Worker

MakePlugin = Callable[..., Plugin]
PYTHON = Path(sys.executable)
HERE = Source(location="/nowhere", format="tiny")
EMPTY = Signature(inputs=(), outputs=())


def worker(plugin: Plugin, limits: Limits = Limits(), threads: int | None = None) -> Worker:
    return Worker(plugin, python=PYTHON, label="step", limits=limits, threads=threads)


DOUBLER = """
import time
import numpy as np
from deploykit import progress
from deploykit.protocol import TensorSpec

class Session:
    inputs = (TensorSpec(name="x", dtype="float32", shape=("n",)),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("n",)),)
    closed = 0

    def run(self, feed):
        if feed["x"].size == 0:
            raise ValueError("empty input")
        return {"y": feed["x"] * 2}

    def bind(self, feed):
        return Bound(feed["x"])

    def close(self):
        print("closed a session")

class Bound:
    def __init__(self, x):
        self.x, self.y, self.runs = x, None, 0

    def __call__(self):
        self.runs += 1
        if self.x[0] == 13 and self.runs == 3:
            import os; os.abort()
        time.sleep(0.01 if self.runs == 1 else 0.001)
        self.y = self.x * 2

    def outputs(self):
        return {"y": self.y.copy()}

def load(request):
    progress.phase("importing numbers")
    time.sleep(0.1)
    progress.phase("loading")
    time.sleep(0.05)
    return Session()
"""
LOAD = LoadRequest(payload="/nowhere", signature=EMPTY, device="cpu")


def feed(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


def test_a_session_runs_binds_and_measures(make_plugin: MakePlugin) -> None:
    with worker(make_plugin(DOUBLER, kind="target")) as open_worker:
        session = open_worker.open(LOAD)
        assert session.signature.inputs[0].shape == ("n",)
        assert 45 < session.load_ms < 150
        assert 98 < session.import_ms < 200
        assert session.first_inference_ms is None
        assert session.run(feed(1, 2))["y"].tolist() == [2, 4]
        first = session.first_inference_ms
        assert first is not None
        session.bind(feed(3))
        assert session.outputs()["y"].tolist() == [6]
        samples = session.measure(iterations=20)
        assert session.first_inference_ms == first
        assert len(samples.latencies_ns) == 20
        assert all(1_000_000 <= latency < 20_000_000 for latency in samples.latencies_ns)
        assert sum(samples.latencies_ns) <= samples.ended_ns - samples.started_ns
        # one clock for parent and worker
        assert 0 < time.perf_counter_ns() - samples.ended_ns < 1_000_000_000
        timed = session.measure(duration_s=0.1)
        assert 0.1e9 <= timed.ended_ns - timed.started_ns < 0.2e9
        assert timed.latencies_ns
        assert 5 * 2**20 < session.peak_memory_bytes() < 2**30
        assert not list(open_worker.folder.glob("*outputs*"))
        assert not list(open_worker.folder.glob("*samples*"))
        session.close()
        log = open_worker.folder / "log.txt"
        assert log.read_text().count("closed a session") == 1


def test_memory_is_that_of_the_process_that_runs_the_model(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(
        """
        import subprocess, sys

        class Session:
            inputs = outputs = ()

            def __init__(self):
                program = "held = b'x' * 200_000_000; print(flush=True); input()"
                self.child = subprocess.Popen(
                    [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
                self.child.stdout.readline()
                self.pid = self.child.pid

            def close(self):
                self.child.communicate(b"end")

        def load(request):
            return Session()
        """,
        kind="target",
    )
    with worker(plugin) as open_worker:
        session = open_worker.open(LoadRequest(payload="", signature=EMPTY, device="cpu"))
        assert session.pid != open_worker.pid
        assert session.peak_memory_bytes() > 200_000_000 > open_worker.peak_memory_bytes()
        session.close()
        with pytest.raises(errors.PluginError, match="has ended"):
            session.peak_memory_bytes()


def test_a_first_inference_by_binding_includes_the_binding(make_plugin: MakePlugin) -> None:
    with worker(make_plugin(DOUBLER, kind="target")) as open_worker:
        session = open_worker.open(LOAD)
        session.bind(feed(1))
        assert session.first_inference_ms is not None
        assert 10 <= session.first_inference_ms < 100


def test_two_sessions_of_one_worker_are_apart(make_plugin: MakePlugin) -> None:
    with worker(make_plugin(DOUBLER, kind="target")) as open_worker:
        one, two = open_worker.open(LOAD), open_worker.open(LOAD)
        one.bind(feed(1))
        two.bind(feed(2))
        assert one.outputs()["y"].tolist() == [2]
        assert two.outputs()["y"].tolist() == [4]
        one.close()
        assert two.run(feed(5))["y"].tolist() == [10]


def test_a_session_says_what_goes_wrong(make_plugin: MakePlugin) -> None:
    with worker(make_plugin(DOUBLER, kind="target")) as open_worker:
        session = open_worker.open(LOAD)
        with pytest.raises(errors.UsageError, match="no bound inputs"):
            session.measure(iterations=1)
        with pytest.raises(errors.UsageError, match="`iterations` or `duration_s`"):
            session.measure()
        with pytest.raises(errors.PluginError, match="ValueError: empty input"):
            session.run(feed())
        assert session.run(feed(1))["y"].tolist() == [2]


def test_a_crash_while_measuring_can_be_reproduced(make_plugin: MakePlugin) -> None:
    with worker(make_plugin(DOUBLER, kind="target")) as open_worker:
        session = open_worker.open(LOAD)
        session.bind(feed(13))
        with pytest.raises(errors.StepSignal):
            session.measure(iterations=5)
        script = open_worker.folder / "reproduce.sh"
    assert script.read_text().count('"do"') == 3  # open, bind, measure
    assert list(script.parent.glob("*bound.npz"))
    again = subprocess.run([script], capture_output=True, text=True, timeout=30, check=False)
    assert again.returncode == 128 + signal.SIGABRT or again.returncode == -signal.SIGABRT
    assert "in __call__" in again.stderr


def test_a_time_limit_counts_on_top_of_the_duration(make_plugin: MakePlugin) -> None:
    with worker(make_plugin(DOUBLER, kind="target"), Limits(timeout_s=3)) as open_worker:
        session = open_worker.open(LOAD)
        session.bind(feed(1))
        assert session.measure(duration_s=3.5).latencies_ns


@pytest.mark.parametrize("limits", [Limits(), Limits(timeout_s=60, memory_bytes=2**34)])
def test_the_parent_sleeps_while_the_worker_measures(
    make_plugin: MakePlugin, limits: Limits
) -> None:
    with worker(make_plugin(DOUBLER, kind="target"), limits) as open_worker:
        session = open_worker.open(LOAD)
        session.bind(feed(1))
        before = resource.getrusage(resource.RUSAGE_SELF)
        session.measure(duration_s=0.9)
        after = resource.getrusage(resource.RUSAGE_SELF)
    busy_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert busy_s < 0.02
    # a poll every 0.1 s would make 9
    assert after.ru_nvcsw - before.ru_nvcsw < 6


def test_reference_is_opened_for_a_reference_request(make_plugin: MakePlugin) -> None:
    plugin = make_plugin(DOUBLER.replace("def load(", "def reference("))
    with worker(plugin) as open_worker:
        session = open_worker.open(ReferenceRequest(source=HERE))
        assert session.run(feed(4))["y"].tolist() == [8]
