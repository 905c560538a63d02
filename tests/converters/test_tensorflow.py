"""TensorFlow to ONNX: the signature's names, TensorFlow's own values, and reasons where there is no way."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit import environments, plugins
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
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

pytestmark = pytest.mark.environment

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_tensorflow_models.py"
SAVED, GRAPH = "tensorflow/saved_model", "tensorflow/graph_def"

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def python() -> Path:
    return environments.interpreter(plugins.converter("tensorflow"))


@pytest.fixture(scope="module")
def files(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    subprocess.run([python, "-I", MAKE_MODELS, folder], check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def worker(python: Path) -> Iterator[Worker]:
    plugin = plugins.converter("tensorflow")
    with Worker(plugin, python=python, label="tensorflow", threads=2) as worker:
        yield worker


def source(format: str, location: Path, *inputs: str, **settings: str) -> Source:
    return Source(
        location=str(location),
        format=format,
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
    )


def convert(
    worker: Worker, model: Source, output: Path, *axes: DynamicAxis, opset: int | None = None
) -> ConvertResult:
    request = ConvertRequest(source=model, output=str(output), opset=opset, dynamic=axes)
    return worker.call("convert", request, ConvertResult)


def names(signature: Signature) -> tuple[list[str], list[str]]:
    return [str(spec) for spec in signature.inputs], [str(spec) for spec in signature.outputs]


def pairs(
    worker: Worker, model: Source, output: Path, feed: dict[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """Return each output of ONNX Runtime with TensorFlow's own."""
    session = onnxruntime.InferenceSession(output)
    outputs = [value.name for value in session.get_outputs()]
    reference = worker.open(ReferenceRequest(source=model))
    assert [spec.name for spec in reference.signature.outputs] == outputs
    wanted = reference.run(feed)
    reference.close()
    found = dict(zip(outputs, session.run(outputs, feed), strict=True))
    for name in outputs:
        assert found[name].dtype == wanted[name].dtype
        assert found[name].shape == wanted[name].shape
    return {name: (found[name], wanted[name]) for name in outputs}


def assert_same(
    worker: Worker, model: Source, output: Path, feed: dict[str, Array], atol: float = 1e-5
) -> dict[str, Array]:
    compared = pairs(worker, model, output, feed)
    for found, wanted in compared.values():
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=atol)
    return {name: wanted for name, (_, wanted) in compared.items()}


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


# ---- SavedModel


def test_a_keras_network_of_any_batch(worker: Worker, files: Path, tmp_path: Path) -> None:
    model, output = source(SAVED, files / "keras"), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    assert names(result.signature)[0] == ["image:float32[batch,12,12,3]"]
    assert result.signature.outputs[0].name == "output_0"
    assert set(result.versions) == {"tensorflow-cpu", "tf2onnx", "onnx"}
    assert result.opset == 18
    for size in (1, 4):
        assert_same(worker, model, output, {"image": random(size, 12, 12, 3)})
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_names_of_the_signature_and_an_output_named_like_an_input(
    worker: Worker, files: Path, tmp_path: Path
) -> None:
    model, output = source(SAVED, files / "two"), tmp_path / "m.onnx"
    result = convert(worker, model, output, DynamicAxis(input="index", axis=0, name="picked"))
    inputs, _ = names(result.signature)
    assert inputs == ["index:int32[picked]", "query:float32[batch,5]"]
    assert [spec.name for spec in result.signature.outputs] == ["query_output", "score"]
    feed = {"query": random(4, 5), "index": np.array([2, 0], np.int32)}
    assert_same(worker, model, output, feed)


def test_another_signature_and_opset(worker: Worker, files: Path, tmp_path: Path) -> None:
    model, output = source(SAVED, files / "two", signature="double"), tmp_path / "m.onnx"
    result = convert(worker, model, output, opset=13)
    assert names(result.signature) == (["query:float32[2,5]"], ["doubled:float32[2,5]"])
    assert result.opset == 13
    values = assert_same(worker, model, output, {"query": random(2, 5)})
    np.testing.assert_allclose(values["doubled"], random(2, 5) * 2)


