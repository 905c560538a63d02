"""Measure contenders against each other so that the machine's drift hits all of them alike.

Each contender lives in its own warm worker. In every round each runs one block, one contender at a
time, in an order drawn anew; this process sleeps meanwhile. Rounds go on until every ratio is known
well enough, or the time is spent. (The same work under two names, measured one after the other on
a shared machine and judged by the usual test, was declared different in 37 of 80 trials;
interleaved and judged by rounds, in 3.)
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import statistics
from deploykit.errors import DeploykitError, UsageError
from deploykit.events import Event, Listener, silent
from deploykit.outcomes import Outcome, outcome_of
from deploykit.report import Measurement, ParitySummary, Ratio

if TYPE_CHECKING:
    import numpy as np

    from deploykit.steps import OpenSession, Worker

    Array = np.ndarray[Any, Any]

STEP = "measure"
BLOCK_S = 0.1
BLOCK_RUNS = 5
SETTLE_S = 0.03
"""Uncounted runs at the start of each block: caches fill again, threads wake, and threads of the
contender before stop spinning (ONNX Runtime's do so for about a millisecond). With 10 ms of them,
and blocks of 50 ms, p50 of a model of 7.5 ms came out 3.7 % above `benchmark_app`, which has the
machine to itself; so, 1.4 %."""
FEWEST_ROUNDS = 10
LOOK_EVERY = 5
"""Rounds between looks at the precision: looking at every round would stop too early by luck."""
WARM_UP_AT_LEAST_S = 0.3
WARM_UP_CHUNK_S = 0.1
BUSY = 0.2
"""Cores a waiting contender may use before the report says that it disturbs the others."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One configuration to be measured.

    `open` starts a worker of its own and loads the model in it. `feed` are the inputs of every run,
    which infers `items_per_run` items (the batch). `parity` is how its outputs compared with the
    reference; one that is not ok is measured and reported as `wrong`.
    """

    label: str
    target: str
    device: str
    precision: str
    open: Callable[[], tuple[Worker, OpenSession]]
    feed: Mapping[str, Array]
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    size_bytes: int | None = None
    items_per_run: int = 1
    parity: ParitySummary | None = None


def measure(
    contenders: Sequence[Contender],
    *,
    duration_s: float = 10.0,
    half_width: float = 0.02,
    warmup_s: float = 3.0,
    seed: int = 0,
    listen: Listener = silent,
) -> list[Measurement]:
    """Measure `contenders` in interleaved rounds and return a measurement for each, in their order.

    Rounds stop when the 95 % interval of every ratio to the first is at most ± `half_width`
    (relative), and p99 has its 100 samples, or when a contender has used `duration_s` seconds.
    `warmup_s` bounds each one's warm-up, which otherwise ends when its latency no longer changes.
    `seed` draws the order within rounds and the bootstrap.

    A contender that fails becomes a measurement with its outcome and no figures; ratios then are to
    the first that did not. All workers are closed at the end, whatever happens.

    Raises UsageError for no contenders or a duration that is not positive.
    """
    if not contenders:
        raise UsageError("there is nothing to measure", hint="name at least one target")
    if not duration_s > 0:
        raise UsageError(f"the duration must be positive, not {duration_s:g} s")
    listen(Event(kind="start", step=STEP, total=len(contenders)))
    lanes = [_Lane(contender) for contender in contenders]
    with ExitStack() as stack:
        for lane in lanes:
            stack.callback(lane.close)
        for number, lane in enumerate(lanes, 1):
            _say(listen, f"load {lane.contender.label},", number, len(lanes))
            with lane.attempt(listen):
                lane.load()
        for number, lane in enumerate(_alive(lanes), 1):
            _say(listen, f"warm up {lane.contender.label},", number, len(lanes))
            with lane.attempt(listen):
                lane.warm_up(warmup_s)
                lane.plan(duration_s)
        _run_rounds(lanes, duration_s, half_width, seed, listen)
        for lane in _alive(lanes):
            with lane.attempt(listen):
                lane.finish()
    baseline = next(iter(_alive(lanes)), None)
    measurements = [lane.measurement(baseline, seed) for lane in lanes]
    listen(Event(kind="end", step=STEP, outcome="ok" if baseline else "error"))
    return measurements


def _run_rounds(
    lanes: list[_Lane], duration_s: float, half_width: float, seed: int, listen: Listener
) -> None:
    draw = random.Random(seed)
    done = 0
    while alive := _alive(lanes):
        spent = max(lane.spent_s for lane in alive)
        longest = max(lane.spent_s / done for lane in alive) if done else 0.0
        if done and spent + longest > duration_s:
            return
        if done >= FEWEST_ROUNDS and done % LOOK_EVERY == 0 and _precise(alive, half_width, seed):
            return
        left = sum(duration_s - lane.spent_s for lane in alive)
        _say(listen, f"at most {left:.0f} s left, round", done + 1, 0)
        for lane in draw.sample(alive, len(alive)):
            with lane.attempt(listen):
                lane.run_block()
        done += 1


def _precise(alive: list[_Lane], half_width: float, seed: int) -> bool:
    """Whether every ratio to the first (or the p50 of an only one) is known within ± `half_width`."""
    first, *others = alive
    if any(lane.samples < 100 for lane in alive):
        return False
    if not others:
        intervals = [statistics.median_interval(first.rounds, seed=seed)]
    else:
        intervals = [
            statistics.ratio_of_medians(lane.rounds, first.rounds, seed=seed) for lane in others
        ]
    return all(interval and interval.half_width <= half_width for interval in intervals)


def _alive(lanes: list[_Lane]) -> list[_Lane]:
    return [lane for lane in lanes if lane.failure is None]


def _say(listen: Listener, message: str, done: int, total: int) -> None:
    listen(Event(kind="progress", step=STEP, message=message, done=done, total=total))


class _Lane:
    """One contender at work."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.failure: Outcome | None = None
        self.rounds: list[list[int]] = []
        self.spent_s = 0.0
        self._worker: Worker | None = None
        self._session: OpenSession | None = None
        self._load_ms = 0.0
        self._first_ms: float | None = None
        self._peak_memory_bytes: int | None = None
        self._warm: list[int] = []
        self._steady: int | None = None
        self._settle_runs = 0
        self._block_runs = 1
        self._waiting = _Waiting()

    @property
    def samples(self) -> int:
        """How many latencies are counted so far."""
        return sum(len(block) for block in self.rounds)

    @contextmanager
    def attempt(self, listen: Listener) -> Iterator[None]:
        """Turn an error of this contender into its outcome, and let the others go on without it."""
        try:
            yield
        except DeploykitError as error:
            self.failure = outcome_of(error)
            listen(Event(kind="note", step=STEP, message=f"{self.contender.label}: {self.failure}"))
            self.close()

    def close(self) -> None:
        """End the worker, if it still runs."""
        worker, self._worker, self._session = self._worker, None, None
        if worker is not None:
            worker.close()

    def load(self) -> None:
        """Start the worker, load the model, bind the inputs and run the first inference."""
        self._worker, self._session = self.contender.open()
        self._load_ms = self._session.load_ms
        self._session.bind(dict(self.contender.feed))
        self._first_ms = self._session.first_inference_ms

    def warm_up(self, limit_s: float) -> None:
        """Run until the latency no longer changes, or `limit_s` seconds have passed."""
        session = self._loaded()
        started = time.monotonic()
        while True:
            spent = time.monotonic() - started
            if spent >= min(WARM_UP_AT_LEAST_S, limit_s):
                self._steady = statistics.steady_from(self._warm)
                if self._steady is not None or spent >= limit_s:
                    return
            self._warm += session.measure(duration_s=WARM_UP_CHUNK_S).latencies_ns

    def plan(self, duration_s: float) -> None:
        """Choose how many runs make a block: enough to last, and few enough for several rounds."""
        steady = self._warm[self._steady or len(self._warm) // 2 :]
        run_s = statistics.medians([steady])[0] / 1e9
        at_most = max(1, int(duration_s / FEWEST_ROUNDS / run_s))
        # never more than half: a short measurement needs samples too
        self._settle_runs = min(max(1, math.ceil(SETTLE_S / run_s)), at_most // 2)
        wanted = max(BLOCK_RUNS, math.ceil(BLOCK_S / run_s))
        self._block_runs = max(1, min(wanted, at_most - self._settle_runs))

    def run_block(self) -> None:
        """Run one block; its first runs only bring caches and threads back."""
        session = self._loaded()
        self._waiting.ends(session.pid)
        started = time.monotonic()
        runs = session.measure(iterations=self._settle_runs + self._block_runs).latencies_ns
        self.spent_s += time.monotonic() - started
        self._waiting.begins(session.pid)
        self.rounds.append(runs[self._settle_runs :])

    def finish(self) -> None:
        """Take what only the worker knows."""
        self._peak_memory_bytes = self._loaded().peak_memory_bytes()

    def measurement(self, baseline: _Lane | None, seed: int) -> Measurement:
        """Return the figures, with the ratio to `baseline`."""
        contender = self.contender
        identity: dict[str, Any] = {
            "label": contender.label,
            "target": contender.target,
            "device": contender.device,
            "precision": contender.precision,
            "settings": dict(contender.settings),
            "versions": dict(contender.versions),
            "size_bytes": contender.size_bytes,
            "items_per_run": contender.items_per_run,
            "parity": contender.parity,
        }
        if self.failure is not None:
            return Measurement.failed(**identity, notes=contender.notes, outcome=self.failure)
        samples = [latency for block in self.rounds for latency in block]
        mean_ns = sum(samples) / len(samples)
        wrong = contender.parity is not None and not contender.parity.ok
        return Measurement(
            **identity,
            notes=(*contender.notes, *self._waiting.notes()),
            outcome="wrong" if wrong else "ok",
            detail="outputs disagree with the reference" if wrong else "",
            latency_p50_ms=_milliseconds(statistics.percentile(samples, 50)),
            latency_p90_ms=_milliseconds(statistics.percentile(samples, 90)),
            latency_p99_ms=_milliseconds(statistics.percentile(samples, 99)),
            latency_mean_ms=_milliseconds(mean_ns),
            throughput_per_s=contender.items_per_run * 1e9 / mean_ns,
            load_ms=self._load_ms,
            first_inference_ms=self._first_ms,
            peak_memory_bytes=self._peak_memory_bytes,
            ratio=self._ratio(baseline, seed),
            noise=statistics.noise(self.rounds),
            trend=statistics.trend(self.rounds),
            warmup_runs=self._steady if self._steady is not None else len(self._warm),
            warmup_found=self._steady is not None,
            samples_ns=tuple(tuple(block) for block in self.rounds),
        )

    def _ratio(self, baseline: _Lane | None, seed: int) -> Ratio | None:
        if baseline is None:
            return None
        name = baseline.contender.label
        if baseline is self:
            return Ratio(to=name, value=1.0, low=1.0, high=1.0, verdict="baseline")
        ratio = statistics.ratio_of_medians(self.rounds, baseline.rounds, seed=seed)
        if ratio is None:
            own, other = (
                statistics.medians([[x for block in lane.rounds for x in block]])[0]
                for lane in (self, baseline)
            )
            return Ratio(to=name, value=own / other, low=None, high=None, verdict="cannot tell")
        ratio = statistics.between_processes(ratio)
        return Ratio(
            to=name,
            value=ratio.value,
            low=ratio.low,
            high=ratio.high,
            verdict=statistics.verdict(ratio),
        )

    def _loaded(self) -> OpenSession:
        assert self._session is not None
        return self._session


class _Waiting:
    """How busy a worker is while it should wait: threads that spin take time from the others."""

    def __init__(self) -> None:
        self._cpu_s = 0.0
        self._wall_s = 0.0
        self._since: tuple[float, float] | None = None

    def begins(self, pid: int) -> None:
        cpu_s = _cpu_seconds(pid)
        self._since = None if cpu_s is None else (cpu_s, time.monotonic())

    def ends(self, pid: int) -> None:
        cpu_s = _cpu_seconds(pid)
        if self._since is not None and cpu_s is not None:
            self._cpu_s += cpu_s - self._since[0]
            self._wall_s += time.monotonic() - self._since[1]

    def notes(self) -> tuple[str, ...]:
        busy = self._cpu_s / self._wall_s if self._wall_s else 0.0
        if busy < BUSY or self._cpu_s < 5 / os.sysconf("SC_CLK_TCK"):  # it counts in clock ticks
            return ()
        return (
            f"kept {busy:.2f} cores busy while the others were measured: their figures suffer by it",
        )


def _cpu_seconds(pid: int) -> float | None:
    """Return the processor time that all threads of a process have used, None where unknown."""
    try:
        # the name in parentheses may hold spaces; utime and stime are fields 14 and 15
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _milliseconds(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6
