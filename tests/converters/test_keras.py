"""Keras files of every age and backend: what the original backend computed, and every layer by definition."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError

GROUPS = ("keras_h5", "keras_json_weights", "keras_v3")
MODELS = Path(os.environ.get("DEPLOYKIT_MODELS", Path(__file__).parents[3] / "shared" / "models"))
GOLDEN = sorted(path.parent for group in GROUPS for path in MODELS.glob(f"{group}/*/golden.json"))


def model_file(folder: Path) -> Path:
    """The model in a folder that may also hold files with recorded outputs."""
    files = [path for path in folder.iterdir() if path.suffix in (".h5", ".hdf5", ".keras")]
    if folder.parent.name == "keras_json_weights":
        files = [path for path in folder.glob("*.json") if path.name != "golden.json"]
    return next(path for path in sorted(files) if "inputs_and_outputs" not in path.name)


def h5_version(folder: Path) -> str:
    """The first number of the version of Keras that wrote the model, as the file says it."""
    path = model_file(folder)
    if path.suffix == ".keras":
        return "3"
    if path.suffix == ".json":
        return str(json.loads(path.read_text()).get("keras_version", "1"))[0]
    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "1")
    return (version.decode() if isinstance(version, bytes) else str(version))[0]


def source(backend: str | None) -> dk.SourceOptions:
    return dk.SourceOptions(settings={"backend": backend} if backend else {})


def run(path: Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    kinds = {
        value.name: value.type[7:-1].replace("float", "float32") for value in session.get_inputs()
    }
    return list(session.run(None, {k: np.asarray(v, kinds[k]) for k, v in feed.items()}))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_a_real_model_gives_what_its_own_backend_gave(folder: Path, tmp_path: Path) -> None:
    about = json.loads((folder / "golden.json").read_text())
    words = about["framework"].lower()
    backend = next((one for one in ("theano", "cntk") if one in words), "tensorflow")
    output = tmp_path / "out.onnx"
    asked = None
    if h5_version(folder) == "1":
        asked = backend
    conversion = dk.convert(model_file(folder), output, source=source(asked))
    assert conversion.verified
    golden = np.load(folder / "golden.npz")
    names = about["tensor_names"]
    assert [spec.name for spec in conversion.signature.outputs] == list(names["out"].values())
    # Keras numbers the inputs of a Sequential anew in each process, so their names are not in the file
    (given,) = conversion.signature.inputs
    found = run(output, {given.name: golden[f"in_{next(iter(names['in']))}"]})
    for value, key in zip(found, names["out"], strict=True):
        np.testing.assert_allclose(value, golden[f"out_{key}"], rtol=1e-3, atol=1e-5)


# ---- every layer against its definition, in files made here


def write(
    path: Path,
    layers: list[tuple[str, dict[str, Any], list[Any]]],
    shape: list[int | None],
    *,
    backend: str | None = "tensorflow",
    version: str = "2.2.4",
) -> Path:
    """Write a Sequential model as Keras 2 does."""
    configs = []
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [f"layer{n}".encode() for n in range(len(layers))]
        for number, (kind, config, weights) in enumerate(layers):
            name = f"layer{number}"
            full = {"name": name, **config}
            if number == 0:
                full["batch_input_shape"] = [None, *shape]
            configs.append({"class_name": kind, "config": full})
            own = group.create_group(name)
            names = []
            for at, value in enumerate(weights):
                own.create_dataset(f"{name}/w{at}", data=value)
                names.append(f"{name}/w{at}".encode())
            own.attrs["weight_names"] = names
        file.attrs["keras_version"] = version.encode()
        if backend:
            file.attrs["backend"] = backend.encode()
        document = {"class_name": "Sequential", "config": configs}
        file.attrs["model_config"] = json.dumps(document).encode()
    return path


RANDOM = np.random.default_rng(7)


def w(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32) / 2


CONV: dict[str, Any] = {"activation": "relu", "use_bias": True}
LAYERS: dict[str, tuple[str, dict[str, Any], list[Any], list[int | None]]] = {
    "conv1d causal dilated": (
        "Conv1D",
        {**CONV, "kernel_size": [3], "padding": "causal", "dilation_rate": [2]},
        [w(3, 4, 5), w(5)],
        [11, 4],
    ),
    "conv2d same strided": (
        "Conv2D",
        {**CONV, "kernel_size": [4, 3], "padding": "same", "strides": [3, 2]},
        [w(4, 3, 2, 5), w(5)],
        [11, 8, 2],
    ),
    "conv2d same strided channels first": (
        "Conv2D",
        {**CONV, "padding": "same", "strides": [2, 2], "data_format": "channels_first"},
        [w(3, 2, 2, 5), w(5)],
        [2, 9, 8],
    ),
    "conv2d groups": (
        "Conv2D",
        {"groups": 2, "activation": "linear", "padding": "valid"},
        [w(3, 3, 2, 6), w(6)],
        [7, 7, 4],
    ),
    "conv3d": ("Conv3D", {**CONV, "padding": "same"}, [w(2, 3, 2, 2, 3), w(3)], [5, 6, 4, 2]),
    "conv2d transposed same": (
        "Conv2DTranspose",
        {**CONV, "padding": "same", "strides": [2, 3]},
        [w(3, 4, 5, 2), w(5)],
        [4, 5, 2],
    ),
    "conv2d transposed valid": (
        "Conv2DTranspose",
        {**CONV, "padding": "valid", "strides": [3, 2]},
        [w(2, 4, 5, 2), w(5)],
        [4, 5, 2],
    ),
    "separable": (
        "SeparableConv2D",
        {**CONV, "padding": "same", "strides": [2, 2]},
        [w(3, 3, 2, 3), w(1, 1, 6, 4), w(4)],
        [8, 7, 2],
    ),
    "depthwise": ("DepthwiseConv2D", {**CONV, "padding": "same"}, [w(2, 3, 3, 2), w(6)], [6, 5, 3]),
    "max pooling same": (
        "MaxPooling2D",
        {"pool_size": [3, 2], "strides": [2, 2], "padding": "same"},
        [],
        [7, 8, 2],
    ),
    "average pooling same": (
        "AveragePooling2D",
        {"pool_size": [3, 3], "strides": [2, 2], "padding": "same"},
        [],
        [8, 7, 2],
    ),
    "average pooling 1d": ("AveragePooling1D", {"pool_size": 2, "strides": None}, [], [7, 3]),
    "global average": ("GlobalAveragePooling2D", {}, [], [5, 4, 3]),
    "global max 1d": ("GlobalMaxPooling1D", {}, [], [5, 4]),
    "dense over time": ("Dense", {"activation": "softmax"}, [w(4, 5), w(5)], [3, 4]),
    "lstm": (
        "LSTM",
        {"activation": "tanh", "recurrent_activation": "hard_sigmoid", "return_sequences": True},
        [w(3, 16), w(4, 16), w(16)],
        [5, 3],
    ),
    "lstm backwards": (
        "LSTM",
        {"recurrent_activation": "sigmoid", "return_sequences": True, "go_backwards": True},
        [w(3, 16), w(4, 16), w(16)],
        [5, 3],
    ),
    "gru before": ("GRU", {"recurrent_activation": "sigmoid"}, [w(3, 12), w(4, 12), w(12)], [5, 3]),
    "gru after": (
        "GRU",
        {"recurrent_activation": "sigmoid", "reset_after": True, "return_sequences": True},
        [w(3, 12), w(4, 12), w(2, 12)],
        [5, 3],
    ),
    "simple rnn": ("SimpleRNN", {"activation": "relu"}, [w(3, 4), w(4, 4), w(4)], [5, 3]),
    "bidirectional": (
        "Bidirectional",
        {
            "merge_mode": "ave",
            "layer": {
                "class_name": "GRU",
                "config": {
                    "name": "g",
                    "recurrent_activation": "sigmoid",
                    "return_sequences": True,
                },
            },
        },
        [w(3, 12), w(4, 12), w(12), w(3, 12), w(4, 12), w(12)],
        [5, 3],
    ),
    "bidirectional last": (
        "Bidirectional",
        {"layer": {"class_name": "LSTM", "config": {"name": "l"}}},
        [w(3, 16), w(4, 16), w(16), w(3, 16), w(4, 16), w(16)],
        [5, 3],
    ),
    "batch normalisation": (
        "BatchNormalization",
        {"axis": 1, "epsilon": 0.01, "scale": False},
        [w(2), w(2), np.abs(w(2))],
        [2, 4, 3],
    ),
    "layer normalisation": ("LayerNormalization", {"axis": [-1]}, [w(4), w(4)], [3, 4]),
    "flatten first": ("Flatten", {"data_format": "channels_first"}, [], [2, 3, 4]),
    "reshape": ("Reshape", {"target_shape": [-1, 2]}, [], [3, 4]),
    "permute": ("Permute", {"dims": [3, 1, 2]}, [], [2, 3, 4]),
    "repeat": ("RepeatVector", {"n": 3}, [], [4]),
    "padding": ("ZeroPadding2D", {"padding": [[1, 2], [0, 3]]}, [], [3, 4, 2]),
    "cropping": ("Cropping2D", {"cropping": [[1, 0], [0, 2]]}, [], [5, 6, 2]),
    "cropping 1d": ("Cropping1D", {"cropping": [1, 2]}, [], [6, 2]),
    "upsampling": ("UpSampling2D", {"size": [2, 3]}, [], [3, 4, 2]),
    "upsampling bilinear": (
        "UpSampling2D",
        {"size": [2, 3], "interpolation": "bilinear"},
        [],
        [3, 4, 2],
    ),
    "leaky": ("LeakyReLU", {"alpha": 0.25}, [], [4]),
    "thresholded": ("ThresholdedReLU", {"theta": 0.5}, [], [4]),
    "prelu shared": ("PReLU", {"shared_axes": [1]}, [w(1, 3)], [4, 3]),
    "relu limited": ("ReLU", {"max_value": 0.75, "negative_slope": 0.25}, [], [4]),
    "softmax axis": ("Softmax", {"axis": 1}, [], [4, 3]),
    "time distributed": (
        "TimeDistributed",
        {"layer": {"class_name": "Dense", "config": {"name": "d", "activation": "elu"}}},
        [w(3, 4), w(4)],
        [5, 3],
    ),
    **{
        f"activation {name}": ("Activation", {"activation": name}, [], [7])
        for name in (
            "selu",
            "softplus",
            "softsign",
            "hard_sigmoid",
            "swish",
            "gelu",
            "exponential",
            "relu6",
        )
    },
}


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("backend", ["tensorflow", "theano", "cntk"])
def test_a_layer_agrees_with_its_definition(case: str, backend: str, tmp_path: Path) -> None:
    from deploykit._plugins.converters.keras import plugin

    from deploykit.protocol import ConvertRequest, ReferenceRequest, Source

    kind, config, weights, shape = LAYERS[case]
    path = write(tmp_path / "m.h5", [(kind, config, weights)], shape, backend=backend)
    model = Source(location=str(path), format="keras/hdf5")
    refused = kind == "Conv2DTranspose" or (kind == "SeparableConv2D" and backend == "theano")
    if backend != "tensorflow" and (refused or (kind == "DepthwiseConv2D" and backend == "theano")):
        with pytest.raises(UnsupportedError, match="layer0"):
            plugin.convert(ConvertRequest(source=model, output=str(tmp_path / "o.onnx")))
        return
    plugin.convert(ConvertRequest(source=model, output=str(tmp_path / "o.onnx")))
    x = RANDOM.standard_normal((3, *(size or 4 for size in shape))).astype(np.float32)
    session = plugin.reference(ReferenceRequest(source=model))
    expected = session.run({"layer0_input": x})["layer0"]
    (found,) = run(tmp_path / "o.onnx", {"layer0_input": x})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


def test_the_backends_differ_where_they_must(tmp_path: Path) -> None:
    from deploykit._plugins.converters.keras import plugin

    from deploykit.protocol import ReferenceRequest, Source

    kernel = w(3, 3, 1, 1)
    x = RANDOM.standard_normal((1, 6, 6, 1)).astype(np.float32)
    found = {}
    for backend in ("tensorflow", "theano", "cntk"):
        config = {"padding": "same", "strides": [2, 2], "activation": "linear", "use_bias": False}
        path = write(
            tmp_path / f"{backend}.h5", [("Conv2D", config, [kernel])], [6, 6, 1], backend=backend
        )
        session = plugin.reference(
            ReferenceRequest(source=Source(location=str(path), format="keras/hdf5"))
        )
        found[backend] = session.run({"layer0_input": x})["layer0"]
    # by hand: the first output of each, from where its window lies
    image, weights = np.pad(x[0, :, :, 0], 1), kernel[:, :, 0, 0]
    assert found["tensorflow"][0, 0, 0, 0] == pytest.approx(
        (image[1:4, 1:4] * weights).sum(), rel=1e-5
    )
    assert found["cntk"][0, 0, 0, 0] == pytest.approx((image[:3, :3] * weights).sum(), rel=1e-5)
    assert found["theano"][0, 0, 0, 0] == pytest.approx(
        (image[:3, :3] * weights[::-1, ::-1]).sum(), rel=1e-5
    )


# ---- refusals


def test_a_file_of_keras_1_is_asked_for_its_backend_only_where_it_matters(tmp_path: Path) -> None:
    dense = write(
        tmp_path / "d.h5",
        [("Dense", {"activation": "linear"}, [w(3, 4), w(4)])],
        [3],
        backend=None,
        version="1.2.2",
    )
    assert dk.convert(dense, tmp_path / "d.onnx").verified
    config = {"nb_row": 2, "nb_col": 2, "dim_ordering": "tf", "border_mode": "valid"}
    layer = ("Convolution2D", config, [w(2, 2, 1, 3), w(3)])
    conv = write(tmp_path / "c.h5", [layer], [4, 4, 1], backend=None, version="1.2.2")
    with pytest.raises(UnsupportedError, match="layer0") as caught:
        dk.convert(conv, tmp_path / "c.onnx")
    assert "--keras-backend" in caught.value.hint
    assert not (tmp_path / "c.onnx").exists()
    results = {}
    for backend in ("theano", "tensorflow"):
        dk.convert(conv, tmp_path / f"{backend}.onnx", source=source(backend))
        results[backend] = run(
            tmp_path / f"{backend}.onnx", {"convolution2d_input_1": np.eye(4).reshape(1, 4, 4, 1)}
        )
    assert not np.allclose(results["theano"][0], results["tensorflow"][0])


def test_a_backend_against_the_files_own_word_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.h5", [("Dense", {}, [w(3, 4), w(4)])], [3])
    with pytest.raises(UsageError, match="tensorflow"):
        dk.convert(path, tmp_path / "d.onnx", source=source("theano"))


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (("Lambda", {"function": ["4wEAAAA=", None, None]}, []), "Lambda.*layer0"),
        (("Attention9", {}, []), "Attention9.*layer0"),
        (("Activation", {"activation": "my_own"}, []), "my_own"),
    ],
)
def test_what_has_no_onnx_form_is_named(layer: Any, match: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", [layer], [3, 4])
    with pytest.raises(UnsupportedError, match=match):
        dk.convert(path, tmp_path / "m.onnx")


def test_a_subclassed_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "MyModel", "config": {}}).encode()
        file.attrs["keras_version"] = b"2.4.0"
    with pytest.raises((UnsupportedError, SourceError)) as caught:
        dk.convert(tmp_path / "m.h5", tmp_path / "m.onnx")
    assert caught.value.hint


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 1 << 30),
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=12),
)
def test_a_damaged_file_is_an_error_with_a_name(
    tmp_path: Path, cut: int, changes: list[tuple[int, int]]
) -> None:
    from deploykit._plugins.converters.keras import plugin

    from deploykit.protocol import Source

    path = tmp_path / "m.h5"
    write(path, [("Dense", {}, [w(3, 4), w(4)]), ("LSTM", {}, [w(4, 8), w(2, 8), w(8)])], [5, 3])
    data = bytearray(path.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    path.write_bytes(bytes(data[: 1 + cut % len(data)]) if cut % 3 == 0 else bytes(data))
    try:
        plugin.inspect(Source(location=str(path), format="keras/hdf5"))
    except DeploykitError:
        return


def test_what_a_bidirectional_gives_in_masked_steps_depends_on_the_version(tmp_path: Path) -> None:
    inner = {"class_name": "LSTM", "config": {"name": "l", "return_sequences": True}}
    layers: list[tuple[str, dict[str, Any], list[Any]]] = [
        ("Embedding", {"mask_zero": True, "input_dim": 5, "output_dim": 3}, [w(5, 3)]),
        ("Bidirectional", {"layer": inner}, [w(3, 8), w(2, 8), w(8), w(3, 8), w(2, 8), w(8)]),
    ]
    words = np.array([[1, 0, 2, 0], [0, 3, 4, 0]], np.float32)
    found = {}
    for version in ("2.2.4", "2.4.0"):
        path = write(tmp_path / f"{version}.h5", layers, [4], version=version)
        assert dk.convert(path, tmp_path / f"{version}.onnx").verified
        (found[version],) = run(tmp_path / f"{version}.onnx", {"layer0_input": words})
    # of its own: the last output stays, and before the first step that counts there are zeros
    np.testing.assert_array_equal(found["2.2.4"][0, 1, :2], found["2.2.4"][0, 0, :2])
    np.testing.assert_array_equal(found["2.2.4"][1, 0, :2], 0)
    np.testing.assert_array_equal(found["2.4.0"][words == 0], 0)
    np.testing.assert_array_equal(found["2.2.4"][words != 0], found["2.4.0"][words != 0])
    unknown = write(tmp_path / "u.h5", layers, [4], version="2.2.4-tf")
    with pytest.raises(UnsupportedError, match="layer1"):
        dk.convert(unknown, tmp_path / "u.onnx")


@pytest.mark.parametrize(
    ("layer", "order"),
    [
        ("LocallyConnected1D", "channels_last"),
        ("LocallyConnected2D", "channels_last"),
        ("LocallyConnected2D", "channels_first"),
    ],
)
def test_a_kernel_for_each_place(layer: str, order: str, tmp_path: Path) -> None:
    shape: list[int | None]
    config: dict[str, Any]
    if layer == "LocallyConnected1D":
        config = {"kernel_size": [3], "strides": [2], "activation": "relu"}
        weights, shape = [w(4, 3 * 2, 5), w(4, 5)], [9, 2]
    else:
        config = {"kernel_size": [2, 3], "strides": [1, 2], "activation": "tanh"}
        weights, shape = [w(3 * 2, 2 * 3 * 2, 4), w(3, 2, 4)], [4, 5, 2]
        if order == "channels_first":
            shape = [2, 4, 5]
    path = write(tmp_path / "m.h5", [(layer, {**config, "data_format": order}, weights)], shape)
    assert dk.convert(path, tmp_path / "m.onnx").verified
    x = RANDOM.standard_normal((1, *(size or 1 for size in shape))).astype(np.float32)
    (found,) = run(tmp_path / "m.onnx", {"layer0_input": x})
    # by hand: the last place, whose window lies in the last corner
    if layer == "LocallyConnected1D":
        place = np.maximum(x[0, 6:9].reshape(-1) @ weights[0][3] + weights[1][3], 0)
        np.testing.assert_allclose(found[0, 3], place, rtol=1e-5, atol=1e-6)
        return
    window = x[0, :, 2:4, 2:5] if order == "channels_first" else x[0, 2:4, 2:5]
    place = np.tanh(window.reshape(-1) @ weights[0][5] + weights[1][2, 1])
    at = found[0, :, 2, 1] if order == "channels_first" else found[0, 2, 1]
    np.testing.assert_allclose(at, place, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"), [("functions_of_tensorflow", 4), ("models_within_models", 5)]
)
def test_a_model_of_the_keras_within_tensorflow(name: str, count: int, tmp_path: Path) -> None:
    """Made and computed by `tf_keras`; see `fixtures/make_legacy_keras_models.py`."""
    path = Path(__file__).parents[1] / "fixtures" / "keras" / f"{name}.h5"
    golden = np.load(path.with_suffix(".npz"))
    assert dk.convert(path, tmp_path / "m.onnx").verified
    found = run(tmp_path / "m.onnx", {"x": golden["in_x"], "words": golden["in_words"]})
    assert len(found) == count
    for number, value in enumerate(found):
        np.testing.assert_allclose(value, golden[f"out_{number}"], rtol=1e-4, atol=1e-5)


# ---- YAML, as `model.to_yaml()` of Keras 1 and 2 wrote it


def yaml_of(folder: Path, text: str) -> Path:
    """Write an architecture in YAML and weights of one dense layer beside it."""
    path = folder / "architecture.yaml"
    path.write_text(text)
    with h5py.File(folder / "weights.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense_1"]
        group = file.create_group("dense_1")
        group.create_dataset("dense_1/kernel:0", data=np.arange(6, dtype=np.float32).reshape(3, 2))
        group.attrs["weight_names"] = [b"dense_1/kernel:0"]
    return path


YAML = """backend: tensorflow
class_name: Sequential
config:
- class_name: Dense
  config:
    activation: linear
    batch_input_shape: !!python/tuple [null, 3]
    name: dense_1
    units: 2
    use_bias: false
