"""The target web: what it fetches and writes, and its page in a real browser."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deploykit._plugins.targets.web_page import (
    browser,
    exchange,
    model_files,
    npm_package,
    plugin,
    web_server,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit import environments, plugins
from deploykit.errors import PluginError, SourceError, UnavailableError, UnsupportedError
from deploykit.family import descendants, is_running
from deploykit.onnx_file import signature_of
from deploykit.protocol import CompileRequest, CompileResult, LoadRequest
from deploykit.steps import Worker

TARGET = "web"
FLOAT = TensorProto.FLOAT
ROOT = Path(__file__).resolve().parents[2]
environment = pytest.mark.environment


# --- the package of npm ---------------------------------------------------------------------------


def _tarball(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def _link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.fixture
def npm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of deploykit, a registry that nobody may ask, and no npm."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("npm_config_registry", "https://packages.invalid/npm")
    monkeypatch.setattr(npm_package.shutil, "which", lambda _: None)

    def refuse(*args: Any, **more: Any) -> None:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "home"


def _known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `path` for the archive that the plugin knows."""
    monkeypatch.setattr(npm_package, "INTEGRITY", npm_package.integrity_of(path))


def test_without_network_and_cache_it_says_what_to_do(npm_home: Path) -> None:
    with pytest.raises(UnavailableError, match="no network in this test") as raised:
        npm_package.archive()
    assert f"npm pack onnxruntime-web@{npm_package.VERSION}" in raised.value.hint
    assert str(npm_home / "npm") in raised.value.hint
    assert list((npm_home / "npm").iterdir()) == []


def test_a_filled_cache_needs_no_network(npm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (npm_home / "npm").mkdir(parents=True)
    path = _tarball(npm_home / "npm" / npm_package.ARCHIVE, {"package/dist/a.mjs": b"a"})
    _known(path, monkeypatch)
    assert npm_package.archive() == path


def test_another_archive_is_refused_and_not_kept(
    npm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"something"))
    with pytest.raises(PluginError, match="another archive") as raised:
        npm_package.archive()
    assert npm_package.INTEGRITY in raised.value.hint
    assert list((npm_home / "npm").iterdir()) == []


