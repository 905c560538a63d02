"""The target iree, in a worker of its own environment."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.onnx_file import signature_of
from deploykit.protocol import (
    CompileRequest,
    CompileResult,
    Hardware,
    OperatorRun,
    OperatorsRequest,
)
from deploykit.tensors import write_tensors

from .worker_bench import WorkerBench

FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64
PI_5 = Hardware(name="raspberry-pi-5", triple="aarch64-linux-gnu", cpu="cortex-a76")
ALIGNED = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
pytestmark = pytest.mark.environment
Feed = dict[str, "np.ndarray[Any, Any]"]


def compiled_module(target: WorkerBench) -> bytes:
    return (target.payload / "model.vmfb").read_bytes()


@pytest.fixture
def target(tmp_path: Path) -> WorkerBench:
    return WorkerBench("iree", tmp_path)


def _assert_like_reference(
    actual: Feed, model: onnx.ModelProto, feed: Feed, rtol: float = 1e-4
) -> None:
    evaluator = ReferenceEvaluator(model)
    expected = dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert actual[name].shape == value.shape
        np.testing.assert_allclose(actual[name], value, rtol=rtol, atol=rtol / 10, err_msg=name)


def _normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _perceptron(build: Any) -> Any:
    return build(
        [
            ("MatMul", ["x", "w"], ["z"], {}),
            ("Add", ["z", "b"], ["a"], {}),
            ("Relu", ["a"], ["y"], {}),
        ],
        [("x", FLOAT, [16, 32])],
        [("y", FLOAT, [16, 64])],
        {"w": _normal(32, 64, seed=1), "b": _normal(64, seed=2)},
    )


# Refusals.


def _one_node(node: Any, inputs: list[Any], output: Any) -> onnx.ModelProto:
    """Return a model that onnx itself would not check."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "graph", [info(*each) for each in inputs], [info(*output)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            helper.make_node("GridSample", ["x", "grid"], ["y"], "sampler", domain="com.microsoft"),
            "com.microsoft.GridSample",
        ),
        (
            helper.make_node("GridSample", ["x", "grid"], ["y"], "sampler", mode="bicubic"),
            "GridSample",
        ),
    ],
)
def test_an_operator_that_it_lacks_is_named(target: WorkerBench, node: Any, said: str) -> None:
    inputs = [("x", FLOAT, [1, 1, 4, 4]), ("grid", FLOAT, [1, 2, 2, 2])]
    with pytest.raises(UnsupportedError, match="iree") as raised:
        target.compile(_one_node(node, inputs, ("y", FLOAT, [1, 1, 2, 2])))
    assert raised.value.operators == (said,)
    assert said.startswith("com") or "sampler" in raised.value.message


def test_what_comes_out_wrong_is_refused(target: WorkerBench, build: Any) -> None:
    resized = build(
        [("Resize", ["x", "", "scales"], ["y"], ALIGNED)],
        [("x", FLOAT, [1, 1, 2, 4])],
        [("y", FLOAT, [1, 1, 1, 2])],
        {"scales": np.array([1, 1, 0.6, 0.6], np.float32)},
    )
    with pytest.raises(UnsupportedError, match="wrong") as raised:
        target.compile(resized)
    assert raised.value.operators == ("Resize",)


def test_scan_is_refused_for_it_comes_out_wrong(target: WorkerBench, build: Any) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["sum", "next"], ["total"]),
            helper.make_node("Identity", ["total"], ["each"]),
        ],
        "body",
        [info("sum", FLOAT, [2]), info("next", FLOAT, [2])],
        [info("total", FLOAT, [2]), info("each", FLOAT, [2])],
    )
    model = build(
        [("Scan", ["start", "x"], ["last", "sums"], {"body": body, "num_scan_inputs": 1})],
        [("start", FLOAT, [2]), ("x", FLOAT, [3, 2])],
        [("last", FLOAT, [2]), ("sums", FLOAT, [3, 2])],
    )
    with pytest.raises(UnsupportedError, match="wrong") as raised:
        target.compile(model)
    assert raised.value.operators == ("Scan",)


