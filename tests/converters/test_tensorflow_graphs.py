"""TensorFlow-1 graphs and checkpoints, whose ends are found; models with state, call after call."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import deploykit as dk
from benchmarks import golden_models
from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.formats import inspect
from deploykit.parity import Tolerance
from deploykit.protocol import ReferenceRequest

pytestmark = pytest.mark.environment

SCRIPT = "make_tensorflow_graphs"


# ---- graphs


def test_a_loop_of_enter_and_exit(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "old_loop.pb")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert [str(spec) for spec in result.signature.inputs] == ["x:float32[batch,6,3]"]
    # the loop's counter and its tensor array are no outputs
    assert [spec.name for spec in result.signature.outputs] == ["states", "last"]


def test_a_branch_on_a_placeholder(tensorflow: Any, tmp_path: Path) -> None:
    path = tensorflow.files(SCRIPT) / "old_branch.pb"
    result = tensorflow.compare(tensorflow.source(path), tmp_path / "both.onnx")
    assert [spec.name for spec in result.signature.inputs] == ["x", "is_training"]
    assert [spec.name for spec in result.signature.outputs] == ["y"]
    fixed = tensorflow.source(path, constants="is_training=false")
    result = tensorflow.compare(fixed, tmp_path / "one.onnx")
    assert [spec.name for spec in result.signature.inputs] == ["x"]
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx")
    (y,) = session.run(None, {"x": np.array([[-1, 2, -3], [4, 5, 6]], np.float32)})
    np.testing.assert_array_equal(y, [[0, 2, 0], [4, 5, 6]])


@pytest.mark.parametrize(("name", "value"), [("keep_prob", "1"), ("rate", "0")])
def test_dropout_is_left_out(tensorflow: Any, tmp_path: Path, name: str, value: str) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / f"{name}.pb")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert result.repairs == (f"dropout is left out, as at inference: `{name}` is {value}",)
    # it stays an input, so that who feeds it still can, and has no effect
    assert [str(spec) for spec in result.signature.inputs] == [
        "x:float32[batch,4]",
        f"{name}:float32[]",
    ]


def test_dropout_that_was_asked_for_is_refused(tensorflow: Any, tmp_path: Path) -> None:
    path = tensorflow.files(SCRIPT) / "keep_prob.pb"
    with pytest.raises(UnsupportedError, match=r"at 0\.5 the model draws random") as raised:
        tensorflow.convert(tensorflow.source(path, constants="keep_prob=0.5"), tmp_path / "m.onnx")
    assert "constants=keep_prob=1" in raised.value.hint
    fixed = tensorflow.source(path, constants="keep_prob=1")
    result = tensorflow.compare(fixed, tmp_path / "m.onnx")
    assert [spec.name for spec in result.signature.inputs] == ["x"]


def test_pictures_are_decoded_before(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "picture.pb")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    (spec,) = result.signature.inputs
    assert (spec.name, spec.dtype, len(spec.shape)) == ("DecodeJpeg", "uint8", 3)
    assert "the graph begins at `DecodeJpeg`: ONNX has no DecodeJpeg" in result.repairs[0]


def test_examples_are_parsed_before(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "examples.pb")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert [str(spec) for spec in result.signature.inputs] == [
        "ParseExample/ParseExampleV2:float32[batch,3]",
        "ParseExample/ParseExampleV2:1:int64[batch,2]",
    ]


def test_batches_of_a_data_set_are_given(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "batches.pb")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert [str(spec) for spec in result.signature.inputs] == ["IteratorGetNext:float32[batch,3]"]
    assert [spec.name for spec in result.signature.outputs] == ["y"]


def test_a_table_inside_a_function_is_refused(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "table")
    with pytest.raises(UnsupportedError, match="looks words up in a table") as raised:
        tensorflow.convert(model, tmp_path / "m.onnx")
    assert raised.value.operators == ("LookupTableFindV2",)


def test_words_are_refused_with_the_way_around(tensorflow: Any, tmp_path: Path) -> None:
    path = tensorflow.files(SCRIPT) / "words.pb"
    with pytest.raises(UnsupportedError, match="works on text") as raised:
        tensorflow.convert(tensorflow.source(path), tmp_path / "m.onnx")
    assert "--set inputs=" in raised.value.hint
    found = tensorflow.source(path, "GatherV2:float32[?,4]")
    result = tensorflow.compare(found, tmp_path / "m.onnx")
    assert [str(spec) for spec in result.signature.inputs] == ["GatherV2:float32[batch,4]"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"constants": "is_training"}, "gives no value"),
        ({"constants": "is_training=maybe"}, "is no value"),
        ({"constants": "nothing=1"}, "no tensor `nothing:0`"),
        ({"outputs": "nothing"}, "no tensor `nothing:0`"),
        ({"inputs": "nothing"}, "no input `nothing`"),
    ],
)
def test_wrong_names_and_values(
    tensorflow: Any, tmp_path: Path, settings: dict[str, str], says: str
) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "old_branch.pb", **settings)
    with pytest.raises(UsageError, match=says):
        tensorflow.convert(model, tmp_path / "m.onnx")


# ---- checkpoints


@pytest.mark.parametrize("name", ["checkpoint_1", "checkpoint_2", "checkpoint_sharded", "bundle"])
def test_a_checkpoint_of_a_training(tensorflow: Any, tmp_path: Path, name: str) -> None:
    """The folder is enough: the newest step, the logits and not the loss, no dropout."""
    folder = tensorflow.files(SCRIPT) / name
    found = inspect(folder)
    assert found.signature is not None
    assert [spec.name for spec in found.signature.outputs] == ["logits:0"]
    result = tensorflow.compare(tensorflow.source(Path(found.location)), tmp_path / "m.onnx")
    assert [spec.name for spec in result.signature.outputs] == ["logits"]
    assert [spec.name for spec in result.signature.inputs] == ["x", "keep_prob"]
    assert "which the loss compares with `labels`" in result.repairs[0]
    golden = np.load(folder / "golden.npz")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    feed = {"x": golden["x"], "keep_prob": np.array(0.5, np.float32)}
    np.testing.assert_allclose(session.run(None, feed)[0], golden["logits"], atol=1e-5)


def test_an_older_step_and_another_output(tensorflow: Any, tmp_path: Path) -> None:
    folder = tensorflow.files(SCRIPT) / "checkpoint_2"
    model = tensorflow.source(folder / "model.ckpt-1.meta", outputs="Relu,logits")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert [spec.name for spec in result.signature.outputs] == ["Relu", "logits"]
    golden = np.load(folder / "golden.npz")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    feed = {"x": golden["x"], "keep_prob": np.array(1, np.float32)}
    assert np.abs(session.run(["logits"], feed)[0] - golden["logits"]).max() > 0.01


def test_a_checkpoint_with_missing_or_damaged_parts(tensorflow: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tensorflow.files(SCRIPT) / "checkpoint_2", folder)
    model = tensorflow.source(folder / "model.ckpt-2.meta")
    data = folder / "model.ckpt-2.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:40])
    with pytest.raises(SourceError, match="cannot read"):
        tensorflow.convert(model, tmp_path / "m.onnx")
    (folder / "model.ckpt-2.index").unlink()
    with pytest.raises(SourceError):
        dk.convert(folder / "model.ckpt-2.meta", tmp_path / "m.onnx")
    graph = folder / "model.ckpt-2.meta"
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(SourceError):
        tensorflow.convert(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


# ---- state


def sequence(tensorflow: Any, path: Path, output: Path, feeds: list[dict[str, Any]]) -> None:
    """Hold call after call against TensorFlow's own variables, which nobody sets in between."""
    session = onnxruntime.InferenceSession(output)
    (entry,) = [
        one.value for one in onnx.load(output).metadata_props if one.key == "deploykit.state"
    ]
    state = {}
    for item in json.loads(entry):
        value = np.zeros(item["shape"], item["dtype"])
        if item["initial"] != "zeros":
            raw = base64.b64decode(item["initial"])
            value = np.frombuffer(raw, item["dtype"]).reshape(item["shape"])
        state[item["input"]] = (item["output"], value)
    script = Path(__file__).resolve().parent.parent / "fixtures" / "call_tensorflow_model.py"
    given, wanted = output.with_suffix(".in.npz"), output.with_suffix(".out.npz")
    np.savez(given, **{f"{n}/{k}": v for n, feed in enumerate(feeds) for k, v in feed.items()})
    subprocess.run([tensorflow.python, "-I", script, path, given, wanted], check=True, timeout=200)
    expected = np.load(wanted)
    names = [value.name for value in session.get_outputs()]
    for number, feed in enumerate(feeds):
        values = session.run(names, {**feed, **{name: value for name, (_, value) in state.items()}})
        found = dict(zip(names, values, strict=True))
        state = {name: (result, found[result]) for name, (result, _) in state.items()}
        for key in expected.files:
            call, _, name = key.partition("/")
            if int(call) == number:
                np.testing.assert_allclose(found[name], expected[key], rtol=1e-4, atol=1e-5)


