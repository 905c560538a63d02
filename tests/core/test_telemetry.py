"""Nothing leaves this machine while models are converted and run: recorded, with controls.

A shared library that records and refuses every connection and name look-up is preloaded into real
processes. Each claim "nothing was recorded" stands beside a control that shows that the recorder
sees this very tool, when deploykit does not silence it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from deploykit import environments, plugins
from deploykit.plugins import Plugin
from deploykit.protocol import Signature, Source
from deploykit.steps import Limits, Worker
from deploykit.telemetry import TELEMETRY_OFF

MakePlugin = Callable[..., Plugin]
RECORDER = Path(__file__).resolve().parent.parent / "fixtures" / "connect_recorder.c"

# The variables by which tools know that they run in a CI system, where some keep silent by themselves.
CI = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "BUILDKITE", "TRAVIS")

MODEL = """
import os, numpy as np
from onnx import TensorProto, helper, save
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
"""

ONNX_RUNTIME = f"""{MODEL}
import onnxruntime
session = onnxruntime.InferenceSession(model.SerializeToString())
assert session.run(None, {{"x": np.ones(2, np.float32)}})[0].tolist() == [2, 2]
"""

OPENVINO = """
import numpy as np, openvino
compiled = openvino.compile_model(openvino.convert_model({path!r}), "CPU")
assert compiled(np.ones(2, np.float32))[0].tolist() == [2, 2]
"""

TVM = f"""{MODEL}
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
library = tvm.compile(relax.transform.DecomposeOpsForInference()(from_onnx(model)), "llvm")
machine = relax.VirtualMachine(library, tvm.cpu())
assert machine["main"](tvm.runtime.tensor(np.ones(2, np.float32))).numpy().tolist() == [2, 2]
"""

PYTORCH = """
import os, torch
program = torch.export.export(torch.nn.Linear(4, 2), (torch.ones(1, 4),))
torch.onnx.export(program, dynamo=True).save(os.path.join(os.environ["TMPDIR"], "m.onnx"))
"""

TENSORFLOW = """
import tensorflow as tf, tf2onnx
twice = tf.function(lambda x: x + x, input_signature=[tf.TensorSpec([2], tf.float32)])
model, _ = tf2onnx.convert.from_function(twice, input_signature=[tf.TensorSpec([2], tf.float32)])
assert model.graph.node
"""

PADDLE = """
import os, paddle
path = os.path.join(os.environ["TMPDIR"], "m")
spec = paddle.static.InputSpec([1, 4], "float32")
paddle.jit.save(paddle.jit.to_static(paddle.nn.Linear(4, 2), input_spec=[spec]), path)
import paddle2onnx
"""


class Recorder:
    """The compiled recorder and its file."""

    def __init__(self, library: Path, log: Path) -> None:
        self.library = library
        self.log = log

    def variables(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CONNECT_RECORDER": str(self.log)}

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def run_unsilenced(self, code: str, folder: Path, python: Path = Path(sys.executable)) -> None:
        """Run `code` as a user would who knows nothing of telemetry."""
        folder.mkdir()
        variables = {
            name: value
            for name, value in os.environ.items()
            if name not in TELEMETRY_OFF and name not in CI
        }
        variables |= {"HOME": str(folder), "TMPDIR": str(folder), **self.variables()}
        variables.pop("XDG_CACHE_HOME", None)
        subprocess.run([python, "-c", code], env=variables, check=True, timeout=60)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the recorder needs Linux and gcc")
    built = tmp_path_factory.mktemp("recorder") / "connect_recorder.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", built, RECORDER, "-ldl"],
        check=True,
    )
    return built


@pytest.fixture
def recorder(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The recorder, in force for every process that the test starts through deploykit."""
    found = Recorder(library, tmp_path / "connections.txt")
    for name, value in found.variables().items():
        monkeypatch.setenv(name, value)
    for name in CI:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "user").mkdir()
    return found


def in_worker(make_plugin: MakePlugin, code: str, python: Path, wait_s: float = 0.0) -> None:
    """Run `code` in a worker, and wait a while for what would be sent in the background."""
    lines = "".join(f"    {line}\n" for line in code.strip().splitlines())
    plugin = make_plugin(
        "def inspect(source):\n"
        f"{lines}"
        f"    import time; time.sleep({wait_s})\n"
        "    from deploykit.protocol import Signature\n"
        "    return Signature(inputs=(), outputs=())\n"
    )
    with Worker(plugin, python=python, label="step", limits=Limits(timeout_s=300)) as worker:
        worker.call("inspect", Source(location="/", format="tiny"), Signature)


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest) -> Path:
    """The Python with what the plugin needs; of the module, so made in the common home."""
    kind, name = request.param
    plugin = plugins.converter(name) if kind == "converter" else plugins.target(name)
    return environments.interpreter(plugin)


