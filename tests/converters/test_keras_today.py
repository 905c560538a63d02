"""Models of today's Keras: what it computed itself, with masks, functions and layers over time."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import deploykit as dk
from deploykit import environments, plugins
from deploykit.errors import UnsupportedError

pytestmark = pytest.mark.environment

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_keras_models.py"
NAMES = (
    *("masked_last", "masked_both_ways", "masked_values"),
    *("every_frame", "functions", "translator", "normalised", "bent", "grown"),
    *("attentive", "joined", "both_ways", "within"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models saved by Keras, with inputs and what Keras made of them."""
    folder = tmp_path_factory.mktemp("keras")
    python = environments.interpreter(plugins.converter("tensorflow"), install=True)
    subprocess.run([str(python), str(MAKE_MODELS), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_gives_what_keras_gives(made: Path, name: str, suffix: str, tmp_path: Path) -> None:
    golden = np.load(made / f"{name}.npz")
    output = tmp_path / "out.onnx"
    assert dk.convert(made / f"{name}{suffix}", output, checks=dk.Checks(seeds=2)).verified
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32}
    feed = {
        one.name: golden[f"in_{number}"].astype(kinds[one.type])
        for number, one in enumerate(session.get_inputs())
    }
    found = session.run(None, feed)
    assert len(found) == sum(key.startswith("out_") for key in golden)
    for number, value in enumerate(found):
        np.testing.assert_allclose(value, golden[f"out_{number}"], rtol=1e-4, atol=1e-5)


def test_a_quantised_layer_is_refused_by_name(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"`coarse` .* is quantised"):
        dk.convert(made / "quantised.keras", tmp_path / "out.onnx")


def test_attention_along_two_axes_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="multi_head_attention"):
        dk.convert(made / "attended.keras", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
