"""The benchmarks run and their figures hang together; how fast anything is, no test asserts."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz_readers

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str, home: Path) -> dict[str, Any]:
    """Run a benchmark as a person would, and return its JSON."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "DEPLOYKIT_HOME": str(home)},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_overhead(tmp_path: Path) -> None:
    found = run(
        "overhead.py", "--model", "small", "--seconds", "0.5", "--threads", "1", home=tmp_path
    )
    (result,) = found["results"]
    assert (result["model"], result["target"], result["threads"]) == ("small", "onnxruntime", 1)
    assert result["rounds"] >= 5
    assert result["bare_p50_us"] > 0
    ratio = result["ratio"]
    if ratio is not None:
        assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"] < math.inf
    low, high = result["added_us_p10_p90"]
    assert low <= result["added_us"] <= high
    assert found["machine"]["id"]


@pytest.mark.environment
def test_fidelity(tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("benchmark_app comes with openvino, which this Python does not have")
    found = run("fidelity.py", "--repetitions", "1", "--seconds", "0.5", home=tmp_path)
    assert sorted(found["p50s_ms"]) == [
        "benchmark_app openvino",
        "deploykit onnxruntime",
        "deploykit openvino",
        "loop onnxruntime",
    ]
    for result in found["results"]:
        (ours,), (theirs,) = (found["p50s_ms"][result[name]] for name in ("ours", "theirs"))
        assert result["ratio"] == pytest.approx(ours / theirs)
        assert result["interval"] is None  # one repetition bounds nothing


def test_fuzz_readers(tmp_path: Path) -> None:
    found = run("fuzz_readers.py", "tensorflow/tflite", "--inputs", "40", home=tmp_path)
    one = found["tensorflow/tflite"]
    assert one["failures"] == []
    assert one["read"] + one["refused"] == one["inputs"] == 40
    assert one["refused"] > 0


def stuck(format: str, folder: Path, inputs: int, seed: int, results: Any) -> None:
    """What native code that never ends does: it says where it is, and no more."""
    results.put((format, "at", 7))
    time.sleep(300)


def crashed(format: str, folder: Path, inputs: int, seed: int, results: Any) -> None:
    results.put((format, "at", 3))
    time.sleep(0.5)  # until the queue's thread has sent it
    os.abort()


@pytest.mark.parametrize(
    ("work", "failure"), [(stuck, "input 7: no end"), (crashed, "input 3: .* ended with -6")]
)
def test_fuzz_readers_notices(
    work: Any, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_readers, "work", work)
    monkeypatch.setattr(fuzz_readers, "STUCK_S", 3)
    (found,) = fuzz_readers.fuzz("any", tmp_path, 10, 0)["failures"]
    assert re.match(failure, found)
