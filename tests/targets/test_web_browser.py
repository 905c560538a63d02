"""The target web: its page in a real browser."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deploykit._plugins.targets.web_page import (
    browser,
    npm_package,
    plugin,
    web_server,
)
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from deploykit import environments, plugins
from deploykit.errors import PluginError, SourceError, UnavailableError, UnsupportedError
from deploykit.family import descendants, is_running
from deploykit.onnx_file import signature_of
from deploykit.protocol import CompileRequest, CompileResult, LoadRequest
from deploykit.steps import Worker

from .web_models import NUMBERS, weighted

TARGET = "web"
FLOAT = TensorProto.FLOAT
ROOT = Path(__file__).resolve().parents[2]
environment = pytest.mark.environment


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
    path = weighted(tmp_path, build)
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
