"""CNTK v2 models: real ones against golden outputs, every operator by definition, damage refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.cntk import mapping, plugin, reading_v2, sequences
from deploykit._plugins.converters.cntk.evaluation import COMPUTE
from deploykit._plugins.converters.cntk.graph import Axis
from deploykit._plugins.converters.cntk.network import EMIT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from deploykit.tensor_spec import parse_input
from tests.converters import cntk_library
from tests.converters.cntk_v2_writer import (
    ALL_STATIC,
    BATCH,
    CONSTANT,
    PLACEHOLDER,
    SEQUENCE,
    Int,
    Model,
    Shape,
)

RANDOM = np.random.default_rng(3)


def w(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32) / 2


def onnx_run(path: Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


@pytest.mark.parametrize(
    "name",
    [
        "v1_cifar10_pretrained_cmf",
        "v1_logreg",
        "v1_mnist_onehidden_bs",
        "v1_resnet20_cifar10",
        "v1_slu_bilstm_cmf",
        "v2_convnet_cifar10",
        "v2_imdb_lstm",
        "v2_jena_gru_type1",
        "v2_policy_mlp",
    ],
)
def test_a_real_model_gives_what_cntk_gave(name: str, shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "cntk" / name
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert conversion.verified
    assert not any("fails" in note for note in conversion.notes)
    golden = np.load(folder / "golden.npz")
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    (source,), (output,) = names["in"], names["out"]
    (spec,) = conversion.signature.inputs
    (found,) = onnx_run(tmp_path / "out.onnx", {spec.name: golden[f"in_{source}"]})
    expected = golden[f"out_{output}"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert [one.name for one in conversion.signature.outputs] == [output]


def both(path: Path, feed: dict[str, Any], **options: str) -> list[Any]:
    """Return what the ONNX model computes, after holding it against the definition."""
    source = Source(location=str(path), format="cntk/v2", options=options)
    target = path.with_suffix(".onnx")
    target.unlink(missing_ok=True)
    plugin.convert(ConvertRequest(source=source, output=str(target)))
    found = onnx_run(target, feed)
    defined = plugin.reference(ReferenceRequest(source=source)).run(feed)
    for one, other in zip(found, defined.values(), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    if cntk_library.LIBRARY and not options:
        compare_with_cntk(path, feed, found)
    signature = plugin.inspect(source)
    assert list(defined) == [spec.name for spec in signature.outputs]
    for spec, one in zip(signature.outputs, found, strict=True):
        assert spec.shape is not None
        assert len(spec.shape) == one.ndim
        assert all(
            not isinstance(n, int) or n == m for n, m in zip(spec.shape, one.shape, strict=True)
        )
    return found


def compare_with_cntk(path: Path, feed: dict[str, Any], found: list[Any]) -> None:
    """Hold `found` against CNTK itself, except for what CNTK or its C API cannot do on a CPU."""
    try:
        model = cntk_library.Model(path)
        samples = (
            len(next(iter(feed.values()))) if b"defaultDynamicAxis" not in path.read_bytes() else 1
        )
        for number in range(samples):
            whole = samples == 1
            given_feed = feed if whole else {name: x[number] for name, x in feed.items()}
            for one, expected in zip(found, model.run(given_feed), strict=False):
                mine = (one if whole else one[number]).reshape(-1)
                np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    except RuntimeError as error:
        if not any(words in str(error) for words in BEYOND_CNTK):
            raise


BEYOND_CNTK = (
    "Not Implemented",
    "not yet implemented",
    "Number of evaluated outputs",  # of a function with two
    "trailing dimensions of the left operand",  # CNTK 1's flattening
    "Binary tensor operation: Dimension",  # a reduction that does not keep its axes
    "DataType",  # the C API has float32 only
    "std::bad_alloc",  # nor free sizes
    "'version' is not found",  # a checkpoint of our own making
)


def computed(folder: Path, op: str, *feeds: Any, sequence: bool = False, **attributes: Any) -> Any:
    """Return what one operator makes of inputs [batch, (sequence,) ...]."""
    model, given_feeds, names = Model(), {}, []
    lead = 1
    for number, feed in enumerate(feeds):
        names.append(model.input(f"x{number}", *feed.shape[lead:], sequence=sequence))
        given_feeds[f"x{number}"] = feed
    model.function(op, "made", *names, **attributes)
    return both(model.write(folder), given_feeds)[0]


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


def multiplied(folder: Path, left: Any, x: Any, op: str = "Times", **attributes: Any) -> Any:
    model = Model()
    model.input("x", *x.shape[1:])
    model.parameter("left", left)
    model.function(op, "made", "left", "x", **attributes)
    return both(model.write(folder), {"x": x})[0]


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


def convolved(folder: Path, kernel: Any, x: Any, **attributes: Any) -> Any:
    model = Model()
    model.input("x", *x.shape[1:])
    model.parameter("kernel", kernel)
    plain = {
        "strides": Shape((1,)),
        "sharing": [True],
        "autoPadding": [True, True, False],
        "lowerPad": Shape((0,)),
        "upperPad": Shape((0,)),
        "transpose": False,
    }
    model.function("Convolution", "made", "kernel", "x", **{**plain, **attributes})
    return both(model.write(folder), {"x": x})[0]


@pytest.mark.parametrize("size", range(5, 10))
@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", range(1, 4))
def test_automatic_padding(size: int, kernel: int, stride: int, tmp_path: Path) -> None:
    """The centres of the first and the last window are equally far from the edges."""
    x = np.arange(1, size + 1, dtype=np.float32).reshape(1, 1, 1, size)
    ones = np.ones((1, 1, 1, kernel), np.float32)
    found = convolved(tmp_path, ones, x, strides=Shape((stride, 1, 1)))[0, 0, 0]
    places = (size - 1) // stride + 1
    first = (size - 1 - (places - 1) * stride) // 2
    expected = []
    for place in range(places):
        begin = first + place * stride - (kernel - 1) // 2
        window = range(max(begin, 0), min(begin + kernel, size))
        expected.append(sum(x[0, 0, 0, at] for at in window))
    np.testing.assert_allclose(found, expected)


def test_convolutions(tmp_path: Path) -> None:
    x = w(2, 3, 7, 8)
    kernel = w(4, 3, 3, 2)
    plain = convolved(tmp_path, kernel, x, autoPadding=[False], strides=Shape((1, 1, 3)))
    assert plain.shape == (2, 4, 5, 7)
    expected = np.einsum("nchw,mchw->nm", x[:, :, 1:4, 2:4], kernel)
    np.testing.assert_allclose(plain[:, :, 1, 2], expected, rtol=1e-4, atol=1e-5)
    found = convolved(
        tmp_path,
        kernel,
        x,
        autoPadding=[False],
        lowerPad=Shape((1, 2, 0)),
        upperPad=Shape((1, 1, 0)),
        strides=Shape((2, 1, 3)),
    )
    assert found.shape == (2, 4, 8, 5)
    found = convolved(tmp_path, kernel, x, dilation=Shape((2, 3, 1)))
    assert found.shape == (2, 4, 7, 8)
    grouped = w(6, 1, 3, 3)
    found = convolved(tmp_path, grouped, x, groups=3)
    assert found.shape == (2, 6, 7, 8)
    alone = convolved(tmp_path, grouped[2:4], x[:, 1:2])
    np.testing.assert_allclose(found[:, 2:4], alone, rtol=1e-4, atol=1e-5)
    # CNTK's local response normalisation convolves squares along the channels, one map without an axis
    across = convolved(tmp_path, w(1, 3, 1, 1), x[:, None], autoPadding=[True], strides=Shape((1,)))
    assert across.shape == (2, 1, 3, 7, 8)
    single = convolved(tmp_path, kernel[0], x, strides=Shape((1, 1, 3)))
    assert single.shape == (2, 1, 7, 8)


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_transposed_convolutions(auto: bool, stride: int, kernel: int, tmp_path: Path) -> None:
    x, weight = w(2, 3, 4, 5), w(3, 2, kernel, kernel)
    how: dict[str, Any] = {
        "transpose": True,
        "autoPadding": [auto, auto, False],
        "strides": Shape((stride, stride, 3)),
    }
    found = convolved(tmp_path, weight, x, **how)
    made = 1 + 3 * stride if auto else 3 * stride + kernel
    assert found.shape[:3] == (2, 2, made)
    if not auto:
        full = np.zeros((2, 2, made, 4 * stride + kernel), np.float32)
        for row, column in np.ndindex(4, 5):
            place = np.s_[
                :,
                :,
                row * stride : row * stride + kernel,
                column * stride : column * stride + kernel,
            ]
            full[place] += np.einsum("nc,cmhw->nmhw", x[:, :, row, column], weight)
        np.testing.assert_allclose(found, full, rtol=1e-4, atol=1e-5)
    else:
        wanted = Shape((5 * stride, 4 * stride, 2))
        found = convolved(tmp_path, weight, x, outputShape=wanted, **how)
        assert found.shape == (2, 2, 4 * stride, 5 * stride)


def pooled(folder: Path, x: Any, **attributes: Any) -> Any:
    plain = {
        "poolingType": 0,
        "poolingWindowShape": Shape((2, 2)),
        "strides": Shape((2, 2)),
        "autoPadding": [False],
        "lowerPad": Shape((0,)),
        "upperPad": Shape((0,)),
        "ceilOutDim": False,
        "includePad": False,
    }
    return computed(folder, "Pooling", x, **{**plain, **attributes})


@pytest.mark.parametrize("kind", [0, 1])
def test_poolings(kind: int, tmp_path: Path) -> None:
    x = w(2, 3, 6, 8)
    folded = x.reshape(2, 3, 3, 2, 4, 2)
    expected = folded.mean((3, 5)) if kind else folded.max((3, 5))
    np.testing.assert_allclose(
        pooled(tmp_path, x, poolingType=kind), expected, rtol=1e-4, atol=1e-6
    )
    three = {"poolingWindowShape": Shape((3, 3)), "poolingType": kind}
    assert pooled(tmp_path, x, **three, ceilOutDim=True).shape == (2, 3, 3, 4)
    assert pooled(tmp_path, x, **three, autoPadding=[True]).shape == (2, 3, 3, 4)
    padded = {"lowerPad": Shape((1, 1)), "upperPad": Shape((1, 1))}
    found = pooled(tmp_path, x, **three, **padded, includePad=True)
    if kind:
        np.testing.assert_allclose(found[..., 0, 0], x[..., :2, :2].sum((2, 3)) / 9, rtol=1e-4)
    found = pooled(tmp_path, x, **three, **padded)
    if kind:
        np.testing.assert_allclose(found[..., 0, 0], x[..., :2, :2].mean((2, 3)), rtol=1e-4)
    whole = pooled(tmp_path, x, poolingType=kind, poolingWindowShape=Shape((2**64 - 2,)))
    expected = x.mean((2, 3), keepdims=True) if kind else x.max((2, 3), keepdims=True)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-6)
    # a window over the channels too, and one over a single axis
    cube = pooled(
        tmp_path, x, poolingType=kind, poolingWindowShape=Shape((2, 2, 3)), strides=Shape((2, 2, 1))
    )
    assert cube.shape == (2, 1, 3, 4)
    row = pooled(tmp_path, x, poolingType=kind, poolingWindowShape=Shape((2,)), strides=Shape((2,)))
    assert row.shape == (2, 3, 6, 4)


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


# sequences


def scalar(model: Model, uid: str, value: float) -> str:
    return model.parameter(uid, np.float32(value), CONSTANT)


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


def recurrent(op: str, offset: int = 1) -> tuple[Model, Any, Any]:
    """Return h = tanh(W x + R delay(h)) with its weights."""
    weight, inner = w(3, 4), w(4, 4)
    model = Model()
    model.input("x", 3, sequence=True)
    model.parameter("W", weight)
    model.parameter("R", inner)
    scalar(model, "begin", 0.1)
    model.variable("h_Output_0", PLACEHOLDER, (4,), dynamic_axis=[SEQUENCE, BATCH])
    model.function(op, "delay", "h_Output_0", "begin", offset=offset)
    model.function("Times", "inner", "R", "delay_Output_0", outputRank=1)
    model.function("Times", "outer", "W", "x", outputRank=1)
    model.function("Plus", "sum", "inner_Output_0", "outer_Output_0")
    model.function("Tanh", "h", "sum_Output_0")
    return model, weight, inner


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


# blocks, outputs, settings, refusals


def test_blocks_within_blocks(tmp_path: Path) -> None:
    weight = w(3, 2)
    model = Model()
    model.input("x", 3)
    model.parameter("W", weight)
    model.variable("p", PLACEHOLDER, (3,))
    model.variable("q", PLACEHOLDER, (3,))
    model.function("Times", "product", "W", "q", outputRank=1)
    model.block("inner", "product", {"q": "p"})
    model.function("ReLU", "relu", "inner_Output_0")
    model.block("outer", "relu", {"p": "x"}, name="layer")
    x = w(4, 3)
    (found,) = both(model.write(tmp_path), {"x": x})
    np.testing.assert_allclose(found, np.maximum(x @ weight, 0), rtol=1e-4, atol=1e-6)
    graph = reading_v2.read(tmp_path / "model.dnn")
    assert [root.name for root in graph.roots] == ["layer"]


def trained() -> Model:
    model = Model()
    model.input("x", 3)
    model.input("label", 2)
    model.parameter("W", w(3, 2))
    model.function("Times", "z", "W", "x", outputRank=1, name="prediction")
    model.function("CrossEntropyWithSoftmax", "loss", "z_Output_0", "label")
    model.function("Minus", "apart", "label", "z_Output_0")
    how: dict[str, Any] = {"axis": Axis(index=0), "reductionOpName": "Sum"}
    model.function("ReduceElements", "total", "apart_Output_0", **how)
    model.function("Combine", "all", "z_Output_0", "loss_Output_0", "total_Output_0")
    return model


def test_what_is_there_for_training_is_cut_off(tmp_path: Path) -> None:
    path = trained().write(tmp_path)
    source = Source(location=str(path), format="cntk/v2")
    result = plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "a.onnx")))
    assert [spec.name for spec in result.signature.inputs] == ["x"]
    assert [spec.name for spec in result.signature.outputs] == ["prediction"]
    assert result.repairs == ("cut off what is there for training: loss_Output_0, total_Output_0",)
    # a file that has nothing but the loss gives what the loss judges
    source = Source(location=str(trained().write(tmp_path, "loss")), format="cntk/v2")
    assert [spec.name for spec in plugin.inspect(source).outputs] == ["prediction"]


def test_an_output_of_another_and_a_second_input_stays(tmp_path: Path) -> None:
    """No label: what it makes is more than a number."""
    model = trained()
    model.functions.pop()
    model.function("Combine", "all", "z_Output_0", "apart_Output_0")
    found = both(model.write(tmp_path), {"x": w(2, 3), "label": w(2, 2)})
    assert [one.shape for one in found] == [(2, 2), (2, 2)]


def test_outputs_are_chosen_by_name_or_uid(tmp_path: Path) -> None:
    path = trained().write(tmp_path)
    (a, b) = both(path, {"x": w(2, 3), "label": w(2, 2)}, outputs="apart, prediction")
    assert a.shape == b.shape == (2, 2)
    with pytest.raises(UsageError, match="no output `nothing`"):
        both(path, {}, outputs="nothing")
    with pytest.raises(UnsupportedError, match="CrossEntropyWithSoftmax"):
        both(path, {}, outputs="loss_Output_0")


def test_settings_and_inputs_that_are_wrong(tmp_path: Path) -> None:
    path = trained().write(tmp_path)
    with pytest.raises(UsageError, match="no setting `colour`"):
        both(path, {}, colour="red")
    with pytest.raises(UsageError, match="`one` or `batch`"):
        both(path, {}, sequences="many")
    for asked, words in (
        ("y:float32[batch,3]", "no input `y`"),
        ("x:float32[batch,4]", "cannot have"),
    ):
        source = Source(location=str(path), format="cntk/v2", inputs=(parse_input(asked),))
        with pytest.raises(UsageError, match=words):
            plugin.inspect(source)
    source = Source(location=str(path), format="cntk/v2", inputs=(parse_input("x:float32[5,3]"),))
    assert plugin.inspect(source).inputs[0].shape == (5, 3)


def test_an_input_of_unknown_shape_is_asked_for(tmp_path: Path) -> None:
    model = Model()
    unknown = {"dynamic_axis": [Axis(index=2**31 - 3)], "data_type": 0}
    model.variable("x", PLACEHOLDER, (2**64 - 2,), **unknown)
    model.parameter("W", w(3, 2))
    model.function("Times", "made", "W", "x", outputRank=1)
    path = model.write(tmp_path)
    with pytest.raises(UsageError, match="does not say the shape of the input `x`") as caught:
        plugin.inspect(Source(location=str(path), format="cntk/v2"))
    assert "--input" in (caught.value.hint or "")
    asked = parse_input("x:float32[batch,5,3]")
    source = Source(location=str(path), format="cntk/v2", inputs=(asked,))
    signature = plugin.inspect(source)
    assert signature.inputs == (asked,)
    assert signature.outputs[0].shape == ("batch", 5, 2)
    x = w(2, 5, 3)
    found = plugin.reference(ReferenceRequest(source=source)).run({"x": x})
    np.testing.assert_allclose(found["made_Output_0"], x @ model.variables[1]["value"], rtol=1e-4)


def test_sizes_that_are_free_stay_free(tmp_path: Path) -> None:
    model = Model()
    free = 2**64 - 3
    model.input("x", 3, free, free)
    kernel = w(4, 3, 3, 3)
    model.parameter("kernel", kernel)
    how: dict[str, Any] = {
        "strides": Shape((1,)),
        "sharing": [True],
        "autoPadding": [True, True, False],
        "lowerPad": Shape((0,)),
        "upperPad": Shape((0,)),
    }
    model.function("Convolution", "made", "kernel", "x", **how)
    path = model.write(tmp_path)
    assert both(path, {"x": w(1, 3, 5, 7)})[0].shape == (1, 4, 5, 7)
    assert both(path, {"x": w(2, 3, 8, 4)})[0].shape == (2, 4, 8, 4)
    model.functions[0]["attributes"]["strides"] = Shape((2, 2, 3))
    path = model.write(tmp_path)
    with pytest.raises(UnsupportedError, match="known only at run time") as caught:
        both(path, {})
    assert "--input" in (caught.value.hint or "")
    asked = parse_input("x:float32[batch,3,8,6]")
    source = Source(location=str(path), format="cntk/v2", inputs=(asked,))
    assert plugin.inspect(source).outputs[0].shape == ("batch", 4, 4, 3)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8"])
def test_other_dtypes(dtype: str, tmp_path: Path) -> None:
    weight = (w(3, 2) * 4).astype(dtype)
    model = Model()
    model.input("x", 3, data_type=2 if dtype == "float64" else 1)
    model.parameter("W", weight)
    model.function("Times", "made", "W", "x", outputRank=1)
    kind = "float64" if dtype == "float64" else "float32"
    x = w(2, 3).astype(kind)
    (found,) = both(model.write(tmp_path), {"x": x})
    assert found.dtype == kind
    np.testing.assert_allclose(found, x @ weight.astype(kind), rtol=1e-4)


def test_names_that_are_not_unique(tmp_path: Path) -> None:
    model = Model()
    model.input("one", 2, name="same")
    model.input("two", 2, name="same")
    model.function("Plus", "sum", "one", "two", name="same")
    source = Source(location=str(model.write(tmp_path)), format="cntk/v2")
    signature = plugin.inspect(source)
    assert [spec.name for spec in signature.inputs] == ["same", "two"]
    assert [spec.name for spec in signature.outputs] == ["same_output"]


def test_a_file_over_two_gigabytes_has_its_arrays_behind(tmp_path: Path) -> None:
    model = trained()
    small, large = tmp_path / "small.dnn", tmp_path / "large.dnn"
    small.write_bytes(model.file("z"))
    large.write_bytes(model.large("z"))
    assert dk.inspect(large).format == "cntk/v2"
    x = w(2, 3)
    np.testing.assert_array_equal(both(small, {"x": x})[0], both(large, {"x": x})[0])
    large.write_bytes(model.large("z")[:-4])
    with pytest.raises(SourceError, match="are left"):
        both(large, {})


def test_every_operator_has_a_definition() -> None:
    assert set(EMIT) == set(COMPUTE)
    assert set(EMIT) <= set(reading_v2.OPERATORS)
    assert set(sequences.EMIT) | set(mapping.EMIT) == set(EMIT)


@pytest.mark.parametrize("op", sorted(set(reading_v2.OPERATORS) - set(EMIT) - {"Block", "Combine"}))
def test_what_has_no_form_is_named(op: str, tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3)
    model.function(op, "made", "x", name="here")
    source = Source(
        location=str(model.write(tmp_path)), format="cntk/v2", options={"outputs": "here"}
    )
    with pytest.raises(UnsupportedError, match=rf"{op} \(`here`\)") as caught:
        plugin.inspect(source)
    assert caught.value.operators == (op,)
    assert caught.value.hint


def test_refusals_that_name_the_reason(tmp_path: Path) -> None:
    x = w(2, 3, 4)
    refused: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("ReduceElements", [x], {"axis": Axis(index=0), "reductionOpName": "Median"}),
        ("ReduceElements", [x], {"axis": Axis(name="defaultBatchAxis"), "reductionOpName": "Sum"}),
        (
            "Slice",
            [x],
            {"axis": Axis(name="defaultDynamicAxis"), "beginIndex": Int(0), "endIndex": Int(1)},
        ),
        ("Pad", [x], {"paddingHead": [1, 1], "paddingFoot": [1, 1], "paddingMode": 2}),
        ("Cast", [x], {"newDataType": Int(5)}),
        ("Crop", [x, x], {}),
    ]
    for op, feeds, attributes in refused:
        with pytest.raises(UnsupportedError):
            computed(tmp_path, op, *feeds, **attributes)
    with pytest.raises(UnsupportedError, match="along its channels"):
        convolved(tmp_path, w(4, 2, 3, 3), w(1, 3, 5, 5))
    with pytest.raises(UnsupportedError, match="shares no weights"):
        convolved(tmp_path, w(4, 3, 3, 3), w(1, 3, 5, 5), sharing=[True, False, True])


def test_shapes_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not fit"):
        multiplied(tmp_path, w(5, 3), w(2, 4), outputRank=1)
    with pytest.raises(SourceError, match="do not fit together"):
        computed(tmp_path, "Plus", w(2, 3), w(2, 4))


def test_a_cycle_without_delay_is_refused(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3)
    model.function("Plus", "a", "x", "b_Output_0")
    model.function("Tanh", "b", "a_Output_0")
    with pytest.raises(SourceError, match="without a delay"):
        both(model.write(tmp_path), {})


def test_a_user_defined_function_is_refused(tmp_path: Path) -> None:
    model = Model()
    model.input("x", 3)
    model.function("Tanh", "made", "x", name="mine")
    model.functions[-1] |= {"type": "UserDefinedFunction", "user_function_name": "Sparsify"}
    with pytest.raises(UnsupportedError, match="Sparsify"):
        both(model.write(tmp_path), {})


def test_a_checkpoint_gives_its_model_or_says_what_it_is(tmp_path: Path) -> None:
    from tests.converters.cntk_v2_writer import dictionary

    path = tmp_path / "model.dnn"
    path.write_bytes(dictionary({"learner": {"version": 1}, "model": trained().values("z")}))
    assert both(path, {"x": w(2, 3)})[0].shape == (2, 2)
    path.write_bytes(dictionary({"learner": {"version": 1}, "rate": 0.1}))
    with pytest.raises(SourceError, match="no CNTK function") as caught:
        both(path, {})
    assert "`.ckp`" in (caught.value.hint or "")


def test_wrong_references_are_damage(tmp_path: Path) -> None:
    changes: tuple[Callable[[Model], Any], ...] = (
        lambda model: model.functions[0].update(inputs=["W", "nobody"]),
        lambda model: model.functions[0].update(op=2**40),
        lambda model: model.functions[0].update(attributes=3),
        lambda model: model.functions[0].update(uid=7),
        lambda model: model.variables[0].update(kind="input"),
        lambda model: model.variables[2].pop("value"),
        lambda model: model.variables[0].update(shape=Shape((2**63,))),
    )
    for change in changes:
        model = trained()
        change(model)
        with pytest.raises(DeploykitError):
            both(model.write(tmp_path, "z"), {})


MANY = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def inspected(path: Path) -> None:
    """Read a file; anything but a result or one of our own errors fails the test."""
    with contextlib.suppress(DeploykitError):
        plugin.inspect(Source(location=str(path), format="cntk/v2"))


WHOLE = recurrent("PastValue")[0].file()


@MANY
@given(length=st.integers(1, len(WHOLE) - 1))
def test_truncated(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.dnn"
    path.unlink(missing_ok=True)
    path.write_bytes(WHOLE[:length])
    inspected(path)


@MANY
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for at in data.draw(st.lists(st.integers(0, len(WHOLE) - 1), min_size=1, max_size=6)):
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 4]))
    path = tmp_path / "bad.dnn"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(damaged))
    inspected(path)


def test_depth_is_bounded(tmp_path: Path) -> None:
    from tests.converters.cntk_v2_writer import dictionary

    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"inputs": deep}
    path = tmp_path / "deep.dnn"
    path.write_bytes(dictionary(deep))
    with pytest.raises(SourceError, match="more than 64"):
        both(path, {})
