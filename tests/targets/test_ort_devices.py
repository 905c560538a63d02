"""The target onnxruntime on the providers that run on any x86_64: OpenVINO on the processor, and
Qualcomm's NPU in its vendor's simulator, each in an environment of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import deploykit as dk
from deploykit import plugins
from deploykit.building import CompiledBundle
from deploykit.errors import UnsupportedError
from deploykit.onnx_file import signature_of
from deploykit.probing import interpreter, probe
from deploykit.processor import architecture
from deploykit.protocol import (
    CompileRequest,
    CompileResult,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
)
from deploykit.steps import OpenSession, Worker
from deploykit.tensors import write_tensors

pytestmark = pytest.mark.environment

TARGET = "onnxruntime"
FLOAT = TensorProto.FLOAT
on_x86 = pytest.mark.skipif(architecture() != "x86_64", reason="their packages are for x86_64")


@dataclass
class Made:
    """A model compiled for a device in one worker, and open in another."""

    result: CompileResult
    session: OpenSession
    payload: Path
    runs: tuple[OperatorRun, ...] = ()


class Provided:
    """One device of the target in the environment that deploykit makes for it."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device = device
        self.folder = folder
        self.plugin, _ = plugins.parse_target(f"onnxruntime:{device}")
        self.python = interpreter(self.plugin)

    def worker(self) -> Worker:
        return Worker(self.plugin, python=self.python, label=f"onnxruntime:{self.device}")

    @contextlib.contextmanager
    def made(
        self, model: onnx.ModelProto | Path, feed: dict[str, Any] | None = None, **more: Any
    ) -> Iterator[Made]:
        """Compile `model`, forget it, and load what was made; audit it on `feed`."""
        payload = self.folder / "payload"
        payload.mkdir()
        path = self.folder / "model.onnx"
        content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
        path.write_bytes(content)
        request = CompileRequest(
            model=str(path),
            payload=str(payload),
            signature=signature_of(onnx.load(path)),
            device=self.device,
            threads=1,
            **more,
        )
        with self.worker() as worker:
            result = worker.call("compile", request, CompileResult)
        path.unlink()
        load = LoadRequest(
            payload=str(payload),
            signature=result.signature,
            device=self.device,
            precision=request.precision,
            threads=1,
            settings=result.settings,
        )
        with self.worker() as worker:
            runs: tuple[OperatorRun, ...] = ()
            if feed is not None:
                write_tensors(self.folder / "feed.npz", feed)
                asked = OperatorsRequest(load=load, feed=str(self.folder / "feed.npz"))
                runs = worker.call("operators", asked, tuple[OperatorRun, ...])
            yield Made(result=result, session=worker.open(load), payload=payload, runs=runs)


@pytest.fixture
def openvino(tmp_path: Path) -> Provided:
    return Provided("openvino", tmp_path)


@pytest.fixture
def qnn(tmp_path: Path) -> Provided:
    return Provided("qnn", tmp_path)


@pytest.fixture
def straying(build: Any) -> onnx.ModelProto:
    """A convolution, which every provider takes, and float64, which few do."""
    weight = np.random.default_rng(2).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    model: onnx.ModelProto = build(
        [
            ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c"], ["r"], {}),
            ("Cast", ["r"], ["d"], {"to": TensorProto.DOUBLE}),
            ("Mul", ["d", "d"], ["y"], {}),
        ],
        [("x", FLOAT, ["n", 3, 16, 16])],
        [("y", TensorProto.DOUBLE, ["n", 8, 16, 16])],
        {"w": weight},
    )
    for node in model.graph.node:
        node.name = f"the {node.op_type}"
    return model


