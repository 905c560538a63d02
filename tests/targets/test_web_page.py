"""The target web: what it writes, without a browser."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deploykit._plugins.targets.web_page import (
    browser,
    model_files,
    npm_package,
    plugin,
)
from onnx import TensorProto, numpy_helper

from deploykit.errors import SourceError, UnavailableError, UnsupportedError

from .web_models import tarball, weighted

TARGET = "web"
FLOAT = TensorProto.FLOAT


@pytest.fixture
def no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a browser, and a package with the names that are asked for."""
    monkeypatch.setenv("CHROME_PATH", str(tmp_path / "nowhere"))
    names = {name for files in plugin.RUNTIME.values() for name in files}
    path = tarball(tmp_path / "w.tgz", {f"package/dist/{name}": name.encode() for name in names})
    monkeypatch.setattr(npm_package, "archive", lambda: path)


@pytest.mark.usefixtures("no_browser")
@pytest.mark.parametrize("device", ["wasm", "webgpu"])
def test_the_folder_is_whole_without_a_browser(
    bench: Any, convolutions: onnx.ModelProto, device: str
) -> None:
    result = bench.compile(convolutions, device=device, settings={"optimization": "none"})
    assert "not tried" in result.notes[0]
    assert any("Cross-Origin-Opener-Policy" in note for note in result.notes)
    manifest = json.loads((bench.payload / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "x", "type": "float32", "shape": [1, 16, 20, 36]}]
    assert (manifest["device"], manifest["optimization"]) == (device, "disabled")
    runtime = manifest["runtime"]
    wanted = {runtime["module"], runtime["loader"], runtime["binary"], *manifest["model"]}
    page = {"index.html", "page.css", "page.js", "model.js", "runner.js", "manifest.json"}
    assert wanted | page <= {path.name for path in bench.payload.iterdir()}
    onnx.checker.check_model(bench.payload / "model.onnx")


@pytest.mark.usefixtures("no_browser")
def test_without_a_browser_nothing_loads(bench: Any, convolutions: onnx.ModelProto) -> None:
    bench.compile(convolutions)
    with pytest.raises(UnavailableError, match="nowhere"):
        bench.load()
    found = plugin.probe()
    assert [(each.device, each.available) for each in found] == [("wasm", False), ("webgpu", False)]
    assert "nowhere" in found[0].detail


def test_a_browser_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho 'FATAL: a library is missing' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("CHROME_PATH", str(program))
    with tempfile.TemporaryDirectory() as scratch:
        monkeypatch.setattr(tempfile, "tempdir", scratch)
        with pytest.raises(UnavailableError, match="a library is missing"):
            browser.Browser(browser.find())
        assert list(Path(scratch).iterdir()) == []


@pytest.mark.usefixtures("no_browser")
def test_what_a_page_cannot_have_is_refused(bench: Any, build: Any) -> None:
    def identity(kind: int) -> onnx.ModelProto:
        made: onnx.ModelProto = build(
            [("Identity", ["x"], ["y"], {})], [("x", kind, [2])], [("y", kind, [2])]
        )
        return made

    with pytest.raises(UnsupportedError, match="bfloat16"):
        bench.compile(identity(TensorProto.BFLOAT16))
    with pytest.raises(UnsupportedError, match="fp16"):
        bench.compile(identity(FLOAT), precision="fp16")


@pytest.mark.usefixtures("no_browser")
def test_fixed_sizes_reach_the_outputs(bench: Any, build: Any) -> None:
    model = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])])
    result = bench.compile(model, shapes={"x": (5, 3)})
    assert result.signature.inputs[0].shape == result.signature.outputs[0].shape == (5, 3)


@pytest.mark.usefixtures("no_browser")
def test_weights_beside_the_model_go_along(bench: Any, build: Any, tmp_path: Path) -> None:
    path = weighted(tmp_path, build)
    bench.compile(path)
    (tmp_path / "data.bin").unlink()
    written = onnx.load(bench.payload / "model.onnx")
    assert (bench.payload / "weights.bin").stat().st_size < 9000
    source = np.random.default_rng(8)
    for tensor, shape in zip(written.graph.initializer, ((40, 50), (50,)), strict=True):
        expected = source.normal(size=shape).astype(np.float32)
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("location", "../data.bin", "outside"),
        ("location", "/etc/passwd", "outside"),
        ("location", "missing.bin", "cannot read"),
        ("length", "99999999", "which has"),
        ("offset", "-8", "which has"),
        ("offset", "many", "cannot read"),
    ],
)
@pytest.mark.usefixtures("no_browser")
def test_weights_that_are_not_there(
    bench: Any, build: Any, tmp_path: Path, key: str, value: str, said: str
) -> None:
    path = weighted(tmp_path, build)
    model = onnx.load(path, load_external_data=False)
    entries = model.graph.initializer[0].external_data
    for entry in list(entries):
        if entry.key == key:
            entries.remove(entry)
    entries.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=said):
        bench.compile(path)


@pytest.mark.usefixtures("no_browser")
def test_a_model_of_two_gigabytes_is_refused(bench: Any, build: Any, tmp_path: Path) -> None:
    path = weighted(tmp_path, build)
    model = onnx.load(path, load_external_data=False)
    size = model_files.LARGEST_BYTES
    with (tmp_path / "data.bin").open("ab") as stream:
        stream.truncate(size)  # a hole: no bytes on the disk
    entries = model.graph.initializer[0].external_data
    next(entry for entry in entries if entry.key == "length").value = str(size)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="below 2 GB"):
        bench.compile(path)


def test_the_page_calls_nobody() -> None:
    namespaces = {"http://www.w3.org/2000/svg"}
    names = {path.name for path in plugin.PAGE.iterdir()}
    for path in plugin.PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"\w+://[^\s\"'`)]+", text)) <= namespaces, path.name
        for quoted in re.findall(r"(?:from |src=|href=|import\()\"([^\"]+)\"", text):
            assert quoted == "data:," or quoted.removeprefix("./") in names, (path.name, quoted)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', _index())
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'", policy[1])


def _index() -> str:
    text: str = (plugin.PAGE / "index.html").read_text(encoding="utf-8")
    return text
