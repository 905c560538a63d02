"""Exported programs (`.pt2`) to ONNX, and no code run that nobody asked for."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import SourceError, UnsupportedError
from deploykit.protocol import DynamicAxis, Signature
from deploykit.steps import Worker
from tests.converters.pytorch_models import (
    assert_same,
    convert,
    file,
    names,
    random,
)

pytest_plugins = ["tests.converters.pytorch_fixtures"]
pytestmark = pytest.mark.environment


def test_an_exported_program_keeps_its_axes(worker: Worker, files: Path, tmp_path: Path) -> None:
    source, output = file("pytorch/exported_program", files / "tagger.pt2"), tmp_path / "m.onnx"
    axes = (
        DynamicAxis(input="tokens", axis=0, name="batch"),
        DynamicAxis(input="tokens", axis=1, name="time"),
    )
    result = convert(worker, source, output, *axes)
    assert names(result.signature) == (
        ["tokens:int64[batch,time]", "keep:float32[batch,time]"],
        ["logits:float32[batch,time,7]", "state:float32[batch,16]"],
    )
    tokens = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert_same(worker, source, output, {"tokens": tokens, "keep": random(3, 4)})
    fixed = file("pytorch/exported_program", files / "tagger.pt2", "tokens:int32[2,9]")
    with pytest.raises(UnsupportedError, match="fixes `tokens` to int64"):
        convert(worker, fixed, tmp_path / "n.onnx")


def test_the_state_of_an_exported_program_is_an_input(
    worker: Worker, zoo: Path, tmp_path: Path
) -> None:
    source, output = file("pytorch/exported_program", zoo / "stateful.pt2"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (
        ["x:float32[1,3]", "mean:float32[1,3]"],
        ["output:float32[1,3]", "mean_next:float32[1,3]"],
    )
    assert any("`mean`" in line and "start with 1 everywhere" in line for line in result.repairs)
    (outputs,) = assert_same(
        worker, source, output, {"x": random(1, 3), "mean": random(1, 3, seed=1)}
    )
    mean = random(1, 3, seed=1) * 0.9 + random(1, 3) * 0.1
    np.testing.assert_allclose(outputs["mean_next"], mean, rtol=1e-6)
    np.testing.assert_allclose(outputs["output"], random(1, 3) - mean, rtol=1e-5, atol=1e-7)


def replace_in_graph(archive: Path, output: Path, key: str, value: str) -> None:
    """Copy a `.pt2` file with the first `key` of its graph set to `value`."""

    def replaced(item: Any) -> bool:
        if isinstance(item, dict) and isinstance(item.get(key), str):
            item[key] = value
            return True
        children = (
            item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        )
        return any(replaced(child) for child in children)

    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(output, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/models/model.json"):
                graph = json.loads(content)
                assert replaced(graph), key
                content = json.dumps(graph).encode()
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "torch.serialization.os.system"),
        ("target", "torch.hub.load"),
        ("target", "_operator.methodcaller"),
        ("expr_str", "exec(chr(112))"),
        ("expr_str", "().__class__"),
    ],
)
def test_an_exported_program_cannot_name_functions(
    worker: Worker, files: Path, tmp_path: Path, key: str, value: str
) -> None:
    evil = tmp_path / "evil.pt2"
    replace_in_graph(files / "tagger.pt2", evil, key, value)
    with pytest.raises(UnsupportedError, match="would run code of its own") as raised:
        worker.call("inspect", file("pytorch/exported_program", evil), Signature)
    assert repr(value) in raised.value.message


def test_a_damaged_exported_program(worker: Worker, files: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes((files / "tagger.pt2").read_bytes()[:4000])
    with pytest.raises(SourceError, match="cannot read"):
        worker.call("inspect", file("pytorch/exported_program", cut), Signature)
