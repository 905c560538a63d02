"""Contenders in real workers, with a plugin whose speed, diary and death are settings."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit import statistics
from deploykit.errors import UnavailableError, UnsupportedError, UsageError
from deploykit.events import Event
from deploykit.measuring import Contender, measure
from deploykit.plugins import Plugin, read_plugin
from deploykit.protocol import LoadRequest, Signature, TensorSpec
from deploykit.report import Measurement, ParitySummary
from deploykit.steps import OpenSession, Worker

PLUGIN = '''
    # /// script
    # requires-python = ">=3.10"
    # dependencies = ["numpy"]
    #
    # [tool.deploykit]
    # summary = "waits instead of inferring"
    # devices = ["cpu"]
    # functions = ["load"]
    # ///
    """Waits for as long as its settings say; writes when in a diary; dies when told to."""

    import os
    import signal
    import threading
    import time


    class Waits:
        def __init__(self, request):
            self.inputs = request.signature.inputs
            self.outputs = request.signature.outputs
            self.settings = request.settings
            self.runs = 0
            if "spin" in self.settings:
                threading.Thread(target=self.spin, daemon=True).start()

        def spin(self):
            while True:
                pass

        def __call__(self):
            self.runs += 1
            settings = self.settings
            if self.runs == int(settings.get("dies_at", -1)):
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.runs == int(settings.get("raises_at", -1)):
                raise RuntimeError("kernel gave up")
            begun = time.perf_counter_ns()
            slow = self.runs <= int(settings.get("transient", 0))
            time.sleep(float(settings["seconds"]) * (20 if slow else 1))
            if "diary" in settings:
                with open(settings["diary"], "a") as stream:
                    stream.write(f"{settings['name']} {begun} {time.perf_counter_ns()}\\n")

        def run(self, feed):
            self()
            return {"y": feed["x"]}

        def bind(self, feed):
            self.feed = feed
            return self

        def close(self):
            pass


    def load(request):
        return Waits(request)
'''
X = TensorSpec(name="x", dtype="float32", shape=(2,))
SIGNATURE = Signature(inputs=(X,), outputs=(X,))
FEED = {"x": np.zeros(2, np.float32)}

Make = Callable[..., Contender]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """The plugin above, where workers find it; job folders go to a temporary home."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "targets").mkdir()
    file = folder / "targets" / "waits.py"
    file.write_text(textwrap.dedent(PLUGIN))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOYKIT_PLUGIN_PATH", str(folder))
        patch.setenv("DEPLOYKIT_HOME", str(tmp_path_factory.mktemp("home")))
        yield read_plugin(file, kind="target")


@pytest.fixture(scope="module")
def started() -> list[int]:
    """The process ids of all workers that `make` started."""
    return []


@pytest.fixture(scope="module")
def make(plugin: Plugin, started: list[int]) -> Make:
    """Make a contender of the plugin: `seconds` per run, and what else it shall do."""

    def make(
        name: str, seconds: float = 0.0005, *, known: Any = None, **settings: Any
    ) -> Contender:
        texts = {key: str(value) for key, value in settings.items()}
        request = LoadRequest(
            payload="",
            signature=SIGNATURE,
            device="cpu",
            settings={"name": name, "seconds": str(seconds), **texts},
        )

        def start() -> tuple[Worker, OpenSession]:
            worker = Worker(plugin, python=Path(sys.executable), label=name)
            started.append(worker.pid)
            return worker, worker.open(request)

        return Contender(
            label=name,
            target="waits",
            device="cpu",
            precision="fp32",
            open=start,
            feed=FEED,
            **(known or {}),
        )

    return make


def refuses(error: Exception) -> Callable[[], tuple[Worker, OpenSession]]:
    """Return an `open` that raises `error`."""

    def start() -> tuple[Worker, OpenSession]:
        raise error

    return start


