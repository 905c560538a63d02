"""`deploykit profile` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import CommandLine


def test_one_that_fails_is_a_row_and_the_exit_code(odd: CommandLine, odd_model: Path) -> None:
    targets = ["-t", "native", "-t", "odd:raises", "-t", "onnxruntime"]
    options = ["--duration", "0.2", "--seeds", "1", "--batch", "2", "--threads", "1"]
    done = odd("profile", odd_model, *targets, *options, "-o", "report.json")
    assert done.code == 9, done.stderr
    for words in ("native Apple Core ML", "odd:raises fp32", "onnxruntime:cpu fp32", "x=2x4"):
        assert words in done.stdout
    assert done.stdout.rstrip().endswith("report: report.json")
    report = json.loads((odd.folder / "report.json").read_text())
    assert [m["outcome"] for m in report["measurements"]] == ["ok", "error", "ok"]
    assert "KeyError" in report["measurements"][1]["detail"]
    assert (report["threads"], report["batch"]) == (1, 2)
    assert sorted(path.name for path in odd.folder.iterdir()) == ["report.bundles", "report.json"]
    assert odd.left_behind() == []


def test_what_ran_elsewhere_is_a_note_or_a_failed_row(odd: CommandLine, odd_model: Path) -> None:
    strayed = "2 of 4 nodes, 4 % of the time, ran on cpu: NonZero, Resize"
    arguments: list[str | Path] = ["profile", odd_model, "-t", "odd:strays", "--json", "-q"]
    arguments += ["--duration", "0.2", "--seeds", "1"]
    done = odd(*arguments)
    assert done.code == 0, done.stderr
    assert strayed in json.loads(done.stdout)["measurements"][0]["notes"]
    done = odd(*arguments, "--strict-placement")
    assert done.code == 4
    (row,) = json.loads(done.stdout)["measurements"]
    assert row["outcome"] == "unsupported"
    assert strayed in row["detail"]


def test_bundles_as_one_json_document(deploykit: CommandLine, small_bundle: Path) -> None:
    done = deploykit("profile", small_bundle, small_bundle, "--duration", "0.2", "--json", "-q")
    assert (done.code, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["schema"] == 1
    for measurement in value["measurements"]:
        assert (measurement["target"], measurement["outcome"]) == ("onnxruntime", "ok")
        assert measurement["parity"]["ok"] is True
    assert list(deploykit.folder.iterdir()) == []


def test_two_models_are_one_too_many(deploykit: CommandLine, small_onnx: Path) -> None:
    done = deploykit("profile", small_onnx, "other.onnx")
    assert done.code == 2
    assert "one model at a time" in done.errors[0]
