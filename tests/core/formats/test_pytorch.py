"""Everything that PyTorch saves, written by PyTorch itself; and code, looked at from outside."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import SourceError
from deploykit.formats import inspect
from deploykit.protocol import Signature, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 5))
UNKNOWN_X = TensorSpec(name="x", dtype="unknown", shape=None)
OUTPUT = TensorSpec(name="output", dtype="unknown", shape=None)


def test_exported_program(models: Path) -> None:
    found = inspect(models / "program.pt2")
    assert (found.format, found.framework) == ("pytorch/exported_program", "PyTorch")
    assert found.signature is not None
    (given,), (returned,) = found.signature.inputs, found.signature.outputs
    assert (given.name, given.dtype) == ("x", "float32")
    assert given.shape is not None
    assert returned.shape is not None
    axis = given.shape[0]
    assert isinstance(axis, str)
    assert given.shape[1:] == (3, 4, 5)
    assert returned.shape == (axis, 2, 4, 5)
    assert found.details[f"axis {axis}"] == "1 to 64"
    assert found.operators == {"aten.conv2d": 1, "aten.relu": 1}
    assert found.parameters == 8
    assert found.details["producer"].startswith("PyTorch 2.13.0")


def test_torchscript(models: Path) -> None:
    traced = inspect(models / "traced.pt")
    assert traced.format == "pytorch/torchscript"
    assert traced.signature == Signature(inputs=(X,), outputs=(OUTPUT,))
    assert traced.parameters == 8
    assert traced.operators == {"_convolution": 1, "relu": 1}
    scripted = inspect(models / "scripted.pt")
    assert scripted.signature == Signature(inputs=(UNKNOWN_X,), outputs=(OUTPUT,))
    assert scripted.details["forward"] == "(x: Tensor) -> Tensor"
    assert "--input" in scripted.details["shapes"]


def test_lite(models: Path) -> None:
    found = inspect(models / "lite.ptl")
    assert found.format == "pytorch/lite"
    assert found.parameters == 8
    assert found.operators == {"conv2d": 1, "relu": 1}


@pytest.mark.parametrize("name", ["state_dict.pth", "legacy.pth"], ids=["zip", "legacy"])
def test_state_dict(models: Path, name: str) -> None:
    found = inspect(models / name)
    assert found.format == "pytorch/state_dict"
    assert found.signature is None
    assert found.parameters == 8
    assert found.details["tensors"] == "2: conv.weight, conv.bias"
    assert "--set module=FILE.py:callable" in found.details["graph"]


def test_a_legacy_file_cut_within_its_weights(models: Path) -> None:
    path = models / "legacy.pth"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SourceError, match="needs 3 more bytes"):
        inspect(path)


def test_a_pickle_of_a_whole_module_names_the_classes(models: Path) -> None:
    with pytest.raises(SourceError, match=r"whole Python objects \(__main__\.Network") as caught:
        inspect(models / "whole_module.pth")
    assert "module.py:function" in caught.value.hint
    trusted = inspect(models / "whole_module.pth", trust=True)
    assert trusted.format == "pytorch/state_dict"
    assert "__main__.Network" in trusted.details["code"]


class _Runs:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch {}"), "posix.system"),
        ((subprocess.Popen, ["touch", "{}"]), "subprocess.Popen"),
        ((eval, "open('{}', 'w')"), "builtins.eval"),
        ((getattr, "", "join"), "builtins.getattr"),
    ],
    ids=["system", "Popen", "eval", "getattr"],
)
def test_a_pickle_that_runs_code_is_named_and_not_run(
    tmp_path: Path, call: tuple[Any, ...], name: str, protocol: int
) -> None:
    mark = tmp_path / "ran"
    arguments = [
        [part.format(mark) for part in one] if isinstance(one, list) else one.format(mark)
        for one in call[1:]
    ]
    data = pickle.dumps({"weights": _Runs(call[0], *arguments)}, protocol=protocol)
    (tmp_path / "evil.pkl").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("evil/data.pkl", data)
        archive.writestr("evil/version", "3\n")
    for path in (tmp_path / "evil.pkl", tmp_path / "evil.pth"):
        with pytest.raises(SourceError, match="runs code when it is loaded") as caught:
            inspect(path)
        assert f"`{name}`" in caught.value.message
    assert not mark.exists()


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(SourceError, match="without any tensor"):
        inspect(tmp_path / "list.pkl")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("letter.txt", "Dear sir")
    with pytest.raises(SourceError, match="not a model"):
        inspect(tmp_path / "a.zip")


def test_a_member_that_unpacks_to_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.formats import zip_archive

    monkeypatch.setattr(zip_archive, "LARGEST_DOCUMENT", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/archive_format", "pt2")
        archive.writestr("b/models/model.json", b" " * (8 << 20))
    with pytest.raises(SourceError, match="too large"):
        inspect(tmp_path / "bomb.pt2")


MODULE = '''
"""A network."""
import missing_package
from elsewhere import Other as Alias

def build(width, depth=3):
    raise SystemExit("must not run")

class Network:
    pass

instance = Network()
'''


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("build", "build(width, depth)"),
        ("Network", "Network (a class)"),
        ("instance", "instance"),
        ("Alias", "Alias (imported)"),
    ],
)
def test_code_is_found_without_importing_it(tmp_path: Path, name: str, described: str) -> None:
    path = tmp_path / "network.py"
    path.write_text(MODULE)
    found = inspect(f"{path}:{name}")
    assert found.format == "pytorch/module"
    assert found.location == f"{path}:{name}"
    assert found.signature is None
    assert found.files == {str(path): len(MODULE)}
    assert found.details["callable"] == described


@pytest.mark.parametrize(
    ("text", "reference", "words"),
    [
        (MODULE, ":bild", ["no `bild`", "did you mean `build`"]),
        (MODULE, ":", ["defines no ``"]),
        (MODULE, "", ["name the callable"]),
        ("def build(:\n", ":build", ["no valid Python", "line 1"]),
        ("\0", ":build", ["no valid Python"]),
        ("(" * 100_000, ":build", ["no valid Python"]),
        ("x = '\\d'\n", ":y", ["no `y`"]),
    ],
)
def test_bad_code_references(tmp_path: Path, text: str, reference: str, words: list[str]) -> None:
    path = tmp_path / "network.py"
    path.write_text(text)
    with pytest.raises(SourceError) as caught:
        inspect(f"{path}{reference}")
    for word in words:
        assert word in caught.value.message


def test_code_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(MODULE)
    with pytest.raises(SourceError, match="does not exist") as caught:
        inspect(f"{tmp_path / 'netwrk.py'}:build")
    assert "network.py" in caught.value.hint


def test_a_truncated_archive(models: Path) -> None:
    path = models / "program.pt2"
    shutil.copy(path, models / "short.pt2")
    (models / "short.pt2").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match="truncated zip archive"):
        inspect(models / "short.pt2")