def test_reference_variables_of_tensorflow_1(worker: Worker, files: Path, tmp_path: Path) -> None:
    model, output = source(SAVED, files / "version_1"), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    assert names(result.signature) == (["features:float32[batch,4]"], ["result:float32[batch,4]"])
    values = assert_same(worker, model, output, {"features": random(3, 4)})
    np.testing.assert_allclose(values["result"], random(3, 4) * 3, rtol=1e-6)


def test_a_counter_becomes_an_input_and_an_output(
    worker: Worker, files: Path, tmp_path: Path
) -> None:
    model, output = source(SAVED, files / "counter"), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    assert names(result.signature) == (
        ["x:float32[2]", "Variable:float32[]"],
        ["y:float32[2]", "Variable_next:float32[]"],
    )
    feed = {"x": random(2), "Variable": np.array(4, np.float32)}
    values = assert_same(worker, model, output, feed)
    np.testing.assert_allclose(values["y"], feed["x"] + 5)
    assert values["Variable_next"] == 5


def test_inner_tensors_and_single_outputs_of_a_saved_model(
    worker: Worker, files: Path, tmp_path: Path
) -> None:
    model = source(SAVED, files / "version_1", outputs="y:0,result", inputs="features")
    result = convert(worker, model, tmp_path / "m.onnx")
    assert [spec.name for spec in result.signature.outputs] == ["y", "result"]
    assert_same(worker, model, tmp_path / "m.onnx", {"features": random(3, 4)})
    model = source(SAVED, files / "two", outputs="score")
    result = convert(worker, model, tmp_path / "one.onnx")
    assert [spec.name for spec in result.signature.outputs] == ["score"]


# ---- GraphDef


