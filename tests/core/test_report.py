"""Reports: written whole, read back equal, refused when foreign, shown in 120 columns without colour."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit import report as reports
from deploykit.errors import OutputError, UsageError
from deploykit.machine import fingerprint
from deploykit.outcomes import Outcome
from deploykit.parity import compare, default_tolerance
from deploykit.report import Measurement, ParitySummary, Ratio, Report
from deploykit.report_table import summary, table


def measured(
    label: str, p50_ms: float, *, ratio: float = 1.0, seed: int = 0, **known: Any
) -> Measurement:
    """A measurement of 12 rounds around `p50_ms`, with the figures a target of that speed has."""
    target, _, rest = label.partition(":")
    rng = np.random.default_rng(seed)
    rounds = tuple(
        tuple(int(x) for x in 1e6 * p50_ms * (1 + np.abs(rng.normal(0, 0.005, 9))))
        for _ in range(12)
    )
    first = ratio == 1.0
    fields: dict[str, Any] = {
        "latency_p50_ms": p50_ms,
        "latency_p90_ms": p50_ms * 1.1,
        "latency_p99_ms": p50_ms * 1.3,
        "latency_mean_ms": p50_ms * 1.02,
        "throughput_per_s": 1000 / p50_ms,
        "load_ms": 123.4,
        "first_inference_ms": p50_ms * 4,
        "peak_memory_bytes": 123_456_789,
        "size_bytes": 13_964_571,
        "parity": ParitySummary(ok=True, max_abs_error=1.2e-6, max_rel_error=1e-5, cosine=1.0),
        "ratio": Ratio(
            to="onnxruntime:cpu fp32",
            value=ratio,
            low=ratio if first else ratio * 0.99,
            high=ratio if first else ratio * 1.01,
            verdict="baseline" if first else "faster" if ratio < 1 else "slower",
        ),
        "noise": 0.03,
        "trend": 0.0,
        "warmup_runs": 20,
        "warmup_found": True,
        "samples_ns": rounds,
    }
    return Measurement(
        label=label,
        target=target,
        device=rest.partition(" ")[0],
        precision=rest.partition(" ")[2],
        outcome="ok",
        **{**fields, **known},
    )


@pytest.fixture
def report() -> Report:
    failures = (
        Measurement.failed(
            target="tvm",
            device="cpu",
            precision="fp32",
            outcome=Outcome(kind="signal", detail="SIGSEGV", phase="tuning [matmul]"),
        ),
        Measurement.failed(
            target="tensorrt",
            device="gpu",
            precision="fp16",
            outcome=Outcome(kind="skipped", detail="no GPU was found here"),
        ),
    )
    return Report(
        deploykit="0.1.0",
        created="2026-11-23T09:00:00Z",
        model={"name": "net.onnx", "sha256": "ab" * 32, "repairs": ["shape [ 1, 3 ]"]},
        machine=fingerprint(),
        threads=2,
        batch=1,
        sizes={"x:0": 1, "x:1": 128, "mask:0": 128},
        duration_s=10.0,
        measurements=(
            measured("onnxruntime:cpu fp32", 3.456),
            measured("openvino:cpu fp32", 2.304, ratio=0.667, seed=1),
            *failures,
        ),
    )


def draw(report: Report) -> str:
    from rich.console import Console

    stream = StringIO()
    Console(file=stream, width=120, color_system=None, highlight=False).print(table(report))
    return stream.getvalue()


def test_a_report_is_read_back_equal_and_has_what_others_look_for(
    report: Report, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    reports.write(report, path)
    assert reports.read(path) == report
    value = json.loads(path.read_text())
    assert value == report.to_json()
    assert value["schema"] == 1
    assert value["scenario"] == "single-stream"
    assert [m["outcome"] for m in value["measurements"]] == [
        "ok",
        "ok",
        "signal(SIGSEGV)",
        "skipped(no GPU was found here)",
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_round_takes_one_line_of_the_file(report: Report, tmp_path: Path) -> None:
    reports.write(report, tmp_path / "r.json")
    lines = (tmp_path / "r.json").read_text().splitlines()
    rounds = [
        line for line in lines if line.strip().startswith("[34") or line.strip().startswith("[35")
    ]
    assert len(rounds) == 12


def test_a_report_that_cannot_be_written_leaves_nothing(report: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no-folder"):
        reports.write(report, tmp_path / "no-folder" / "r.json")
    folder = tmp_path / "a-folder"
    folder.mkdir()
    with pytest.raises(OutputError, match="a-folder"):
        reports.write(report, folder)
    assert sorted(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "lacks `schema`"),
        ('{"schema": 1}', "lacks `schema` or `measurements`"),
        ('{"schema": 2, "measurements": []}', "schema 2; this version reads 1"),
        ('{"schema": 1, "measurements": []}', "damaged"),
        ('{"schema": 1, "measurements": [{"target": 7}]}', "damaged"),
    ],
)
def test_what_is_no_report_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        reports.read(path)


def test_a_missing_or_binary_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        reports.read(tmp_path / "r.json")
    (tmp_path / "b.json").write_bytes(b"\xff\x00\x80")
    with pytest.raises(UsageError, match="not JSON"):
        reports.read(tmp_path / "b.json")


def test_the_table_fits_and_says_everything_in_words(report: Report) -> None:
    text = draw(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    row = next(line for line in rows.values() if line.startswith("openvino:cpu fp32"))
    for figure in (
        "2.30",
        "2.53",
        "3.00",
        "434",
        "123",
        "9.22",
        "14.0",
        "1e-06",
        "0.67 [0.66, 0.67]",
    ):
        assert figure in row
    assert row.rstrip().endswith("faster")
    assert "tvm:cpu fp32: signal(SIGSEGV) while tuning [matmul]" in text
    assert "tensorrt:gpu fp16: skipped(no GPU was found here)" in text
    assert "single-stream, 2 threads, batch 1, x=1x128, mask=128" in text
    assert "drifted by up to 3 %" in text


def test_percentiles_without_enough_samples_show_a_dash(report: Report) -> None:
    few = measured("onnxruntime:cpu fp32", 3.456, latency_p99_ms=None)
    text = draw(replace(report, measurements=(few,)))
    row = next(line for line in text.splitlines() if line.startswith("onnxruntime:cpu"))
    assert row.split()[2:5] == ["3.46", "3.80", "-"]
    assert "fewer than 10, 100 samples" in text


def test_equal_labels_are_told_apart_by_their_settings(report: Report) -> None:
    twins = tuple(
        measured("tvm:cpu fp32", 3.0, settings={"trials": trials}) for trials in ("0", "500")
    )
    text = draw(replace(report, measurements=twins))
    assert "trials=0" in text
    assert "trials=500" in text


def test_the_summary_names_the_fastest_and_how_sure(report: Report) -> None:
    sentence = summary(report)
    assert sentence.startswith("Fastest is `openvino:cpu fp32`: p50 2.30 ms, 1.50 times as fast as")
    low, high = re.search(r"95 % interval ([\d.]+) to ([\d.]+)", sentence).groups()  # type: ignore[union-attr]
    assert (float(low), float(high)) == pytest.approx((1.46, 1.54), abs=0.015)


def test_the_summary_says_so_where_there_is_no_winner(report: Report) -> None:
    twins = (measured("a:cpu fp32", 3.0, seed=1), measured("b:cpu fp32", 3.0, seed=2))
    assert summary(replace(report, measurements=twins)).startswith("No difference")
    few = tuple(replace(m, samples_ns=m.samples_ns[:3]) for m in twins)
    assert "too few rounds" in summary(replace(report, measurements=few))
    assert summary(replace(report, measurements=twins[:1])) == "`a:cpu fp32`: p50 3.00 ms."
    assert summary(replace(report, measurements=report.measurements[2:])).startswith("Nothing")


def test_a_wrong_result_never_wins(report: Report) -> None:
    wrong = replace(measured("cheat:cpu fp32", 0.1), outcome="wrong")
    assert "cheat" not in summary(replace(report, measurements=(*report.measurements, wrong)))


def test_parity_keeps_the_worst_of_all_outputs() -> None:
    rng = np.random.default_rng(0)
    reference = {"a": rng.normal(size=100), "b": rng.normal(size=100)}
    actual = {"a": reference["a"], "b": reference["b"] + 1e-3}
    outputs = compare(reference, actual, default_tolerance("fp32"))
    worst = ParitySummary.of(outputs)
    assert not worst.ok
    assert worst.max_abs_error == pytest.approx(1e-3)
    assert worst.cosine == min(output.cosine for output in outputs)
    assert worst.sqnr_db is not None
    assert math.isfinite(worst.sqnr_db)
    assert ParitySummary.of(outputs[:1]).ok