def test_a_damaged_cache_is_fetched_again(
    npm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = _tarball(tmp_path / "good.tgz", {"package/dist/a.mjs": b"a"})
    _known(good, monkeypatch)
    asked = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(good.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setenv("npm_config_registry", "https://packages.invalid/npm")
    (npm_home / "npm").mkdir(parents=True)
    (npm_home / "npm" / npm_package.ARCHIVE).write_bytes(good.read_bytes()[:-1])
    assert npm_package.archive().read_bytes() == good.read_bytes()
    name = f"onnxruntime-web/-/onnxruntime-web-{npm_package.VERSION}.tgz"
    assert asked == [f"https://packages.invalid/npm/{name}"]


def test_what_npm_says_is_told(
    npm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(npm_package.shutil, "which", lambda _: str(npm))
    with pytest.raises(UnavailableError, match="npm error code ENOTFOUND"):
        npm_package.archive()


@pytest.mark.parametrize(
    ("variables", "file", "expected"),
    [
        ({}, "", ""),
        ({}, "registry = https://a.invalid/x\n", "https://a.invalid/x/"),
        (
            {},
            "# registry=https://no.invalid\nregistry='https://b.invalid/'\n",
            "https://b.invalid/",
        ),
        ({}, "@scope:registry=https://no.invalid\n", ""),
        ({}, "\0\x01[[[", ""),
        ({"NPM_CONFIG_REGISTRY": "https://c.invalid"}, "registry=x", "https://c.invalid/"),
    ],
)
def test_the_registry_is_the_users(
    tmp_path: Path, variables: dict[str, str], file: str, expected: str
) -> None:
    (tmp_path / ".npmrc").write_text(file)
    environ = {**variables, "NPM_CONFIG_USERCONFIG": str(tmp_path / ".npmrc")}
    assert npm_package.registry(environ) == expected


def test_without_npm_and_registry_it_says_so(
    npm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setattr(npm_package, "registry", lambda: "")
    with pytest.raises(UnavailableError, match="names no registry") as raised:
        npm_package.archive()
    assert "npm pack" in raised.value.hint


def test_an_open_registry_is_refused(npm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://a.invalid/")
    with pytest.raises(UnavailableError, match="not an https address"):
        npm_package.archive()


def test_unpacking_takes_only_what_it_was_asked_for(tmp_path: Path) -> None:
    names = ["../evil", "/evil", "package/dist/../../evil", "package/other", "package/dist/b.mjs"]
    path = _tarball(tmp_path / "a.tgz", dict.fromkeys(names, b"x") | {"package/dist/a.mjs": b"a"})
    (tmp_path / "inner" / "to").mkdir(parents=True)
    npm_package.unpack(path, {"a.mjs": "a.js"}, tmp_path / "inner" / "to")
    found = [each for each in tmp_path.rglob("*") if each.is_file() and each != path]
    assert found == [tmp_path / "inner" / "to" / "a.js"]
    assert found[0].read_bytes() == b"a"


@pytest.mark.parametrize(
    "member",
    [
        _link("package/dist/a.mjs", tarfile.SYMTYPE, "/etc/passwd"),
        _link("package/dist/a.mjs", tarfile.LNKTYPE, "package/other"),
        _link("package/dist/a.mjs", tarfile.FIFOTYPE, ""),
        _link("package/dist/a.mjs", tarfile.DIRTYPE, ""),
    ],
)
def test_a_member_that_is_no_file_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = _tarball(tmp_path / "a.tgz", {"package/other": b"secret", "link": member})
    (tmp_path / "to").mkdir()
    with pytest.raises(PluginError, match="not a plain file"):
        npm_package.unpack(path, {"a.mjs": "a.js"}, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no archive", b"cut"])
def test_an_archive_that_cannot_be_unpacked(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tgz"
    if content == b"cut":
        whole = _tarball(path, {"package/dist/a.mjs": os.urandom(10000)}).read_bytes()
        content = whole[: len(whole) // 2]
    path.write_bytes(content)
    with pytest.raises(PluginError, match=r"a\.tgz"):
        npm_package.unpack(path, {"a.mjs": "a.js"}, tmp_path)


def test_a_file_that_the_archive_lacks_is_named(tmp_path: Path) -> None:
    path = _tarball(tmp_path / "a.tgz", {"package/dist/a.mjs": b"a"})
    with pytest.raises(PluginError, match=r"lacks package/dist/b\.wasm"):
        npm_package.unpack(path, {"a.mjs": "a.js", "b.wasm": "b.wasm"}, tmp_path)


# --- tensors on their way -------------------------------------------------------------------------

NUMBERS = sorted(exchange.DTYPES - {"string"})


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.sampled_from(NUMBERS).flatmap(
            lambda dtype: arrays.arrays(
                dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)
            )
        ),
        max_size=4,
    )
)
def test_tensors_survive_their_way(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    found = exchange.unpack(b"".join(exchange.pack(tensors)))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()


def test_strings_and_odd_layouts_survive_their_way() -> None:
    words = np.array([["", "é\U0001f600"], ["a\nb", '"']], dtype=object)
    turned = np.arange(12, dtype=">i4").reshape(3, 4).T
    found = exchange.unpack(b"".join(exchange.pack({"w": words, "t": turned})))
    assert found["w"].tolist() == words.tolist()
    assert found["t"].tolist() == turned.tolist()
    assert found["t"].flags.writeable


def _with_header(entries: list[dict[str, Any]]) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\0\0{}",
        b"\x02\0\0\0{",
        _with_header([{"name": "x", "type": "object", "dims": [1], "bytes": 8, "at": 0}]),
        _with_header([{"name": "x", "type": "float32", "dims": [9], "bytes": 36, "at": 999}]),
    ],
)
def test_other_bytes_are_no_tensors(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        exchange.unpack(data)


# --- the web server -------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[web_server.WebServer]:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<!doctype html>")
    (tmp_path / "site" / "code.mjs").write_text("1")
    server = web_server.WebServer(tmp_path / "site")
    with contextlib.closing(server):
        yield server


def _ask(server: web_server.WebServer, path: str, body: bytes | None = None) -> tuple[int, Any]:
    host, _, prefix = server.address.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    with contextlib.closing(connection):
        whole = path if path.startswith("/") else f"/{prefix}{path}"
        connection.request("GET" if body is None else "POST", whole, body)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers


def test_the_page_is_isolated_and_its_kinds_are_right(served: web_server.WebServer) -> None:
    status, headers = _ask(served, "")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert _ask(served, "code.mjs")[1]["Content-Type"].startswith("text/javascript")


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "../secret.txt", "%2e%2e/secret.txt", "//etc/passwd", "-/0", "no"]
)
def test_nothing_else_is_served(served: web_server.WebServer, path: str) -> None:
    assert _ask(served, path)[0] == 404


def test_bytes_are_offered_and_taken_once(served: web_server.WebServer) -> None:
    offered = served.offer([b"ab", memoryview(b"c")])
    assert _ask(served, offered)[0] == 200
    assert _ask(served, offered)[0] == 404
    address, received = served.expect()
    assert _ask(served, address, b"sent")[0] == 204
    assert received() == b"sent"
    assert _ask(served, address, b"again")[0] == 404


# --- what is written ------------------------------------------------------------------------------


@pytest.fixture
def no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a browser, and a package with the names that are asked for."""
    monkeypatch.setenv("CHROME_PATH", str(tmp_path / "nowhere"))
    names = {name for files in plugin.RUNTIME.values() for name in files}
    path = _tarball(tmp_path / "w.tgz", {f"package/dist/{name}": name.encode() for name in names})
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


def _weighted(folder: Path, build: Any) -> Path:
    """A model whose weights lie beside it, one of them in a branch."""
    source = np.random.default_rng(8)
    model: onnx.ModelProto = build(
        [("MatMul", ["x", "w"], ["m"], {}), ("Add", ["m", "b"], ["y"], {})],
        [("x", FLOAT, ["n", 40])],
        [("y", FLOAT, ["n", 50])],
        {
            "w": source.normal(size=(40, 50)).astype(np.float32),
            "b": source.normal(size=50).astype(np.float32),
        },
    )
    path = folder / "weighted.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    return path


@pytest.mark.usefixtures("no_browser")
def test_weights_beside_the_model_go_along(bench: Any, build: Any, tmp_path: Path) -> None:
    path = _weighted(tmp_path, build)
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
    path = _weighted(tmp_path, build)
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
    path = _weighted(tmp_path, build)
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


# --- in a browser ---------------------------------------------------------------------------------


@functools.cache
def _lacking() -> str:
    try:
        browser.Browser(browser.find()).close()
        npm_package.archive()
    except UnavailableError as error:
        return error.message
    return ""


@pytest.fixture
def in_browser() -> None:
    """Skip where no browser or no package is at hand."""
    if _lacking():
        pytest.skip(_lacking())


@pytest.fixture
def quick(in_browser: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` without its own try in a browser: `load` comes next anyhow."""
    monkeypatch.setattr(plugin, "_try_in_browser", lambda *_: ())


def _reference(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    return ReferenceEvaluator(model).run(None, feed)


ELEMENTS = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in NUMBERS} | {
    "string": TensorProto.STRING
}


def _every_type() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(f"x_{n}", k, ["n", 3]) for n, k in ELEMENTS.items()]
    outputs = [helper.make_tensor_value_info(f"y_{n}", k, ["n", 3]) for n, k in ELEMENTS.items()]
    inputs.append(helper.make_tensor_value_info("scalar", FLOAT, []))
    outputs.append(helper.make_tensor_value_info("twice", FLOAT, []))
    nodes = [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in ELEMENTS]
    nodes.append(helper.make_node("Add", ["scalar", "scalar"], ["twice"]))
    graph = helper.make_graph(nodes, "every type", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _extremes(name: str, rows: int) -> np.ndarray[Any, Any]:
    """Return values that a wrong conversion would change: the ends of the range among them."""
    if name == "string":
        return np.array([["", "a\U0001f600é", "x" * 300]] * rows, dtype=object).reshape(rows, 3)
    if name == "bool":
        return np.array([[True, False, True]] * rows, bool).reshape(rows, 3)
    kind = np.dtype(name)
    ends = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    return np.array([[ends.min, ends.max, 1]] * rows, kind).reshape(rows, 3)


@environment
@pytest.mark.usefixtures("quick")
def test_every_element_type_at_several_sizes(bench: Any) -> None:
    bench.compile(_every_type())
    session = bench.load()
    bounds = []
    for rows in (2, 0, 1):
        feed = {f"x_{name}": _extremes(name, rows) for name in ELEMENTS}
        feed["scalar"] = np.array(1.5, np.float32)
        bounds.append((session.bind(feed), feed))
        for outputs in (session.run(feed), bounds[-1][0].outputs()):
            assert outputs["twice"].shape == ()
            assert outputs["twice"] == 3
            for name in ELEMENTS:
                found, given = outputs[f"y_{name}"], feed[f"x_{name}"]
                assert (found.dtype, found.shape) == (given.dtype, (rows, 3)), name
                assert found.tolist() == given.tolist(), name
    # one bound before others still has its own inputs
    first, feed = bounds[0]
    first()
    assert first.outputs()["y_int64"].tolist() == feed["x_int64"].tolist()
    latencies = first.measure(20, None)
    assert len(latencies) == 20
    assert all(0 < latency < 10**10 for latency in latencies)
    assert len(first.measure(10**6, 0.05)) >= 1
    session.close()
    session.close()
    with pytest.raises(ValueError, match="closed"):
        session.run(feed)


@environment
@pytest.mark.usefixtures("quick")
def test_weights_beside_the_model_are_right(bench: Any, build: Any, tmp_path: Path) -> None:
    path = _weighted(tmp_path, build)
    feed = {"x": np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)}
    expected = _reference(onnx.load(path), feed)[0]
    bench.compile(path)
    (tmp_path / "data.bin").unlink()
    with contextlib.closing(bench.load()) as session:
        np.testing.assert_allclose(session.run(feed)["y"], expected, rtol=1e-5, atol=1e-5)


@environment
@pytest.mark.usefixtures("in_browser")
def test_what_the_runtime_cannot_take_is_said(bench: Any, build: Any, tmp_path: Path) -> None:
    model = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, [2])], [("y", FLOAT, [2])])
    model.graph.node[0].op_type = "Fictitious"
    with pytest.raises(
        UnsupportedError, match="web has no kernel for operator Fictitious"
    ) as raised:
        bench.compile(model)
    assert raised.value.operators == ("Fictitious",)
    model.graph.node[0].op_type = "Relu"
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(SourceError, match="nowhere"):
        bench.compile(model)


