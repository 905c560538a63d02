"""What latency samples say, and what they do not: percentiles, ratios with intervals, warm-up, noise.

Samples come in *rounds*: in each round every contender ran one block, one right after the other, so
what drifts on the machine (clock, neighbours) is nearly the same for all blocks of a round. Ratios
are taken within rounds and only then combined; the drift cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Verdict = Literal["faster", "slower", "no difference", "cannot tell"]
Block = Sequence[int]
"""Latencies in ns of one contender in one round."""

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST_ROUNDS = 6
"""Below this no 95 % interval exists: even the range of 5 values holds the median in only 94 %."""
PROCESS_SPREAD = 0.025
"""How far two processes that do the same work differ for as long as they live, with 95 % confidence:
memory lies elsewhere in each. Found by measuring equal contenders in fresh workers, a model of 10
microseconds, 30 times: their ratio had a standard deviation of 1.2 %, and intervals that ignored it
declared 12 of the 30 different."""
MARGIN = 0.05
"""A ratio known to lie within 1/1.05 to 1.05 is `no difference`; known less well, `cannot tell`."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95 % confidence bounds."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width, relative to the estimate."""
        return (self.high - self.low) / (2 * self.value)


def percentile(samples: Sequence[int], percent: float) -> float | None:
    """Return a percentile of `samples`, in their unit, or None where there are too few for it.

    Linear interpolation between order statistics (type 7 of Hyndman and Fan, "Sample Quantiles in
    Statistical Packages", 1996; numpy's default). At least one sample must be expected beyond it:
    p90 needs 10 samples, p99 needs 100.
    """
    import numpy as np

    count = len(samples)
    if not count or (percent > 50 and count * (100 - percent) < 100 - 1e-6):
        return None
    return float(np.percentile(np.asarray(samples, dtype=np.float64), percent))


def medians(blocks: Sequence[Block]) -> list[float]:
    """Return the median of each block, in ns."""
    import numpy as np

    return [float(np.median(block)) for block in blocks]


def ratio_of_medians(
    blocks: Sequence[Block], baseline: Sequence[Block], *, seed: int = 0
) -> Interval | None:
    """Return how the p50 of `blocks` relates to that of `baseline`; below 1 is faster.

    Both hold the same rounds in the same order. The estimate is the median, over rounds, of the
    ratio of the two block medians. The interval is the percentile bootstrap over rounds (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) of the logarithm, widened by
    sqrt(n / (n - 1)), without which it is too narrow for small n (their section 5.3). A median
    rather than a mean, trimmed or not: a neighbour's burst that hits one block must not blow the
    interval up, and with a mean trimmed by 20 % it still does when it is drawn three times.

    It covers what varies between rounds; see `between_processes` for what does not. None where
    there are fewer than `FEWEST_ROUNDS` rounds.
    """
    import numpy as np

    if len(blocks) != len(baseline):
        raise ValueError(f"rounds are not paired: {len(blocks)} and {len(baseline)} blocks")
    if len(blocks) < FEWEST_ROUNDS:
        return None
    differences = np.log(medians(blocks)) - np.log(medians(baseline))
    return _interval(differences, seed)


def between_processes(ratio: Interval) -> Interval:
    """Return the ratio with what is fixed for the life of a process added to its uncertainty.

    More rounds in the same processes cannot reduce that part (Kalibera and Jones, "Rigorous
    Benchmarking in Reasonable Time", ISMM 2013); it is known from elsewhere, `PROCESS_SPREAD`, and
    added in quadrature ("Guide to the Expression of Uncertainty in Measurement", 2008, 5.1).
    """
    below = math.hypot(math.log(ratio.value / ratio.low), PROCESS_SPREAD)
    above = math.hypot(math.log(ratio.high / ratio.value), PROCESS_SPREAD)
    return Interval(
        value=ratio.value, low=ratio.value * math.exp(-below), high=ratio.value * math.exp(above)
    )


def median_interval(blocks: Sequence[Block], *, seed: int = 0) -> Interval | None:
    """Return the p50 in ns with its interval, by the method of `ratio_of_medians`.

    It tells how well this run knows its p50, not where the next run's will lie. None where there
    are fewer than `FEWEST_ROUNDS` rounds.
    """
    import numpy as np

    if len(blocks) < FEWEST_ROUNDS:
        return None
    return _interval(np.log(medians(blocks)), seed)


def verdict(ratio: Interval) -> Verdict:
    """Say in words what a ratio to the baseline shows: only an interval that excludes 1 names a winner.

    An interval that holds 1 shows no difference only where it is narrow; a wide one cannot tell.
    """
    if ratio.high < 1:
        return "faster"
    if ratio.low > 1:
        return "slower"
    if ratio.low >= 1 / (1 + MARGIN) and ratio.high <= 1 + MARGIN:
        return "no difference"
    return "cannot tell"


def noise(blocks: Sequence[Block]) -> float | None:
    """Return how much identical work differed from round to round: (p90 - p10) / p50 of the medians.

    0.1 means that 80 % of the rounds lie in a band as wide as 10 % of the median, so an unpaired
    comparison of single runs cannot see differences smaller than that. None below 5 rounds.
    """
    import numpy as np

    if len(blocks) < 5:
        return None
    low, middle, high = np.percentile(medians(blocks), [10, 50, 90])
    return float((high - low) / middle)


def trend(blocks: Sequence[Block]) -> float:
    """Return by which part the block medians rose (or fell) during the run, 0 where they did not.

    The slope is Theil and Sen's (median of all pairwise slopes), reported where Mann and Kendall's
    test rejects "no trend" at 1 % (Gilbert, "Statistical Methods for Environmental Pollution
    Monitoring", 1987, chapter 16). A rise points to throttling, a fall to a warm-up cut short.
    """
    import numpy as np

    values = np.asarray(medians(blocks))
    count = len(values)
    if count < 10:
        return 0.0
    i, j = np.triu_indices(count, 1)
    differences = values[j] - values[i]
    score = float(np.sign(differences).sum())
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    if abs(score) - 1 < 2.576 * deviation:
        return 0.0
    slope = float(np.median(differences / (j - i)))
    return slope * (count - 1) / float(np.median(values))


def steady_from(latencies: Sequence[int]) -> int | None:
    """Return the index of the first latency after warm-up, or None where its end is not yet in sight.

    MSER: of all points where the series could be cut, the one that minimises the marginal standard
    error of the mean of what follows; found only if it leaves at least half of the series (White,
    "An Effective Truncation Heuristic for Bias Reduction in Simulation Output", Simulation 69(6),
    1997). Applied to medians of at most 40 batches instead of means of five, because single calls
    that the scheduler delayed are no warm-up.
    """
    import numpy as np

    count = len(latencies)
    if count < 10:
        return None
    size = max(1, count // 20)
    whole = count // size * size
    batches = np.median(np.asarray(latencies[:whole], dtype=np.float64).reshape(-1, size), axis=1)
    left = np.arange(len(batches), 0, -1)
    tail_sum = np.cumsum(batches[::-1])[::-1]
    tail_squares = np.cumsum(batches[::-1] ** 2)[::-1]
    spread = np.maximum(tail_squares / left - (tail_sum / left) ** 2, 0.0)
    # cuts that leave fewer than five batches say nothing
    cut = int(np.argmin((spread / left)[: len(batches) - 4]))
    return cut * size if cut <= len(batches) // 2 else None


def _interval(logarithms: Array, seed: int) -> Interval:
    import numpy as np

    count = len(logarithms)
    estimate = float(np.median(logarithms))
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    tail = 50 * (1 - CONFIDENCE)
    bounds = np.percentile(np.median(logarithms[draws], axis=1), [tail, 100 - tail])
    low, high = np.exp(estimate + (bounds - estimate) * math.sqrt(count / (count - 1)))
    value = float(np.exp(estimate))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
