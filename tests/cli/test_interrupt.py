"""Ctrl-C at every stage: 130, nothing half written, no process left."""

from __future__ import annotations

import signal
import textwrap
import time
from pathlib import Path

import pytest

from .conftest import CommandLine

SLOW_TARGET = '''
# /// script
# requires-python = ">=3.10"
# dependencies = []
#
# [tool.deploykit]
# name = "slow"
# summary = "sleeps where the environment says, so that a test can interrupt it there"
# devices = ["cpu"]
# functions = ["probe", "compile", "load"]
# ///
"""A target that takes its time."""

import os
import subprocess
import time
from pathlib import Path

from deploykit.protocol import Availability, CompileResult


def dawdle(stage):
    if os.environ["SLOW_STAGE"] == stage:
        # a grandchild too, in a session of its own: it must not outlive us either
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(os.environ["SLOW_SIGN"]).touch()
        time.sleep(600)


def probe():
    return (Availability(device="cpu", available=True),)


def compile(request):
    Path(request.payload, "half").write_bytes(b"half a payload")
    dawdle("compile")
    return CompileResult(signature=request.signature)


class Session:
    def __init__(self, signature):
        self.inputs, self.outputs = signature.inputs, signature.outputs
        self.runs = 0

    def run(self, feed):
        import numpy as np

        dawdle("verify")
        return {spec.name: np.zeros([1, 5], np.float32) for spec in self.outputs}

    def bind(self, feed):
        def bound():
            self.runs += 1
            if self.runs > 20:
                dawdle("measure")
            time.sleep(0.001)

        return bound

    def close(self):
        pass


def load(request):
    dawdle("load")
    return Session(request.signature)
'''


@pytest.fixture(autouse=True)
def as_users_run_it(deploykit: CommandLine) -> None:
    """An interrupt may come between `open` and its `with`; nobody but us is told of that."""
    deploykit.variables["PYTHONWARNINGS"] = "error,ignore::ResourceWarning"


@pytest.mark.parametrize("stage", ["compile", "load", "verify", "measure"])
def test_interrupted_in_a_target(deploykit: CommandLine, small_onnx: Path, stage: str) -> None:
    plugins = deploykit.folder.parent / "plugins" / "targets"
    plugins.mkdir(parents=True)
    (plugins / "slow.py").write_text(textwrap.dedent(SLOW_TARGET).lstrip())
    sign = deploykit.folder.parent / "sign"
    deploykit.variables.update(
        DEPLOYKIT_PLUGIN_PATH=str(plugins.parent), SLOW_STAGE=stage, SLOW_SIGN=str(sign)
    )
    arguments = ["profile", str(small_onnx), "-t", "slow", "-o", "report.json", "-q"]
    if stage == "measure":
        arguments.append("--no-verify")
    process = deploykit.start(*arguments)
    _wait_for(sign, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "interrupted" in stderr
    assert deploykit.left_behind() == []
    assert not (deploykit.folder / "report.json").exists()
    half = [path for path in deploykit.folder.rglob("*") if path.name.startswith(".")]
    assert half == []


def test_interrupted_while_converting(deploykit: CommandLine, small_onnx: Path) -> None:
    process = deploykit.start("convert", small_onnx, "-o", "out.onnx")
    jobs = deploykit.home / "jobs"
    _wait_for(jobs, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert deploykit.left_behind() == []
    assert list(deploykit.folder.iterdir()) == []


def _wait_for(sign: Path, process: object) -> None:
    """Wait until the stage is reached; the command must not end before."""
    until = time.monotonic() + 60
    while not sign.exists():
        assert time.monotonic() < until, "the stage was not reached"
        assert getattr(process, "poll")() is None, "the command ended before the stage"  # noqa: B009
        time.sleep(0.02)