@environment
@pytest.mark.usefixtures("quick")
def test_software_webgpu(bench: Any, build: Any) -> None:
    model = build(
        [("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["y"], {})],
        [("x", FLOAT, ["n", 2, 6, 6])],
        [("y", FLOAT, ["n", 3, 4, 4])],
        {"w": np.random.default_rng(2).normal(size=(3, 2, 3, 3)).astype(np.float32)},
    )
    feed: dict[str, Any] = {
        "x": np.random.default_rng(3).normal(size=(2, 2, 6, 6)).astype(np.float32)
    }
    bench.compile(model, device="webgpu")
    try:
        session = bench.load()
    except UnavailableError as error:
        pytest.skip(error.message)
    with contextlib.closing(session):
        expected = _reference(model, feed)[0]
        np.testing.assert_allclose(session.run(feed)["y"], expected, rtol=1e-4, atol=1e-5)


@environment
@pytest.mark.usefixtures("in_browser")
def test_a_real_model_in_a_worker_that_leaves_nothing(
    golden: Callable[[str], Any], tmp_path: Path
) -> None:
    case = golden("dtln_1")
    target = plugins.target(TARGET)
    (tmp_path / "payload").mkdir()
    request = CompileRequest(
        model=str(case.path),
        payload=str(tmp_path / "payload"),
        signature=signature_of(onnx.load(case.path)),
        device="wasm",
        threads=2,
    )
    python = environments.interpreter(target)
    with Worker(target, python=python, label="web", threads=2) as worker:
        result = worker.call("compile", request, CompileResult)
        assert any("clock" in note for note in result.notes)
        assert "Chrom" in result.versions["browser"]
        session = worker.open(
            LoadRequest(
                payload=request.payload,
                signature=result.signature,
                device="wasm",
                threads=2,
                settings=result.settings,
            )
        )
        feed = {spec.name: case.feed[spec.name] for spec in session.signature.inputs}
        case.assert_same(session.run(feed))
        session.bind(feed)
        assert len(session.measure(iterations=10).latencies_ns) == 10
        case.assert_same(session.outputs())
        assert b"--type=renderer" in Path(f"/proc/{session.pid}/cmdline").read_bytes()
        assert session.peak_memory_bytes() > 50 * 2**20
        scratch = worker._job.scratch
        folders = list(scratch.glob("web-*"))
        assert len(folders) == 1
        family = descendants(worker.pid)
        session.close()
        assert not folders[0].exists()
        assert not [pid for pid in family if is_running(pid)]
    assert not scratch.exists()


KILLED = """
import sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
tempfile.tempdir = sys.argv[2]
from deploykit._plugins.targets.web_page import browser, plugin
from deploykit._plugins.targets.web_page.web_server import WebServer
opened = browser.Browser(browser.find())
opened.open_page(WebServer(plugin.PAGE).address)
print(opened.page_process(), opened._process._folder, flush=True)
sys.stdin.read()
"""


@environment
@pytest.mark.usefixtures("in_browser")
def test_the_browser_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    # also where the folder for temporary files has a path too long for a socket
    (tmp_path / ("long" * 20)).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / ("long" * 20))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        number, name = process.stdout.readline().split()
        page, folder = int(number), Path(name)
        assert is_running(page)
        assert folder.is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(600):
            if not is_running(page) and not folder.exists():
                break
            time.sleep(0.1)
    assert not is_running(page)
    assert not folder.exists()


@environment
@pytest.mark.usefixtures("in_browser")
def test_without_a_sandbox_it_runs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = browser.find()
    program = tmp_path / "chromium"
    program.write_text(
        f"""#!/bin/sh
case "$*" in *--no-sandbox*) exec {real} "$@";; esac
echo "FATAL: No usable sandbox!" >&2
exit 1
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    opened = browser.Browser(program)
    with (
        contextlib.closing(opened),
        contextlib.closing(web_server.WebServer(plugin.PAGE)) as server,
    ):
        assert not opened.sandboxed
        page = opened.open_page(server.address)
        assert page.evaluate("crossOriginIsolated") is True
        with pytest.raises(PluginError, match="wrong on purpose"):
            page.evaluate("Promise.reject(new Error('wrong on purpose'))")
        process = opened.page_process()
        assert process is not None
        os.kill(process, signal.SIGKILL)
        with pytest.raises(PluginError, match="process of the page ended"):
            page.evaluate("new Promise(() => {})")


class Plain(http.server.SimpleHTTPRequestHandler):
    """A web server that knows nothing of us."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@environment
@pytest.mark.usefixtures("quick")
def test_the_page_on_a_plain_web_server(bench: Any, convolutions: onnx.ModelProto) -> None:
    bench.compile(convolutions)
    handler = functools.partial(Plain, directory=str(bench.payload))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = browser.Browser(browser.find())
        with contextlib.closing(opened):
            page = opened.open_page(f"http://127.0.0.1:{server.server_port}/")
            _until(page, "document.querySelectorAll('#inputs .tensor').length === 1")
            assert "One thread only" in _state(page)
            page.evaluate("document.getElementById('seconds').value = 0.5")
            page.evaluate("document.getElementById('start').click()")
            _until(page, "document.getElementById('state').textContent.startsWith('Done')")
            assert "WebAssembly, 1 thread." in page.evaluate(
                "document.getElementById('backend').textContent"
            )
        server.shutdown()


def _state(page: Any) -> str:
    return str(page.evaluate("document.getElementById('state').textContent"))


def _until(page: Any, condition: str) -> None:
    for _ in range(1200):
        if page.evaluate(condition):
            return
        time.sleep(0.05)
    raise AssertionError(f"{condition} never was: {_state(page)}")


@environment
@pytest.mark.usefixtures("quick")
def test_the_page_by_hand(bench: Any, convolutions: onnx.ModelProto, tmp_path: Path) -> None:
    """As a user would: open a file with inputs and outputs, press the button, read the page."""
    bench.compile(convolutions)
    feed: dict[str, Any] = {
        "x": np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)
    }
    outputs = _reference(convolutions, feed)
    np.savez(tmp_path / "right.npz", in_x=feed["x"], out_y=outputs[0])
    np.savez_compressed(tmp_path / "wrong.npz", in_x=feed["x"], out_y=outputs[0] + 1)
    np.save(tmp_path / "x.npy", feed["x"].astype(np.float64))
    opened = browser.Browser(browser.find())
    with (
        contextlib.closing(opened),
        contextlib.closing(web_server.WebServer(bench.payload)) as server,
    ):
        page = opened.open_page(server.address)

        def choose(name: str) -> None:
            root = page.call("DOM.getDocument")["root"]["nodeId"]
            node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
            page.call("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / name)])

        _until(page, "document.querySelectorAll('#inputs .tensor').length === 1")
        page.evaluate("document.getElementById('seconds').value = 0.5")
        for name, said in (("wrong.npz", "differ"), ("right.npz", "agree")):
            choose(name)
            _until(page, "document.getElementById('state').textContent.startsWith('From the file')")
            page.evaluate("document.getElementById('start').click()")
            _until(page, "document.getElementById('state').textContent.startsWith('Done')")
            assert said in _state(page)
        assert re.fullmatch(
            r"[\d.]+ m?s", page.evaluate("document.getElementById('p50').textContent")
        )
        assert "WebAssembly, 2 threads" in page.evaluate(
            "document.getElementById('backend').textContent"
        )
        choose("x.npy")
        _until(page, "document.getElementById('state').className === 'bad'")
        assert "takes float32, and the file holds float64" in _state(page)
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=320,
            height=640,
            deviceScaleFactor=1,
            mobile=True,
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 320


@environment
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["optimum_tiny_bert", "silero_vad_v5"])
def test_real_models(bench: Any, golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    bench.compile(case.path)
    with contextlib.closing(bench.load()) as session:
        case.assert_same(session.run({spec.name: case.feed[spec.name] for spec in session.inputs}))
