"""Each of CNTK's operators: as ONNX, by definition, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploykit._plugins.converters.cntk.graph import Axis

from deploykit.errors import DeploykitError
from tests.converters.cntk_cases import both, computed, multiplied, w
from tests.converters.cntk_v2_writer import (
    ALL_STATIC,
    CONSTANT,
    Int,
    Model,
    Shape,
)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


X = np.array([[-2.5, -0.5, 0.0, 0.25, 0.75, 3.0]], np.float32)


WITHIN = X / 4


UNARY: dict[str, tuple[Any, Any]] = {
    "Negate": (X, -X),
    "Sigmoid": (X, sigmoid(X)),
    "StableSigmoid": (X, sigmoid(X)),
    "Tanh": (X, np.tanh(X)),
    "ReLU": (X, np.maximum(X, 0)),
    "Exp": (X, np.exp(X)),
    "Log": (X, [[-85.1, -85.1, -85.1, np.log(0.25), np.log(0.75), np.log(3)]]),
    "Sqrt": (X, [[0, 0, 0, 0.5, np.sqrt(0.75), np.sqrt(3)]]),
    "Floor": (X, [[-3, -1, 0, 0, 0, 3]]),
    "Abs": (X, np.abs(X)),
    "Reciprocal": (X, [[-0.4, -2, 0, 4, 4 / 3, 1 / 3]]),
    "Sin": (X, np.sin(X)),
    "Cos": (X, np.cos(X)),
    "Tan": (WITHIN, np.tan(WITHIN)),
    "Asin": (WITHIN, np.arcsin(WITHIN)),
    "Acos": (WITHIN, np.arccos(WITHIN)),
    "Atan": (X, np.arctan(X)),
    "Sinh": (X, np.sinh(X)),
    "Cosh": (X, np.cosh(X)),
    "Asinh": (X, np.arcsinh(X)),
    "Atanh": (WITHIN, np.arctanh(WITHIN)),
    "ELU": (X, np.where(X > 0, X, np.expm1(X))),
    "StraightThrough": (X, [[-1, -1, -1, 1, 1, 1]]),
    "Dropout": (X, X),
    "StopGradient": (X, X),
    "Pass": (X, X),
    "NoOp": (X, X),
    "LabelsToGraph": (X, X),
    "Softmax": (X, np.exp(X) / np.exp(X).sum()),
    "LogSoftmax": (X, X - np.log(np.exp(X).sum())),
    "Hardmax": (X, [[0, 0, 0, 0, 0, 1]]),
}


@pytest.mark.parametrize("op", UNARY)
def test_an_operator_of_one_input(op: str, tmp_path: Path) -> None:
    given_x, expected = UNARY[op]
    found = computed(tmp_path, op, given_x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


A = np.array([[[1.0, -2.0, 0.0], [4.0, 0.5, -3.0]]], np.float32)


B = np.array([[[2.0, 2.0, 0.0], [-1.0, 3.0, 3.0]]], np.float32)


BINARY: dict[str, Any] = {
    "Plus": A + B,
    "Minus": A - B,
    "ElementTimes": A * B,
    "LogPlus": np.logaddexp(A, B),
    "Pow": [[[1, 4, 1], [0.25, 0.125, -27]]],
    "Equal": A == B,
    "NotEqual": A != B,
    "Less": A < B,
    "LessEqual": A <= B,
    "Greater": A > B,
    "GreaterEqual": A >= B,
}


@pytest.mark.parametrize("op", BINARY)
def test_an_operator_of_two_inputs(op: str, tmp_path: Path) -> None:
    found = computed(tmp_path, op, A, B)
    np.testing.assert_allclose(found, np.asarray(BINARY[op], np.float32), rtol=1e-5)


def test_shapes_begin_at_the_same_axis(tmp_path: Path) -> None:
    """A bias of CNTK shape (1, 1, C) and a vector of shape (W) both fit data of shape (W, H, C)."""
    x, bias, row = w(2, 3, 4, 5), w(3, 1, 1), w(5)
    model = Model()
    model.input("x", 3, 4, 5)
    model.parameter("bias", bias)
    model.parameter("row", row)
    model.function("Plus", "a", "x", "bias")
    model.function("ElementTimes", "b", "row", "a_Output_0")
    (found,) = both(model.write(tmp_path), {"x": x})
    np.testing.assert_allclose(found, (x + bias) * row, rtol=1e-5)
    # a vector beside a picture: its one axis is the picture's fastest
    y = w(2, 5)
    found = computed(tmp_path, "Plus", x, y)
    np.testing.assert_allclose(found, x + y[:, None, None, :], rtol=1e-5)


def test_power_of_zero_and_clip_and_select(tmp_path: Path) -> None:
    base = np.array([[0.0, 0.0, 0.0, 2.0]], np.float32)
    exponent = np.array([[-1.0, 0.0, 2.0, -1.0]], np.float32)
    np.testing.assert_allclose(computed(tmp_path, "Pow", base, exponent), [[0, 1, 0, 0.5]])
    x = np.array([[-2.0, 0.5, 7.0]], np.float32)
    low, high = np.array([[-1, 0, 6]], np.float32), np.array([[1, 0.25, 5]], np.float32)
    np.testing.assert_allclose(computed(tmp_path, "Clip", x, low, high), [[-1, 0.25, 5]])
    which = np.array([[0.0, 2.0, -1.0]], np.float32)
    np.testing.assert_allclose(computed(tmp_path, "Select", which, x, low), [[-1, 0.5, 7]])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_softmax_without_axis_is_over_the_whole_sample(op: str, tmp_path: Path) -> None:
    x = w(2, 3, 4)
    flat = computed(tmp_path, op, x.reshape(2, 12))
    np.testing.assert_allclose(computed(tmp_path, op, x), flat.reshape(x.shape), rtol=1e-5)


KINDS: dict[str, Any] = {
    "Sum": np.sum,
    "Mean": np.mean,
    "Max": np.max,
    "Min": np.min,
    "Prod": np.prod,
    "LogSum": lambda x, **how: np.log(np.exp(x).sum(**how)),
    "Argmax": np.argmax,
    "Argmin": np.argmin,
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_reductions(kind: str, keep: bool, tmp_path: Path) -> None:
    x = w(2, 3, 4, 5)
    how: dict[str, Any] = {"reductionOpName": kind, "reductionKeepDimensions": keep}
    # CNTK's axis 0 is the last of numpy
    for index, place in ((0, 3), (2, 1), (-1, 1), (1, 2)):
        found = computed(tmp_path, "ReduceElements", x, axis=Axis(index=index), **how)
        np.testing.assert_allclose(found, KINDS[kind](x, axis=place, keepdims=keep), rtol=1e-4)
    found = computed(tmp_path, "ReduceElements", x, axis=ALL_STATIC, **how)
    expected = KINDS[kind](x.reshape(2, -1), axis=1)
    np.testing.assert_allclose(found, expected.reshape(2, *[1] * (3 * keep)), rtol=1e-4)
    if not kind.startswith("Arg"):
        several = [Axis(index=0), Axis(index=2)]
        found = computed(tmp_path, "ReduceElements", x, axisVec=several, **how)
        np.testing.assert_allclose(found, KINDS[kind](x, axis=(1, 3), keepdims=keep), rtol=1e-4)


def test_times(tmp_path: Path) -> None:
    x, weight = w(2, 4), w(4, 3)
    np.testing.assert_allclose(multiplied(tmp_path, weight, x, outputRank=1), x @ weight, rtol=1e-4)
    # a dense layer over a feature map: three axes of the weight are summed
    x, weight = w(2, 5, 4, 3), w(5, 4, 3, 7)
    found = multiplied(tmp_path, weight, x, outputRank=1, inferInputRankToMap=Int(0))
    np.testing.assert_allclose(found, np.tensordot(x, weight, 3), rtol=1e-4)
    # an output of two axes, and an axis of the data that is mapped over
    x, weight = w(2, 6, 4), w(4, 3, 2)
    found = multiplied(tmp_path, weight, x, outputRank=2)
    np.testing.assert_allclose(found, np.tensordot(x, weight, 1), rtol=1e-4)
    # CNTK 1: a matrix multiplies a feature map as one column
    x, weight = w(2, 3, 4), w(12, 5)
    found = multiplied(tmp_path, weight, x, outputRank=1)
    np.testing.assert_allclose(found, x.reshape(2, 12) @ weight, rtol=1e-4)


def test_transpose_times(tmp_path: Path) -> None:
    x = w(2, 4)
    weight = w(3, 4)
    found = multiplied(tmp_path, weight, x, "TransposeTimes", outputRank=1)
    np.testing.assert_allclose(found, x @ weight.T, rtol=1e-4)
    label, x = w(2, 4), w(2, 4)
    found = computed(tmp_path, "TransposeTimes", label, x, outputRank=1)
    np.testing.assert_allclose(found, (label * x).sum(1, keepdims=True), rtol=1e-4)


def test_times_of_two_inputs_multiplies_sample_by_sample(tmp_path: Path) -> None:
    a, b = w(2, 4, 3), w(2, 5, 4)
    found = computed(tmp_path, "Times", a, b, outputRank=1)
    np.testing.assert_allclose(found, b @ a, rtol=1e-4)
    vector = w(2, 4)
    found = computed(tmp_path, "Times", a, vector, outputRank=1)
    np.testing.assert_allclose(found, np.einsum("nk,nkm->nm", vector, a), rtol=1e-4)


def test_batch_normalization(tmp_path: Path) -> None:
    x = w(2, 3, 4, 5)
    scale, shift, mean, variance = w(3), w(3), w(3), np.abs(w(3)) + 0.1
    for feed, spatial in ((x, True), (x[..., 0, 0], True), (x[..., 0, 0], False)):
        model = Model()
        model.input("x", *feed.shape[1:])
        names = [
            model.parameter(name, value)
            for name, value in zip("abcd", (scale, shift, mean, variance), strict=True)
        ]
        count = model.parameter("count", np.float32(7.0), CONSTANT)
        how: dict[str, Any] = {
            "spatial": spatial,
            "epsilon": 0.01,
            "normalizationTimeConstant": 0.0,
        }
        model.function("BatchNormalization", "made", "x", *names, count, **how)
        (found,) = both(model.write(tmp_path), {"x": feed})
        along = (3, *[1] * (feed.ndim - 2))
        expected = (feed - mean.reshape(along)) / np.sqrt(variance.reshape(along) + 0.01)
        expected = expected * scale.reshape(along) + shift.reshape(along)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_splice_with_axes_that_one_input_lacks(tmp_path: Path) -> None:
    a, b = w(2, 3, 4), w(2, 3, 4)
    for index, place in ((0, 2), (1, 1), (-1, 1)):
        found = computed(tmp_path, "Splice", a, b, axis=Axis(index=index))
        np.testing.assert_allclose(found, np.concatenate([a, b], place))
    found = computed(tmp_path, "Splice", a, b, axis=Axis(index=2))
    np.testing.assert_allclose(found, np.stack([a, b], 1))
    model = Model()
    model.input("x", 3, 4)
    model.parameter("p", w(1, 4))
    model.function("Splice", "made", "p", "x", axis=Axis(index=1))
    (found,) = both(model.write(tmp_path), {"x": a})
    kept = model.variables[1]["value"]
    np.testing.assert_allclose(found, np.concatenate([np.broadcast_to(kept, (2, 1, 4)), a], 1))


def test_slices(tmp_path: Path) -> None:
    x = w(2, 3, 4, 5)
    cases: list[tuple[int, int, int, int, Any]] = [
        (0, 1, 3, 1, x[..., 1:3]),
        (0, -2, 0, 1, x[..., -2:]),
        (2, 0, -1, 1, x[:, :-1]),
        (-1, 1, 3, 1, x[:, 1:3]),
        (1, 0, 4, 2, x[:, :, ::2]),
    ]
    for index, begin, end, stride, expected in cases:
        found = computed(
            tmp_path,
            "Slice",
            x,
            axis=Axis(index=index),
            beginIndex=Int(begin),
            endIndex=Int(end),
            sliceStrides=Int(stride),
        )
        np.testing.assert_array_equal(found, expected)
    found = computed(
        tmp_path,
        "Slice",
        x,
        axisVec=[Axis(index=0), Axis(index=1)],
        beginIndexVec=[Int(1), Int(-3)],
        endIndexVec=[Int(4), Int(0)],
        sliceStridesVec=[Int(1), Int(1)],
    )
    np.testing.assert_array_equal(found, x[:, :, -3:, 1:4])


def test_reshapes(tmp_path: Path) -> None:
    x = w(2, 3, 4, 5)
    found = computed(tmp_path, "Reshape", x, newShape=Shape((10, 6)))
    np.testing.assert_array_equal(found, x.reshape(2, 6, 10))
    found = computed(tmp_path, "Reshape", x, newShape=Shape((2**64 - 1,)))
    np.testing.assert_array_equal(found, x.reshape(2, 60))
    part = {"beginAxis": Axis(index=0), "endAxis": Axis(index=2)}
    found = computed(tmp_path, "Reshape", x, newShape=Shape((2, 2**64 - 1)), **part)
    np.testing.assert_array_equal(found, x.reshape(2, 3, 10, 2))
    part = {"beginAxis": Axis(index=-1), "endAxis": Axis(index=2**31 - 4)}
    with pytest.raises(DeploykitError):
        computed(tmp_path, "Reshape", x, newShape=Shape((7,)))
    del part


def test_transposes_squeezes_pads(tmp_path: Path) -> None:
    x = w(2, 3, 4, 5)
    axes = {"axis1": Axis(index=0), "axis2": Axis(index=2)}
    np.testing.assert_array_equal(
        computed(tmp_path, "TransposeAxes", x, **axes), x.transpose(0, 3, 2, 1)
    )
    order = [Axis(index=at) for at in (2, 0, 1)]
    found = computed(tmp_path, "TransposeAxes", x, axisVec=order)
    # CNTK: axis i of the output is axis order[i] of the input
    np.testing.assert_array_equal(found, x.transpose(0, 2, 3, 1))
    y = w(2, 3)
    wide = {"axis1": Axis(index=0), "axis2": Axis(index=1)}
    np.testing.assert_array_equal(computed(tmp_path, "TransposeAxes", y, **wide), y[:, :, None])
    narrow = computed(tmp_path, "Squeeze", w(2, 1, 4, 1), axisVec=[Axis(index=0)])
    assert narrow.shape == (2, 1, 4)
    edges: dict[str, Any] = {"paddingHead": [1, 0, 2], "paddingFoot": [0, 3, 1]}
    found = computed(tmp_path, "Pad", x, **edges, paddingMode=0, paddingConstantValue=2.5)
    wanted = [(0, 0), (2, 1), (0, 3), (1, 0)]
    np.testing.assert_array_equal(found, np.pad(x, wanted, constant_values=2.5))
    found = computed(tmp_path, "Pad", x, **edges, paddingMode=1)
    np.testing.assert_array_equal(found, np.pad(x, wanted, mode="reflect"))
    found = computed(tmp_path, "Crop", x, w(2, 3, 2, 3), offset=[1, 2])
    np.testing.assert_array_equal(found, x[:, :, 2:4, 1:4])


def test_lookups(tmp_path: Path) -> None:
    index = np.array([[0.0, 2.0], [3.0, -1.0]], np.float32)
    found = computed(tmp_path, "OneHot", index, numClass=3, onehotAxis=Axis(index=0))
    expected = index[..., None] == np.arange(3)
    np.testing.assert_array_equal(found, expected)
    found = computed(tmp_path, "OneHot", index, numClass=3, onehotAxis=Axis(index=-1))
    np.testing.assert_array_equal(found, expected.transpose(0, 2, 1))
    table = w(4, 3, 2)
    model = Model()
    model.input("x", 2)
    model.parameter("table", table)
    model.function("Gather", "made", "x", "table")
    places = np.array([[0.0, 2.0], [3.0, 1.0]], np.float32)
    (found,) = both(model.write(tmp_path), {"x": places})
    np.testing.assert_array_equal(found, table[places.astype(int)])
    x = w(2, 3, 6)
    order = np.argsort(-x, axis=-1)[..., :2]
    model = Model()
    model.input("x", 3, 6)
    model.function("TopK", "made", "x", numItems=2)
    values, where = both(model.write(tmp_path), {"x": x})
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))
    np.testing.assert_array_equal(where, order)


def test_an_embedding_is_a_lookup(tmp_path: Path) -> None:
    rows = w(5, 3)
    model = Model()
    model.input("x", 4)
    model.parameter("rows", rows)
    model.function("OneHot", "hot", "x", numClass=5, onehotAxis=Axis(index=0))
    model.function("Times", "made", "rows", "hot_Output_0", outputRank=1)
    index = np.array([[0.0, 4.0, 5.0, -2.0]], np.float32)
    (found,) = both(model.write(tmp_path), {"x": index})
    np.testing.assert_array_equal(found[0], [rows[0], rows[4], [0] * 3, [0] * 3])
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Gather" in kinds
    assert "MatMul" not in kinds
    # what was made of a one-hot vector is none any more
    model.functions.pop()
    model.function(
        "Slice", "part", "hot_Output_0", axis=Axis(index=0), beginIndex=Int(1), endIndex=Int(4)
    )
    model.parameter("others", w(3, 2))
    model.function("Times", "made", "others", "part_Output_0", outputRank=1)
    both(model.write(tmp_path), {"x": index})


def test_others(tmp_path: Path) -> None:
    a, b = w(2, 6), w(2, 6)
    expected = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    np.testing.assert_allclose(computed(tmp_path, "CosDistance", a, b), expected, rtol=1e-4)
    np.testing.assert_array_equal(computed(tmp_path, "ConstantOp", a, fillValue=2.0), a * 0 + 2)
    np.testing.assert_array_equal(computed(tmp_path, "Cast", a, newDataType=Int(1)), a)
