"""A report as people read it: a table that needs no colour, and one sentence that says who won."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploykit.report import Measurement, ParitySummary, Report
from deploykit.statistics import between_processes, ratio_of_medians, verdict

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "-"


def table(report: Report) -> Table:
    """Return one row per measurement, in their order, and a legend with the reasons of failures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    drawn.caption_justify = "left"
    drawn.caption_style = ""
    drawn.header_style = ""
    drawn.add_column("target", overflow="fold")
    for name in ("p50\nms", "p90\nms", "p99\nms", "per\nsecond", "load\nms", "first\nms"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("memory\nMB", justify="right", no_wrap=True)
    drawn.add_column("size\nMB", justify="right", no_wrap=True)
    drawn.add_column("largest\nerror", justify="right", no_wrap=True)
    drawn.add_column("p50 / first\n[95 % interval]", no_wrap=True)
    drawn.add_column("finding", overflow="fold", max_width=16)
    names = row_names(report)
    for name, measurement in zip(names, report.measurements, strict=True):
        cells = (name, *_figures(measurement), _ratio(measurement), _finding(measurement))
        drawn.add_row(*map(Text, cells))
    drawn.caption = Text("\n".join(_legend(report, names)))
    return drawn


def row_names(report: Report) -> list[str]:
    """Return what to call each measurement: its label, with settings where labels are equal."""
    seen = Counter(measurement.label for measurement in report.measurements)
    return [
        " ".join([m.label, *(f"{key}={value}" for key, value in sorted(m.settings.items()))])
        if seen[m.label] > 1
        else m.label
        for m in report.measurements
    ]


def summary(report: Report) -> str:
    """Return one sentence: which measurement is fastest and how sure that is.

    The two fastest are compared with each other, round by round, from the raw samples.
    """
    names = row_names(report)
    ranked = sorted(
        (m.latency_p50_ms, index)
        for index, m in enumerate(report.measurements)
        if m.outcome == "ok" and m.latency_p50_ms is not None
    )
    if not ranked:
        return "Nothing could be measured with right results."
    fastest, best = ranked[0]
    found = f"`{names[best]}`: p50 {_number(fastest)} ms"
    if len(ranked) == 1:
        alone = (
            "" if len(report.measurements) == 1 else ", the only one that ran with right results"
        )
        return f"{found}{alone}."
    second = ranked[1][1]
    blocks = [report.measurements[index].samples_ns for index in (second, best)]
    paired = len(blocks[0]) == len(blocks[1])
    gain = ratio_of_medians(*blocks, seed=report.seed) if paired else None
    if gain is None:
        return (
            f"`{names[best]}` had the lowest p50, {_number(fastest)} ms, in too few rounds "
            f"to be sure that it is faster than `{names[second]}`."
        )
    gain = between_processes(gain)
    bounds = f"95 % interval {gain.low:.2f} to {gain.high:.2f}"
    finding = verdict(gain)
    if finding == "slower":
        return (
            f"Fastest is {found}, {gain.value:.2f} times as fast as `{names[second]}` ({bounds})."
        )
    if finding == "no difference":
        return f"No difference between the fastest two, {found} and `{names[second]}` ({bounds})."
    return (
        f"Cannot tell which is faster, {found} or `{names[second]}`: their ratio is only known "
        f"to be {gain.low:.2f} to {gain.high:.2f}; measure longer or on a quieter machine."
    )


def _figures(measurement: Measurement) -> list[str]:
    return [
        *map(
            _number,
            (
                measurement.latency_p50_ms,
                measurement.latency_p90_ms,
                measurement.latency_p99_ms,
                measurement.throughput_per_s,
                measurement.load_ms,
                measurement.first_inference_ms,
                _mega(measurement.peak_memory_bytes),
                _mega(measurement.size_bytes),
            ),
        ),
        _error(measurement.parity),
    ]


def _ratio(measurement: Measurement) -> str:
    ratio = measurement.ratio
    if ratio is None:
        return ABSENT
    if ratio.low is None or ratio.high is None or ratio.verdict == "baseline":
        return f"{ratio.value:.2f}"
    # near 1 the second digit would hide on which side of it the interval lies
    digits = 3 if 0.99 < ratio.low < 1.01 or 0.99 < ratio.high < 1.01 else 2
    return f"{ratio.value:.{digits}f} [{ratio.low:.{digits}f}, {ratio.high:.{digits}f}]"


def _finding(measurement: Measurement) -> str:
    if measurement.outcome != "ok":
        # the reason for skipping is long, and in the legend
        return "skipped" if measurement.outcome.startswith("skipped") else measurement.outcome
    return measurement.ratio.verdict if measurement.ratio else "ok"


def _legend(report: Report, names: list[str]) -> list[str]:
    """Return the lines below the table: conditions, noise, what failed and why."""
    threads = "each target's own threads" if report.threads is None else f"{report.threads} threads"
    shapes: dict[str, list[str]] = {}
    for axis, size in report.sizes.items():
        shapes.setdefault(axis.partition(":")[0], []).append(str(size))
    sizes = "".join(f", {name}={'x'.join(shape)}" for name, shape in shapes.items())
    batch = "" if report.batch is None else f", batch {report.batch}"
    lines = [f"{report.scenario}, {threads}{batch}{sizes}; p50 / first below 1 is faster"]
    noises = [m.noise for m in report.measurements if m.noise is not None]
    if noises:
        lines.append(
            f"noise: the same work drifted by up to {100 * max(noises):.0f} % between rounds"
        )
    shown = [m for m in report.measurements if m.latency_p50_ms is not None]
    if any(m.latency_p99_ms is None for m in shown):
        lines.append(f"{ABSENT} under p90, p99: fewer than 10, 100 samples")
    for name, measurement in zip(names, report.measurements, strict=True):
        if measurement.trend:
            way = "rose" if measurement.trend > 0 else "fell"
            lines.append(
                f"{name}: latency {way} by {100 * abs(measurement.trend):.0f} % during the run"
            )
        if measurement.outcome != "ok":
            where = f" while {measurement.phase}" if measurement.phase else ""
            told = measurement.detail in ("", measurement.outcome.partition("(")[2][:-1])
            reason = "" if told else f": {measurement.detail}"
            lines.append(f"{name}: {measurement.outcome}{where}{reason}")
        lines += [f"{name}: {note}" for note in measurement.notes]
    return lines


def _error(parity: ParitySummary | None) -> str:
    if parity is None or parity.max_abs_error is None:
        return ABSENT
    return f"{parity.max_abs_error:.0e}" if parity.max_abs_error else "exact"


def _mega(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else size_bytes / 1e6


def _number(value: float | None) -> str:
    """Return `value` with three significant digits, and all digits before the point."""
    if value is None:
        return ABSENT
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.9995 else f"{value:.3g}"
