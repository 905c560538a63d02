"""Real models that others published: what PyTorch gave, our ONNX gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploykit.steps import Worker
from tests.converters.pytorch_models import assert_same, convert, file, names

pytest_plugins = ["tests.converters.pytorch_fixtures"]
pytestmark = pytest.mark.environment

FACES = {"scores": "out_scores", "boxes": "out_boxes"}


@pytest.mark.parametrize(
    ("format", "path", "inputs"),
    [
        ("exported_program", "torch_export/derived_ultraface_rfb320/ultraface_rfb320.pt2", ()),
        ("exported_program", "torch_export/derived_ultraface_slim320/ultraface_slim320.pt2", ()),
        ("torchscript", "torchscript/derived_ultraface_slim320_traced/ultraface_slim320.pt", ()),
        (
            "lite",
            "torch_lite/derived_ultraface_slim320/ultraface_slim320.ptl",
            ("image:float32[1,3,240,320]",),
        ),
    ],
)
def test_face_detectors(
    worker: Worker,
    shared_models: Path,
    tmp_path: Path,
    format: str,
    path: str,
    inputs: tuple[str, ...],
) -> None:
    source = file(f"pytorch/{format}", shared_models / path, *inputs, outputs="scores,boxes")
    output = tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature)[0] == ["x:float32[1,3,240,320]"]
    golden = np.load((shared_models / path).parent / "golden.npz")
    (reference,) = assert_same(worker, source, output, {"x": golden["in_image"]})
    for name, key in FACES.items():
        np.testing.assert_allclose(reference[name], golden[key], rtol=1e-4, atol=1e-5)


def test_a_speech_detector_that_torch_2_cannot_run(
    worker: Worker, shared_models: Path, tmp_path: Path
) -> None:
    """Of 2021, with dynamically quantised layers; its golden outputs are PyTorch 1.8's."""
    folder = shared_models / "torchscript" / "silero_vad_mini_v2"
    source = file("pytorch/torchscript", folder / "model_mini.jit", "x:float32[1,4000]")
    output = tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert any("torch.stft" in line for line in result.repairs)
    golden = np.load(folder / "golden.npz")
    (reference,) = assert_same(worker, source, output, {"x": golden["in_x"]}, atol=1e-4)
    np.testing.assert_allclose(reference["output"], golden["out_out"], rtol=1e-3, atol=1e-5)
