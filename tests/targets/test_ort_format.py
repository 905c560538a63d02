"""The target onnxruntime: the ORT format for phones, and bundles for other processors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto

from deploykit.errors import UnsupportedError
from deploykit.protocol import Hardware, LoadRequest, to_json
from deploykit.tensors import read_tensors, write_tensors

TARGET = "onnxruntime"
ROOT = Path(__file__).resolve().parents[2]
ORT = {"format": "ort"}

FRESH = """
import importlib, json, sys
root, module, job = sys.argv[1:]
sys.path.insert(0, root)
from pathlib import Path
from deploykit.protocol import LoadRequest, from_json
from deploykit.tensors import read_tensors, write_tensors
request = from_json(LoadRequest, json.loads(Path(job, "request.json").read_text()))
session = importlib.import_module(module).load(request)
write_tensors(Path(job, "out.npz"), session.run(read_tensors(Path(job, "in.npz"))))
"""


def test_what_is_too_large_for_the_format_is_refused(
    bench: Any, convolutions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.module.saving, "ORT_FORMAT_BYTES", 1000)
    with pytest.raises(UnsupportedError, match="2 GiB") as raised:
        bench.compile(convolutions, settings=ORT)
    assert "format=onnx" in raised.value.hint


@pytest.mark.parametrize("device", ["cuda", "qnn"])
def test_the_format_is_the_cpus(bench: Any, convolutions: Any, device: str) -> None:
    bench.compile(convolutions, settings=ORT)
    with pytest.raises(UnsupportedError, match="ORT format"):
        bench.module.compile(replace(bench.request, device=device))


@pytest.mark.parametrize("name", ["mnist_conv_o8", "silero_vad_v5", "ultraface_rfb320"])
def test_real_models_in_a_fresh_process(
    bench: Any, golden: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    case = golden(name)
    result = bench.compile(case.path, settings=ORT)
    assert result.notes == ()
    files = sorted(path.name for path in bench.payload.iterdir())
    assert files == ["model.ort", "required_operators.config"]
    request = LoadRequest(
        payload=str(bench.payload),
        signature=result.signature,
        device="cpu",
        threads=1,
        settings=result.settings,
    )
    (tmp_path / "request.json").write_text(json.dumps(to_json(request)))
    feed = {spec.name: case.feed[spec.name] for spec in result.signature.inputs}
    write_tensors(tmp_path / "in.npz", feed)
    subprocess.run(
        [sys.executable, "-c", FRESH, str(ROOT), bench.plugin.module, str(tmp_path)],
        check=True,
        timeout=120,
    )
    case.assert_same(read_tensors(tmp_path / "out.npz"))


def test_the_operators_that_a_build_needs(bench: Any, build: Any) -> None:
    model = build(
        [("Softmax", ["x"], ["s"], {}), ("ArgMax", ["s"], ["y"], {"axis": 1, "keepdims": 0})],
        [("x", TensorProto.FLOAT, ["n", 4])],
        [("y", TensorProto.INT64, ["n"])],
    )
    bench.compile(model, settings=ORT)
    text = (bench.payload / "required_operators.config").read_text()
    assert str(bench.payload) not in text, "no path of this machine"
    assert "ai.onnx;13;ArgMax" in text
    assert "Softmax" in text
    x = np.array([[1, 5, 2, 0], [0, 0, 0, 9]], np.float32)
    assert list(bench.load().run({"x": x})["y"]) == [1, 3]


@pytest.mark.parametrize("settings", [ORT, {}], ids=["ort", "onnx"])
def test_weights_beside_the_model(
    bench: Any, build: Any, tmp_path: Path, settings: dict[str, str]
) -> None:
    weight = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    model = build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", TensorProto.FLOAT, ["n", 64])],
        [("y", TensorProto.FLOAT, ["n", 64])],
        {"w": weight},
    )
    path = tmp_path / "source.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    bench.compile(path, settings=settings)
    (tmp_path / "w.bin").unlink()
    x = np.ones((2, 64), np.float32)
    np.testing.assert_allclose(bench.load().run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-5)


def test_another_machine_gets_no_layout_of_this_one(bench: Any, convolutions: Any) -> None:
    pi = Hardware(name="raspberry-pi-5", triple="aarch64-linux-gnu", cpu="cortex-a76")
    result = bench.compile(convolutions, hardware=pi)
    assert result.notes == ()
    saved = onnx.load(bench.payload / "model.onnx")
    assert "com.microsoft.nchwc" not in {node.domain for node in saved.graph.node}
    feed = {"x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)}
    expected = onnx.reference.ReferenceEvaluator(convolutions).run(None, feed)
    actual = bench.load().run(feed)["y"]
    np.testing.assert_allclose(actual, np.asarray(expected)[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedError, match="raspberry-pi-5"):
        bench.module.compile(replace(bench.request, device="cuda"))
