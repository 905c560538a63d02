"""The target onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from deploykit.errors import SourceError, UnavailableError, UnsupportedError, UsageError
from deploykit.processor import architecture

TARGET = "onnxruntime"
FLOAT = TensorProto.FLOAT
on_x86 = pytest.mark.skipif(architecture() != "x86_64", reason="about the x86_64 processor")


def _reference(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    """Return the first output, as onnx's reference computes it."""
    outputs: Any = ReferenceEvaluator(model).run(None, feed)
    return outputs[0]


def test_weights_listed_as_inputs_are_folded(bench: Any, build: Any) -> None:
    model = build(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("BatchNormalization", ["c", "ones", "zeros", "zeros", "ones"], ["y"], {}),
        ],
        [("x", FLOAT, [1, 3, 8, 8])],
        [("y", FLOAT, [1, 4, 6, 6])],
        {
            "w": np.full((4, 3, 3, 3), 0.1, np.float32),
            "ones": np.ones(4, np.float32),
            "zeros": np.zeros(4, np.float32),
        },
    )
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    bench.compile(model)
    saved = onnx.load(bench.payload / "model.onnx")
    assert [value.name for value in saved.graph.input] == ["x"]
    assert "BatchNormalization" not in {node.op_type for node in saved.graph.node}


@on_x86
def test_a_layout_for_one_processor_is_said_and_checked(bench: Any, convolutions: Any) -> None:
    result = bench.compile(convolutions)
    assert any("optimization=extended" in note for note in result.notes)
    bench.load().close()
    layout = bench.payload / "layout.json"
    other = json.loads(layout.read_text())
    other["avx512f"] = not other["avx512f"]
    layout.write_text(json.dumps(other))
    with pytest.raises(UnavailableError, match="laid out for") as raised:
        bench.load()
    assert "optimization=extended" in raised.value.hint


def test_extended_fits_every_processor(bench: Any, convolutions: Any) -> None:
    result = bench.compile(convolutions, settings={"optimization": "extended"})
    assert result.notes == ()
    assert sorted(path.name for path in bench.payload.iterdir()) == ["model.onnx", "nodes.json"]


@pytest.mark.parametrize("optimization", ["all", "extended", "basic", "none"])
def test_every_optimization_gives_the_same_values(
    bench: Any, convolutions: Any, optimization: str
) -> None:
    bench.compile(convolutions, settings={"optimization": optimization})
    feed = {"x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)}
    expected = _reference(convolutions, feed)
    np.testing.assert_allclose(bench.load().run(feed)["y"], expected, rtol=1e-4, atol=1e-5)


def test_settings_reach_the_session(bench: Any, convolutions: Any) -> None:
    import onnxruntime

    settings = {"execution": "parallel", "inter_threads": "2", "spinning": "false"}
    found = bench.compile(convolutions, settings=settings).settings
    assert found.items() >= {"optimization": "all", **settings}.items()
    options = bench.load(threads=1)._open().get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("optimization", "fast", "extended"), ("inter_threads", "-1", "whole number")],
)
def test_a_wrong_value_is_refused(
    bench: Any, convolutions: Any, name: str, value: str, said: str
) -> None:
    with pytest.raises(UsageError, match=name) as raised:
        bench.compile(convolutions, settings={name: value})
    assert said in raised.value.hint


@pytest.mark.parametrize("shapes", [{}, {"x": (5, 64)}])
def test_weights_beside_the_model(
    bench: Any, build: Any, tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    weight = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    model = build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", FLOAT, ["n", 64])],
        [("y", FLOAT, ["n", 64])],
        {"w": weight},
    )
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    bench.compile(path, shapes=shapes)
    for file in folder.iterdir():
        file.unlink()
    x = np.random.default_rng(2).normal(size=(5, 64)).astype(np.float32)
    np.testing.assert_allclose(bench.load().run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-5)


def test_a_large_model_keeps_its_weights_beside(
    bench: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    model = build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", FLOAT, [1, 64])],
        [("y", FLOAT, [1, 64])],
        {"w": weight},
    )
    monkeypatch.setattr(bench.module.saving, "LARGE_BYTES", 1000)
    bench.compile(model)
    assert (bench.payload / "weights.bin").stat().st_size >= weight.nbytes
    assert (bench.payload / "model.onnx").stat().st_size < 1000
    x = np.ones((1, 64), np.float32)
    np.testing.assert_allclose(bench.load().run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-5)


@on_x86
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_without_kernels_is_refused(
    bench: Any, convolutions: Any, precision: str
) -> None:
    with pytest.raises(UnsupportedError, match=precision) as raised:
        bench.compile(convolutions, precision=precision)
    assert "Conv" in raised.value.operators


def test_fp16_where_there_are_kernels(bench: Any, build: Any) -> None:
    model = build(
        [("LayerNormalization", ["x", "scale"], ["y"], {})],
        [("x", FLOAT, [4, 32])],
        [("y", FLOAT, [4, 32])],
        {"scale": np.linspace(0.5, 1.5, 32, dtype=np.float32)},
    )
    result = bench.compile(model, precision="fp16")
    assert result.signature.inputs[0].dtype == "float32"
    assert any("float16" in note for note in result.notes)
    x = np.random.default_rng(3).normal(size=(4, 32)).astype(np.float32)
    actual = bench.load().run({"x": x})["y"]
    expected = _reference(model, {"x": x})
    assert actual.dtype == np.float32
    error = np.abs(actual - expected).max()
    assert 0 < error < 5e-3  # rounded to float16, and no worse than that


def test_strings_and_no_rows(bench: Any, build: Any) -> None:
    string = TensorProto.STRING
    model = build(
        [("Identity", ["words"], ["same"], {}), ("Mul", ["x", "x"], ["y"], {})],
        [("words", string, ["n"]), ("x", FLOAT, ["m", 3])],
        [("same", string, ["n"]), ("y", FLOAT, ["m", 3])],
    )
    result = bench.compile(model)
    assert result.signature.inputs[0].dtype == "string"
    session = bench.load()
    feed = {"words": np.array(["a", "bc"], object), "x": np.zeros((0, 3), np.float32)}
    bound = session.bind(feed)
    bound()
    for outputs in (session.run(feed), bound.outputs()):
        assert list(outputs["same"]) == ["a", "bc"]
        assert outputs["y"].shape == (0, 3)


def test_no_rows_bound(bench: Any, build: Any) -> None:
    model = build(
        [("Mul", ["x", "x"], ["y"], {})], [("x", FLOAT, ["m", 3])], [("y", FLOAT, ["m", 3])]
    )
    bench.compile(model)
    bound = bench.load().bind({"x": np.zeros((0, 3), np.float32)})
    bound()
    assert bound.outputs()["y"].shape == (0, 3)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08\x12\x04onnx\x3a\xff\xff"])
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
        "silero_vad_v5",
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
