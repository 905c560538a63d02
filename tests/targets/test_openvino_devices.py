"""Devices of the target openvino, other machines, and what its operations really do."""

from __future__ import annotations

import importlib
import json
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

import deploykit
from deploykit import environments, plugins
from deploykit.errors import BundleError, UnavailableError, UnsupportedError
from deploykit.onnx_file import signature_of
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    Hardware,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
)
from deploykit.steps import Worker
from deploykit.tensors import write_tensors

FLOAT = TensorProto.FLOAT
pytestmark = pytest.mark.environment


@dataclass
class Bench:
    """The target in a worker of its own, on one model."""

    worker: Worker
    folder: Path
    request: CompileRequest | None = None
    result: CompileResult | None = None

    def compile(self, model: onnx.ModelProto | Path, **more: Any) -> CompileResult:
        """Compile for `cpu`, or as `more` says."""
        payload = self.folder / "payload"
        payload.mkdir()
        path = model if isinstance(model, Path) else self.folder / "model.onnx"
        if not isinstance(model, Path):
            onnx.save(model, path)
        request = CompileRequest(
            model=str(path),
            payload=str(payload),
            signature=signature_of(onnx.load(path)),
            **{"device": "cpu", "threads": 2, **more},
        )
        self.request = request
        self.result = self.worker.call("compile", request, CompileResult)
        return self.result

    def load_request(self) -> LoadRequest:
        assert self.request is not None
        assert self.result is not None
        return LoadRequest(
            payload=self.request.payload,
            signature=self.result.signature,
            device=self.request.device,
            precision=self.request.precision,
            threads=2,
            settings=self.result.settings,
        )

    def run(self, feed: dict[str, Any]) -> dict[str, Any]:
        """Load what was compiled and run it once, in the worker."""
        session = self.worker.open(self.load_request())
        try:
            return session.run(feed)
        finally:
            session.close()

    def operators(self, feed: dict[str, Any]) -> tuple[OperatorRun, ...]:
        write_tensors(self.folder / "feed.npz", feed)
        request = OperatorsRequest(load=self.load_request(), feed=str(self.folder / "feed.npz"))
        return self.worker.call("operators", request, tuple[OperatorRun, ...])


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    plugin = plugins.target("openvino")
    python = environments.interpreter(plugin)
    with Worker(plugin, python=python, label="openvino") as worker:
        yield worker


@pytest.fixture
def bench(worker: Worker, tmp_path: Path) -> Bench:
    return Bench(worker, tmp_path)


@pytest.fixture(scope="module")
def audit() -> Any:
    return importlib.import_module("deploykit._plugins.targets.openvino_runtime.audit")


@pytest.fixture(scope="module")
def quantised(build: Any) -> onnx.ModelProto:
    """Two convolutions between QuantizeLinear and DequantizeLinear; any number of rows."""
    source = np.random.default_rng(3)
    nodes: list[Any] = []
    weights: dict[str, Any] = {"scale": np.array(0.01, np.float32), "zero": np.array(0, np.int8)}

    def stepped(name: str, step: float, zero: int) -> str:
        weights[f"{name}_s"] = np.array(step, np.float32)
        weights[f"{name}_z"] = np.array(zero, np.uint8)
        ends = [f"{name}_s", f"{name}_z"]
        nodes.append(("QuantizeLinear", [name, *ends], [f"{name}_q"], {"name": f"q/{name}"}))
        nodes.append(("DequantizeLinear", [f"{name}_q", *ends], [f"{name}_d"], {}))
        return f"{name}_d"

    def weight(name: str, *shape: int) -> str:
        weights[name] = source.integers(-127, 128, shape).astype(np.int8)
        nodes.append(("DequantizeLinear", [name, "scale", "zero"], [f"{name}_d"], {}))
        return f"{name}_d"

    first = [stepped("x", 0.03, 128), weight("w1", 32, 16, 3, 3)]
    nodes.append(("Conv", first, ["c"], {"name": "first", "pads": [1, 1, 1, 1]}))
    nodes.append(("Relu", ["c"], ["r"], {"name": "relu"}))
    nodes.append(
        ("Conv", [stepped("r", 0.1, 0), weight("w2", 8, 32, 1, 1)], ["y"], {"name": "last"})
    )
    model: onnx.ModelProto = build(
        nodes, [("x", FLOAT, ["n", 16, 12, 12])], [("y", FLOAT, ["n", 8, 12, 12])], weights
    )
    return model


