"""What the tests of the PyTorch converter share: sources, conversion, comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    DynamicAxis,
    ReferenceRequest,
    Signature,
    Source,
)
from deploykit.steps import Worker
from deploykit.tensor_spec import parse_input

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SMALL = FIXTURES / "make_pytorch_models.py"
ZOO = FIXTURES / "make_torch_zoo.py"
CODE = FIXTURES / "make_torch_weights.py"

Array = np.ndarray[Any, Any]


def module(function: str, *inputs: str, code: Path = SMALL, **settings: str) -> Source:
    return file("pytorch/module", f"{code}:{function}", *inputs, **settings)


def file(format: str, location: str | Path, *inputs: str, **settings: str) -> Source:
    return Source(
        location=str(location),
        format=format,
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
    )


def convert(
    worker: Worker, source: Source, output: Path, *axes: DynamicAxis, opset: int | None = None
) -> ConvertResult:
    request = ConvertRequest(source=source, output=str(output), opset=opset, dynamic=axes)
    return worker.call("convert", request, ConvertResult)


def names(signature: Signature) -> tuple[list[str], list[str]]:
    return [str(spec) for spec in signature.inputs], [str(spec) for spec in signature.outputs]


def assert_same(
    worker: Worker, source: Source, output: Path, *feeds: dict[str, Array], atol: float = 1e-5
) -> list[dict[str, Array]]:
    """Run `feeds` through PyTorch and through ONNX Runtime; return PyTorch's outputs."""
    session = onnxruntime.InferenceSession(output)
    outputs = [value.name for value in session.get_outputs()]
    expected = []
    reference = worker.open(ReferenceRequest(source=source))
    assert [spec.name for spec in reference.signature.outputs] == outputs
    for feed in feeds:
        wanted = reference.run(feed)
        for name, value in zip(outputs, session.run(outputs, feed), strict=True):
            assert value.dtype == wanted[name].dtype
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=atol)
        expected.append(wanted)
    reference.close()
    return expected


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