def test_strings_and_unknown_ranks_are_refused(target: WorkerBench, build: Any) -> None:
    words = build(
        [("Identity", ["x"], ["y"], {})],
        [("x", TensorProto.STRING, [2])],
        [("y", TensorProto.STRING, [2])],
    )
    with pytest.raises(UnsupportedError, match="string"):
        target.compile(words)
    relu = helper.make_node("Relu", ["x"], ["y"])
    rank = _one_node(relu, [("x", FLOAT, None)], ("y", FLOAT, None))
    with pytest.raises(UnsupportedError, match="how many axes") as raised:
        target.compile(rank)
    assert "--shape" in raised.value.hint


@pytest.mark.parametrize("content", [b"no model at all", b"\x08\x08\x12\x04onnx\x3a\xff\xff"])
def test_a_file_that_is_no_model(target: WorkerBench, build: Any, content: bytes) -> None:
    broken = target.folder / "broken.onnx"
    broken.write_bytes(content)
    request = CompileRequest(
        model=str(broken),
        payload=str(target.folder),
        signature=signature_of(_perceptron(build)),
        device="cpu",
    )
    with target.worker() as worker, pytest.raises(SourceError, match=r"broken\.onnx"):
        worker.call("compile", request, CompileResult)


@pytest.mark.parametrize(
    ("device", "hardware", "said"),
    [
        ("cpu", {"triple": "aarch64-linux-gnu", "cpu": "cortex-z99"}, "processor `cortex-z99`"),
        ("cpu", {"triple": "aarch64-linux-gnu", "features": ("+nosuch",)}, "nosuch"),
        ("cpu", {"triple": "wasm32-unknown-unknown"}, "wasm32"),
        ("cuda", {"triple": "x86_64-linux-gnu", "gpu": "gfx1100"}, "sm_80"),
        ("vulkan", {"triple": "x86_64-linux-gnu", "gpu": "voodoo2"}, "voodoo2"),
    ],
)
def test_hardware_without_code_is_refused(
    target: WorkerBench, build: Any, device: str, hardware: Any, said: str
) -> None:
    with pytest.raises(UnsupportedError) as raised:
        target.compile(_perceptron(build), device=device, hardware=Hardware(name="odd", **hardware))
    assert said in raised.value.message + raised.value.hint


def test_a_half_precision_that_would_not_take_effect_is_refused(
    target: WorkerBench, build: Any
) -> None:
    old = Hardware(name="old", triple="x86_64-linux-gnu", cpu="x86-64-v3")
    for precision in ("fp16", "bf16"):
        with pytest.raises(UnsupportedError, match="float32 first"):
            target.compile(_perceptron(build), precision=precision, hardware=old)
    plain = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, [4])], [("y", FLOAT, [4])])
    with pytest.raises(UnsupportedError, match="no effect"):
        target.compile(plain, precision="fp16", hardware=PI_5)


# Values.


@pytest.mark.parametrize("name", ["mnist_conv_o8", "optimum_tiny_bert", "dtln_1"])
def test_real_models(target: WorkerBench, golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    result = target.compile(case.path)
    feed = {spec.name: case.feed[spec.name] for spec in result.signature.inputs}
    (actual,) = target.run(feed)
    case.assert_same(actual)


def test_a_dynamic_batch(target: WorkerBench, small_onnx: Path) -> None:
    result = target.compile(small_onnx)
    assert result.signature.inputs[0].shape == ("batch", 3, 8, 8)
    assert any("x:0 may have any size" in note for note in result.notes)
    feeds = [{"x": _normal(batch, 3, 8, 8, seed=batch)} for batch in (1, 2, 5)]
    for feed, actual in zip(feeds, target.run(*feeds), strict=True):
        _assert_like_reference(actual, onnx.load(small_onnx), feed)


def test_a_size_is_found_among_unknown_ones(target: WorkerBench, build: Any) -> None:
    """What the importer alone gets wrong: it lines up the axes of a Reshape one by one."""
    model = build(
        [
            ("Reshape", ["x", "heads"], ["split"], {}),
            ("Transpose", ["split"], ["turned"], {"perm": [0, 2, 1, 3]}),
            ("Mul", ["turned", "scale"], ["scaled"], {}),
            ("Transpose", ["scaled"], ["back"], {"perm": [0, 2, 1, 3]}),
            ("Reshape", ["back", "rows"], ["y"], {}),
        ],
        [("x", FLOAT, ["batch", "length", "width"]), ("scale", FLOAT, ["batch", 1, 1, 1])],
        [("y", FLOAT, [None, 16])],
        {"heads": np.array([0, 0, -1, 8]), "rows": np.array([-1, 16])},
    )
    target.compile(model)
    feeds = [
        {"x": _normal(2, 3, 16), "scale": _normal(2, 1, 1, 1)},
        {"x": _normal(3, 5, 32), "scale": _normal(3, 1, 1, 1)},
    ]
    for feed, actual in zip(feeds, target.run(*feeds), strict=True):
        _assert_like_reference(actual, model, feed)


def test_pools_with_uneven_borders_and_float64(target: WorkerBench, build: Any) -> None:
    """Float64 stays so where a model has it; without any, the compiler's own constants may not."""
    pool = build(
        [
            (
                "MaxPool",
                ["x"],
                ["y"],
                {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 2]},
            )
        ],
        [("x", FLOAT, [1, 1, 7, 6])],
        [("y", FLOAT, [1, 1, 3, 3])],
    )
    target.compile(pool)
    feed = {"x": _normal(1, 1, 7, 6)}
    (actual,) = target.run(feed)
    _assert_like_reference(actual, pool, feed)
    double = TensorProto.DOUBLE
    third = build(
        [("Div", ["x", "three"], ["y"], {})],
        [("x", double, [2])],
        [("y", double, [2])],
        {"three": np.array(3.0)},
    )
    target.compile(third)
    (actual,) = target.run({"x": np.array([1.0, 2.0])})
    assert actual["y"].tolist() == [1 / 3, 2 / 3]


