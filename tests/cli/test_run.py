"""`deploykit run` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit.tensors import read_tensors, write_tensors

from .conftest import CommandLine

Array = np.ndarray[Any, Any]


@pytest.fixture
def images() -> Array:
    return np.random.default_rng(7).standard_normal((3, 3, 8, 8)).astype(np.float32)


def by_onnx_runtime(model: Path, x: Array) -> Array:
    (y,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    found: Array = y
    return found


def check(found: Path, model: Path, x: Array) -> None:
    outputs = read_tensors(found)
    assert outputs.keys() == {"y"}
    np.testing.assert_allclose(outputs["y"], by_onnx_runtime(model, x), rtol=1e-4, atol=1e-6)


def test_tensors_by_name(
    deploykit: CommandLine, small_bundle: Path, small_onnx: Path, images: Array
) -> None:
    write_tensors(deploykit.folder / "in.npz", {"x": images})
    done = deploykit("run", small_bundle, "--input", "in.npz", "-o", "out.npz", "--threads", "1")
    assert done.code == 0, done.stderr
    check(deploykit.folder / "out.npz", small_onnx, images)
    assert done.stdout.startswith("y  float32[3, 5]  ")
    assert done.stdout.rstrip().endswith("written to out.npz")
    first = float(done.stdout.split()[3].rstrip(","))
    assert first == pytest.approx(by_onnx_runtime(small_onnx, images)[0, 0], rel=1e-4)
    assert sorted(path.name for path in deploykit.folder.iterdir()) == ["in.npz", "out.npz"]


def test_the_single_input_as_an_array(
    deploykit: CommandLine, small_bundle: Path, small_onnx: Path, images: Array
) -> None:
    np.save(deploykit.folder / "in.npy", images)
    done = deploykit("run", small_bundle, "--input", "in.npy", "-o", "out.npz", "--json")
    assert done.code == 0, done.stderr
    check(deploykit.folder / "out.npz", small_onnx, images)
    assert json.loads(done.stdout) == {
        "bundle": str(small_bundle),
        "outputs": {"y": {"dtype": "float32", "shape": [3, 5]}},
        "written": "out.npz",
    }


def test_an_image_and_what_was_done_to_it(
    deploykit: CommandLine, small_bundle: Path, small_onnx: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image.fromarray(pixels).save(deploykit.folder / "in.png")
    done = deploykit("run", small_bundle, "--input", "in.png", "-o", "out.npz")
    assert done.code == 0, done.stderr
    x = (pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    check(deploykit.folder / "out.npz", small_onnx, x)
    assert "in.png" in done.stderr
    assert "0" in done.stderr


def test_golden_inputs_of_a_bundle_can_be_run(
    deploykit: CommandLine, small_bundle: Path, small_onnx: Path
) -> None:
    pair = small_bundle / "golden" / "00.npz"
    done = deploykit("run", small_bundle, "--input", pair, "-o", "out.npz", "-q")
    assert (done.code, done.stderr) == (0, "")
    check(deploykit.folder / "out.npz", small_onnx, read_tensors(pair)["in_x"])
