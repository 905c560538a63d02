"""Quantised models on the target litert: integer kernels where the precision is int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import deploykit
from deploykit.errors import UnsupportedError
from tests.targets.litert_worker import Array, Feed, Litert, Nodes, assert_close, model_of

pytest_plugins = ["tests.targets.litert_fixtures"]
pytestmark = pytest.mark.environment

_random = np.random.default_rng(11)
STEP = 0.05


def by_definition(model: onnx.ModelProto, feed: Feed) -> list[Array]:
    """Return the outputs with every node computed alone: no integer kernels of ONNX Runtime's."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(each) for each in session.run(None, feed)]


class Quantised:
    """A graph in QDQ form in the making."""

    def __init__(self, dtype: type, zero: int) -> None:
        self.nodes: Nodes = []
        self.weights: Feed = {"zero": np.array(zero, dtype)}

    def store(self, name: str, scale: float) -> str:
        """Quantise a value; return the name of what it is then."""
        self.weights[f"{name}_scale"] = np.array(scale, np.float32)
        parameters = [f"{name}_scale", "zero"]
        self.nodes += [
            ("QuantizeLinear", [name, *parameters], [f"{name}_q"], {}),
            ("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"], {}),
        ]
        return f"{name}_dq"

    def weight(self, name: str, *shape: int, axis: int | None) -> str:
        """Add a weight of int8, with a scale for each channel along `axis`."""
        count = 1 if axis is None else shape[axis]
        scale = _random.uniform(0.01, 0.03, count).astype(np.float32)
        self.weights[f"{name}_q"] = _random.integers(-127, 128, shape).astype(np.int8)
        self.weights[f"{name}_scale"] = scale if axis is not None else scale.reshape(())
        self.weights[f"{name}_zero"] = np.zeros(self.weights[f"{name}_scale"].shape, np.int8)
        parameters = [f"{name}_scale", f"{name}_zero"]
        more = {"axis": axis} if axis is not None else {}
        self.nodes.append(("DequantizeLinear", [f"{name}_q", *parameters], [name], more))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **more: Any) -> str:
        self.nodes.append((operator, inputs, [output], more))
        return output


def network(dtype: type, zero: int, axis: int | None) -> tuple[onnx.ModelProto, Feed]:
    """Convolutions plain and depthwise, a sum, a pool, an average, a product; all between Q and DQ."""
    made = Quantised(dtype, zero)
    made.weights["b1"] = _random.normal(0, 0.5, 8).astype(np.float32)
    x = made.store("x", 0.02)
    c1 = made.node("Conv", [x, made.weight("w1", 8, 3, 3, 3, axis=axis), "b1"], "c1", pads=[1] * 4)
    r1 = made.store(made.node("Relu", [c1], "r1"), STEP)
    w2 = made.weight("w2", 8, 1, 3, 3, axis=axis)
    c2 = made.node("Conv", [r1, w2], "c2", group=8, pads=[1] * 4)
    s2 = made.store(c2, STEP)
    a2 = made.store(made.node("Add", [s2, r1], "a2"), STEP)
    p2 = made.store(made.node("MaxPool", [a2], "p2", kernel_shape=[2, 2], strides=[2, 2]), STEP)
    g2 = made.store(made.node("GlobalAveragePool", [p2], "g2"), STEP)
    f2 = made.store(made.node("Flatten", [g2], "f2"), STEP)
    w3 = made.weight("w3", 5, 8, axis=None if axis is None else 0)
    y = made.store(made.node("Gemm", [f2, w3], "m3", transB=1), STEP)
    made.node("Identity", [y], "y")
    feed = {"x": _random.normal(0, 1, (2, 3, 10, 8)).astype(np.float32)}
    return model_of(made.nodes, feed, ["y"], made.weights), feed


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, -3), (np.uint8, 120)])
def test_a_network_in_integers_differs_by_steps(
    litert: Litert, dtype: type, zero: int, axis: int | None
) -> None:
    model, feed = network(dtype, zero, axis)
    result = litert.compile(model, precision="int8")
    assert any("int8" in note for note in result.notes)
    reading = deploykit.inspect(Path(litert.request.payload) / "model.tflite")
    assert {"QUANTIZE": 1, "DEQUANTIZE": 1}.items() <= reading.operators.items()
    (found,) = litert.run(feed)
    (wanted,) = by_definition(model, feed)
    assert found["y"].dtype == np.float32
    # a step in the middle is up to three at the end, by weights above one
    assert np.abs(found["y"] - wanted).max() <= 4.01 * STEP
    assert np.abs(wanted).max() > 20 * STEP  # else that would say little


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, -3), (np.uint8, 120)])
def test_in_float32_the_definition_is_kept(litert: Litert, dtype: type, zero: int) -> None:
    """Computed as written, with half rounded to even; a number on an edge may fall either way."""
    model, feed = network(dtype, zero, 0)
    litert.compile(model)
    (found,) = litert.run(feed)
    (wanted,) = by_definition(model, feed)
    assert np.abs(found["y"] - wanted).max() <= 1.01 * STEP