def test_types_and_branches(target: WorkerBench, build: Any) -> None:
    info = helper.make_tensor_value_info
    twice = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["double"])], "a", [], [info("double", FLOAT, [2, 3])]
    )
    same = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["single"])], "b", [], [info("single", FLOAT, [2, 3])]
    )
    model = build(
        [
            ("If", ["yes"], ["branch"], {"then_branch": twice, "else_branch": same}),
            ("Where", ["mask", "x", "low"], ["picked"], {}),
            ("ArgMax", ["picked"], ["best"], {"axis": 1, "keepdims": 0}),
            ("Not", ["mask"], ["others"], {}),
            ("Cast", ["bytes"], ["wide"], {"to": INT64}),
            ("Sub", ["wide", "big"], ["less"], {}),
        ],
        [
            ("yes", TensorProto.BOOL, []),
            ("x", FLOAT, [2, 3]),
            ("bytes", TensorProto.UINT8, [3]),
        ],
        [
            ("branch", FLOAT, [2, 3]),
            ("best", INT64, [2]),
            ("others", TensorProto.BOOL, [2, 3]),
            ("less", INT64, [3]),
        ],
        {
            "mask": np.array([[True, False, True], [False, True, True]]),
            "low": np.array(-1e9, np.float32),
            "big": np.array(1 << 40),
        },
    )
    target.compile(model)
    feeds = [
        {"yes": np.array(yes), "x": _normal(2, 3), "bytes": np.array([0, 128, 255], np.uint8)}
        for yes in (True, False)
    ]
    for feed, actual in zip(feeds, target.run(*feeds), strict=True):
        _assert_like_reference(actual, model, feed)


def test_half_precision_where_the_processor_has_it(target: WorkerBench, build: Any) -> None:
    result = target.compile(_perceptron(build), precision="fp16", hardware=PI_5)
    assert any("fp16" in note for note in result.notes)
    kernels = json.loads((target.payload / "build.json").read_text())["kernels"]
    assert any("f16" in name for name in kernels)
    flags = Path("/proc/cpuinfo").read_text()
    if not re.search(r"\bavx512_bf16\b", flags):
        pytest.skip("this processor has no bf16")
    target.compile(_perceptron(build), precision="bf16")
    feed = {"x": _normal(16, 32)}
    (actual,) = target.run(feed)
    (expected,) = ReferenceEvaluator(_perceptron(build)).run(None, feed)
    error = np.abs(actual["y"] - expected).max()
    assert 1e-4 < error < 2e-2 * np.abs(expected).max()


# Other machines, other devices.


def test_for_a_raspberry_pi(target: WorkerBench, build: Any) -> None:
    result = target.compile(_perceptron(build), hardware=PI_5)
    module = compiled_module(target)
    header = module[module.index(b"\x7fELF") :]
    assert header[4] == 2  # 64 bits
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
    assert {"asimd", "asimddp"} <= set(result.cpu_flags)
    with target.worker() as worker, pytest.raises(UnavailableError, match="aarch64"):
        worker.open(target.load_request())


