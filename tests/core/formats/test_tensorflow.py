"""SavedModel, frozen graph, checkpoint and TensorFlow Lite, written by TensorFlow itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploykit.errors import SourceError
from deploykit.formats import inspect
from deploykit.protocol import Signature, TensorSpec
from tests.core.formats.protobuf_writer import field

X = TensorSpec(name="x", dtype="float32", shape=(None, 3))
Y = TensorSpec(name="y", dtype="float32", shape=(None, 2))


def test_saved_model(models: Path) -> None:
    found = inspect(models / "saved_model")
    assert (found.format, found.framework) == ("tensorflow/saved_model", "TensorFlow")
    assert found.location == str(models / "saved_model")
    assert found.signature == Signature(inputs=(X,), outputs=(Y,))
    assert found.parameters == 8
    assert found.operators["MatMul"] == 1
    assert "RestoreV2" not in found.operators, "saving is no part of the model"
    assert found.details["signature"] == "serving_default"
    assert found.details["producer"] == "TensorFlow 2.21.0"
    assert str(models / "saved_model/variables/variables.data-00000-of-00001") in found.files


def test_saved_model_named_by_its_file_or_by_the_folder_around_it(models: Path) -> None:
    inside = inspect(models / "saved_model" / "saved_model.pb")
    assert inside.location == str(models / "saved_model")
    (models / "served").mkdir()
    shutil.move(models / "saved_model", models / "served" / "00000123")
    assert inspect(models / "served").location == str(models / "served" / "00000123")


def test_saved_model_without_variables(models: Path) -> None:
    shutil.rmtree(models / "saved_model" / "variables")
    with pytest.raises(SourceError, match=r"2 variables.*variables\.index"):
        inspect(models / "saved_model")


def test_saved_model_without_data(models: Path) -> None:
    (models / "saved_model/variables/variables.data-00000-of-00001").unlink()
    with pytest.raises(SourceError, match=r"no `variables\.data-00000-of-00001`"):
        inspect(models / "saved_model")


def test_saved_model_with_short_data(models: Path) -> None:
    data = models / "saved_model/variables/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(SourceError, match="truncated"):
        inspect(models / "saved_model")


def test_saved_model_in_text_form(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\n")
    with pytest.raises(SourceError, match="text form"):
        inspect(tmp_path)


def test_frozen_graph(models: Path) -> None:
    path = models / "graph.bin"
    shutil.move(models / "frozen.pb", path)
    found = inspect(path)
    assert found.format == "tensorflow/graph_def"
    assert found.signature is not None
    assert found.signature.inputs == (TensorSpec(name="x:0", dtype="float32", shape=(None, 3)),)
    assert [spec.name for spec in found.signature.outputs] == ["y:0"]
    assert found.parameters == 8
    assert found.operators["MatMul"] == 1
    assert "--set outputs=" in found.details["outputs"]


def attribute(name: str, value: bytes) -> bytes:
    return field(5, field(1, name) + field(2, value))


def test_dtypes_of_outputs(tmp_path: Path) -> None:
    def node(name: str, operator: str, *attributes: bytes) -> bytes:
        return field(1, field(1, name) + field(2, operator) + field(3, "x") + b"".join(attributes))

    float32, float16 = field(6, 1), field(6, 19)
    graph = (
        node("less", "Less", attribute("T", float32))
        + node("arg", "ArgMax", attribute("T", float32))
        + node("cast", "Cast", attribute("SrcT", float32), attribute("DstT", float16))
        + node("own", "MyOperator")
        + field(1, field(1, "x") + field(2, "Placeholder") + attribute("dtype", float32))
        + field(4, field(1, 27))
    )
    (tmp_path / "g.pb").write_bytes(graph)
    found = inspect(tmp_path / "g.pb")
    assert found.signature is not None
    assert {spec.name: spec.dtype for spec in found.signature.outputs} == {
        "less:0": "bool",
        "arg:0": "int64",
        "cast:0": "float16",
        "own:0": "unknown",
    }
    assert found.signature.inputs == (TensorSpec(name="x:0", dtype="float32", shape=None),)


@pytest.mark.parametrize(
    "name",
    ["", "model.ckpt", "model.ckpt.meta", "model.ckpt.index"],
    ids=["folder", "prefix", "meta", "index"],
)
def test_checkpoint(models: Path, name: str) -> None:
    found = inspect(models / "checkpoint" / name)
    assert found.format == "tensorflow/checkpoint"
    assert found.location == str(models / "checkpoint" / "model.ckpt.meta")
    assert found.parameters == 8
    assert found.signature is not None
    assert [spec.name for spec in found.signature.inputs] == ["x:0"]
    assert [spec.name for spec in found.signature.outputs] == ["y:0"]
    assert len(found.files) == 3


def test_checkpoint_without_graph(models: Path) -> None:
    (models / "checkpoint" / "model.ckpt.meta").unlink()
    found = inspect(models / "checkpoint")
    assert found.signature is None
    assert found.parameters == 8
    assert "none" in found.details["graph"]


@pytest.mark.parametrize("name", ["model.ckpt.index", "model.ckpt.data-00000-of-00001"])
def test_checkpoint_without_weights(models: Path, name: str) -> None:
    (models / "checkpoint" / name).unlink()
    with pytest.raises(SourceError, match=f"no `{name}` beside it"):
        inspect(models / "checkpoint")


def test_tflite(models: Path) -> None:
    path = models / "lite.bin"
    shutil.move(models / "model.tflite", path)
    found = inspect(path)
    assert found.format == "tensorflow/tflite"
    assert found.signature is not None
    (given,), (returned,) = found.signature.inputs, found.signature.outputs
    assert (given.dtype, given.shape) == ("float32", (None, 3))
    assert (returned.dtype, returned.shape) == ("float32", (None, 2))
    assert found.operators == {"FULLY_CONNECTED": 1}
    assert found.parameters == 8
    assert found.details["signatures"] == "serving_default"


def steps(models: Path) -> Path:
    """Return a folder with two steps of one training, and the file that names the newest."""
    folder = models / "steps"
    folder.mkdir()
    for path in (models / "checkpoint").glob("model.ckpt*"):
        for step in (1, 2):
            name = path.name.replace("model.ckpt", f"model.ckpt-{step}")
            shutil.copy(path, folder / name)
    return folder


@pytest.mark.parametrize(
    "written", ["model.ckpt-2", "/somewhere/else/model.ckpt-2", "..\\\\other\\\\model.ckpt-2"]
)
def test_the_newest_of_several_steps(models: Path, written: str) -> None:
    folder = steps(models)
    with pytest.raises(SourceError, match="holds 2 models"):
        inspect(folder)
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{written}"\nall_model_checkpoint_paths: "model.ckpt-1"\n'
    )
    for location in (folder, folder / "checkpoint"):
        assert Path(inspect(location).location).name == "model.ckpt-2.meta"
    assert Path(inspect(folder / "model.ckpt-1").location).name == "model.ckpt-1.meta"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b'model_checkpoint_path: "', b'model_checkpoint_path: "gone"']
)
def test_a_damaged_list_of_steps(models: Path, content: bytes) -> None:
    folder = steps(models)
    (folder / "checkpoint").write_bytes(content)
    with pytest.raises(SourceError, match="holds 2 models"):
        inspect(folder)


@pytest.mark.parametrize(
    "names", [("model.ckpt",), ("model.ckpt-00000-of-00002", "model.ckpt-00001-of-00002")]
)
def test_data_of_the_first_version_has_no_index(models: Path, names: tuple[str, ...]) -> None:
    folder = models / "first"
    folder.mkdir()
    shutil.copy(models / "checkpoint" / "model.ckpt.meta", folder)
    for name in names:  # a table of slices; only that it is a table matters here
        shutil.copy(models / "checkpoint" / "model.ckpt.index", folder / name)
    found = inspect(folder)
    assert found.format == "tensorflow/checkpoint"
    assert [Path(path).name for path in found.files] == ["model.ckpt.meta", *names]
    assert found.details["version"].startswith("1")
    assert inspect(folder / names[0]).location == found.location
    (folder / "model.ckpt.meta").unlink()
    with pytest.raises(SourceError, match=r"no `model.ckpt.meta` with its graph"):
        inspect(folder / names[0])
