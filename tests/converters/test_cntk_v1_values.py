"""CNTK v1: real models against golden outputs, and what v1 alone has against its definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.cntk import plugin

import deploykit as dk
from deploykit.errors import UnsupportedError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from tests.converters import cntk_v1_writer as v1
from tests.converters.cntk_v1_writer import File

RANDOM = np.random.default_rng(17)


def w(*shape: int) -> Any:
    """Return an array in numpy's order: the reverse of CNTK's."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def run(path: Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


GOLDEN = ("logreg", "mnist_onehidden_bs", "resnet20_cifar10", "cifar10_pretrained_cmf")


@pytest.mark.parametrize("name", [*GOLDEN, "slu_bilstm_cmf"])
def test_a_real_model_gives_what_cntk_gave(name: str, shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "cntk" / f"v1_{name}"
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert conversion.verified
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    golden = np.load(folder / "golden.npz")
    feed = {shown: golden[f"in_{key}"] for key, shown in names["in"].items()}
    assert [spec.name for spec in conversion.signature.inputs] == list(names["in"].values())
    assert [spec.name for spec in conversion.signature.outputs] == list(names["out"].values())
    # the criteria were cut off, and the user is told
    assert any("only training needs" in repair for repair in conversion.repairs)
    for key, value in zip(names["out"], run(tmp_path / "out.onnx", feed), strict=True):
        expected = golden[f"out_{key}"]
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=2e-5 * np.abs(expected).max())


Case = tuple[File, dict[str, Any], Any]
CASES: dict[str, Callable[[], Case]] = {}


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    CASES[function.__name__] = function
    return function


def channels_first(size: int, kernel: int, stride: int, *, pad: bool) -> Case:
    """CNTK's AssignPackedConvolutionInput, element by element."""
    channels, maps, half = 2, 3, kernel // 2 if pad else 0
    file = File(2)
    file.input("x", size, size, channels)
    # rows are maps, columns are channels by places
    weight = w(channels * kernel * kernel, maps)
    file.parameter("W", weight)
    file.old_convolution("o", "W", "x", kernel, maps, stride=stride, pad=pad)
    x = w(2, size, size, channels)
    places = (size - (kernel % 2 if pad else kernel)) // stride + 1
    expected = np.zeros((2, places, places, maps))
    for m, c, i, j, p, q in np.ndindex(maps, channels, places, places, kernel, kernel):
        row, column = i * stride - half + p, j * stride - half + q
        if 0 <= row < size and 0 <= column < size:
            factor = weight[(c * kernel + q) * kernel + p, m]
            expected[:, j, i, m] += factor * x[:, column, row, c]
    return file, {"x": x}, expected


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(6, 3, 1), (7, 3, 2), (6, 4, 2), (5, 2, 1), (8, 5, 3)]
)
def test_a_convolution_with_channels_first(
    tmp_path: Path, size: int, kernel: int, stride: int, pad: bool
) -> None:
    check(tmp_path, *channels_first(size, kernel, stride, pad=pad))


@pytest.mark.parametrize("op", ["MaxPooling", "AveragePooling"])
@pytest.mark.parametrize("layout", [0, 1])
def test_pooling_of_two_axes(tmp_path: Path, op: str, layout: int) -> None:
    file = File(3)
    x = w(2, 5, 5, 3) if layout == 0 else w(2, 3, 5, 5)
    file.input("x", *x.shape[:0:-1])
    file.old_pooling(op, "o", "x", 3, 2, layout)
    best = np.max if op == "MaxPooling" else np.mean
    picture = x if layout == 1 else x.transpose(0, 3, 1, 2)
    expected = np.zeros((2, 3, 2, 2))
    for i, j in np.ndindex(2, 2):
        part = picture[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, :, i, j] = best(part, axis=(2, 3))
    check(tmp_path, file, {"x": x}, expected if layout else expected.transpose(0, 2, 3, 1))


