"""Keras models by reference: built and computed by Keras, converted by our own map."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest

import deploykit as dk
from deploykit import environments, plugins
from deploykit.errors import SourceError, UnsupportedError, UsageError

pytestmark = pytest.mark.environment

CODE = Path(__file__).resolve().parent.parent / "fixtures" / "code" / "keras_models.py"
TRAIN = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from keras_models import digits
model = digits()
random = np.random.default_rng(0)
model.set_weights([np.abs(random.standard_normal(w.shape)) for w in model.get_weights()])
x = random.standard_normal((5, 8, 8, 1)).astype("float32")
model.save_weights(sys.argv[2] + "/trained.weights.h5")
np.savez(sys.argv[2] + "/golden.npz", x=x, y=np.asarray(model(x)))
"""


def test_its_format_is_told_by_its_imports() -> None:
    found = dk.inspect(f"{CODE}:digits")
    assert (found.format, found.framework) == ("keras/reference", "Keras")


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    python = environments.interpreter(plugins.converter("keras-code"), install=True)
    subprocess.run(
        [str(python), "-c", TRAIN, str(CODE.parent), str(tmp_path)], check=True, capture_output=True
    )
    golden = np.load(tmp_path / "golden.npz")
    source = dk.SourceOptions(settings={"weights": str(tmp_path / "trained.weights.h5")})
    done = dk.convert(f"{CODE}:digits", tmp_path / "out.onnx", source=source)
    assert done.verified
    assert [str(spec) for spec in done.signature.inputs] == ["image:float32[batch,8,8,1]"]
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    (scores,) = session.run(None, {"image": golden["x"]})
    np.testing.assert_allclose(scores, golden["y"], rtol=1e-4, atol=1e-6)


def test_what_is_no_model_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="returned a str, not a keras"):
        dk.convert(f"{CODE}:no_model", tmp_path / "out.onnx")
    (tmp_path / "other.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    source = dk.SourceOptions(settings={"weights": str(tmp_path / "other.weights.h5")})
    with pytest.raises(UsageError, match="do not fit"):
        dk.convert(f"{CODE}:digits", tmp_path / "out.onnx", source=source)
    with pytest.raises(UsageError, match="no setting `w`"):
        dk.convert(
            f"{CODE}:digits", tmp_path / "out.onnx", source=dk.SourceOptions(settings={"w": "1"})
        )


def test_layers_of_ones_own_are_traced(tmp_path: Path) -> None:
    done = dk.convert(f"{CODE}:own_layers", tmp_path / "out.onnx")
    assert done.verified
    assert any("traced by TensorFlow" in line for line in done.repairs)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    assert y.shape == (2, 20)
    # sin(t) / (1 + t²) of t and of -t are opposites: only the whole model has this
    (z,) = session.run(None, {"x": -x})
    np.testing.assert_allclose(z, -y, rtol=1e-4, atol=1e-5)


SAVE = """
import sys, keras
x = keras.Input((4, 3), name="x")
y = keras.layers.Lambda(lambda t: t * t - 3.0)(x)
keras.Model(x, keras.layers.Flatten()(y)).save(sys.argv[1])
"""


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_in_a_file_needs_trust(suffix: str, tmp_path: Path) -> None:
    python = environments.interpreter(plugins.converter("keras-code"), install=True)
    path = tmp_path / f"model{suffix}"
    command = [str(python), "-c", SAVE, str(path)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(UnsupportedError, match="Lambda") as caught:
        dk.convert(path, tmp_path / "out.onnx")
    assert "--trust" in caught.value.hint
    assert not (tmp_path / "out.onnx").exists()
    done = dk.convert(path, tmp_path / "out.onnx", source=dk.SourceOptions(trust=True))
    assert done.verified
    assert any("bytecode" in line for line in done.repairs)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(y, (x * x - 3).reshape(2, 12), rtol=1e-5, atol=1e-6)


def test_code_that_keras_cannot_run_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    config = {"function": ["4wEAAAA=", None, None], "function_type": "lambda", "name": "l"}
    layers = [{"class_name": "Lambda", "config": {**config, "batch_input_shape": [None, 3]}}]
    with h5py.File(path, "w") as file:
        document = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        file.attrs["model_config"] = json.dumps(document).encode()
        file.attrs["keras_version"] = b"2.4.0"
        file.attrs["backend"] = b"tensorflow"
        file.create_group("model_weights").attrs["layer_names"] = [b"l"]
    with pytest.raises(SourceError, match="cannot load"):
        dk.convert(path, tmp_path / "out.onnx", source=dk.SourceOptions(trust=True))
