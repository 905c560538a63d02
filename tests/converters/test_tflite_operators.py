"""Every operator of TensorFlow Lite against its own kernels, in our definition and in ONNX Runtime.

The models and outputs are made by `tests/fixtures/make_tflite_models.py` with the interpreter of
TensorFlow 2.21 and its reference kernels.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from deploykit._plugins.converters.tflite import evaluation, mapping, plugin, reading

from deploykit.protocol import ConvertRequest, ReferenceRequest, Source

ARCHIVE = Path(__file__).resolve().parent.parent / "fixtures" / "tflite_operators.zip"
NAMES = sorted(
    name.removesuffix(".tflite")
    for name in zipfile.ZipFile(ARCHIVE).namelist()
    if name.endswith(".tflite")
)
# Integers of these are computed from real numbers, where TensorFlow Lite has tables or fixed-point
# polynomials: by how many steps (of 256, of 65536 for int16) they may differ. All others are exact.
INEXACT = {
    "int8_hard_swish": 1,
    "int8_l2_normalization": 1,
    "int8_mean": 1,
    "int8_resize_bilinear": 1,
    "int8_sum": 1,
    "int16_logistic": 1,
    "int16_softmax": 3,
    "int16_tanh": 2,
}
# Where runtimes round once and halves to even, the last step may differ.
LAST_STEP = 1


def arrays(archive: zipfile.ZipFile, name: str, side: str) -> list[Any]:
    found = sorted(one for one in archive.namelist() if one.startswith(f"{name}.{side}_"))
    return [np.load(io.BytesIO(archive.read(one))) for one in found]


def check(found: Any, wanted: Any, steps: int, what: str) -> None:
    assert found.shape == wanted.shape, what
    assert found.dtype == wanted.dtype, what
    if wanted.dtype.kind == "f":
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=6e-6 * scale, err_msg=what)
    else:
        apart = np.abs(found.astype(np.int64) - wanted.astype(np.int64))
        assert apart.max(initial=0) <= steps, f"{what}: {apart.max()} steps"


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_gives_what_tensorflow_lite_gives(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(archive.read(path.name))
        inputs, wanted = arrays(archive, name, "in"), arrays(archive, name, "out")
    graph = reading.read(path).graphs[0]
    exact = evaluation.evaluate(graph, dict(zip(graph.inputs, inputs, strict=True)))
    quantised = any(tensor.quantized for tensor in graph.tensors)
    steps = INEXACT.get(name, 0)
    for at, value in zip(graph.outputs, wanted, strict=True):
        check(np.asarray(exact[at], value.dtype), value, steps, "our definition")
    source = Source(location=str(path), format="tensorflow/tflite")
    session = plugin.reference(ReferenceRequest(source=source))
    feed = {spec.name: value for spec, value in zip(session.inputs, inputs, strict=True)}
    allowed = max(steps, LAST_STEP if quantised else 0)
    for spec, value in zip(session.outputs, wanted, strict=True):
        check(session.run(feed)[spec.name], value, allowed, "the reference")
    plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "m.onnx")))
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        runtime = onnxruntime.InferenceSession(tmp_path / "m.onnx", options)
        for found, value in zip(runtime.run(None, feed), wanted, strict=True):
            check(found, value, allowed, level)


def test_every_operator_has_both_a_form_and_a_definition() -> None:
    assert set(mapping.EMIT) == set(evaluation.COMPUTE)
