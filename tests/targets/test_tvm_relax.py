"""The target tvm."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import deploykit
from deploykit.errors import UnavailableError, UnsupportedError

TARGET = "tvm"
FLOAT = TensorProto.FLOAT
pytestmark = pytest.mark.environment


def _reference(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    """Return the first output, as onnx's reference computes it."""
    outputs: Any = ReferenceEvaluator(model).run(None, feed)
    return outputs[0]


def _image() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)}


def _recurrent(build: Any) -> Any:
    zeros = {
        "w": np.zeros((1, 12, 4), np.float32),
        "r": np.zeros((1, 12, 3), np.float32),
        "lw": np.zeros((1, 16, 3), np.float32),
        "lr": np.zeros((1, 16, 4), np.float32),
    }
    return build(
        [
            ("GRU", ["x", "w", "r"], ["g", ""], {"hidden_size": 3}),
            ("Squeeze", ["g", "one"], ["s"], {}),
            ("LSTM", ["s", "lw", "lr"], ["y", "", ""], {"hidden_size": 4}),
        ],
        [("x", FLOAT, [5, 2, 4])],
        [("y", FLOAT, [5, 1, 2, 4])],
        {**zeros, "one": np.array([1])},
    )


def test_all_missing_operators_are_named_at_once(bench: Any, build: Any) -> None:
    with pytest.raises(UnsupportedError, match="tvm") as raised:
        bench.compile(_recurrent(build))
    assert raised.value.operators == ("GRU", "LSTM")


def test_both_schedules_agree_and_ours_is_faster(bench: Any, convolutions: Any) -> None:
    expected = _reference(convolutions, _image())
    best = {}
    for schedule in ("plain", "fixed"):
        result = bench.compile(convolutions, threads=1, settings={"schedule": schedule})
        assert "tuning" in result.notes[0]
        session = bench.load(threads=1)
        np.testing.assert_allclose(session.run(_image())["y"], expected, rtol=1e-4, atol=1e-5)
        bound = session.bind(_image())
        taken = []
        for _ in range(20):
            start = time.perf_counter()
            bound()
            taken.append(time.perf_counter() - start)
        best[schedule] = min(taken)
    assert best["fixed"] < best["plain"] / 3  # 10 to 50 times on the machines tried


