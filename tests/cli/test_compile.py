"""`deploykit compile` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import CommandLine


def test_the_others_go_on_and_the_first_failure_is_the_exit_code(
    odd: CommandLine, small_onnx: Path
) -> None:
    targets = ["-t", "onnxruntime", "-t", "odd:lacks", "-t", "odd:raises", "-t", "odd"]
    done = odd("compile", small_onnx, *targets, "-o", "bundles", "--seeds", "1", "--json")
    assert done.code == 4
    value = json.loads(done.stdout)
    assert [bundle["outcome"]["kind"] for bundle in value["bundles"]] == [
        *("ok", "unsupported", "error", "ok")
    ]
    folders = [bundle["folder"] for bundle in value["bundles"] if bundle["folder"]]
    assert folders == [
        str(odd.folder / "bundles" / name) for name in ("onnxruntime-cpu-fp32", "odd-cpu-fp32")
    ]
    assert "odd:raises fp32: error: odd: KeyError: 'no such kernel'" in done.stderr
    assert "Traceback" not in done.stderr
    assert odd.left_behind() == []


def test_what_a_person_reads(odd: CommandLine, odd_model: Path) -> None:
    arguments: list[str | Path] = [
        "compile",
        odd_model,
        "-t",
        "odd",
        "-t",
        "odd:absent",
        "-o",
        "b",
        "-q",
    ]
    done = odd(*arguments, "--set", "odd_source.do=honest", "--set", "odd.colour=blue")
    assert done.code == 7
    lines = done.stdout.splitlines()
    assert f"odd:cpu fp32: {odd.folder / 'b' / 'odd-cpu-fp32'}" in lines
    assert "odd:absent fp32: skipped(there is no such accelerator here)" in lines
    manifest = json.loads((odd.folder / "b" / "odd-cpu-fp32" / "manifest.json").read_text())
    assert manifest["settings"] == {"colour": "blue"}
    assert manifest["provenance"]["options"] == {"do": "honest"}


@pytest.mark.parametrize(("device", "code"), [("aborts", 12), ("wrong", 5), ("eats", 11)])
def test_exit_codes(odd: CommandLine, odd_model: Path, device: str, code: int) -> None:
    limits = ["--memory-limit", "500M"]
    done = odd("compile", odd_model, "-t", f"odd:{device}", "-o", "b", "--seeds", "1", *limits)
    assert done.code == code, done.stderr
    assert list((odd.folder / "b").iterdir()) == []
    assert odd.left_behind() == []


def test_fixed_sizes(odd: CommandLine, odd_model: Path) -> None:
    arguments: list[str | Path] = [
        "compile",
        odd_model,
        "-t",
        "onnxruntime",
        "-o",
        ".",
        "--no-verify",
    ]
    assert odd(*arguments, "--shape", "x=6x4").code == 0
    manifest = json.loads((odd.folder / "onnxruntime-cpu-fp32" / "manifest.json").read_text())
    assert manifest["signature"]["inputs"][0]["shape"] == [6, 4]
    assert manifest["golden"] == []


def test_strict_placement(odd: CommandLine, small_onnx: Path) -> None:
    arguments: list[str | Path] = ["compile", small_onnx, "-t", "odd:strays", "-o", "b", "-q"]
    done = odd(*arguments, "--seeds", "1", "--json")
    assert done.code == 0
    (bundle,) = json.loads(done.stdout)["bundles"]
    assert bundle["placement"]["cpu"]["nodes"] == 2
    done = odd(*arguments, "--seeds", "1", "--strict-placement")
    assert done.code == 4
    assert "2 of 4 nodes, 4 % of the time, ran on cpu: NonZero, Resize" in done.stdout
    done = odd(*arguments, "--no-verify", "--strict-placement")
    assert done.code == 2
    assert "--no-verify" in done.errors[0]
