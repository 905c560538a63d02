"""Profiles: every contender in the report, the failed ones too, under the same conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deploykit as dk
from deploykit import errors
from deploykit.bundle import read_manifest, write_bundle
from deploykit.compilation import compile
from deploykit.errors import UsageError
from deploykit.events import Event
from deploykit.options import Checks, Conditions
from deploykit.profiling import profile
from deploykit.report import read

pytestmark = pytest.mark.usefixtures("odd_plugins")

QUICK = dk.Load(duration_s=0.3)
UNCHECKED = Checks(enabled=False)


def test_native_targets_and_failures_side_by_side(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    output = tmp_path / "report.json"
    report = dk.profile(
        small_onnx,
        ["native", "onnxruntime", "odd:raises", "odd:wrong", "odd:tires"],
        output=output,
        load=QUICK,
        conditions=dk.Conditions(threads=1),
    )
    found = {f"{m.target}:{m.device}": m for m in report.measurements}
    assert {name: m.outcome for name, m in found.items()} == {
        "native:cpu": "ok",
        "onnxruntime:cpu": "ok",
        "odd:raises": "error",
        "odd:wrong": "wrong",
        "odd:tires": "error",
    }
    good = found["onnxruntime:cpu"]
    assert good.parity is not None
    assert good.parity.ok
    assert good.ratio is not None
    assert good.ratio.to == found["native:cpu"].label
    for name in ("latency_p50_ms", "throughput_per_s", "load_ms", "peak_memory_bytes"):
        assert getattr(good, name) > 0, name
    assert sum(len(block) for block in good.samples_ns) >= 10
    assert found["odd:tires"].latency_p50_ms is None
    assert report.threads == 1
    value = json.loads(output.read_text())
    assert value["schema"] == 1
    keys = {"target", "device", "precision", "settings", "outcome", "latency_p50_ms"}
    assert all(keys <= set(item) for item in value["measurements"])
    assert read(output) == report
    assert (tmp_path / "report.bundles" / "onnxruntime-cpu-fp32" / "manifest.json").is_file()


def test_bundles_alone_and_a_batch(small_onnx: Path, odd_plugins: Path, tmp_path: Path) -> None:
    dk.compile(small_onnx, ["onnxruntime", "odd"], tmp_path)
    bundles = [tmp_path / "onnxruntime-cpu-fp32", tmp_path / "odd-cpu-fp32"]
    report = dk.profile(bundles=bundles, load=dk.Load(duration_s=0.3, batch=4))
    assert [m.outcome for m in report.measurements] == ["ok", "ok"]
    assert report.sizes["x:0"] == 4
    assert {m.items_per_run for m in report.measurements} == {4}


def test_a_batch_of_a_model(small_onnx: Path, odd_plugins: Path) -> None:
    report = dk.profile(small_onnx, ["onnxruntime"], load=dk.Load(duration_s=0.3, batch=6))
    (measurement,) = report.measurements
    assert (measurement.outcome, report.sizes["x:0"]) == ("ok", 6)


def test_nothing_to_measure(odd_plugins: Path) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        dk.profile()
    with pytest.raises(UsageError, match="needs a model"):
        dk.profile(targets=["onnxruntime"], bundles=["somewhere"])


def test_a_bundle_that_fails_its_proof_does_not_stop_the_others(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    compile(small_onnx, ["odd:five", "onnxruntime"], tmp_path, checks=UNCHECKED)
    good = tmp_path / "onnxruntime-cpu-fp32"
    bad = tmp_path / "odd-five-fp32"
    manifest = read_manifest(bad)
    pair = {"x": np.zeros((1, 3, 8, 8), np.float32)}, {"y": np.full((1, 5), 9, np.float32)}
    write_bundle(tmp_path / "lying", manifest, bad / "payload", [pair])
    found = profile(bundles=[tmp_path / "lying", good], load=QUICK)
    assert found.measurements[0].outcome == "wrong"
    assert "`y`" in found.measurements[0].detail
    assert found.measurements[1].outcome == "ok"


def test_a_batch_that_the_model_does_not_have(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="first axis that can be 4"):
        profile(
            small_onnx,
            ["odd"],
            shapes={"x": (2, 3, 8, 8)},
            load=replace(QUICK, batch=4),
            checks=UNCHECKED,
        )
    compile(small_onnx, ["onnxruntime"], tmp_path, shapes={"x": (2, 3, 8, 8)}, checks=UNCHECKED)
    with pytest.raises(errors.UsageError, match="first axis that can be 4"):
        profile(bundles=[tmp_path / "onnxruntime-cpu-fp32"], load=replace(QUICK, batch=4))


@pytest.mark.parametrize("shapes", [{"z": (1, 2)}, {"x": (1, 3)}, {"x": (1, 4, 8, 8)}])
def test_shapes_that_do_not_fit_are_refused_for_the_source_too(
    small_onnx: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(errors.UsageError):
        profile(small_onnx, ["native"], shapes=shapes, load=QUICK, checks=UNCHECKED)


def test_targets_are_looked_up_before_anything_is_converted(
    small_onnx: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    with pytest.raises(errors.UsageError, match="nosuch"):
        profile(
            small_onnx,
            ["native", "nosuch"],
            output=tmp_path / "r.json",
            conditions=Conditions(listen=events.append),
        )
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_on_other_inputs_is_no_comparison(
    small_onnx: Path, odd_model: Path, tmp_path: Path
) -> None:
    compile(small_onnx, ["onnxruntime"], tmp_path, checks=UNCHECKED)
    other = tmp_path / "onnxruntime-cpu-fp32"
    with pytest.raises(errors.UsageError, match="axes"):
        profile(odd_model, ["native"], bundles=[other], load=QUICK, checks=UNCHECKED)


def test_a_report_that_cannot_be_written_is_refused_first(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.OutputError, match="is a folder"):
        profile(small_onnx, ["native"], output=tmp_path)


def test_without_a_report_nothing_is_left(
    small_onnx: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    found = profile(small_onnx, ["odd"], load=QUICK, checks=UNCHECKED)
    assert found.measurements[0].outcome == "ok"
    assert set(tmp_path.iterdir()) - {own_home} == before
    assert [path for path in (own_home / "runs").iterdir() if path.is_dir()] == []


def test_a_target_is_measured_once_however_often_it_is_named(small_onnx: Path) -> None:
    found = profile(small_onnx, ["odd", "native", "odd:cpu"], load=QUICK, checks=UNCHECKED)
    assert [measurement.label for measurement in found.measurements] == [
        "odd:cpu fp32",
        "native ONNX",
    ]


def test_a_framework_without_a_compiler_says_so(small_onnx: Path, odd_plugins: Path) -> None:
    report = profile(small_onnx, ["native", "native:compiled"], load=QUICK)
    plain, compiled = report.measurements
    assert plain.outcome == "ok"
    assert compiled.outcome == "unsupported"
    assert "no compiler of its own" in compiled.detail
    with pytest.raises(UsageError, match="`native:fast` is unknown"):
        profile(small_onnx, ["native:fast"], load=QUICK)