@pytest.mark.parametrize(
    ("nodes", "inputs", "outputs"),
    [
        # widths without a round divisor, a strided and a dilated window, an average
        (
            [("Conv", ["x", "w"], ["y"], {"strides": [2, 1], "dilations": [1, 2]})],
            [("x", FLOAT, [2, 3, 13, 17]), ("w", FLOAT, [7, 3, 3, 3])],
            [("y", FLOAT, [2, 7, 6, 13])],
        ),
        (
            [("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]})],
            [("x", FLOAT, [1, 3, 5, 7]), ("w", FLOAT, [3, 4, 3, 3])],
            [("y", FLOAT, [1, 4, 11, 15])],
        ),
        (
            [("MatMul", ["x", "w"], ["z"], {}), ("Softmax", ["z"], ["y"], {"axis": 1})],
            [("x", FLOAT, [3, 37, 19]), ("w", FLOAT, [3, 19, 23])],
            [("y", FLOAT, [3, 37, 23])],
        ),
        (
            [("ReduceMean", ["x"], ["z"], {"axes": [0, 2]}), ("Sub", ["x", "z"], ["y"], {})],
            [("x", FLOAT, [3, 37, 19])],
            [("y", FLOAT, [3, 37, 19])],
        ),
        (
            [("AveragePool", ["x"], ["y"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})],
            [("x", FLOAT, [1, 5, 33, 31])],
            [("y", FLOAT, [1, 5, 33, 31])],
        ),
    ],
    ids=["conv", "deconvolution", "matmul", "mean", "pool"],
)
def test_the_schedules_keep_the_values(
    bench: Any, build: Any, nodes: Any, inputs: Any, outputs: Any
) -> None:
    model = build(nodes, inputs, outputs)
    source = np.random.default_rng(7)
    feed = {name: source.normal(size=shape).astype(np.float32) for name, _, shape in inputs}
    bench.compile(model)
    expected = _reference(model, feed)
    np.testing.assert_allclose(bench.load().run(feed)["y"], expected, rtol=1e-4, atol=1e-5)


def test_dynamic_sizes_stay_so(bench: Any, build: Any) -> None:
    weight = np.random.default_rng(1).normal(size=(40, 24)).astype(np.float32)
    model = build(
        [("MatMul", ["x", "w"], ["z"], {}), ("Relu", ["z"], ["y"], {})],
        [("x", FLOAT, ["n", 40])],
        [("y", FLOAT, ["n", 24])],
        {"w": weight},
    )
    result = bench.compile(model)
    assert result.signature.inputs[0].shape == ("n", 40)
    assert any("x:0" in note for note in result.notes)
    session = bench.load()
    for rows in (1, 2, 17):
        x = np.random.default_rng(rows).normal(size=(rows, 40)).astype(np.float32)
        np.testing.assert_allclose(
            session.run({"x": x})["y"], np.maximum(x @ weight, 0), rtol=1e-4, atol=1e-5
        )


def _tiled(build: Any, *rest: str) -> Any:
    """Return a model that repeats its input as often as it has rows: TVM cannot size that."""
    return build(
        [("Shape", ["x"], ["s"], {}), ("Tile", ["x", "s"], ["y"], {})],
        [("x", FLOAT, ["n", *(rest or [3])])],
        [("y", FLOAT, [None, None])],
    )


def test_a_size_that_cannot_stay_dynamic_is_fixed_and_said(bench: Any, build: Any) -> None:
    result = bench.compile(_tiled(build))
    assert result.signature.inputs[0].shape == (1, 3)
    assert result.signature.outputs[0].shape == (1, 9)
    assert any("x:0" in note and "fixed to 1" in note for note in result.notes)
    assert bench.load().run({"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 9)
    result = bench.compile(_tiled(build), shapes={"x": (2, 3)})
    assert result.signature.outputs[0].shape == (4, 9)


def test_sizes_that_cannot_be_guessed_are_asked_for(bench: Any, build: Any) -> None:
    with pytest.raises(UnsupportedError, match="Tile") as raised:
        bench.compile(_tiled(build, "m"))
    assert "shapes" in raised.value.hint


def test_fp16_takes_effect(bench: Any, build: Any) -> None:
    weight = np.random.default_rng(1).normal(size=(8, 4, 3, 3)).astype(np.float32)
    model = build(
        [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["y"], {})],
        [("x", FLOAT, [1, 4, 12, 12])],
        [("y", FLOAT, [1, 8, 10, 10])],
        {"w": weight},
    )
    result = bench.compile(model, precision="fp16")
    assert any("float16" in note for note in result.notes)
    feed = {"x": np.random.default_rng(2).normal(size=(1, 4, 12, 12)).astype(np.float32)}
    expected = _reference(model, feed)
    actual = bench.load().run(feed)["y"]
    assert actual.dtype == np.float32
    assert 1e-5 < np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()


def test_fp16_that_cannot_be_converted_is_refused(bench: Any, build: Any) -> None:
    """A Clip whose bound is computed becomes kernels, where the conversion stops."""
    model = build(
        [("Conv", ["x", "w"], ["c"], {}), ("Clip", ["c", "low"], ["y"], {})],
        [("x", FLOAT, [1, 4, 12, 12]), ("low", FLOAT, [])],
        [("y", FLOAT, [1, 8, 10, 10])],
        {"w": np.ones((8, 4, 3, 3), np.float32)},
    )
    with pytest.raises(UnsupportedError, match="float16") as raised:
        bench.compile(model, precision="fp16")
    assert "fp32" in raised.value.hint


def test_a_replaced_library_is_loaded_anew(bench: Any, build: Any) -> None:
    """The system's loader would give the first again, for it goes by the path."""

    def adding(number: float) -> Any:
        return build(
            [("Add", ["x", "n"], ["y"], {})],
            [("x", FLOAT, [2])],
            [("y", FLOAT, [2])],
            {"n": np.array(number, np.float32)},
        )

    feed = {"x": np.zeros(2, np.float32)}
    bench.compile(adding(1))
    first, place = bench.load(), bench.payload
    assert list(first.run(feed)["y"]) == [1, 1]
    bench.compile(adding(2))
    place.rename(bench.folder / "old")
    bench.payload.rename(place)
    bench.payload = place
    assert list(bench.load().run(feed)["y"]) == [2, 2]
    assert list(first.run(feed)["y"]) == [1, 1]


def test_fp16_without_effect_is_refused(bench: Any, build: Any) -> None:
    model = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, [4])], [("y", FLOAT, [4])])
    with pytest.raises(UnsupportedError, match="no effect"):
        bench.compile(model, precision="fp16")
    with pytest.raises(UnsupportedError, match="bf16"):
        bench.compile(model, precision="bf16")


