"""Time and memory limits, and the signs of life of work that takes long."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from .conftest import CommandLine


def test_a_conversion_that_takes_too_long(odd: CommandLine, odd_model: Path) -> None:
    begun = time.monotonic()
    done = odd("convert", odd_model, "-o", "out.onnx", "--set", "do=sleeps", "--timeout", "5")
    assert time.monotonic() - begun < 30
    assert done.code == 10
    (error,) = done.errors
    assert "not done within 5 s, while tracing" in error
    assert "hint: give it more time with `--timeout`" in done.stderr
    # in a log file too one sees that it works, and at what
    beats = [line for line in done.stderr.splitlines() if line.startswith("…")]
    # a slow machine says more of them, and of the phase before
    assert beats[-1].startswith("…     convert odd.mlmodel (odd_source): tracing (")
    assert list(odd.folder.iterdir()) == []
    assert odd.left_behind() == []


def test_quiet_is_quiet(odd: CommandLine, odd_model: Path) -> None:
    arguments: list[str | Path] = [
        "convert",
        odd_model,
        "-o",
        "out.onnx",
        "--set",
        "do=sleeps",
        "-q",
    ]
    done = odd(*arguments, "--timeout", "1.2")
    assert done.code == 10
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()] == ["error", "hint"]


def test_waiting_costs_no_processor_time(odd: CommandLine, odd_model: Path) -> None:
    process = odd.start("convert", odd_model, "-o", "out.onnx", "--set", "do=sleeps")
    until = time.monotonic() + 30
    while not list(odd.home.glob("runs/*/onnx/out.onnx")):
        assert time.monotonic() < until
        time.sleep(0.02)
    watched = psutil.Process(process.pid)
    before = sum(watched.cpu_times()[:2])
    time.sleep(1.5)  # the first sign of life falls into it
    spent = sum(watched.cpu_times()[:2]) - before
    process.terminate()
    process.communicate(timeout=30)
    assert spent <= 0.1
