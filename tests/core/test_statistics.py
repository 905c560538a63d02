"""Statistics against numpy, against known truths by simulation, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit import statistics

samples = st.lists(st.integers(min_value=1, max_value=10**12), min_size=1, max_size=300)


def blocks_of(
    rng: np.random.Generator,
    drift: np.ndarray,
    *,
    runs: int = 20,
    factor: float = 1.0,
    jitter: float = 0.02,
) -> list[list[int]]:
    """Latencies of one contender: the machine's drift per round, the block's own shift, long tails."""
    blocks = []
    for machine in drift:
        own = 1 + rng.normal(0, 0.01)
        noise = 1 + np.abs(rng.normal(0, jitter, runs)) + (rng.random(runs) < 0.03) * 2.0
        blocks.append([int(x) for x in 1e6 * factor * machine * own * noise])
    return blocks


def shared_drift(rng: np.random.Generator, rounds: int) -> np.ndarray:
    """A machine whose speed wanders by some 5 % from round to round, with neighbours coming and going."""
    walk = np.exp(np.cumsum(rng.normal(0, 0.05, rounds)))
    return np.asarray(walk * np.where(rng.random(rounds) < 0.1, 1.8, 1.0))


@given(samples, st.sampled_from([10, 25, 50]))
def test_percentiles_are_those_of_numpy(values: list[int], percent: int) -> None:
    found = statistics.percentile(values, percent)
    assert found == pytest.approx(float(np.percentile(values, percent)))


@given(samples)
def test_percentiles_are_ordered_and_within_the_range(values: list[int]) -> None:
    known = [x for p in (50, 90, 99) if (x := statistics.percentile(values, p)) is not None]
    assert known == sorted(known)
    assert all(min(values) <= x <= max(values) for x in known)


@pytest.mark.parametrize(("percent", "fewest"), [(50, 1), (90, 10), (99, 100), (99.9, 1000)])
def test_a_percentile_is_refused_below_its_minimum_of_samples(percent: float, fewest: int) -> None:
    assert statistics.percentile(range(1, fewest), percent) is None
    assert statistics.percentile(range(1, fewest + 1), percent) is not None


@given(st.integers(0, 2**32), st.floats(0.01, 100), st.integers(6, 30))
@settings(deadline=None, max_examples=30)
def test_the_ratio_is_free_of_units_and_inverts(seed: int, factor: float, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    drift = shared_drift(rng, rounds)
    a, b = (blocks_of(rng, drift, runs=5) for _ in "ab")
    ratio = statistics.ratio_of_medians(a, b)
    inverse = statistics.ratio_of_medians(b, a)
    scaled = statistics.ratio_of_medians([[x * factor for x in block] for block in a], b)  # type: ignore[misc]
    assert ratio is not None
    assert inverse is not None
    assert scaled is not None
    assert ratio.low <= ratio.value <= ratio.high
    assert inverse.value == pytest.approx(1 / ratio.value)
    assert scaled.value == pytest.approx(factor * ratio.value)
    assert scaled.half_width == pytest.approx(ratio.half_width)


def test_drift_that_all_share_leaves_the_ratio_exact() -> None:
    drift = shared_drift(np.random.default_rng(1), 20)
    baseline = [[int(1e9 * d)] * 3 for d in drift]
    slower = [[int(1.25e9 * d)] * 3 for d in drift]
    ratio = statistics.ratio_of_medians(slower, baseline)
    assert ratio is not None
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.25, 1.25, 1.25), rel=1e-6)


def test_one_disturbed_round_moves_neither_estimate_nor_verdict() -> None:
    rng = np.random.default_rng(2)
    drift = np.ones(12)
    a, b = blocks_of(rng, drift, factor=0.8), blocks_of(rng, drift)
    a[5] = [10 * x for x in a[5]]
    ratio = statistics.ratio_of_medians(a, b)
    assert ratio is not None
    assert ratio.value == pytest.approx(0.8, rel=0.02)
    assert statistics.verdict(ratio) == "faster"


def test_too_few_rounds_give_no_interval_and_unpaired_rounds_are_refused() -> None:
    blocks = [[1, 2, 3]] * 5
    assert statistics.ratio_of_medians(blocks, blocks) is None
    assert statistics.median_interval(blocks) is None
    assert statistics.noise(blocks[:4]) is None
    with pytest.raises(ValueError, match="not paired"):
        statistics.ratio_of_medians(blocks, blocks[:4])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.8, 0.99, "faster"),
        (1.01, 1.2, "slower"),
        (0.97, 1.04, "no difference"),
        (0.9, 1.02, "cannot tell"),
        (0.98, 1.3, "cannot tell"),
    ],
)
def test_verdicts(low: float, high: float, expected: str) -> None:
    interval = statistics.Interval(value=math.sqrt(low * high), low=low, high=high)
    assert statistics.verdict(interval) == expected


def ratio_when_narrow(rng: np.random.Generator, factor: float) -> statistics.Interval:
    """Measure as `measuring` does: look every 5 rounds from the 10th, stop at ± 2 % or 40 rounds."""
    drift = shared_drift(rng, 40)
    a, b = blocks_of(rng, drift, factor=factor), blocks_of(rng, drift)
    for rounds in range(10, 41, 5):
        ratio = statistics.ratio_of_medians(a[:rounds], b[:rounds])
        assert ratio is not None
        if ratio.half_width <= 0.02 or rounds == 40:
            break
    assert ratio is not None
    return ratio


def test_calibration_identical_work_is_seldom_declared_different() -> None:
    """200 comparisons of the same work under 5 % drift: at a true rate of 5 %, over 20 has p < 0.1 %."""
    rng = np.random.default_rng(3)
    verdicts = [statistics.verdict(ratio_when_narrow(rng, 1.0)) for _ in range(200)]
    assert sum(v in ("faster", "slower") for v in verdicts) <= 20
    assert sum(v == "no difference" for v in verdicts) >= 170


def test_calibration_the_interval_covers_the_true_ratio_and_a_slowdown_is_found() -> None:
    rng = np.random.default_rng(4)
    ratios = [ratio_when_narrow(rng, 1.1) for _ in range(200)]
    assert sum(r.low <= 1.1 <= r.high for r in ratios) >= 180
    assert sum(statistics.verdict(r) == "slower" for r in ratios) >= 195


def test_a_process_effect_within_its_spread_is_no_difference() -> None:
    """Identical work whose processes differ by 1.2 % for life: the rounds alone would see winners."""
    rng = np.random.default_rng(9)
    ratios = [ratio_when_narrow(rng, math.exp(rng.normal(0, 0.012))) for _ in range(200)]
    alone = [statistics.verdict(ratio) for ratio in ratios]
    widened = [statistics.verdict(statistics.between_processes(ratio)) for ratio in ratios]
    assert sum(v in ("faster", "slower") for v in alone) > 40
    assert sum(v in ("faster", "slower") for v in widened) <= 20


@given(st.floats(0.1, 10), st.floats(0, 0.3), st.floats(0, 0.3))
def test_the_process_spread_widens_and_keeps_the_estimate(
    value: float, below: float, above: float
) -> None:
    interval = statistics.Interval(value=value, low=value * (1 - below), high=value * (1 + above))
    wide = statistics.between_processes(interval)
    assert wide.value == value
    assert wide.low <= min(interval.low, value / 1.024)
    assert wide.high >= max(interval.high, value * 1.024)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(5)
    a, b = blocks_of(rng, np.ones(10)), blocks_of(rng, np.ones(10))
    first = statistics.ratio_of_medians(a, b, seed=7)
    assert statistics.ratio_of_medians(a, b, seed=7) == first
    assert statistics.ratio_of_medians(a, b, seed=8) != first


def test_noise_is_the_spread_of_the_rounds_not_of_the_runs() -> None:
    assert statistics.noise([[100, 1, 10_000]] * 10) == 0
    ramp = [[1000 + i] for i in range(0, 101, 10)]
    assert statistics.noise(ramp) == pytest.approx((1090 - 1010) / 1050)


def test_trend_is_found_where_there_is_one_only() -> None:
    rng = np.random.default_rng(6)
    heating = 1 + 0.2 * np.linspace(0, 1, 30)
    assert statistics.trend(blocks_of(rng, heating)) == pytest.approx(0.2 / 1.1, rel=0.2)
    assert statistics.trend(blocks_of(rng, heating[::-1])) == pytest.approx(-0.2 / 1.1, rel=0.2)
    level = [statistics.trend(blocks_of(rng, np.ones(30))) for _ in range(100)]
    assert sum(value != 0 for value in level) <= 5
    assert statistics.trend([[1], [2], [3]]) == 0


@pytest.mark.parametrize("length", [40, 200, 2000])
def test_warm_up_ends_after_the_transient(length: int) -> None:
    """A tenth of the calls is 1.8 times slower: a transient in which others were seen to stop."""
    rng = np.random.default_rng(7)
    transient = length // 10
    found = []
    for _ in range(50):
        values = 1e6 * (1 + np.abs(rng.normal(0, 0.02, length)))
        values[:transient] *= 1.8
        found.append(statistics.steady_from([int(x) for x in values]))
    ends = [index for index in found if index is not None]
    assert len(ends) >= 40
    # a batch may straddle the end
    assert all(index >= transient - max(1, length // 20) for index in ends)


def test_warm_up_is_not_over_while_the_latency_still_falls() -> None:
    falling = [int(1e6 * math.exp(-i / 100)) for i in range(100)]
    assert statistics.steady_from(falling) is None
    assert statistics.steady_from([1_000_000] * 9) is None


def test_a_level_series_with_delayed_calls_is_steady_at_once() -> None:
    rng = np.random.default_rng(8)
    values = 1e6 * (1 + np.abs(rng.normal(0, 0.02, 400)) + (rng.random(400) < 0.05) * 5)
    found = statistics.steady_from([int(x) for x in values])
    assert found is not None
    assert found <= 200