def test_a_library_for_another_processor_is_refused(bench: Any, convolutions: Any) -> None:
    bench.compile(convolutions)
    path = bench.payload / "build.json"
    build = json.loads(path.read_text())
    path.write_text(json.dumps({**build, "cpu_flags": [*build["cpu_flags"], "no-such-set"]}))
    with pytest.raises(UnavailableError, match="no-such-set"):
        bench.load()
    path.write_text(json.dumps({**build, "architecture": "z80"}))
    with pytest.raises(UnavailableError, match="z80"):
        bench.load()


def test_only_instructions_that_are_here(bench: Any) -> None:
    """A virtual machine hides some: LLVM knows the processor's name and would use them all."""
    import tvm

    machine = bench.module.machine
    present = machine._present()
    used = {
        str(name) for name in tvm.target.codegen.llvm_get_cpu_features(machine.this_one(2).target)
    }
    assert sorted(name for name in used if present.get(name) is False) == []


def test_threads_are_those_asked_for(bench: Any, convolutions: Any) -> None:
    import tvm

    bench.compile(convolutions)
    count = tvm.get_global_func("runtime.NumThreads")
    for threads in (1, 2):
        bench.load(threads=threads).run(_image())
        assert count() == threads


def test_without_a_compiler_it_says_so(
    bench: Any, convolutions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="C\\+\\+ compiler"):
        bench.compile(convolutions)
    here, _ = bench.module.probe()
    assert "install a C++ compiler" in here.detail


@pytest.mark.parametrize(
    "name", ["mnist_conv_o8", "optimum_tiny_bert", "ultraface_slim320_simplified", "xdl_dnn"]
)
def test_real_models(bench: Any, golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    bench.compile(case.path, settings={"tune": "0"})
    session = bench.load()
    feed = {spec.name: case.feed[spec.name] for spec in session.inputs}
    case.assert_same(session.run(feed))
    bound = session.bind(feed)
    bound()
    case.assert_same(bound.outputs())


@pytest.mark.parametrize("name", ["dtln_1", "silero_vad_v5"])
def test_recurrent_real_models_are_refused(
    bench: Any, golden: Callable[[str], Any], name: str
) -> None:
    with pytest.raises(UnsupportedError) as raised:
        bench.compile(golden(name).path)
    assert raised.value.operators == ("LSTM",)


def test_a_machine_without_a_compiler(
    small_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python and pip are enough: the library is linked by the wheel `ziglang`."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compilation = deploykit.compile(small_onnx, ["tvm"], tmp_path / "bundles")
    (bundle,) = compilation.bundles
    assert bundle.outcome.kind == "ok", bundle.outcome
    assert all(parity.ok for parity in bundle.parity)
