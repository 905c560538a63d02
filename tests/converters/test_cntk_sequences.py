"""CNTK's operators along the sequence and recurrences: as ONNX, by definition, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploykit._plugins.converters.cntk import plugin
from deploykit._plugins.converters.cntk.graph import Axis

import deploykit as dk
from deploykit.errors import UnsupportedError
from deploykit.protocol import Source
from tests.converters.cntk_cases import both, recurrent, scalar, w
from tests.converters.cntk_v2_writer import (
    Int,
    Model,
)


@pytest.mark.parametrize("offset", [1, 2, 5])
@pytest.mark.parametrize("op", ["PastValue", "FutureValue"])
def test_delays(op: str, offset: int, tmp_path: Path) -> None:
    model = Model()
    model.input("x", 2, sequence=True)
    scalar(model, "zero", 0.5)
    model.function(op, "made", "x", "zero", offset=offset)
    path = model.write(tmp_path)
    for length in (1, 4, 7):
        x = w(length, 2)
        (found,) = both(path, {"x": x})
        expected = np.full_like(x, 0.5)
        kept = max(length - offset, 0)
        if op == "PastValue":
            expected[length - kept :] = x[:kept]
        else:
            expected[:kept] = x[length - kept :]
        np.testing.assert_array_equal(found, expected)
    x = w(3, 4, 2)
    (found,) = both(path, {"x": x}, sequences="batch")
    assert found.shape == x.shape


@pytest.mark.parametrize("offset", [1, 2])
@pytest.mark.parametrize("op", ["PastValue", "FutureValue"])
def test_a_recurrence(op: str, offset: int, tmp_path: Path) -> None:
    model, weight, inner = recurrent(op, offset)
    path = model.write(tmp_path)
    for length in (1, 2, 6):
        x = w(length, 3)
        states = [np.full(4, 0.1, np.float32)] * offset
        expected = []
        for row in x if op == "PastValue" else x[::-1]:
            states.append(np.tanh(row @ weight + states[-offset] @ inner))
            expected.append(states[-1])
        expected = expected if op == "PastValue" else expected[::-1]
        (found,) = both(path, {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    x = w(3, 5, 3)
    (several,) = both(path, {"x": x}, sequences="batch")
    for number in range(3):
        (alone,) = both(path, {"x": x[number]})
        np.testing.assert_allclose(several[number], alone, rtol=1e-4, atol=1e-5)


def test_a_delay_too_long_is_refused(tmp_path: Path) -> None:
    for uid in ("delay", "made"):
        model, _, _ = recurrent("PastValue", 2**40)
        model.function("PastValue", "made", "x", "begin", offset=2**40)
        with pytest.raises(UnsupportedError, match="delays by 1099511627776 steps"):
            both(model.write(tmp_path, "h" if uid == "delay" else "made"), {})


def test_a_recurrence_is_tidied_and_verified(tmp_path: Path) -> None:
    model, _, _ = recurrent("PastValue")
    conversion = dk.convert(model.write(tmp_path), tmp_path / "out.onnx")
    assert conversion.verified
    assert not any("fails" in note for note in conversion.notes)
    shape = conversion.signature.inputs[0].shape
    assert shape == ("sequence", 3)


def taken(model: Model, op: str, data: str) -> str:
    """Add `sequence.last` or `sequence.first` as CNTK writes it, and return its output."""
    scalar(model, "no", 0.0)
    scalar(model, "yes", 1.0)
    model.function("ReconcileDynamicAxis", "zeros", "no", data)
    model.function(op, "mask", "zeros_Output_0", "yes", offset=1)
    how: dict[str, Any] = {
        "newSequenceAxisLengthScalingFactor": 0,
        "newSequenceAxisLengthAdditiveFactor": Int(1),
    }
    model.function("Where", "where", "mask_Output_0", **how)
    model.function("PackedIndex", "index", data, "where_Output_0")
    return model.function("GatherPacked", "taken", data, "index_Output_0")


@pytest.mark.parametrize(("op", "place"), [("FutureValue", -1), ("PastValue", 0)])
def test_the_last_and_the_first_step(op: str, place: int, tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3, sequence=True)
    taken(model, op, "x")
    path = model.write(tmp_path)
    x = w(5, 3)
    (found,) = both(path, {"x": x})
    np.testing.assert_array_equal(found, x[place][None])
    x = w(2, 4, 3)
    (found,) = both(path, {"x": x}, sequences="batch")
    np.testing.assert_array_equal(found, x[:, place])


def test_steps_chosen_by_data(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 1, sequence=True)
    scalar(model, "zero", 0.0)
    model.function("Greater", "mask", "x", "zero")
    model.function("Where", "where", "mask_Output_0")
    model.function("PackedIndex", "index", "x", "where_Output_0")
    model.function("GatherPacked", "made", "x", "index_Output_0")
    path = model.write(tmp_path)
    (found,) = both(path, {"x": np.array([[1], [-2], [3], [0]], np.float32)})
    np.testing.assert_array_equal(found, [[1], [3]])
    with pytest.raises(UnsupportedError, match="other steps of each sequence"):
        both(path, {"x": w(2, 4, 1)}, sequences="batch")
    model.function("Plus", "sum", "where_Output_0", "zero")
    with pytest.raises(UnsupportedError, match="places that a Where found"):
        both(model.write(tmp_path), {"x": w(4, 1)})


def test_sequences_broadcast_reduced_unpacked(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3, sequence=True)
    model.input("y", 3)
    model.function("ReconcileDynamicAxis", "wide", "y", "x")
    model.function("ElementTimes", "product", "wide_Output_0", "x")
    how = {"axis": Axis(name="__operandSequenceAxis"), "reductionOpName": "Sum"}
    model.function("ReduceElements", "made", "product_Output_0", **how)
    x, y = w(5, 3), w(1, 3)
    (found,) = both(model.write(tmp_path), {"x": x, "y": y})
    np.testing.assert_allclose(found, (x * y).sum(0, keepdims=True), rtol=1e-4)
    model = Model()
    model.input("x", 3, sequence=True)
    model.function("UnpackSequence", "made", "x", sequenceUnpackSuppressMaskOutput=True)
    values, mask = both(model.write(tmp_path), {"x": x})
    np.testing.assert_array_equal(values, x[None])
    np.testing.assert_array_equal(mask, np.ones((1, 5)))
    model = Model()
    model.input("x", 3, sequence=True)
    model.function("UnpackSequence", "unpacked", "x")
    model.function("ToSequenceLike", "made", "unpacked_Output_0", "x")
    (found,) = both(model.write(tmp_path), {"x": x})
    np.testing.assert_array_equal(found, x)


def test_without_an_order_of_steps_each_is_a_sample(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 4, sequence=True)
    model.function("Tanh", "made", "x")
    source = Source(location=str(model.write(tmp_path)), format="cntk/v2")
    assert plugin.inspect(source).inputs[0].shape == ("batch", 4)


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnnTanh", "rnnReLU"])
def test_a_stack_of_recurrent_layers(kind: str, ways: int, tmp_path: Path) -> None:
    """Against the definition; the order of the weights is that of CNTK's own converter to CPU layers."""
    gates, hidden, width, layers = {"lstm": 4, "gru": 3}.get(kind, 1), 3, 2, 2
    size = sum(ways * gates * hidden * (n + hidden + 2) for n in (width, ways * hidden))
    model = Model()
    model.input("x", width, sequence=True)
    weights = w(1, size) if size % 2 else w(2, size // 2)
    model.parameter("W", weights)
    how: dict[str, Any] = {"bidirectional": ways == 2, "numLayers": layers, "hiddenSize": hidden}
    model.function("OptimizedRNNStack", "made", "x", "W", recurrentOp=kind, **how)
    path = model.write(tmp_path)
    (found,) = both(path, {"x": w(5, width)})
    assert found.shape == (5, ways * hidden)
    both(path, {"x": w(3, 4, width)}, sequences="batch")
    if kind == "rnnTanh" and ways == 1:
        x = w(1, width)
        first = np.tanh(x @ weights.reshape(-1)[:6].reshape(3, 2).T + _biases(weights, 0))
        inner = weights.reshape(-1)[15:24].reshape(3, 3)
        expected = np.tanh(first @ inner.T + _biases(weights, 1))
        np.testing.assert_allclose(both(path, {"x": x})[0], expected, rtol=1e-4, atol=1e-5)


def _biases(weights: Any, layer: int) -> Any:
    both_of = weights.reshape(-1)[-12:].reshape(2, 2, 3)
    return both_of[layer].sum(0)
