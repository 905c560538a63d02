"""One small model an operator, or a way of using it: TensorFlow's own values, or a clear refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import UnsupportedError

pytestmark = pytest.mark.environment

SCRIPT = "make_tensorflow_operators"


@pytest.mark.parametrize(
    "name",
    [
        *("while_loop", "while_until_large", "branch", "tensor_array", "mapped", "scanned"),
        *("bilinear_half_pixel", "bilinear_aligned", "bilinear_old", "bilinear_smaller"),
        *("nearest_half_pixel", "nearest_aligned", "nearest_old", "resized_by_its_size"),
        *("suppression", "crop_and_resize", "depth_to_space", "space_to_depth", "bicubic", "area"),
        *("dilated_by_batches", "dilated", "explicit_padding", "depthwise", "transposed"),
        *("transposed_of_any_batch", "volume", "grouped", "pools", "normalised_by_this_batch"),
        *("normalised", "local_response", "einsum", "cumsum", "cumprod", "top", "slices"),
        *("scattered", "picked", "functions", "ragged"),
    ],
)
def test_an_operator_gives_what_tensorflow_gives(
    name: str, tensorflow: Any, tmp_path: Path
) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / name)
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert result.repairs == ()


@pytest.mark.parametrize("name", ["spectrum", "short_time_spectrum", "complex_spectrum", "mel"])
def test_transforms_are_products_with_matrices(name: str, tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / name)
    # sums of hundreds of products in another order
    result = tensorflow.compare(model, tmp_path / "m.onnx", atol=3e-5)
    assert "complex numbers are written as pairs" in result.repairs[0]


@pytest.mark.parametrize(
    ("name", "operator", "says"),
    [
        ("noisy", "RandomStandardNormal", "draws random numbers (node `random_normal"),
        ("gamma", "Lgamma", "no ONNX form for Lgamma (node `Lgamma`)"),
        ("inverse", "MatrixInverse", "no ONNX form for MatrixInverse"),
        ("scan_without_start", None, "tf2onnx cannot convert this graph"),
        ("ragged_output", None, "sparse or composite"),
    ],
)
def test_what_has_no_onnx_form_is_named_with_its_node(
    name: str, operator: str | None, says: str, tensorflow: Any, tmp_path: Path
) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / name)
    with pytest.raises(UnsupportedError) as raised:
        tensorflow.convert(model, tmp_path / "m.onnx")
    assert says in raised.value.message
    assert raised.value.operators == ((operator,) if operator else ())
    assert raised.value.hint
    assert list(tmp_path.iterdir()) == []