def test_state_that_is_written_twice_and_begins_with_values(
    tensorflow: Any, tmp_path: Path
) -> None:
    path = tensorflow.files(SCRIPT) / "memory"
    result = tensorflow.compare(tensorflow.source(path), tmp_path / "m.onnx")
    assert [spec.name for spec in result.signature.inputs[1:]] == ["sum", "calls", "last"]
    assert [spec.name for spec in result.signature.outputs[:2]] == ["change", "mean"]
    assert "begin with zeros" in result.repairs[0]
    assert "begin with the values in the metadata" in result.repairs[1]
    random = np.random.default_rng(0)
    feeds = [{"x": random.random((2, 3), dtype=np.float32)} for _ in range(4)]
    sequence(tensorflow, path, tmp_path / "m.onnx", feeds)


def test_a_reference_variable_of_tensorflow_1_that_is_added_to(
    tensorflow: Any, tmp_path: Path
) -> None:
    path = tensorflow.files(SCRIPT) / "old_state"
    result = tensorflow.compare(tensorflow.source(path), tmp_path / "m.onnx")
    assert [spec.name for spec in result.signature.inputs] == ["x", "total"]
    sequence(tensorflow, path, tmp_path / "m.onnx", [{"x": np.ones(3, np.float32)}] * 3)


