"""CNTK's convolutions and poolings: as ONNX, by definition, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.converters.cntk_cases import computed, convolved, w
from tests.converters.cntk_v2_writer import (
    Shape,
)


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