@case
def a_convolution_whose_kernel_is_a_matrix() -> Case:
    file = File(12)
    kernel = w(4, 3, 2, 2)
    file.input("x", 5, 6, 3)
    file.parameter("W", kernel, 4, 12)
    window = file.window((2, 2, 1), (1, 1, 4), (2, 1, 1))
    file.convolution("o", "W", "x", window, two_axes=True)
    x = w(2, 3, 6, 5)
    expected = np.zeros((2, 4, 5, 2))
    for i, j in np.ndindex(5, 2):
        part = x[:, :, i : i + 2, 2 * j : 2 * j + 2]
        expected[:, :, i, j] = np.einsum("nchw,mchw->nm", part, kernel)
    return file, {"x": x}, expected


@case
def a_convolution_of_old_files_with_channels_last() -> Case:
    """Layout CHW: the matrix holds the kernel's numbers in the kernel's order, padding is even."""
    file = File(4)
    kernel = w(4, 3, 3, 3)
    file.input("x", 5, 6, 3)
    file.parameter("W", kernel, 4, 27)
    file.old_convolution("o", "W", "x", 3, 4, stride=1, pad=True, layout=1)
    x = w(2, 3, 6, 5)
    around = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 4, 6, 5))
    for i, j in np.ndindex(6, 5):
        part = around[:, :, i : i + 3, j : j + 3]
        expected[:, :, i, j] = np.einsum("nchw,mchw->nm", part, kernel)
    return file, {"x": x}, expected


@case
def local_response_normalization() -> Case:
    """BrainScript's LRN: a convolution along the channels, by way of a new axis behind them."""
    file = File(18)
    kernel = np.abs(w(1, 1, 5, 1, 1))
    file.input("x", 3, 2, 7)
    file.node("ElementTimes", "squares", "x", "x")
    file.node("Reshape", "split", "squares", payload=v1.i4(3, 4) + v1.shape(7, 1))
    file.parameter("W", kernel[0])
    window = v1.shape(1, 1, 5) + v1.shape(1) + v1.shape(1) + v1.truths(True) + v1.truths(True)
    window += v1.shape(0) + v1.shape(0) + v1.i4(0, 1) + v1.u8(0) + v1.truth(False)
    file.convolution("c", "W", "split", window)
    file.node("Reshape", "flat", "c", payload=v1.i4(3, 5) + v1.shape(0))
    file.parameter("k", np.array([2.0]))
    file.node("Plus", "sum", "k", "flat")
    file.node("Log", "log", "sum")
    file.node("Reciprocal", "r", "sum")
    file.node("ElementTimes", "o", "x", "r")
    x = w(2, 7, 2, 3)
    around = np.pad(x * x, ((0, 0), (2, 2), (0, 0), (0, 0)))
    total = sum(kernel.reshape(-1)[at] * around[:, at : at + 7] for at in range(5))
    return file, {"x": x}, x / (2 + total)


@case
def strides_that_are_repeated() -> Case:
    """Fewer strides and paddings than the kernel has axes: the last stands for the others."""
    file = File(12)
    kernel = w(4, 3, 3, 3)
    file.input("x", 7, 7, 3)
    file.parameter("W", kernel)
    window = v1.shape(3, 3, 3) + v1.shape(4) + v1.shape(2) + v1.truths(True)
    window += v1.truths(True, True, False) + v1.shape(0) + v1.shape(0)
    window += v1.i4(0, 1) + v1.u8(0) + v1.truth(False)
    file.convolution("o", "W", "x", window)
    x = w(2, 3, 7, 7)
    around = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 4, 4, 4))
    for i, j in np.ndindex(4, 4):
        part = around[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, :, i, j] = np.einsum("nchw,mchw->nm", part, kernel)
    return file, {"x": x}, expected