def test_the_recorder_sees_connections_sends_and_names_of_a_worker(
    make_plugin: MakePlugin, recorder: Recorder
) -> None:
    code = """
    import contextlib, socket, subprocess, sys
    for family, address in [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]:
        with contextlib.suppress(OSError), socket.socket(family) as tcp:
            tcp.connect((address, 443))
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"x", (address, 53))
    with contextlib.suppress(OSError):
        socket.getaddrinfo("telemetry.example.com", 443)
    subprocess.run([sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.2', 80))"])
    """
    in_worker(make_plugin, textwrap.dedent(code), Path(sys.executable))
    assert recorder.lines() == [
        "connect 192.0.2.1 443",
        "send 192.0.2.1 53",
        "connect 2001:db8::1 443",
        "send 2001:db8::1 53",
        "resolve telemetry.example.com",
        "connect 192.0.2.2 80",
    ]


def test_the_recorder_lets_the_loopback_interface_pass(
    make_plugin: MakePlugin, recorder: Recorder
) -> None:
    code = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
    )
    in_worker(make_plugin, code, Path(sys.executable))
    assert recorder.lines() == []


def test_every_variable_reaches_the_worker(make_plugin: MakePlugin) -> None:
    in_worker(
        make_plugin,
        f"import os; assert {TELEMETRY_OFF!r}.items() <= os.environ.items()",
        Path(sys.executable),
    )


def test_onnx_runtime_in_a_worker_makes_no_identity_and_no_connection(
    make_plugin: MakePlugin, recorder: Recorder, tmp_path: Path
) -> None:
    in_worker(make_plugin, ONNX_RUNTIME, Path(sys.executable))
    assert recorder.lines() == []
    assert list((tmp_path / "user").rglob("*")) == []


def test_onnx_runtime_not_silenced_makes_an_identity(recorder: Recorder, tmp_path: Path) -> None:
    import onnxruntime

    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 29):
        pytest.skip("ONNX Runtime has telemetry on Linux since 1.29")
    recorder.run_unsilenced(ONNX_RUNTIME, tmp_path / "bare")
    assert list((tmp_path / "bare").rglob("deviceid"))


@pytest.mark.environment
def test_onnx_runtime_sends_after_seconds_unless_silenced(
    make_plugin: MakePlugin, recorder: Recorder, tmp_path: Path
) -> None:
    # it waits about nine seconds before it first sends
    in_worker(make_plugin, ONNX_RUNTIME, Path(sys.executable), wait_s=15)
    assert recorder.lines() == []
    until_sent = (
        "import os, time\n"
        "until = time.monotonic() + 40\n"
        "while time.monotonic() < until and not os.path.exists(os.environ['CONNECT_RECORDER']):\n"
        "    time.sleep(0.1)\n"
    )
    recorder.run_unsilenced(ONNX_RUNTIME + until_sent, tmp_path / "bare")
    assert "resolve mobile.events.data.microsoft.com" in recorder.lines()


@pytest.mark.environment
@pytest.mark.parametrize("python", [("target", "openvino")], indirect=True, ids=["openvino"])
def test_openvino_sends_only_unless_silenced(
    python: Path, make_plugin: MakePlugin, recorder: Recorder, tmp_path: Path
) -> None:
    # its own environment has no `onnx` to make a model with
    path = tmp_path / "m.onnx"
    write_model = f"{MODEL}\nsave(model, {str(path)!r})"
    subprocess.run([sys.executable, "-c", write_model], check=True)
    code = OPENVINO.format(path=str(path))
    in_worker(make_plugin, code, python, wait_s=3)
    assert recorder.lines() == []
    recorder.run_unsilenced(f"{code}\nimport time; time.sleep(3)", tmp_path / "bare", python)
    assert "resolve www.google-analytics.com" in recorder.lines()


@pytest.mark.environment
@pytest.mark.parametrize(
    ("python", "code"),
    [
        (("target", "tvm"), TVM),
        (("converter", "pytorch"), PYTORCH),
        (("converter", "tensorflow"), TENSORFLOW),
        (("converter", "paddle"), PADDLE),
    ],
    indirect=["python"],
    ids=["tvm", "pytorch", "tensorflow", "paddle"],
)
def test_a_framework_at_work_connects_to_nothing(
    python: Path, make_plugin: MakePlugin, recorder: Recorder, code: str
) -> None:
    in_worker(make_plugin, code, python, wait_s=3)
    assert recorder.lines() == []
