"""The target mnn, in the environment that deploykit makes for it."""

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
    OperatorRun,
    OperatorsRequest,
)
from deploykit.tensors import write_tensors

from .worker_bench import WorkerBench

pytestmark = pytest.mark.environment

PLUGIN = plugins.target("mnn")
FLOAT = TensorProto.FLOAT
RECORDER = Path(__file__).resolve().parent.parent / "fixtures" / "connect_recorder.c"
PHONE = Hardware(name="phone", triple="aarch64-linux-android", cpu="cortex-a76")
Array = np.ndarray[Any, Any]


@pytest.fixture
def mnn(tmp_path: Path) -> WorkerBench:
    return WorkerBench("mnn", tmp_path)


def _expected(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    evaluator = ReferenceEvaluator(model)
    return dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))


def _assert_same(actual: dict[str, Array], expected: dict[str, Array]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_operators_that_it_lacks_are_named(mnn: WorkerBench, build: Any) -> None:
    spectrum = build(
        [("DFT", ["x"], ["y"], {"axis": 1})],
        [("x", FLOAT, [1, 4, 1])],
        [("y", FLOAT, [1, 4, 2])],
    )
    with pytest.raises(UnsupportedError, match="target mnn cannot take operators DFT") as raised:
        mnn.compile(spectrum)
    assert raised.value.operators == ("DFT",)
    assert list(mnn.payload.iterdir()) == []


def test_an_operator_of_another_maker_is_not_taken_for_onnx_s_own(
    mnn: WorkerBench, build: Any
) -> None:
    model = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    model.graph.node[0].domain = "example.invented"
    model.opset_import.append(onnx.helper.make_opsetid("example.invented", 1))
    with pytest.raises(UnsupportedError, match=r"example\.invented\.Relu"):
        mnn.compile(model)


def test_a_converter_that_crashes_is_a_refusal(mnn: WorkerBench, build: Any) -> None:
    model = build(
        [
            ("DequantizeLinear", ["x", "scale", "zero"], ["real"], {}),
            ("DequantizeLinear", ["w", "scale", "zero"], ["weight"], {}),
            ("DequantizeLinear", ["b", "scale", "none"], ["bias"], {}),
            ("Gemm", ["real", "weight", "bias"], ["sum"], {}),
            ("QuantizeLinear", ["sum", "scale", "zero"], ["y"], {}),
        ],
        [("x", TensorProto.INT8, [1, 4])],
        [("y", TensorProto.INT8, [1, 4])],
        {
            "scale": np.float32(0.1).reshape(()),
            "zero": np.array(0, np.int8),
            "none": np.array(0, np.int32),
            "w": np.eye(4, dtype=np.int8),
            "b": np.arange(4, dtype=np.int32),
        },
    )
    with pytest.raises(UnsupportedError, match="mnn") as raised:
        mnn.compile(model)
    assert raised.value.operators == ("DequantizeLinear", "QuantizeLinear")


def test_strings_are_refused(mnn: WorkerBench, build: Any) -> None:
    text = TensorProto.STRING
    model = build([("Identity", ["x"], ["y"], {})], [("x", text, [2])], [("y", text, [2])])
    with pytest.raises(UnsupportedError, match="string"):
        mnn.compile(model)


def test_a_file_that_is_no_model(mnn: WorkerBench, convolutions: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    request = CompileRequest(
        model=str(broken),
        payload=str(tmp_path),
        signature=signature_of(convolutions),
        device="cpu",
    )
    with mnn.worker() as worker, pytest.raises(SourceError, match=r"broken\.onnx"):
        worker.call("compile", request, CompileResult)


def test_precisions_settings_and_damage(mnn: WorkerBench, convolutions: Any) -> None:
    with pytest.raises(UnsupportedError, match="fp12"):
        mnn.compile(convolutions, precision="fp12")
    with pytest.raises(UsageError) as raised:
        mnn.compile(convolutions, settings={"no_such": "1"})
    assert "winograd" in raised.value.hint
    mnn.compile(convolutions)
    (mnn.payload / "model.mnn").write_bytes(b"damaged")
    with pytest.raises(UnavailableError, match=r"model\.mnn"):
        mnn.run({})


def test_what_takes_no_effect_here_is_refused_and_portable_for_a_phone(
    mnn: WorkerBench, convolutions: Any
) -> None:
    result = mnn.compile(convolutions, precision="fp16", hardware=PHONE)
    assert any("takes effect on phone" in note for note in result.notes)
    size = (mnn.payload / "model.mnn").stat().st_size
    mnn.compile(convolutions)
    assert size < 0.7 * (mnn.payload / "model.mnn").stat().st_size  # weights in 16 bits
    probe = {"x": np.ones((1, 16, 20, 36), np.float32)}
    exact = mnn.run(probe)[0]["y"]
    assert np.abs(exact - _expected(convolutions, probe)["y"]).max() < 1e-5


def test_probe_names_the_version(mnn: WorkerBench) -> None:
    with mnn.worker() as worker:
        (found,) = worker.call("probe", None, tuple[Availability, ...])
    assert found.available
    assert found.versions["MNN"] == "3.6.1"


def test_pooling_with_pads_and_no_strides(mnn: WorkerBench, build: Any) -> None:
    """MNN 3.6.1 divides by zero where strides are left to their default."""
    model = build(
        [("AveragePool", ["x"], ["y"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})],
        [("x", FLOAT, [1, 5, 7, 6])],
        [("y", FLOAT, [1, 5, 7, 6])],
    )
    feed = {"x": np.random.default_rng(1).normal(size=(1, 5, 7, 6)).astype(np.float32)}
    mnn.compile(model)
    _assert_same(mnn.run(feed)[0], _expected(model, feed))


def test_what_it_misconverts_is_refused(mnn: WorkerBench, build: Any) -> None:
    """MNN 3.6.1 pads at the end where ONNX says at the beginning."""
    model = build(
        [
            (
                "MaxPool",
                ["x"],
                ["y"],
                {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
            )
        ],
        [("x", FLOAT, [1, 4, 8, 8])],
        [("y", FLOAT, [1, 4, 4, 4])],
    )
    with pytest.raises(UnsupportedError, match="output `y` at x=1x4x8x8"):
        mnn.compile(model)


def test_names_dtypes_and_dynamic_sizes_stay(mnn: WorkerBench, build: Any) -> None:
    """Token ids, a mask, a scalar, an input that nobody reads and one that is an output."""
    model = build(
        [
            ("Gather", ["table", "ids"], ["rows"], {}),
            ("Where", ["mask", "rows", "factor"], ["kept:0"], {}),
            ("ReduceSum", ["kept:0", "last"], ["a/sum"], {"keepdims": 0}),
            ("ArgMax", ["a/sum"], ["best"], {"axis": 1, "keepdims": 0}),
            ("Identity", ["ids"], ["same"], {}),
        ],
        [
            ("ids", TensorProto.INT64, ["batch", "length"]),
            ("unread", FLOAT, [2]),
            ("mask", TensorProto.BOOL, ["batch", "length", 1]),
            ("factor", FLOAT, []),
        ],
        [
            ("best", TensorProto.INT64, ["batch"]),
            ("a/sum", FLOAT, ["batch", "length"]),
            ("same", TensorProto.INT64, ["batch", "length"]),
        ],
        {
            "table": np.random.default_rng(2).normal(size=(32, 8)).astype(np.float32),
            "last": np.array([2], np.int64),
        },
    )
    result = mnn.compile(model)
    assert result.signature == signature_of(model)
    assert any("32 bits" in note for note in result.notes)
    feeds: list[dict[str, Array]] = []
    for number, shape in enumerate([(2, 7), (1, 1), (3, 40)]):
        source = np.random.default_rng(number)
        feeds.append(
            {
                "ids": source.integers(0, 32, shape),
                "unread": np.zeros(2, np.float32),
                "mask": source.random((*shape, 1)) < 0.5,
                "factor": np.array(0.25, np.float32),
            }
        )
    for feed, actual in zip(feeds, mnn.run(*feeds), strict=True):
        _assert_same(actual, _expected(model, feed))
    with mnn.worker() as worker:
        session = worker.open(mnn.load_request())
        with pytest.raises(UnsupportedError, match="32 bits"):
            session.run(feeds[0] | {"ids": feeds[0]["ids"] + 2**40})


@pytest.mark.parametrize(
    "name", ["dtln_1", "espcn_x3_nnresize_float", "mnist_conv_o8", "optimum_tiny_bert", "xdl_dnn"]
)
def test_real_models(mnn: WorkerBench, golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    result = mnn.compile(case.path)
    feed = {spec.name: case.feed[spec.name] for spec in result.signature.inputs}
    case.assert_same(mnn.run(feed)[0])
    if name == "espcn_x3_nnresize_float":  # off by 3e-4 of its scale with Winograd's algorithm
        assert result.settings == {"winograd": "false"}
        assert any("Winograd" in note for note in result.notes)


def test_a_model_that_takes_no_drawn_input_needs_sizes(
    mnn: WorkerBench, golden: Callable[[str], Any]
) -> None:
    case = golden("silero_vad_v5")
    with pytest.raises(UnsupportedError, match="none of the inputs") as raised:
        mnn.compile(case.path)
    assert "--shape" in raised.value.hint
    shapes = {name: array.shape for name, array in case.feed.items()}
    mnn.compile(case.path, shapes=shapes)
    case.assert_same(mnn.run(case.feed)[0])


def test_operators_are_timed_and_carry_their_nodes(mnn: WorkerBench, convolutions: Any) -> None:
    for number, node in enumerate(convolutions.graph.node):
        node.name = f"node_{number}"
    mnn.compile(convolutions)
    feed = mnn.folder / "feed.npz"
    write_tensors(feed, {"x": np.ones((1, 16, 20, 36), np.float32)})
    with mnn.worker() as worker:
        request = OperatorsRequest(load=mnn.load_request(), feed=str(feed))
        found = worker.call("operators", request, tuple[OperatorRun, ...])
    computing = [run for run in found if run.operator.startswith("Convolution")]
    assert len(computing) == 3
    assert {node for run in computing for node in run.nodes} <= {f"node_{n}" for n in range(5)}
    assert all(run.nodes for run in computing)
    assert all(run.time_us is not None and run.time_us > 0 for run in found)
    assert {(run.device, run.precision) for run in found} == {("cpu", "fp32")}


def test_the_same_model_gives_the_same_file(mnn: WorkerBench, convolutions: Any) -> None:
    contents = []
    for _ in range(2):
        mnn.compile(convolutions)
        contents.append({path.name: path.read_bytes() for path in mnn.payload.iterdir()})
    assert sorted(contents[0]) == ["model.mnn", "nodes.json"]
    assert contents[0] == contents[1]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the recorder needs Linux and gcc")
    built = tmp_path_factory.mktemp("recorder") / "connect_recorder.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-o", str(built), str(RECORDER), "-ldl"]
    subprocess.run(command, check=True)
    return built


def test_compiling_opens_no_connection(
    mnn: WorkerBench, convolutions: Any, recorder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = mnn.folder / "connections.txt"
    monkeypatch.setenv("LD_PRELOAD", str(recorder))
    monkeypatch.setenv("CONNECT_RECORDER", str(log))
    mnn.compile(convolutions)
    mnn.run({"x": np.ones((1, 16, 20, 36), np.float32)})
    assert not log.exists(), log.read_text()
    packages = mnn.python.parent.parent / "lib"
    assert not list(packages.glob("python*/site-packages/aliyun*"))


def test_the_modules_that_send_cannot_be_imported(mnn: WorkerBench) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deploykit._plugins.targets.mnn_net import session\n"
        "session.runtime()\n"
        "try:\n    import MNN.tools.utils.log\n"
        "except ImportError as error:\n    print(error)\n"
        "print(sorted(name for name in sys.modules if 'aliyun' in name))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [str(mnn.python), "-c", code, str(root)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    refused, senders = done.stdout.splitlines()[-2:]
    assert refused.startswith("No module named 'MNN.tools")
    assert senders == "[]"
