"""What a user may type: names that do not exist, folders of none or several, wrong formats."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from deploykit.errors import SourceError, UsageError
from deploykit.formats import formats, inspect


def test_a_name_that_does_not_exist(models: Path) -> None:
    with pytest.raises(SourceError, match="does not exist") as caught:
        inspect(models / "frozn.pb")
    assert caught.value.hint == f"did you mean `{models / 'frozen.pb'}`?"
    with pytest.raises(SourceError, match="nor does the folder"):
        inspect(models / "nowhere" / "model.onnx")


@pytest.mark.parametrize("location", ["", "a\0b", "x" * 5000])
def test_what_is_no_path(location: str) -> None:
    with pytest.raises(SourceError):
        inspect(location)


def test_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match="does not exist"):
        inspect(tmp_path / "model.onnx")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(SourceError, match="is empty"):
        inspect(tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="is empty"):
        inspect(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="empty folder"):
        inspect(tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear sir")
    with pytest.raises(SourceError, match="no model"):
        inspect(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="neither a file nor a folder"):
        inspect(tmp_path / "model.onnx")


def test_an_unreadable_file(models: Path) -> None:
    # root may read everything, so it becomes somebody else for a moment
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / "frozen.pb"
        shutil.copy(models / "frozen.pb", path)
        path.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(SourceError, match=r"cannot read .* Permission denied"):
                inspect(path)
        finally:
            if is_root:
                os.seteuid(0)


def test_two_models_are_listed(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    shutil.copy(models / "frozen.pb", folder)
    shutil.copy(models / "model.tflite", folder)
    with pytest.raises(SourceError, match="holds 2 models") as caught:
        inspect(folder)
    assert "frozen.pb (tensorflow/graph_def)" in caught.value.message
    assert "model.tflite (tensorflow/tflite)" in caught.value.message
    assert str(folder / "frozen.pb") in caught.value.hint
    # the format may settle it
    assert inspect(folder, format="tensorflow/tflite").format == "tensorflow/tflite"
    with pytest.raises(SourceError, match="no onnx model"):
        inspect(folder, format="onnx")


def test_two_folders_with_models_are_listed(models: Path) -> None:
    served = models / "served"
    for version in ("1", "2"):
        shutil.copytree(models / "saved_model", served / version)
    with pytest.raises(SourceError, match="holds 2 models: 1, 2"):
        inspect(served)


def test_files_beside_the_one_model_are_passed_over(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(models / "frozen.pb", folder)
    (folder / "golden.json").write_text("{}")
    (folder / "golden.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "labels.txt").write_text("cat\ndog\n")
    (folder / "empty").touch()
    # the weights that the graph was made from
    shutil.copy(models / "state_dict.pth", folder)
    (folder / ".hidden").write_bytes((models / "model.tflite").read_bytes())
    assert inspect(folder).location == str(folder / "frozen.pb")


def test_a_relative_location_becomes_absolute(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    found = inspect("frozen.pb")
    assert found.location == str(models / "frozen.pb")
    assert list(found.files) == [found.location]


def test_an_unknown_format(models: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean `tensorflow/graph_def`\?"):
        inspect(models / "frozen.pb", format="tensorflow/graphdef")


@pytest.mark.parametrize("format", formats())
def test_a_format_that_the_file_does_not_have(models: Path, format: str) -> None:
    family = format.split("/")[0]
    for name in ("keras.h5", "program.pt2", "frozen.pb"):
        path = models / name
        with contextlib.suppress(SourceError):
            # readers of a family recognise its members by themselves
            assert inspect(path, format=format).format.split("/")[0] == family


def test_a_format_of_folders_or_code_for_a_file(models: Path) -> None:
    for format in ("pytorch/module", "coreml/mlpackage", "xdl/checkpoint"):
        with pytest.raises(SourceError, match=rf"frozen\.pb` is a file, and {format} is not"):
            inspect(models / "frozen.pb", format=format)


def test_to_json(models: Path) -> None:
    value = inspect(models / "frozen.pb").to_json()
    assert value["format"] == "tensorflow/graph_def"
    assert value["signature"]["inputs"] == [{"name": "x:0", "dtype": "float32", "shape": [None, 3]}]
    assert value["files"] == {str(models / "frozen.pb"): 486}
