"""`deploykit convert` as a user runs it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from deploykit.tensors import write_tensors

from .conftest import CommandLine


def test_one_json_document_and_a_file(odd: CommandLine, odd_model: Path) -> None:
    (odd.folder / "out.onnx").write_bytes(b"older")
    done = odd("convert", odd_model, "-o", "out.onnx", "--json")
    assert done.code == 0, done.stderr
    value = json.loads(done.stdout)
    assert value.keys() == {
        *("source", "format", "converter", "source_sha256", "output", "onnx_sha256", "signature"),
        *("opset", "verified", "cases", "parity", "repairs", "notes", "versions"),
        *("steps", "atol"),
    }
    assert value["output"] == str(odd.folder / "out.onnx")
    assert value["cases"] == 6
    assert value["parity"][0].keys() >= {"output", "ok", "max_abs_error", "cosine", "sqnr_db"}
    assert [path.name for path in odd.folder.iterdir()] == ["out.onnx"]
    assert (odd.folder / "out.onnx").stat().st_size > 100
    # on a slow machine a line tells that it still works
    said = [line for line in done.stderr.splitlines() if not line.startswith("…")]
    assert [line[:24] for line in said] == [
        "ok    convert odd.mlmode",
        "  repaired: nothing [rea",
        "ok    verify against App",
    ]
    assert odd.left_behind() == []


def test_what_a_person_reads(odd: CommandLine, odd_model: Path) -> None:
    done = odd("convert", odd_model, "-o", "out.onnx", "-q")
    assert (done.code, done.stderr) == (0, "")
    for words in (
        "coreml/mlmodel",
        "input     x:float32[batch,4]",  # brackets are no markup
        "repaired  nothing [really]",
        "worst of 6 comparisons",
    ):
        assert words in done.stdout


def test_outputs_that_disagree(odd: CommandLine, odd_model: Path) -> None:
    done = odd("convert", odd_model, "-o", "out.onnx", "--set", "do=wrong")
    assert done.code == 5
    (error,) = done.errors
    assert "output `y`" in error
    assert "seed 0" in error
    assert "hint: tolerance was atol=0.0001, rtol=0.001" in done.stderr
    assert done.stdout == ""
    assert list(odd.folder.iterdir()) == []
    assert odd.left_behind() == []


@pytest.mark.parametrize(
    ("options", "cases"),
    [(["--tolerance", "atol=10,rtol=1"], 6), (["--no-verify"], 0), (["--seeds", "1"], 4)],
)
def test_how_much_is_proven(
    odd: CommandLine, odd_model: Path, options: list[str], cases: int
) -> None:
    do = "honest" if "--seeds" in options else "wrong"
    arguments: list[str | Path] = [
        "convert",
        odd_model,
        "-o",
        "out.onnx",
        "--set",
        f"odd_source.do={do}",
        "--json",
    ]
    done = odd(*arguments, *options)
    assert done.code == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["cases"] == cases
    assert value["verified"] == ("--no-verify" not in options)


def test_the_users_own_inputs(odd: CommandLine, odd_model: Path) -> None:
    write_tensors(odd.folder / "mine.npz", {"x": np.ones((5, 4), np.float32)})
    arguments: list[str | Path] = ["convert", odd_model, "-o", "out.onnx", "--sample", "mine.npz"]
    done = odd(*arguments, "--set", "do=wrong5")
    assert done.code == 5
    assert "inputs of mine.npz" in done.errors[0]
    assert not (odd.folder / "out.onnx").exists()


def test_a_killed_conversion_leaves_nothing(odd: CommandLine, odd_model: Path) -> None:
    process = odd.start("convert", odd_model, "-o", "out.onnx", "--set", "do=sleeps")
    until = time.monotonic() + 30
    while not list(odd.home.glob("runs/*/onnx/out.onnx")):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert odd.left_behind() == []
    assert list(odd.folder.iterdir()) == [], "the unfinished file is in the cache"
    # and nothing of it is in the way of the next
    assert odd("convert", odd_model, "-o", "out.onnx", "--no-verify").code == 0
