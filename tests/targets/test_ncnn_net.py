"""The target ncnn, in the environment that deploykit makes for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from deploykit import plugins
from deploykit.errors import SourceError, UnavailableError, UnsupportedError, UsageError
from deploykit.onnx_file import signature_of
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    Hardware,
)

from .worker_bench import WorkerBench

pytestmark = pytest.mark.environment

PLUGIN = plugins.target("ncnn")
FLOAT = TensorProto.FLOAT
RECORDER = Path(__file__).resolve().parent.parent / "fixtures" / "connect_recorder.c"
PHONE = Hardware(name="phone", triple="aarch64-linux-android", cpu="cortex-a76")
Array = np.ndarray[Any, Any]


@pytest.fixture
def ncnn(tmp_path: Path) -> WorkerBench:
    return WorkerBench("ncnn", tmp_path)


def _expected(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    evaluator = ReferenceEvaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))


def _assert_same(actual: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def _convolution_of(size: int | str, build: Any) -> onnx.ModelProto:
    source = np.random.default_rng(7)
    return build(  # type: ignore[no-any-return]
        [
            ("Conv", ["x", "w1"], ["c"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
            ("Relu", ["c"], ["r"], {}),
            ("GlobalAveragePool", ["r"], ["g"], {}),
            ("Flatten", ["g"], ["f"], {}),
            ("Gemm", ["f", "w2"], ["logits:0"], {}),
            ("Softmax", ["logits:0"], ["probabilities"], {}),
        ],
        [("x", FLOAT, ["batch", 3, size, size])],
        [("probabilities", FLOAT, ["batch", 5]), ("logits:0", FLOAT, ["batch", 5])],
        {
            "w1": source.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
            "w2": source.normal(0, 0.5, (8, 5)).astype(np.float32),
        },
    )


def test_operators_that_it_lacks_are_named(ncnn: WorkerBench, build: Any) -> None:
    model = build(
        [("CumSum", ["x", "axis"], ["s"], {}), ("Mod", ["s", "x"], ["y"], {"fmod": 1})],
        [("x", FLOAT, [1, 4])],
        [("y", FLOAT, [1, 4])],
        {"axis": np.array(1, np.int64)},
    )
    with pytest.raises(UnsupportedError, match="target ncnn has no layer") as raised:
        ncnn.compile(model)
    assert set(raised.value.operators) & {"Mod", "CumSum"}
    assert list(ncnn.payload.iterdir()) == []


def test_an_operator_of_another_maker_is_not_taken_for_onnx_s_own(
    ncnn: WorkerBench, build: Any
) -> None:
    model = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    model.graph.node[0].domain = "example.invented"
    model.opset_import.append(onnx.helper.make_opsetid("example.invented", 1))
    with pytest.raises(UnsupportedError, match=r"example\.invented\.Relu"):
        ncnn.compile(model)


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE])
def test_outputs_that_are_no_floats_are_refused(ncnn: WorkerBench, build: Any, dtype: int) -> None:
    model = build(
        [("Cast", ["x"], ["y"], {"to": dtype})], [("x", FLOAT, [1, 4])], [("y", dtype, [1, 4])]
    )
    with pytest.raises(UnsupportedError, match="floats only"):
        ncnn.compile(model)


def test_a_file_that_is_no_model(ncnn: WorkerBench, convolutions: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    request = CompileRequest(
        model=str(broken),
        payload=str(tmp_path),
        signature=signature_of(convolutions),
        device="cpu",
    )
    with ncnn.worker() as worker, pytest.raises(SourceError, match=r"broken\.onnx"):
        worker.call("compile", request, CompileResult)


def test_precisions_settings_and_damage(ncnn: WorkerBench, convolutions: Any) -> None:
    with pytest.raises(UnsupportedError, match="fp12"):
        ncnn.compile(convolutions, precision="fp12")
    with pytest.raises(UsageError) as raised:
        ncnn.compile(convolutions, settings={"no_such": "1"})
    assert "winograd" in raised.value.hint
    ncnn.compile(convolutions)
    for name, content in [("model.ncnn.param", b"damaged"), ("tensors.json", b"{}")]:
        kept = (ncnn.payload / name).read_bytes()
        (ncnn.payload / name).write_bytes(content)
        with pytest.raises(UnavailableError, match=name):
            ncnn.run({})
        (ncnn.payload / name).write_bytes(kept)


def test_control_flow_ends_pnnx_and_is_named(ncnn: WorkerBench, build: Any) -> None:
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Add", ["sum", "row"], ["next"]),
            onnx.helper.make_node("Mul", ["next", "scale"], ["out"]),
        ],
        "body",
        [value("sum", FLOAT, [4]), value("row", FLOAT, [4])],
        [value("next", FLOAT, [4]), value("out", FLOAT, [4])],
    )
    model = build(
        [("Scan", ["zero", "x"], ["last", "y"], {"body": body, "num_scan_inputs": 1})],
        [("x", FLOAT, [3, 4])],
        [("y", FLOAT, [3, 4])],
        {"zero": np.zeros(4, np.float32), "scale": np.float32(2).reshape(1)},
    )
    with pytest.raises(UnsupportedError, match="pnnx, its converter, cannot take") as raised:
        ncnn.compile(model)
    assert raised.value.operators == ("Scan",)


def test_scalars_are_refused(ncnn: WorkerBench, build: Any) -> None:
    model = build(
        [("Mul", ["x", "factor"], ["y"], {})],
        [("x", FLOAT, [1, 4]), ("factor", FLOAT, [])],
        [("y", FLOAT, [1, 4])],
    )
    with pytest.raises(UnsupportedError, match="factor"):
        ncnn.compile(model)


def test_what_pnnx_misreads_is_refused(ncnn: WorkerBench, golden: Callable[[str], Any]) -> None:
    with pytest.raises(UnsupportedError, match="pnnx ignored LSTM") as raised:
        ncnn.compile(golden("dtln_1").path)
    assert raised.value.operators == ("LSTM",)


@pytest.mark.parametrize("size", ["side", 20])
def test_batch_and_sizes_stay_dynamic(ncnn: WorkerBench, build: Any, size: int | str) -> None:
    model = _convolution_of(size, build)
    result = ncnn.compile(model)
    assert result.signature == signature_of(model)
    assert result.notes == ()
    feeds = [
        {"x": np.random.default_rng(n).normal(size=(n, 3, side, side)).astype(np.float32)}
        for n, side in [(1, 20), (4, 20 if size == 20 else 33), (3, 20 if size == 20 else 8)]
    ]
    for feed, actual in zip(feeds, ncnn.run(*feeds), strict=True):
        _assert_same(actual, _expected(model, feed))


def test_sizes_that_it_would_bake_in_are_refused(ncnn: WorkerBench, build: Any) -> None:
    """Mixing the batch into other axes: right for one size, wrong for others."""
    model = build(
        [("Reshape", ["x", "shape"], ["r"], {}), ("Softmax", ["r"], ["y"], {"axis": 0})],
        [("x", FLOAT, ["n", "m"])],
        [("y", FLOAT, ["k", 2])],
        {"shape": np.array([-1, 2], np.int64)},
    )
    feeds = [{"x": np.arange(4, dtype=np.float32).reshape(1, 4)}]
    result = ncnn.compile(model)
    if all(isinstance(size, str) for size in result.signature.inputs[0].shape or ()):
        feeds.append({"x": np.arange(18, dtype=np.float32).reshape(3, 6)})
    for feed, actual in zip(feeds, ncnn.run(*feeds), strict=True):
        _assert_same(actual, _expected(model, feed))


@pytest.mark.parametrize(
    "name",
    ["espcn_x3_nnresize_float", "mnist_conv_o8", "ultraface_slim320_simplified", "xdl_dnn"],
)
def test_real_models(ncnn: WorkerBench, golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    result = ncnn.compile(case.path)
    feed = {spec.name: case.feed[spec.name] for spec in result.signature.inputs}
    case.assert_same(ncnn.run(feed)[0])


def test_fp32_is_exact_bf16_rounds_and_fp16_needs_a_processor(
    ncnn: WorkerBench, convolutions: Any
) -> None:
    feed = {"x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)}
    expected = _expected(convolutions, feed)["y"]
    ncnn.compile(convolutions)
    assert np.abs(ncnn.run(feed)[0]["y"] - expected).max() < 3e-5
    result = ncnn.compile(convolutions, precision="bf16")
    assert any("kept in bf16" in note for note in result.notes)
    error = np.abs(ncnn.run(feed)[0]["y"] - expected).max()
    assert 1e-4 < error < 0.1 * np.abs(expected).max()
    result = ncnn.compile(convolutions, precision="fp16", hardware=PHONE)
    assert any("takes effect on phone" in note for note in result.notes)


def test_probe_names_what_vulkan_lacks(ncnn: WorkerBench) -> None:
    with ncnn.worker() as worker:
        cpu, vulkan = worker.call("probe", None, tuple[Availability, ...])
    assert cpu.available
    assert cpu.versions["ncnn"] == "1.0.20261020"
    assert vulkan.device == "vulkan"
    assert "\n" not in vulkan.detail
    if not vulkan.available:
        assert "ulkan" in vulkan.detail


def test_vulkan(ncnn: WorkerBench, build: Any) -> None:
    vulkan = ncnn.probe()["vulkan"]
    model = _convolution_of(20, build)
    if not vulkan.available:
        with pytest.raises(UnavailableError, match="Vulkan"):
            ncnn.compile(model, device="vulkan")
        return
    ncnn.compile(model, device="vulkan")
    feed = {"x": np.random.default_rng(1).normal(size=(2, 3, 20, 20)).astype(np.float32)}
    _assert_same(ncnn.run(feed)[0], _expected(model, feed))


def test_the_same_model_gives_the_same_files(ncnn: WorkerBench, convolutions: Any) -> None:
    contents = []
    for _ in range(2):
        ncnn.compile(convolutions)
        contents.append({path.name: path.read_bytes() for path in ncnn.payload.iterdir()})
    assert sorted(contents[0]) == ["model.ncnn.bin", "model.ncnn.param", "tensors.json"]
    assert contents[0] == contents[1]


def test_the_environment_has_no_pytorch(ncnn: WorkerBench) -> None:
    """pnnx's wheel asks for it; `override-dependencies` in the plugin's block takes it out."""
    packages = next((ncnn.python.parent.parent / "lib").glob("python*")) / "site-packages"
    assert (packages / "pnnx" / "pnnx").is_file()
    assert not (packages / "torch").exists()


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the recorder needs Linux and gcc")
    built = tmp_path_factory.mktemp("recorder") / "connect_recorder.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(built), str(RECORDER), "-ldl"]
    subprocess.run(command, check=True)
    return built


def test_compiling_opens_no_connection(
    ncnn: WorkerBench, convolutions: Any, recorder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pnnx has ONNX Runtime inside, of a release that sends telemetry where it is let."""
    log = ncnn.folder / "connections.txt"
    monkeypatch.setenv("LD_PRELOAD", str(recorder))
    monkeypatch.setenv("CONNECT_RECORDER", str(log))
    ncnn.compile(convolutions)
    ncnn.run({"x": np.ones((1, 16, 20, 36), np.float32)})
    assert not log.exists(), log.read_text()