def test_quantised_alone_is_exact_in_float32(litert: Litert) -> None:
    """Halves, both edges of the range, and what lies beyond."""
    made = Quantised(np.uint8, 120)
    made.node("Identity", [made.store("x", 0.5)], "y")
    feed: Feed = {"x": np.array([0.25, 0.75, -0.25, -0.75, 1e6, -1e6, 67.4, 3.3], np.float32)}
    model = model_of(made.nodes, feed, ["y"], made.weights)
    litert.compile(model)
    assert_close(litert.run(feed)[0], by_definition(model, feed), tolerance=1e-7)


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, -3), (np.uint8, 120)])
def test_stored_inputs_and_outputs_keep_their_types(litert: Litert, dtype: type, zero: int) -> None:
    made = Quantised(dtype, zero)
    made.weights["s"] = np.array(STEP, np.float32)
    made.nodes.append(("DequantizeLinear", ["x", "s", "zero"], ["x_dq"], {}))
    made.node("Conv", ["x_dq", made.weight("w", 4, 3, 3, 3, axis=0)], "c")
    made.nodes.append(("QuantizeLinear", ["c", "s", "zero"], ["y"], {}))
    limits = np.iinfo(dtype)
    feed: Feed = {"x": _random.integers(limits.min, limits.max + 1, (1, 3, 6, 6)).astype(dtype)}
    model = model_of(made.nodes, feed, ["y"], made.weights)
    result = litert.compile(model, precision="int8")
    name = np.dtype(dtype).name
    assert [spec.dtype for spec in result.signature.inputs] == [name]
    assert [spec.dtype for spec in result.signature.outputs] == [name]
    (found,) = litert.run(feed)
    (wanted,) = by_definition(model, feed)
    assert found["y"].dtype == wanted.dtype
    assert np.abs(found["y"].astype(int) - wanted.astype(int)).max() <= 1


def test_without_quantisation_int8_is_refused(litert: Litert) -> None:
    feed = {"x": np.ones((2, 3), np.float32)}
    model = model_of(
        [("MatMul", ["x", "w"], ["y"], {})], feed, ["y"], {"w": np.ones((3, 4), np.float32)}
    )
    with pytest.raises(UnsupportedError, match="int8") as raised:
        litert.compile(model, precision="int8")
    assert "quantise" in raised.value.hint


def test_weights_around_another_zero_are_computed_in_float32(litert: Litert) -> None:
    made = Quantised(np.int8, 0)
    x = made.store("x", 0.02)
    first = made.weight("w", 4, 3, 3, 3, axis=None)
    made.weights["w_zero"] = np.array(5, np.int8)
    y = made.store(made.node("Conv", [x, first], "c"), STEP)
    second = made.weight("v", 2, 4, 1, 1, axis=0)
    made.node("Identity", [made.store(made.node("Conv", [y, second], "d"), STEP)], "y")
    feed = {"x": _random.normal(0, 1, (1, 3, 5, 5)).astype(np.float32)}
    model = model_of(made.nodes, feed, ["y"], made.weights)
    litert.compile(model, precision="int8")
    assert np.abs(litert.run(feed)[0]["y"] - by_definition(model, feed)[0]).max() <= 2.01 * STEP
    kinds = deploykit.inspect(Path(litert.request.payload) / "model.tflite").operators
    assert kinds["DEQUANTIZE"] == 2