def test_a_graph_is_cut_at_an_inner_tensor(worker: Worker, files: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    model = source(
        GRAPH,
        files / "frozen.pb",
        "scale:float32[]",
        inputs="row:0,scale",
        outputs="parts:1,hidden",
    )
    result = convert(worker, model, output)
    assert names(result.signature) == (
        ["row:float32[1,6]", "scale:float32[]"],
        ["parts:1:float32[1,2]", "hidden:float32[1,4]"],
    )
    assert result.repairs == (
        "the graph is cut at `row`",
        "placeholder `scale` of unknown rank has the shape that was given",
    )
    assert_same(worker, model, output, {"row": random(1, 6), "scale": np.array(0.5, np.float32)})


def test_inputs_and_outputs_are_found(worker: Worker, files: Path) -> None:
    found = worker.call("inspect", source(GRAPH, files / "frozen.pb"), Signature)
    # the text in front is decoded by nothing that ONNX has
    assert names(found) == (
        ["scale:float32", "row:float32[1,6]"],
        ["parts:float32", "parts:1:float32"],
    )
    cut = source(GRAPH, files / "frozen.pb", "scale:float32[]", "row:float32[1,6]")
    assert [spec.name for spec in worker.call("inspect", cut, Signature).inputs] == ["scale", "row"]


# ---- what cannot be


@pytest.mark.parametrize(
    ("format", "name", "inputs", "settings", "error", "says", "advises"),
    [
        (SAVED, "svd", (), {}, UnsupportedError, "no ONNX form for Svd", ""),
        (SAVED, "two", (), {"signature": "no"}, UsageError, "no signature `no`", "double"),
        (SAVED, "two", (), {"inputs": "x"}, UsageError, "no tensor `x:0`", "NODE:NUMBER"),
        (SAVED, "two", (), {"input": "x"}, UsageError, "no setting `input`", "signature"),
        (SAVED, "two", ("z:float32[1]",), {}, UsageError, "no input `z`", "index, query"),
        (SAVED, "two", ("index:int64[1]",), {}, UsageError, "is int32 in the model", ""),
        (GRAPH, "frozen.pb", (), {}, UsageError, "rank of input `scale`", "--input scale"),
        (GRAPH, "frozen.pb", (), {"outputs": "no"}, UsageError, "no tensor `no:0`", "NODE:NUMBER"),
        (GRAPH, "not_a_graph.pb", (), {}, SourceError, "is no GraphDef", ""),
        (GRAPH, "missing.pb", (), {}, SourceError, "cannot read", ""),
    ],
)
def test_what_cannot_be_converted_says_why(
    worker: Worker,
    files: Path,
    tmp_path: Path,
    format: str,
    name: str,
    inputs: tuple[str, ...],
    settings: dict[str, str],
    error: type,
    says: str,
    advises: str,
) -> None:
    with pytest.raises(DeploykitError) as raised:
        convert(worker, source(format, files / name, *inputs, **settings), tmp_path / "m.onnx")
    assert type(raised.value) is error, raised.value.message
    assert says in raised.value.message
    assert advises in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_missing_variables(worker: Worker, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "keras", tmp_path / "keras")
    shutil.rmtree(tmp_path / "keras" / "variables")
    with pytest.raises(SourceError, match="cannot read"):
        convert(worker, source(SAVED, tmp_path / "keras"), tmp_path / "m.onnx")


# ---- real models


@pytest.mark.parametrize(
    ("format", "folder", "inputs", "named", "tolerance"),
    [
        (SAVED, "tf_savedmodel/half_plus_two_tf1", (), False, 1e-6),
        (SAVED, "tf_savedmodel/half_plus_two_tf2", (), False, 1e-6),
        (SAVED, "tf_savedmodel/mlperf_kws_dscnn", (), False, 1e-5),
        (SAVED, "tf_savedmodel/t2o_regression_tf1", ("X:float32[?]",), False, 1e-6),
        (GRAPH, "tf_frozen/dl4j_lenet", ("input:float32[?,784]",), True, 1e-5),
        (GRAPH, "tf_frozen/kws_cnn_s", (), True, 1e-5),
        (GRAPH, "tf_frozen/kws_ds_cnn_s", (), True, 1e-5),
        (GRAPH, "tf_frozen/kws_gru_s", (), True, 1e-5),
        (GRAPH, "tf_frozen/t2o_fc_layers", (), False, 5e-5),
        (GRAPH, "tf_frozen/t2o_lstm", ("keep_prob:float32[]",), False, 5e-5),
    ],
)
def test_shared_models_give_their_golden_outputs(
    worker: Worker,
    shared_models: Path,
    tmp_path: Path,
    format: str,
    folder: str,
    inputs: tuple[str, ...],
    named: bool,
    tolerance: float,
) -> None:
    location = shared_models / folder
    tensors = json.loads((location / "golden.json").read_text())["tensor_names"]
    settings = {}
    if named:  # the golden outputs belong to a part of the graph
        settings = {
            "inputs": ",".join(tensors["in"].values()),
            "outputs": ",".join(tensors["out"].values()),
        }
    if format != SAVED:
        (location,) = [path for path in location.iterdir() if path.suffix == ".pb"]
    model = source(format, location, *inputs, **settings)
    convert(worker, model, tmp_path / "m.onnx")
    golden = np.load(shared_models / folder / "golden.npz")
    feed = {name.removesuffix(":0"): golden[f"in_{key}"] for key, name in tensors["in"].items()}
    compared = pairs(worker, model, tmp_path / "m.onnx", feed)
    for key, name in tensors["out"].items():
        wanted = golden[f"out_{key}"].astype(np.float64)
        for value in compared[name.removesuffix(":0")]:
            np.testing.assert_allclose(value.astype(np.float64), wanted, rtol=0, atol=tolerance)