def test_state_that_only_a_branch_writes_is_refused(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "branching")
    with pytest.raises(UnsupportedError, match="AssignVariableOp") as raised:
        tensorflow.convert(model, tmp_path / "m.onnx")
    assert "an input and an output" in raised.value.hint


def test_a_shared_model_with_state_over_a_sequence_of_calls(
    tensorflow: Any, shared_models: Path, tmp_path: Path
) -> None:
    """Two calls as golden files have them, and twelve more against TensorFlow itself."""
    folder = shared_models / "tf_savedmodel" / "dtln_stateful"
    conversion = dk.convert(folder, tmp_path / "m.onnx")
    assert conversion.verified
    golden = golden_models.read(folder)
    assert len(golden.later) == 1
    assert (
        golden_models.judge(tmp_path / "m.onnx", golden, Tolerance(atol=1e-4, rtol=1e-3)) == "right"
    )
    random = np.random.default_rng(0)
    feeds = [{"input_1": random.standard_normal((1, 512), dtype=np.float32) / 5} for _ in range(12)]
    sequence(tensorflow, folder, tmp_path / "m.onnx", feeds)


def test_recurrent_layers_of_keras(tensorflow: Any, tmp_path: Path) -> None:
    model = tensorflow.source(tensorflow.files(SCRIPT) / "recurrent")
    result = tensorflow.compare(model, tmp_path / "m.onnx")
    assert [str(spec) for spec in result.signature.inputs] == ["x:float32[batch,7,4]"]


def test_the_reference_forgets_between_calls(tensorflow: Any) -> None:
    """State comes from its inputs alone, so the same inputs give the same outputs."""
    model = tensorflow.source(tensorflow.files(SCRIPT) / "memory")
    session = tensorflow.worker.open(ReferenceRequest(source=model))
    feed = {
        "x": np.ones((2, 3), np.float32),
        "sum": np.full((2, 3), 2, np.float32),
        "calls": np.array(2, np.float32),
        "last": np.zeros((2, 3), np.float32),
    }
    first, second = session.run(feed), session.run(feed)
    session.close()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    np.testing.assert_allclose(first["mean"], np.ones((2, 3)))
    np.testing.assert_allclose(first["sum_next"], np.full((2, 3), 3.0))