def _image(count: int = 1) -> dict[str, Any]:
    shape = (count, 3, 16, 16)
    return {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def _expected(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    outputs: Any = ReferenceEvaluator(model).run(None, feed)
    return outputs[0]


@on_x86
def test_openvino_leaves_float64_to_the_cpu_and_the_audit_says_so(
    openvino: Provided, straying: onnx.ModelProto
) -> None:
    with openvino.made(straying, _image()) as made:
        for count in (1, 3):  # sizes stay dynamic
            actual = made.session.run(_image(count))["y"]
            expected = _expected(straying, _image(count))
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
            made.session.bind(_image(count))
            bound = made.session.outputs()["y"]
            np.testing.assert_allclose(bound, expected, rtol=1e-4, atol=1e-5)
    devices = {name: run.device for run in made.runs for name in run.nodes}
    assert devices["the Conv"] == "openvino"
    assert devices["the Mul"] == "cpu"
    assert all(run.time_us is not None for run in made.runs)


@on_x86
@pytest.mark.parametrize("name", ["mnist_conv_o8", "optimum_tiny_bert"])
def test_real_models_in_openvino(
    openvino: Provided, golden: Callable[[str], Any], name: str
) -> None:
    case = golden(name)
    with openvino.made(case.path, case.feed) as made:
        case.assert_same(made.session.run(case.feed))
    assert {run.device for run in made.runs} == {"openvino"}
    narrow = any("32 bits" in note for note in made.result.notes)
    assert narrow == (name == "optimum_tiny_bert"), "its ids are int64"


@on_x86
def test_what_openvino_cannot_compile_is_one_line(
    openvino: Provided, golden: Callable[[str], Any]
) -> None:
    case = golden("silero_vad_v5")
    with pytest.raises(UnsupportedError, match="dynamic rank") as raised, openvino.made(case.path):
        pass
    assert "\n" not in raised.value.message


@on_x86
def test_qnn_computes_in_float16_and_leaves_other_operators_to_the_cpu(
    qnn: Provided, build: Any
) -> None:
    weight = np.random.default_rng(2).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    model = build(
        [
            ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c"], ["y"], {}),
            ("NonZero", ["x"], ["places"], {}),
        ],
        [("x", FLOAT, [1, 3, 16, 16])],
        [("y", FLOAT, [1, 8, 16, 16]), ("places", TensorProto.INT64, [4, None])],
        {"w": weight},
    )
    for node in model.graph.node:
        node.name = f"the {node.op_type}"
    feed = _image()
    feed["x"][0, 0] = 0
    with qnn.made(model, feed, precision="fp16") as made:
        actual = made.session.run(feed)
        made.session.bind(feed)
        bound = made.session.outputs()
    np.testing.assert_array_equal(bound["y"], actual["y"])
    np.testing.assert_array_equal(bound["places"], actual["places"])
    expected = _expected(model, feed)
    error = np.abs(actual["y"] - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < 1e-2  # rounded to float16, and no worse than that
    np.testing.assert_array_equal(actual["places"], np.nonzero(feed["x"]))
    devices = {name: run.device for run in made.runs for name in run.nodes}
    assert devices == {"the Conv": "qnn", "the Relu": "qnn", "the NonZero": "cpu"}
    assert any("simulator" in note for note in made.result.notes)


@on_x86
def test_what_qnn_compiled_is_kept_and_loaded(qnn: Provided, golden: Callable[[str], Any]) -> None:
    case = golden("mnist_conv_o8")
    settings = {"context": "true"}
    with qnn.made(case.path, case.feed, precision="fp16", settings=settings) as made:
        assert [path.name for path in made.payload.iterdir()] == ["model_ctx.onnx"]
        outputs = made.session.run(case.feed)
    graph = onnx.load(made.payload / "model_ctx.onnx").graph
    assert [node.op_type for node in graph.node] == ["EPContext"]
    for name, expected in case.outputs.items():
        assert np.abs(outputs[name] - expected).max() <= 2e-2 * np.abs(expected).max()


@on_x86
def test_qnn_has_no_float32(qnn: Provided, straying: onnx.ModelProto) -> None:
    with (
        pytest.raises(UnsupportedError, match="NPU computes floats in float16"),
        qnn.made(straying),
    ):
        pass


@on_x86
def test_strict_placement_refuses_what_openvino_leaves_to_the_cpu(
    straying: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(straying, tmp_path / "straying.onnx")
    checks = dk.Checks(seeds=1)

    def compiled(*, strict: bool) -> CompiledBundle:
        made = dk.compile(
            tmp_path / "straying.onnx",
            ["onnxruntime:openvino"],
            tmp_path / "bundles",
            checks=checks,
            strict_placement=strict,
        )
        return made.bundles[0]

    refused = compiled(strict=True)
    assert refused.outcome.kind == "unsupported"
    assert "ran on cpu: Cast, Mul" in refused.outcome.detail
    assert list((tmp_path / "bundles").iterdir()) == []
    taken = compiled(strict=False)
    assert taken.outcome.kind == "ok"
    assert {device: share.nodes for device, share in taken.placement.items()} == {
        "openvino": 2,
        "cpu": 2,
    }
    assert any("2 of 4 nodes" in note for note in taken.notes)
    assert dk.verify(taken.folder or "").cases == 3
    with dk.load(taken.folder or "") as session:
        assert session.isolated, "this Python has another ONNX Runtime"
        actual = session.run(_image())["y"]
    np.testing.assert_allclose(actual, _expected(straying, _image()), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_computes_in_float32(device: str, straying: onnx.ModelProto, tmp_path: Path) -> None:
    answers = {each.device: each for each in probe(plugins.target("onnxruntime"), install=False)}
    if not answers[device].available:
        pytest.skip(answers[device].detail)
    with Provided(device, tmp_path).made(straying, _image()) as made:
        actual = made.session.run(_image())["y"]
    expected = _expected(straying, _image())
    # tf32 would be a hundred times as far away
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    devices = {name: run.device for run in made.runs for name in run.nodes}
    assert devices["the Conv"] == device