def _image(rows: int = 1) -> dict[str, Any]:
    source = np.random.default_rng(0)
    return {"x": source.normal(size=(rows, 16, 12, 12)).astype(np.float32)}


def _expected(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


def test_a_device_that_is_not_here_says_what_is_missing(bench: Bench, convolutions: Any) -> None:
    found = bench.worker.call("probe", None, tuple[Availability, ...])
    by_name = {each.device: each for each in found}
    assert by_name["cpu"].available
    assert "cpu" in by_name["auto"].detail
    for device in ("gpu", "npu"):
        if by_name[device].available:
            continue
        assert by_name[device].detail
        assert "\n" not in by_name[device].detail
        with pytest.raises(UnavailableError) as raised:
            bench.compile(convolutions, device=device)
        assert by_name[device].detail in raised.value.message
        bench.folder.joinpath("payload").rmdir()


def test_a_device_that_nobody_has_is_named(bench: Bench, convolutions: Any) -> None:
    with pytest.raises(UnavailableError, match="knows no such device") as raised:
        bench.compile(convolutions, device="hetero:tpu,cpu")
    assert "cpu" in raised.value.hint


@pytest.mark.parametrize("device", ["auto", "hetero:cpu", "hetero:cpu,cpu"])
def test_devices_that_share_others(bench: Bench, quantised: Any, device: str) -> None:
    result = bench.compile(quantised, device=device)
    assert any("cpu" in note and device[:4] in note for note in result.notes) or any(
        "run on cpu" in note for note in result.notes
    )
    for rows in (1, 3):
        actual = bench.run(_image(rows))["y"]
        np.testing.assert_allclose(actual, _expected(quantised, _image(rows)), atol=1e-3)
    operators = bench.operators(_image())
    assert {each.device for each in operators} == {"cpu"}
    blob = bench.folder / "payload" / "model.blob"
    assert blob.is_file() == (device != "auto")


def test_auto_cannot_do_without_the_model(bench: Bench, convolutions: Any) -> None:
    with pytest.raises(UnsupportedError, match="no compiled form") as raised:
        bench.compile(convolutions, device="auto", settings={"fallback": "false"})
    assert "fallback" in raised.value.hint


def test_a_precision_is_kept_by_every_kind_of_device(
    bench: Bench, convolutions: Any, tmp_path: Path
) -> None:
    """OpenVINO takes bf16 by itself where the processor has it: fp32 must reach the inner device."""
    feed = {"x": np.random.default_rng(1).normal(size=(1, 16, 20, 36)).astype(np.float32)}
    for number, device in enumerate(("cpu", "auto", "hetero:cpu")):
        own = replace(bench, folder=tmp_path / str(number))
        own.folder.mkdir()
        own.compile(convolutions, device=device)
        assert {each.precision for each in own.operators(feed)} == {"fp32"}, device


def test_int8_is_what_the_model_is_quantised_to(bench: Bench, quantised: Any) -> None:
    result = bench.compile(quantised, precision="int8")
    assert "2 of 2 convolutions and matrix products run in int8" in result.notes[0]
    np.testing.assert_allclose(
        bench.run(_image())["y"], _expected(quantised, _image()), rtol=1e-3, atol=1e-3
    )
    by_node = {node: each for each in bench.operators(_image()) for node in each.nodes}
    assert by_node["first"].precision == "int8"
    assert by_node["last"].precision == "int8"
    assert by_node["first"].operator == "Convolution"
    assert by_node["q/x"].precision == "fp32"
    assert all(each.time_us is not None and each.time_us >= 0 for each in by_node.values())


def test_int8_of_a_model_that_is_not_quantised_is_refused(bench: Bench, convolutions: Any) -> None:
    with pytest.raises(UnsupportedError, match="int8") as raised:
        bench.compile(convolutions, precision="int8")
    assert "QuantizeLinear" in raised.value.hint


def test_nodes_of_a_real_model(bench: Bench, golden: Callable[[str], Any]) -> None:
    """Named nodes, two LSTM of several layers each, and outputs that are named otherwise."""
    case = golden("dtln_1")
    bench.compile(case.path)
    case.assert_same(bench.run(case.feed))
    model = onnx.load(case.path)
    names = {node.name for node in model.graph.node}
    found = [node for each in bench.operators(case.feed) for node in each.nodes]
    assert set(found) <= names
    kinds = {node.op_type for node in model.graph.node if node.name in found}
    assert {"LSTM", "Sigmoid", "Slice"} <= kinds


def test_nodes_without_names_go_by_their_first_output(bench: Bench, convolutions: Any) -> None:
    assert not any(node.name for node in convolutions.graph.node)
    bench.compile(convolutions)
    feed = {"x": np.random.default_rng(1).normal(size=(1, 16, 20, 36)).astype(np.float32)}
    found = [node for each in bench.operators(feed) for node in each.nodes]
    assert found == ["c1", "r1", "c2", "k2", "y"]


def test_every_convolution_of_a_real_model_is_found(
    bench: Bench, golden: Callable[[str], Any]
) -> None:
    case = golden("ultraface_slim320_simplified")
    bench.compile(case.path)
    graph = onnx.load(case.path).graph
    convolutions = {node.name or node.output[0] for node in graph.node if node.op_type == "Conv"}
    found = {
        node
        for each in bench.operators(case.feed)
        if "Convolution" in each.operator
        for node in each.nodes
    }
    assert convolutions <= found


def _for(architecture: str) -> Hardware:
    return Hardware(name="a board", triple=f"{architecture}-linux-gnu")


def test_for_another_machine_the_payload_is_the_model(
    bench: Bench, golden: Callable[[str], Any]
) -> None:
    case = golden("mnist_conv_o8")
    result = bench.compile(case.path, hardware=_for("aarch64"))
    assert result.portable
    assert any("compiled on a board" in note for note in result.notes)
    assert not (bench.folder / "payload" / "model.blob").exists()
    case.assert_same(bench.run(case.feed))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"hardware": _for("xtensa")}, "xtensa"),
        ({"hardware": _for("aarch64"), "device": "npu"}, "aarch64"),
        ({"hardware": _for("aarch64"), "precision": "fp16"}, "shows only there"),
        ({"hardware": _for("aarch64"), "settings": {"fallback": "false"}}, "compiled there"),
    ],
)
def test_what_cannot_be_made_for_another_machine(
    bench: Bench, convolutions: Any, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        bench.compile(convolutions, **more)


def test_a_blob_of_another_architecture_is_not_tried(bench: Bench, convolutions: Any) -> None:
    bench.compile(convolutions, settings={"fallback": "false"})
    path = bench.folder / "payload" / "build.json"
    build = json.loads(path.read_text())
    path.write_text(json.dumps({**build, "architecture": "z80"}))
    with pytest.raises(UnavailableError, match="z80"):
        bench.run({"x": np.zeros((1, 16, 20, 36), np.float32)})


@pytest.mark.parametrize("content", ["", "[]", '{"architecture": 1, "nodes": {}, "layers": {}}'])
def test_a_damaged_payload(bench: Bench, convolutions: Any, content: str) -> None:
    bench.compile(convolutions)
    (bench.folder / "payload" / "build.json").write_text(content)
    with pytest.raises(BundleError, match=r"build\.json"):
        bench.run({"x": np.zeros((1, 16, 20, 36), np.float32)})


def test_a_bundle_of_a_device_with_arguments(small_onnx: Path, tmp_path: Path) -> None:
    compilation = deploykit.compile(small_onnx, ["openvino:hetero:cpu"], tmp_path / "bundles")
    (bundle,) = compilation.bundles
    assert bundle.outcome.kind == "ok", bundle.outcome
    assert bundle.folder is not None
    assert pathlib.Path(bundle.folder).name == "openvino-hetero-cpu-fp32"
    assert all(parity.ok for parity in bundle.parity)
    assert deploykit.verify(bundle.folder).parity


# what needs no model: two devices are not at hand here


def _info(name: str, kind: str, microseconds: int, status: str = "EXECUTED") -> Any:
    return SimpleNamespace(
        node_name=name,
        node_type=kind,
        status=f"Status.{status}",
        real_time=timedelta(microseconds=microseconds),
    )


def test_operations_of_two_devices(audit: Any) -> None:
    """As HETERO reports: names with their subgraph, and layers that only one device has made up."""
    executed = [
        audit.Executed("a", "convolution", "fp16", "a,b"),
        audit.Executed("own", "reorder", "fp16", ""),
        audit.Executed("c", "FullyConnected", "fp32", "c/WithoutBiases,c"),
    ]
    profiles = [
        [
            _info("subgraph0: a", "convolution", time),
            _info("subgraph0: own", "reorder", 1),
            _info("subgraph0: gone", "Relu", 0, "NOT_RUN"),
            _info("subgraph1: c", "FullyConnected", 7),
        ]
        for time in (10, 30, 20)
    ]
    names = audit.NodeNames({"a": ("x",), "b": ("y",), "c": ("z",)})
    placed = {"a": "gpu", "b": "gpu", "c": "cpu"}
    found = audit.operator_runs(executed, profiles, names, ("gpu", "cpu"), placed)
    assert [(each.name, each.device, each.nodes, each.time_us) for each in found] == [
        ("a", "gpu", ("a", "b"), 20.0),
        ("own", "gpu", (), 1.0),
        ("c", "cpu", ("c",), 7.0),
    ]
    assert [each.precision for each in found] == ["fp16", "fp16", "fp32"]


@pytest.mark.parametrize(
    ("layers", "nodes"),
    [
        ("", ()),
        ("conv", ("conv",)),
        ("conv/WithoutBiases,conv,185", ("conv", "unnamed")),
        ("y_original,y", ("last",)),
        ("split_s2", ("split",)),
        ("a,b", ("a,b",)),
        ("a,b/fq,conv", ("a,b", "conv")),
        ("LSTMSequence_7,Multiply_8", ("lstm",)),
        ("/m/conv/Conv/extra", ("/m/conv/Conv",)),
        ("convolution", ()),
    ],
)
def test_onnx_nodes_of_layers(audit: Any, layers: str, nodes: tuple[str, ...]) -> None:
    names = audit.NodeNames(
        {
            "conv": ("184",),
            "unnamed": ("185",),
            "last": ("y",),
            "split": ("s1", "s2"),
            "a,b": ("ab",),
            "/m/conv/Conv": ("mc",),
        },
        {"LSTMSequence_7": "lstm"},
    )
    assert names.of(layers) == nodes


@pytest.mark.parametrize(
    ("precision", "ran", "halves", "said"),
    [
        ("fp32", {"fp32": 3, "bf16": 1}, False, "although fp32"),
        ("fp16", {"fp32": 3, "bf16": 1}, False, "in fp16 here .3 in fp32, 1 in bf16."),
        ("fp16", {"fp32": 3}, False, "in fp16 here .3 in fp32."),
        ("int8", {"fp32": 3, "uint8": 2}, False, "no operation"),
    ],
)
def test_a_precision_that_is_not_what_ran_is_refused(
    audit: Any, precision: str, ran: dict[str, int], halves: bool, said: str
) -> None:
    executed = [
        audit.Executed(f"{word}{number}", "Convolution", word, "")
        for word, count in ran.items()
        for number in range(count)
    ]
    with pytest.raises(UnsupportedError, match=said):
        audit.precision_notes(executed, precision, halves=halves, device="cpu")


def test_what_the_audit_lets_pass(audit: Any) -> None:
    half = [audit.Executed("a", "Convolution", "fp16", "")]
    assert audit.precision_notes(half, "fp32", halves=True, device="cpu") == []
    assert "fp16" in audit.precision_notes(half, "fp16", halves=False, device="gpu")[0]
    assert "does not tell" in audit.precision_notes([], "fp16", halves=False, device="npu")[0]