keras_version: 2.2.4
"""


def test_an_architecture_in_yaml(tmp_path: Path) -> None:
    path = yaml_of(tmp_path, YAML)
    assert dk.inspect(tmp_path).format == "keras/yaml"
    assert dk.convert(path, tmp_path / "m.onnx").verified
    (found,) = run(tmp_path / "m.onnx", {"dense_1_input": [[1, 2, 3]]})
    np.testing.assert_array_equal(found, [[16, 22]])


@pytest.mark.parametrize(
    "text",
    [
        YAML.replace("!!python/tuple [null, 3]", "!!python/object/apply:os.getcwd []"),
        YAML[: YAML.index("config:")] + "config: [",
        "backend: a\nclass_name: b\nconfig: &a [1, *a]\n",
        "backend: x\nclass_name: y\na0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
        + "config: *a11\n",
    ],
    ids=["code", "cut", "endless", "laughs"],
)
def test_yaml_that_is_none_of_keras_is_refused(text: str, tmp_path: Path) -> None:
    path = yaml_of(tmp_path, text)
    with pytest.raises(SourceError, match="Keras configuration"):
        dk.convert(path, tmp_path / "m.onnx")


def test_weights_that_lie_elsewhere_are_named(tmp_path: Path) -> None:
    path = yaml_of(tmp_path, YAML)
    (tmp_path / "apart").mkdir()
    (tmp_path / "weights.h5").rename(tmp_path / "apart" / "w.h5")
    with pytest.raises(SourceError, match=r"weights of .* are missing") as caught:
        dk.convert(path, tmp_path / "m.onnx")
    assert "--set weights" in caught.value.hint
    named = dk.SourceOptions(settings={"weights": str(tmp_path / "apart" / "w.h5")})
    first = dk.convert(path, tmp_path / "m.onnx", source=named)
    with h5py.File(tmp_path / "apart" / "w.h5", "r+") as file:
        file["dense_1/dense_1/kernel:0"][0, 0] = 9
    assert dk.convert(path, tmp_path / "m.onnx", source=named).source_sha256 != first.source_sha256
