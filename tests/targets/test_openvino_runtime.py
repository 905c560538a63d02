"""The target openvino."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from deploykit.errors import SourceError, UnavailableError, UnsupportedError

TARGET = "openvino"
FLOAT = TensorProto.FLOAT
pytestmark = pytest.mark.environment


def _reference(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    """Return the first output, as onnx's reference computes it."""
    outputs: Any = ReferenceEvaluator(model).run(None, feed)
    return outputs[0]


def _image() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)}


def _of_another_version(blob: Path) -> None:
    """Make the blob one of another OpenVINO: its header names the version in plain text."""
    content = blob.read_bytes()
    start = content.index(b";ov=") + 4
    blob.write_bytes(content[:start] + b"1" + content[start + 1 :])


def test_a_foreign_blob_is_compiled_anew_and_said(bench: Any, convolutions: Any) -> None:
    bench.compile(convolutions)
    expected = bench.load().run(_image())["y"]
    _of_another_version(bench.payload / "model.blob")
    with pytest.warns(UserWarning, match="compiled anew"):
        session = bench.load()
    np.testing.assert_allclose(session.run(_image())["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_foreign_blob_without_the_model_is_refused(bench: Any, convolutions: Any) -> None:
    bench.compile(convolutions, settings={"fallback": "false"})
    assert {path.name for path in bench.payload.iterdir()} == {"build.json", "model.blob"}
    bench.load().close()
    _of_another_version(bench.payload / "model.blob")
    with pytest.raises(UnavailableError, match="refuses") as raised:
        bench.load()
    assert "fallback=true" in raised.value.hint


def test_the_configuration_holds_after_load(bench: Any, convolutions: Any) -> None:
    bench.compile(convolutions, threads=1, settings={"pinning": "false"})
    compiled = bench.load(threads=1)._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")


def test_fp32_is_exact_and_bf16_is_said(bench: Any, convolutions: Any) -> None:
    expected = _reference(convolutions, _image())
    bench.compile(convolutions)
    exact = np.abs(bench.load().run(_image())["y"] - expected).max()
    assert exact < 1e-5
    result = bench.compile(convolutions, precision="bf16")
    assert any("run in bf16" in note for note in result.notes)
    rounded = np.abs(bench.load().run(_image())["y"] - expected).max()
    assert 1e-4 < rounded < 0.1 * np.abs(expected).max()


def test_a_precision_that_takes_no_effect_is_refused(bench: Any, build: Any) -> None:
    model = build(
        [("Transpose", ["x"], ["y"], {"perm": [1, 0]})],
        [("x", TensorProto.INT32, [2, 3])],
        [("y", TensorProto.INT32, [3, 2])],
    )
    with pytest.raises(UnsupportedError, match="no effect"):
        bench.compile(model, precision="bf16")


def test_strings_are_refused(bench: Any, build: Any) -> None:
    model = build(
        [("Identity", ["x"], ["y"], {})],
        [("x", TensorProto.STRING, [2])],
        [("y", TensorProto.STRING, [2])],
    )
    with pytest.raises(UnsupportedError, match="string"):
        bench.compile(model)


def test_narrow_integers_are_said(bench: Any, build: Any) -> None:
    model = build(
        [("Add", ["x", "x"], ["y"], {})],
        [("x", TensorProto.INT64, [2])],
        [("y", TensorProto.INT64, [2])],
    )
    assert any("32 bits" in note for note in bench.compile(model).notes)
    assert list(bench.load().run({"x": np.array([5, -7])})["y"]) == [10, -14]


def test_no_rows(bench: Any, build: Any) -> None:
    model = build(
        [("Mul", ["x", "x"], ["y"], {})], [("x", FLOAT, ["m", 3])], [("y", FLOAT, ["m", 3])]
    )
    result = bench.compile(model)
    assert result.signature.outputs[0].shape == ("m", 3)
    session = bench.load()
    assert session.run({"x": np.zeros((0, 3), np.float32)})["y"].shape == (0, 3)
    assert session.run({"x": np.ones((2, 3), np.float32)})["y"].sum() == 6


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_a_file_that_is_no_model(
    bench: Any, convolutions: Any, tmp_path: Path, content: bytes
) -> None:
    bench.compile(convolutions)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content)
    with pytest.raises(SourceError, match=r"broken\.onnx"):
        bench.compile_file(broken)


@pytest.mark.parametrize(
    "name",
    [
        "dtln_1",
        "mnist_conv_o8",
        "optimum_tiny_bert",
        "ultraface_rfb320",
        "ultraface_slim320_simplified",
        "xdl_dnn",
    ],
)
def test_real_models(bench: Any, golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    bench.compile(case.path)
    session = bench.load()
    feed = {spec.name: case.feed[spec.name] for spec in session.inputs}
    case.assert_same(session.run(feed))
    bound = session.bind(feed)
    bound()
    case.assert_same(bound.outputs())


def test_what_it_cannot_convert_is_named(bench: Any, golden: Callable[[str], Any]) -> None:
    case = golden("silero_vad_v5")
    with pytest.raises(UnsupportedError, match="rank") as raised:
        bench.compile(case.path)
    assert "Conv" in raised.value.operators


def test_what_it_cannot_compile_is_named(bench: Any, build: Any) -> None:
    """An LSTM with other activations is read, and fails where OpenVINO takes it apart."""
    model = build(
        [
            (
                "LSTM",
                ["x", "w", "r"],
                ["y", "", ""],
                {"hidden_size": 2, "activations": ["HardSigmoid", "Tanh", "Tanh"]},
            )
        ],
        [("x", FLOAT, [3, 1, 4])],
        [("y", FLOAT, [3, 1, 1, 2])],
        {"w": np.ones((1, 8, 4), np.float32), "r": np.ones((1, 8, 2), np.float32)},
    )
    with pytest.raises(UnsupportedError, match="activation") as raised:
        bench.compile(model)
    assert raised.value.operators == ("LSTM",)