@pytest.fixture(scope="module")
def diary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the contenders of `together` write when each run began and ended."""
    return tmp_path_factory.mktemp("diary") / "diary.txt"


@pytest.fixture(scope="module")
def heard() -> list[Event]:
    """The events of `together`."""
    return []


@pytest.fixture(scope="module")
def together(make: Make, diary: Path, heard: list[Event]) -> dict[str, Measurement]:
    """One run of many contenders: four that work, two that die, two that cannot start."""
    book = {"diary": diary}
    contenders = [
        make("dies at once", dies_at=1),
        make("fast", 0.0005, known={"items_per_run": 4, "size_bytes": 7}, **book),
        make("slow", 0.004, transient=3, **book),
        make("dies later", raises_at=400),
        make("wrong", known={"parity": ParitySummary(ok=False, max_abs_error=9.0)}, **book),
        Contender(
            label="unsupported",
            target="waits",
            device="cpu",
            precision="fp32",
            open=refuses(UnsupportedError("no such operator: Warp")),
            feed=FEED,
        ),
        Contender(
            label="absent",
            target="waits",
            device="gpu",
            precision="fp32",
            open=refuses(UnavailableError("no GPU")),
            feed=FEED,
        ),
    ]
    measurements = measure(
        contenders, duration_s=5, half_width=10, warmup_s=2, seed=1, listen=heard.append
    )
    assert [m.label for m in measurements] == [c.label for c in contenders]
    return {m.label: m for m in measurements}


def test_each_failure_has_its_outcome_and_the_others_go_on(
    together: dict[str, Measurement],
) -> None:
    assert {label: m.outcome for label, m in together.items()} == {
        "dies at once": "signal(SIGSEGV)",
        "fast": "ok",
        "slow": "ok",
        "dies later": "error",
        "wrong": "wrong",
        "unsupported": "unsupported",
        "absent": "skipped(no GPU)",
    }
    assert "kernel gave up" in together["dies later"].detail
    assert "Warp" in together["unsupported"].detail
    for label in ("dies at once", "dies later", "unsupported", "absent"):
        assert together[label].latency_p50_ms is None
        assert together[label].ratio is None
        assert together[label].samples_ns == ()


def test_figures_follow_from_the_samples(together: dict[str, Measurement]) -> None:
    fast = together["fast"]
    samples = [x for block in fast.samples_ns for x in block]
    assert fast.latency_p50_ms == pytest.approx(np.median(samples) / 1e6)
    assert fast.latency_p99_ms == pytest.approx(np.percentile(samples, 99) / 1e6)
    assert fast.latency_mean_ms == pytest.approx(np.mean(samples) / 1e6)
    assert fast.throughput_per_s == pytest.approx(4e9 / np.mean(samples))
    assert fast.noise == statistics.noise(fast.samples_ns)
    assert fast.size_bytes == 7
    assert fast.peak_memory_bytes is not None
    assert fast.peak_memory_bytes > 5_000_000
    assert fast.load_ms is not None
    assert fast.first_inference_ms is not None
    assert fast.first_inference_ms >= 0.5


def test_ratios_are_to_the_first_that_survived(together: dict[str, Measurement]) -> None:
    first, slow = together["fast"].ratio, together["slow"].ratio
    assert first is not None
    assert slow is not None
    assert (first.to, first.value, first.verdict) == ("fast", 1.0, "baseline")
    expected = statistics.ratio_of_medians(
        together["slow"].samples_ns, together["fast"].samples_ns, seed=1
    )
    assert expected is not None
    expected = statistics.between_processes(expected)
    assert (slow.to, slow.value, slow.low, slow.high) == (
        "fast",
        expected.value,
        expected.low,
        expected.high,
    )
    assert slow.verdict == "slower"


def test_the_rounds_are_paired_and_end_when_precise(together: dict[str, Measurement]) -> None:
    # ± 1000 % is reached at the first look, after the tenth round
    for label in ("fast", "slow", "wrong"):
        assert len(together[label].samples_ns) == 10
        assert len({len(block) for block in together[label].samples_ns}) == 1


def test_contenders_take_turns_in_an_order_that_changes(
    together: dict[str, Measurement], diary: Path
) -> None:
    entries = [line.split() for line in diary.read_text().splitlines()]
    runs = sorted((int(begun), int(ended), name) for name, begun, ended in entries)
    for (_, ended, _), (begun, _, _) in itertools.pairwise(runs):
        assert begun >= ended, "two contenders ran at the same time"
    turns = [name for name, _ in itertools.groupby(name for _, _, name in runs)]
    # load and warm-up in order, then rounds; two neighbouring blocks of one contender look like one
    assert turns[:6] == ["fast", "slow", "wrong"] * 2
    rounds: list[list[str]] = [[]]
    for name in turns[6:]:
        if name in rounds[-1]:
            rounds.append([])
        rounds[-1].append(name)
    assert len({tuple(order) for order in rounds}) > 1


def test_warm_up_is_not_among_the_samples(together: dict[str, Measurement]) -> None:
    slow = together["slow"]
    assert slow.warmup_found
    assert slow.warmup_runs is not None
    assert slow.warmup_runs >= 2  # of the three slow runs, binding took the first


def test_progress_is_told(together: dict[str, Measurement], heard: list[Event]) -> None:
    kinds = [event.kind for event in heard]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    rounds = [event for event in heard if "round" in event.message and event.kind == "progress"]
    assert [event.done for event in rounds] == list(range(1, 11))
    notes = [event.message for event in heard if event.kind == "note"]
    assert any("dies at once: signal(SIGSEGV)" in note for note in notes)


def test_no_worker_outlives_the_measurement(
    together: dict[str, Measurement], started: list[int]
) -> None:
    assert len(started) >= 5
    assert not [pid for pid in started if is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_an_interrupt_ends_all_workers(make: Make, started: list[int]) -> None:
    before = len(started)

    def interrupt(event: Event) -> None:
        if event.done == 2 and "round" in event.message:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measure([make("a"), make("b")], duration_s=5, warmup_s=0.05, listen=interrupt)
    assert len(started) == before + 2
    assert not [pid for pid in started[before:] if is_alive(pid)]


def test_a_slow_model_within_a_short_budget(make: Make) -> None:
    """Runs of 60 ms in 0.3 s: single runs make the blocks, and the budget is kept."""
    slow, same = measure([make("slow", 0.06), make("same", 0.06)], duration_s=0.3, warmup_s=0.1)
    assert {len(block) for block in slow.samples_ns} == {1}
    assert sum(sum(block) for block in slow.samples_ns[:-1]) <= 0.3e9
    assert slow.latency_p99_ms is None
    assert slow.warmup_found is False
    assert same.ratio is not None
    assert same.ratio.low is None
    assert same.ratio.verdict == "cannot tell"


def test_a_contender_that_does_not_sleep_while_others_run_is_named(make: Make) -> None:
    quiet, spins = measure(
        [make("quiet", 0.002), make("spins", 0.002, spin=1)],
        duration_s=1.0,
        half_width=0.0,
        warmup_s=0.05,
    )
    assert quiet.notes == ()
    assert "cores busy while the others were measured" in spins.notes[0]


def test_nothing_to_measure_is_refused(make: Make) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        measure([])
    with pytest.raises(UsageError, match="must be positive"):
        measure([make("a")], duration_s=0)


def test_all_may_fail(make: Make) -> None:
    failed = measure([make("a", dies_at=1), make("b", raises_at=1)], duration_s=1)
    assert [m.outcome for m in failed] == ["signal(SIGSEGV)", "error"]