def test_for_riscv_and_a_level_of_x86(target: WorkerBench, build: Any) -> None:
    target.compile(_perceptron(build), hardware=Hardware(name="board", triple="riscv64-linux-gnu"))
    header = compiled_module(target)[compiled_module(target).index(b"\x7fELF") :]
    assert int.from_bytes(header[18:20], "little") == 243  # EM_RISCV
    v3 = Hardware(name="v3", triple="x86_64-linux-gnu", cpu="x86-64-v3")
    result = target.compile(_perceptron(build), hardware=v3)
    assert {"avx2", "fma", "abm"} <= set(result.cpu_flags)
    assert not [name for name in result.cpu_flags if name.startswith("avx512")]


@pytest.mark.parametrize(("asked", "made"), [("sm_80", b"sm_80"), ("sm_90", b"sm_89")])
def test_for_cuda_without_a_gpu(target: WorkerBench, build: Any, asked: str, made: bytes) -> None:
    gpu = Hardware(name="gpu", triple="x86_64-linux-gnu", gpu=asked)
    result = target.compile(_perceptron(build), device="cuda", hardware=gpu)
    module = compiled_module(target)
    assert re.findall(rb"\.target (sm_\w+)", module)[0] == made
    assert b"tf32" not in module  # fp32 is fp32
    assert any(made.decode() in note for note in result.notes)
    assert any(asked in note for note in result.notes)


def test_a_device_that_is_not_here_says_what_is_missing(
    target: WorkerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nonexistent.json")
    monkeypatch.setenv("VK_DRIVER_FILES", "/nonexistent.json")
    found = target.probe()
    assert found["cpu"].available
    assert not found["vulkan"].available
    assert "mesa-vulkan-drivers" in found["vulkan"].detail
    if not found["cuda"].available:
        assert "NVIDIA" in found["cuda"].detail


def test_on_vulkan(target: WorkerBench, golden: Callable[[str], Any]) -> None:
    here = target.probe()["vulkan"]
    if not here.available:
        pytest.skip(here.detail)
    case = golden("mnist_conv_o8")
    result = target.compile(case.path, device="vulkan")
    feed = {spec.name: case.feed[spec.name] for spec in result.signature.inputs}
    (actual,) = target.run(feed)
    case.assert_same(actual)


# What is loaded.


def test_a_payload_for_another_processor_is_refused(target: WorkerBench, build: Any) -> None:
    target.compile(_perceptron(build))
    path = target.payload / "build.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "cpu_flags": [*found["cpu_flags"], "avx9000"]}))
    with target.worker() as worker, pytest.raises(UnavailableError, match="avx9000"):
        worker.open(target.load_request())


def test_threads_are_those_asked_for(target: WorkerBench, build: Any) -> None:
    target.compile(_perceptron(build))
    counts = []
    with target.worker() as worker:
        for threads in (1, 3):
            worker.open(target.load_request(threads=threads))
            names = Path(f"/proc/{worker.pid}/task").glob("*/comm")
            counts.append(sum("iree" in name.read_text() for name in names))
    # and one in each pool that waits for others
    assert counts == [1 + 1, (1 + 1) + (3 + 1)]


@pytest.mark.parametrize("device", ["cpu", "vulkan"])
def test_what_runs_where(target: WorkerBench, build: Any, device: str) -> None:
    here = target.probe()[device]
    if not here.available:
        pytest.skip(here.detail)
    model = _perceptron(build)
    for node, name in zip(model.graph.node, ("product", "sum", "positive"), strict=True):
        node.name = name
    target.compile(model, device=device)
    feed = target.folder / "feed.npz"
    write_tensors(feed, {"x": _normal(16, 32)})
    request = OperatorsRequest(load=target.load_request(), feed=str(feed))
    with target.worker() as worker:
        runs = worker.call("operators", request, tuple[OperatorRun, ...])
    assert runs
    assert all(run.time_us is not None and run.time_us > 0 for run in runs)
    assert {run.device for run in runs} == {device}
    assert "positive" in {node for run in runs for node in run.nodes}
    assert "fp32" in {run.precision for run in runs if "matmul" in run.operator}
