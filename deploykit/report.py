"""What was measured, on which machine, under what conditions: values, and the file that keeps them.

`report_table.py` shows a report to people.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import OutputError, UsageError
from deploykit.machine import Machine
from deploykit.protocol import from_json, to_json

if TYPE_CHECKING:
    from deploykit.outcomes import Outcome
    from deploykit.parity import OutputParity

SCHEMA = 1
"""Of the file. A change that an older reader would misunderstand takes the next number."""


@dataclass(frozen=True, kw_only=True)
class ParitySummary:
    """The worst figure of each kind over all outputs, against the reference."""

    ok: bool
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    cosine: float | None = None
    sqnr_db: float | None = None

    @classmethod
    def of(cls, outputs: Iterable[OutputParity]) -> ParitySummary:
        """Return the worst figure of each kind over `outputs`; those that are not finite are None."""
        outputs = tuple(outputs)

        def worst(name: str, pick: Any) -> float | None:
            values = [getattr(output, name) for output in outputs]
            finite = [
                float(value) for value in values if value is not None and math.isfinite(value)
            ]
            return pick(finite) if finite else None

        return cls(
            ok=all(output.ok for output in outputs),
            max_abs_error=worst("max_abs_error", max),
            max_rel_error=worst("max_rel_error", max),
            cosine=worst("cosine", min),
            sqnr_db=worst("sqnr_db", min),
        )


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """p50 relative to the p50 of the measurement labelled `to`; below 1 is faster.

    `low` and `high` bound it with 95 % confidence (rounds, and what differs between processes that do
    the same), None where there were too few rounds to say.
    """

    to: str
    value: float
    low: float | None
    high: float | None
    verdict: str
    """`faster`, `slower`, `no difference`, `cannot tell`, or `baseline`."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One configuration and its figures; those that were not measured are None.

    Percentiles are None below their minimum of samples (p90: 10, p99: 100). `outcome` is one of
    `ok`, `wrong`, `error`, `unsupported`, `timeout`, `out-of-memory`, `signal(NAME)`,
    `skipped(reason)`; `detail` and `phase` say more.
    """

    label: str
    target: str
    device: str
    precision: str
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outcome: str
    detail: str = ""
    phase: str = ""
    items_per_run: int = 1
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_mean_ms: float | None = None
    throughput_per_s: float | None = None
    """Items, not runs, per second of back-to-back inference."""
    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_memory_bytes: int | None = None
    """Of the whole worker process: interpreter, runtime and model."""
    size_bytes: int | None = None
    parity: ParitySummary | None = None
    ratio: Ratio | None = None
    noise: float | None = None
    """Spread of the rounds' medians, (p90 - p10) / p50: how much identical work drifted."""
    trend: float | None = None
    """By which part the latency rose during the run, 0 where no trend is significant."""
    warmup_runs: int | None = None
    warmup_found: bool | None = None
    """Whether warm-up was seen to end, or was cut off at its limit."""
    samples_ns: tuple[tuple[int, ...], ...] = ()
    """Every latency that the figures rest on, by round. Rounds of all measurements are paired."""

    @classmethod
    def failed(
        cls,
        *,
        target: str,
        device: str,
        precision: str,
        outcome: Outcome,
        label: str = "",
        **known: Any,
    ) -> Measurement:
        """Return the measurement of a configuration that ended as `outcome`; `known` are other fields."""
        return cls(
            label=label or f"{target}:{device} {precision}",
            target=target,
            device=device,
            precision=precision,
            outcome=str(outcome) if outcome.kind in ("signal", "skipped") else outcome.kind,
            detail=" — ".join(filter(None, (outcome.detail, outcome.hint))),
            phase=outcome.phase,
            **known,
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measurements that were made together, in interleaved rounds, and may be compared.

    `scenario` is MLPerf's name for the load: `single-stream` starts each inference when the last
    one has ended. `sizes` are those of the inputs, by `INPUT:AXIS`. `model` says where the model
    came from, by which tools, with which hashes.
    """

    schema: int = SCHEMA
    deploykit: str
    created: str
    """UTC, ISO 8601."""
    scenario: str = "single-stream"
    model: dict[str, Any]
    machine: Machine
    threads: int | None
    """Given to every target; None left each its own default."""
    batch: int | None
    sizes: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    duration_s: float
    """The most that one contender's rounds might take; they end earlier when precise enough."""
    notes: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write `report` as JSON to `path`, replacing it only when the new file is whole.

    Raises OutputError where it cannot be written.
    """
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    # a line per round, not per sample
    text = re.sub(r"\[\n([\d,\s]+)\]", lambda found: f"[{''.join(found[1].split())}]", text)
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write the report `{os.fspath(path)}`: {error.strerror or error}",
            hint="choose another file with `-o`",
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> Report:
    """Return the report in the file `path`.

    Raises UsageError where it is missing, is no report, or has a schema that this version does not
    know.
    """
    named = f"`{os.fspath(path)}`"
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the report {named}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(
            f"{named} is not a report: it is not JSON ({error})",
            hint="`deploykit profile … -o report.json` writes one",
        ) from error
    if not isinstance(value, Mapping) or "schema" not in value or "measurements" not in value:
        raise UsageError(
            f"{named} is not a report: it lacks `schema` or `measurements`",
            hint="`deploykit profile … -o report.json` writes one",
        )
    if value["schema"] != SCHEMA:
        raise UsageError(
            f"the report {named} has schema {value['schema']!r}; this version reads {SCHEMA}",
            hint="use the version of deploykit that wrote it, named in its field `deploykit`",
        )
    try:
        return from_json(Report, value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the report {named} is damaged: {error}") from error
