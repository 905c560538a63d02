"""Paddle layers by reference: the inputs said by the code or by the user, Paddle the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

import deploykit as dk
from deploykit.errors import SourceError, UsageError

pytestmark = pytest.mark.environment

CODE = Path(__file__).resolve().parent.parent / "fixtures" / "code" / "paddle_layers.py"


def test_its_format_is_told_by_its_imports() -> None:
    assert dk.inspect(f"{CODE}:small").format == "paddle/layer"


@pytest.mark.parametrize(
    ("name", "inputs"), [("with_specs", ()), ("small", ("image:float32[batch,3,8,8]",))]
)
def test_a_layer_becomes_what_paddle_computes(
    name: str, inputs: tuple[str, ...], tmp_path: Path
) -> None:
    source = dk.SourceOptions.parse(inputs=inputs)
    done = dk.convert(f"{CODE}:{name}", tmp_path / "out.onnx", source=source)
    assert done.verified
    assert done.cases > 3  # several sizes of the batch among them
    (image,) = done.signature.inputs
    assert (image.name, image.shape and image.shape[0]) == ("image", "batch")


def test_what_is_no_layer_and_inputs_that_nobody_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"returned a int, not a paddle\.nn\.Layer"):
        dk.convert(f"{CODE}:no_layer", tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="nothing says what the inputs") as caught:
        dk.convert(f"{CODE}:small", tmp_path / "out.onnx")
    assert "--input" in caught.value.hint
