"""Bundles of several fixed sizes: each run goes to the model that was compiled for its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx.reference
import pytest

import deploykit as dk
from deploykit.bundle import golden, read_manifest
from deploykit.errors import UsageError

SIZES = ({"x": (1, 3, 8, 8)}, {"x": (4, 3, 8, 8)})


@pytest.fixture
def bundle(small_onnx: Path, tmp_path: Path) -> Path:
    made = dk.compile(small_onnx, ["onnxruntime"], tmp_path, shapes=SIZES)
    (bundle,) = made.bundles
    assert bundle.outcome.kind == "ok", bundle.outcome
    assert bundle.folder is not None
    return Path(bundle.folder)


def images(batch: int) -> dict[str, Any]:
    source = np.random.default_rng(batch)
    return {"x": source.standard_normal((batch, 3, 8, 8)).astype(np.float32)}


def test_a_model_for_each_size(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.signature.inputs[0].shape == (None, 3, 8, 8)
    assert sorted({len(feed["x"]) for feed, _ in golden(bundle, manifest)}) == [1, 4]
    assert any("x:float32[4,3,8,8]" in note for note in manifest.notes)
    listed = json.loads((bundle / "payload" / "buckets.json").read_text())
    assert [each["signature"]["inputs"][0]["shape"][0] for each in listed] == [1, 4]
    assert dk.verify(bundle).cases >= 2


@pytest.mark.parametrize("isolated", [False, True])
def test_runs_go_where_they_fit(
    bundle: Path, small_onnx: Path, isolated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = onnx.reference.ReferenceEvaluator(str(small_onnx))
    with dk.load(bundle, isolated=isolated) as session:
        for batch in (4, 1, 4):
            (expected,) = evaluator.run(None, images(batch))
            found = session.run(images(batch))["y"]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
            bound = session.bind(images(batch))
            bound()
            np.testing.assert_allclose(bound.outputs()["y"], expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(UsageError, match=r"sizes x \[2, 3, 8, 8\]") as caught:
            session.run(images(2))
        assert "[1, 3, 8, 8]; x [4, 3, 8, 8]" in caught.value.hint


def test_a_profile_measures_the_first_size(small_onnx: Path, tmp_path: Path) -> None:
    load = dk.Load(duration_s=0.2)
    report = dk.profile(small_onnx, ["onnxruntime"], shapes=SIZES, load=load)
    assert report.measurements[0].outcome == "ok"
    assert report.sizes["x:0"] == 1
    with pytest.raises(UsageError, match="exclude each other"):
        dk.profile(small_onnx, ["onnxruntime"], shapes=SIZES, load=dk.Load(batch=2))