@case
def a_transposed_convolution() -> Case:
    file = File(20)
    kernel = w(2, 4, 3, 3)  # CNTK's [3 x 3 x 4 x 2]: from 2 maps to 4
    file.input("x", 3, 3, 2)
    file.parameter("W", kernel)
    window = file.window((3, 3, 4), (2,), (2, 2, 4), transpose=True)
    file.convolution("c", "W", "x", window)
    file.times("o", file.parameter("V", last := w(4, 7, 7, 5)), "c")
    x = w(2, 2, 3, 3)
    spread = np.zeros((2, 4, 7, 7))
    for i, j in np.ndindex(3, 3):
        part = np.einsum("nm,mchw->nchw", x[:, :, i, j], kernel)
        spread[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += part
    return file, {"x": x}, np.einsum("nchw,chwk->nk", spread, last)


@case
def a_cropped_picture() -> Case:
    file = File(12)
    file.input("x", 5, 4, 2)
    file.input("like", 3, 2, 1)
    file.node("Crop", "c", "x", "like", payload=v1.f8(1, 2))
    file.node("Plus", "o", "c", "like")
    x, like = w(2, 2, 4, 5), w(2, 1, 2, 3)
    return file, {"x": x, "like": like}, x[:, :, 2:4, 1:4] + like


@case
def looked_up_words() -> Case:
    file = File(2)
    table = w(5, 3)  # 3 rows, 5 words
    file.parameter("E", table)
    file.input("x", 10)
    file.node("LookupTable", "o", "E", "x")
    chosen = np.array([[1, 4], [0, 2], [3, 3]])
    x = np.eye(5, dtype=np.float32)[chosen].reshape(3, 10, 1, 1)
    return file, {"x": x}, table[chosen].reshape(3, 6)


@case
def stacked_rows() -> Case:
    file = File(12)
    file.input("x", 3)
    file.input("y", 2)
    file.node("RowStack", "o", "x", "y", "x", payload=v1.i4(1))
    x, y = w(2, 3), w(2, 2)
    return file, {"x": x, "y": y}, np.concatenate([x, y, x], axis=1)


@case
def stacked_along_a_new_axis() -> Case:
    file = File(12)
    file.input("x", 3)
    file.input("y", 3)
    file.node("RowStack", "o", "x", "y", payload=v1.i4(2))
    x, y = w(2, 3), w(2, 3)
    return file, {"x": x, "y": y}, np.stack([x, y], axis=1)


@case
def repeated_rows() -> Case:
    file = File(12)
    file.input("x", 3)
    file.node("RowRepeat", "o", "x", payload=v1.u8(3))
    x = w(2, 3)
    return file, {"x": x}, np.tile(x, 3)


def precomputed(file: File, op: str, values: Any) -> None:
    payload = v1.truth(True) + v1.matrix(values.reshape(-1, 1))
    file.node(op, op, "x", payload=payload)


@case
def features_made_normal_and_back() -> Case:
    file = File(5)
    mean, inverse = w(4), np.abs(w(4)) + 0.5
    file.input("x", 4)
    precomputed(file, "Mean", mean)
    precomputed(file, "InvStdDev", inverse)
    file.node("PerDimMeanVarNormalization", "n", "x", "Mean", "InvStdDev")
    file.node("Sigmoid", "s", "n")
    file.node("PerDimMeanVarDeNormalization", "o", "s", "Mean", "InvStdDev")
    x = w(3, 4)
    return file, {"x": x}, 1 / (1 + np.exp(-(x - mean) * inverse)) / inverse + mean


@case
def images_made_normal() -> Case:
    """Mean and deviation are columns in the file, and have the image's shape in the network."""
    file = File(12)
    mean, inverse = w(2, 3, 4), np.abs(w(2, 3, 4)) + 0.5
    file.input("x", 4, 3, 2)
    precomputed(file, "Mean", mean)
    precomputed(file, "InvStdDev", inverse)
    file.node("PerDimMeanVarNormalizationNode", "o", "x", "Mean", "InvStdDev")
    x = w(3, 2, 3, 4)
    return file, {"x": x}, (x - mean) * inverse


@case
def normalized_by_the_inverse_deviation() -> Case:
    file = File(12)
    scale, bias, mean, inverse = w(2), w(2), w(2), np.abs(w(2)) + 0.5
    file.input("x", 4, 3, 2)
    for name, value in (("s", scale), ("b", bias), ("m", mean), ("d", inverse)):
        file.parameter(name, value.reshape(1, 2))
    file.normalization("o", "x", "s", "b", "m", "d", spatial=True, epsilon=0.01)
    x = w(3, 2, 3, 4)
    variance = 1 / inverse**2 + 0.01  # as CNTK converts it
    by_channel = [one.reshape(2, 1, 1) for one in (scale, bias, mean, variance)]
    s, b, m, v = by_channel
    return file, {"x": x}, (x - m) / np.sqrt(v + 0.01) * s + b


@case
def some_axes_reshaped() -> Case:
    file = File(12)
    file.input("x", 4, 3, 2)
    file.node("Reshape", "o", "x", payload=v1.i4(2, 4) + v1.shape(0, 1))
    x = w(2, 2, 3, 4)
    return file, {"x": x}, x.reshape(2, 1, 6, 4)


@case
def a_reshape_of_old_files() -> Case:
    file = File(2)
    weight = w(6, 12)
    file.parameter("W", weight)
    file.times("t", "W", file.input("x", 6))
    file.node("Reshape", "o", "t", payload=v1.u8(12) + v1.u8(2, 3, 2))
    x = w(2, 6, 1, 1)
    # width 2, height 3, channels 2: CNTK's shape is (channels, width, height)
    return file, {"x": x}, (x.reshape(2, 6) @ weight).reshape(2, 3, 2, 2)


@case
def swapped_axes() -> Case:
    file = File(12)
    file.input("x", 4, 3, 2)
    file.node("TransposeDimensions", "o", "x", payload=v1.i4(1, 3))
    x = w(2, 2, 3, 4)
    return file, {"x": x}, x.transpose(0, 3, 2, 1)


@case
def permuted_axes() -> Case:
    file = File(25)
    file.input("x", 4, 3, 2)
    file.node("TransposeDimensions", "o", "x", payload=v1.i4(0, 0) + v1.u8(3, 1, 2, 0))
    x = w(2, 2, 3, 4)
    # CNTK's axes (1, 2, 0) of (4, 3, 2) make (3, 2, 4)
    return file, {"x": x}, x.transpose(0, 3, 1, 2)


@case
def a_sum_along_one_axis() -> Case:
    file = File(24)
    file.input("x", 4, 3)
    payload = v1.i4(2) + v1.text("Sum") + v1.truth(False)
    file.node("ReduceElements", "o", "x", payload=payload)
    x = w(2, 3, 4)
    return file, {"x": x}, x.sum(axis=1)


@case
def a_mean_of_version_27() -> Case:
    file = File(27)
    file.input("x", 4, 3)
    payload = v1.i4(1, 1) + v1.text("Mean") + v1.truth(True)
    file.node("ReduceElements", "o", "x", payload=payload)
    x = w(2, 3, 4)
    return file, {"x": x}, x.mean(axis=2, keepdims=True)


@case
def the_sum_of_a_sample() -> Case:
    file = File(12)
    file.input("x", 4, 3)
    file.node("SumColumnElements", "o", "x")
    x = w(2, 3, 4)
    return file, {"x": x}, x.sum(axis=(1, 2)).reshape(2, 1)


@case
def clipped_and_chosen() -> Case:
    """Of v1's Clip the data comes last."""
    file = File(12)
    file.input("x", 5)
    file.parameter("least", np.array([-0.5]))
    file.parameter("most", np.array([0.25]))
    file.node("Clip", "c", "least", "most", "x")
    file.node("EnvironmentInput", "training", payload=v1.text("isTraining"))
    file.node("If", "o", "training", "x", "c")
    x = w(3, 5)
    return file, {"x": x}, np.clip(x, -0.5, 0.25)


@case
def a_transposed_product() -> Case:
    file = File(12)
    weight = w(2, 3)  # 3 rows, 2 columns
    file.parameter("W", weight)
    file.node("TransposeTimes", "o", "W", file.input("x", 3), payload=v1.u8(1) + v1.i4(-1))
    x = w(4, 3)
    return file, {"x": x}, x @ weight.T


@case
def a_product_of_several_axes() -> Case:
    file = File(12)
    weight = w(2, 3, 5)  # CNTK's [5 x 3 x 2]
    file.parameter("W", weight)
    file.times("o", "W", file.input("x", 3, 2), mapped=0)
    x = w(4, 2, 3)
    return file, {"x": x}, np.einsum("nij,ijk->nk", x, weight)


@case
def scaled_columns() -> Case:
    file = File(3)
    file.input("x", 4)
    scale = w(1, 4)
    file.parameter("s", scale)
    file.node("ColumnElementTimes", "o", "x", "s")
    x = w(3, 4)
    return file, {"x": x}, (x * scale)[:, np.newaxis]


@case
def columns_of_old_files_whose_axes_differ() -> Case:
    """An input is an image of height 4 by now, the scale a column: they belong together."""
    file = File(2)
    scale = w(1, 4)
    file.parameter("s", scale)
    file.node("Scale", "scaled", "s", file.input("x", 4))
    file.node("RowSlice", "part", "x", payload=v1.i8(1, 2))
    file.node("RowStack", "o", "scaled", "part")
    x = w(3, 4, 1, 1)
    flat = x.reshape(3, 4)
    return file, {"x": x}, np.concatenate([flat * scale, flat[:, 1:3]], axis=1)


@case
def likelihoods_scaled_by_the_prior() -> Case:
    """A speech model's output: the prior is the mean of the labels, which are not fed."""
    file = File(2)
    file.parameter("W", weight := w(4, 3))
    file.parameter("b", bias := w(1, 3))
    file.times("Wx", "W", file.input("x", 4))
    file.node("Plus", "z", "Wx", "b")
    file.input("y", 3)
    prior = np.abs(w(3)) + 0.1
    file.node("Mean", "prior", "y", payload=v1.truth(True) + v1.matrix(prior.reshape(3, 1)))
    file.node("Log", "log", "prior")
    file.node("Minus", "o", "z", "log")
    x = w(2, 4, 1, 1)
    return file, {"x": x}, (x.reshape(2, 4) @ weight + bias - np.log(prior))[:, np.newaxis]


@case
def double_precision() -> Case:
    file = File(7, "double")
    weight = RANDOM.standard_normal((3, 2))
    file.parameter("W", weight)
    file.times("o", "W", file.input("x", 3))
    x = RANDOM.standard_normal((4, 3))
    return file, {"x": x}, x @ weight


def check(folder: Path, file: File, feed: dict[str, Any], expected: Any) -> None:
    """Convert `file`; compare ONNX Runtime and the evaluation by definition with `expected`."""
    path = folder / "model.dnn"
    path.write_bytes(file.bytes(output=("o",)))
    source = Source(location=str(path), format="cntk/v1")
    plugin.convert(ConvertRequest(source=source, output=str(folder / "out.onnx")))
    (found,) = run(folder / "out.onnx", feed)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    session = plugin.reference(ReferenceRequest(source=source))
    assert [spec.name for spec in session.inputs] == list(feed)
    defined = session.run(feed)["o"]
    assert defined.shape == expected.shape
    np.testing.assert_allclose(defined, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_by_definition(tmp_path: Path, name: str) -> None:
    check(tmp_path, *CASES[name]())


@pytest.mark.parametrize("version", [1, 2, 4, 14])
@pytest.mark.parametrize("op", ["PastValue", "FutureValue"])
def test_a_recurrence(tmp_path: Path, version: int, op: str) -> None:
    file = File(version)
    weight, inner = w(3, 4), w(4, 4)
    file.parameter("W", weight)
    file.parameter("R", inner)
    file.times("Wx", "W", file.input("x", 3))
    file.delay(op, "before", "o", 4, initial=0.3)
    file.times("Rh", "R", "before")
    file.node("Plus", "sum", "Wx", "Rh")
    file.node("Tanh", "o", "sum")
    x = w(6, 3)
    state = np.full(4, 0.1 if version == 1 else 0.3)
    expected = np.zeros((6, 4))
    for t in range(6) if op == "PastValue" else range(5, -1, -1):
        state = np.tanh(x[t] @ weight + state @ inner)
        expected[t] = state
    feed = x if version >= 3 else x.reshape(6, 3, 1, 1)
    check(tmp_path, file, {"x": feed}, expected)


@pytest.mark.parametrize("version", [2, 3, 12, 21])
def test_a_cell_with_peepholes(tmp_path: Path, version: int) -> None:
    """As NDL wrote it: peepholes are columns, and multiply by DiagTimes."""
    size = 3
    file = File(version)
    file.input("x", 4)
    weights = {name: w(4, size) for name in ("Wi", "Wc", "Wo")}
    inner = {name: w(size, size) for name in ("Hi", "Hc", "Ho")}
    holes = {name: w(1, size) for name in ("Ci", "Co")}
    for name, value in {**weights, **inner, **holes}.items():
        file.parameter(name, value)
    file.delay("PastValue", "h1", "o", size, initial=0.2)
    file.delay("PastValue", "c1", "c", size, initial=0.2)
    for gate in "ico":
        file.times(f"x{gate}", f"W{gate}", "x")
        file.times(f"h{gate}", f"H{gate}", "h1")
        file.node("Plus", f"s{gate}", f"x{gate}", f"h{gate}")
    file.node("DiagTimes", "pi", "Ci", "c1")
    file.node("Sigmoid", "i", file.node("Plus", "ti", "si", "pi"))
    file.node("Tanh", "new", "sc")
    file.node("Minus", "keep", "c1", file.node("ElementTimes", "drop", "i", "c1"))
    file.node("Plus", "c", "keep", file.node("ElementTimes", "add", "i", "new"))
    file.node("DiagTimes", "po", "Co", "c")
    file.node("Sigmoid", "out", file.node("Plus", "to", "so", "po"))
    file.node("ElementTimes", "o", "out", file.node("Tanh", "squashed", "c"))
    x = w(5, 4)
    h = c = np.full(size, 0.2)
    expected = []
    for step in x:
        total = {g: step @ weights[f"W{g}"] + h @ inner[f"H{g}"] for g in "ico"}
        i = 1 / (1 + np.exp(-(total["i"] + holes["Ci"][0] * c)))
        c = c - i * c + i * np.tanh(total["c"])
        h = np.tanh(c) / (1 + np.exp(-(total["o"] + holes["Co"][0] * c)))
        expected.append(h)
    feed = x if version >= 3 else x.reshape(5, 4, 1, 1)
    check(tmp_path, file, {"x": feed}, np.array(expected)[:, np.newaxis])


@pytest.mark.parametrize(("version", "op", "cell"), [(13, "RNN", "RNN_TANH"), (21, "", "rnnTanh")])
def test_a_stack_of_recurrent_layers(tmp_path: Path, version: int, op: str, cell: str) -> None:
    """Before version 14 the weights came behind the data."""
    weight, inner, biases = w(4, 3), w(4, 4), w(2, 4)
    file = File(version)
    flat = np.concatenate([weight.reshape(-1), inner.reshape(-1), biases.reshape(-1)])
    file.parameter("W", flat.reshape(-1, 4))
    file.input("x", 3)
    payload = v1.u8(0, 1, 4) + v1.text(cell) + (v1.i4(-1) if version >= 14 else b"")
    inputs = ("x", "W") if version < 14 else ("W", "x")
    file.node(op or "OptimizedRNNStack", "o", *inputs, payload=payload)
    x = w(5, 3)
    state, expected = np.zeros(4), []
    for step in x:
        state = np.tanh(weight @ step + inner @ state + biases.sum(axis=0))
        expected.append(state)
    check(tmp_path, file, {"x": x}, np.array(expected))


@pytest.mark.parametrize(("op", "place"), [("PastValue", 0), ("FutureValue", -1)])
def test_the_first_and_the_last_of_a_sequence(tmp_path: Path, op: str, place: int) -> None:
    """BrainScript's Sequences.First and .Last: where a delayed zero is still the initial one."""
    file = File(14)
    weight = w(3, 2)
    file.input("x", 3)
    file.parameter("zero", np.zeros(1))
    file.node("ReconcileDynamicAxis", "zeros", "zero", "x")
    file.delay(op, "is", "zeros", 1, initial=1.0)
    file.node("Where", "where", "is", payload=v1.text("WhereNodeAxis"))
    file.node("PackedIndex", "index", "x", "where")
    file.node("GatherPacked", "chosen", "index", "x")
    file.parameter("W", weight)
    file.times("o", "W", "chosen")
    x = w(5, 3)
    check(tmp_path, file, {"x": x}, (x[place] @ weight)[np.newaxis])


def test_only_what_an_output_needs_must_be_known(tmp_path: Path) -> None:
    file = File(12)
    file.node("Tanh", "o", file.input("x", 3))
    file.node("KhatriRaoProduct", "odd", "x", "o")
    x = w(2, 3)
    check(tmp_path, file, {"x": x}, np.tanh(x))
    path = tmp_path / "model.dnn"
    path.write_bytes(file.bytes(output=("odd",)))
    with pytest.raises(UnsupportedError, match="KhatriRaoProduct"):
        plugin.inspect(Source(location=str(path), format="cntk/v1"))
