"""What the documents show is what works: every command of them is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit.tensors import read_tensors

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?:<!-- ([\w :./]+) -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)


def blocks(document: str) -> dict[str, str]:
    """Return the code blocks of a document by the name in the comment above, or their number."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return {name or str(number): code for number, (name, _, code) in enumerate(BLOCK.findall(text))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the examples in it, as in a clone, that a test may fill."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `command` as a reader would, with `deploykit` on the path."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / "deploykit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deploykit "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.environment
def test_the_commands_of_the_readme(folder: Path) -> None:
    shell(blocks("README.md")["commands: use"], folder)
    logits = read_tensors(folder / "logits.npz")["logits"]
    labels = np.load(ROOT / "examples" / "digits" / "test_labels.npy")
    assert (logits.argmax(1) == labels).mean() > 0.9
    report = json.loads((folder / "report.json").read_text())
    assert [m["outcome"] for m in report["measurements"]] == ["ok", "ok"]


@pytest.mark.environment
def test_the_python_of_the_readme(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(blocks("README.md")["python: use"])
    done = shell(f"{sys.executable} {script}", folder)
    first, last = done.stdout.split()
    assert first == "pytorch/exported_program"
    assert float(last) > 0


@pytest.mark.environment
def test_the_commands_of_the_example(folder: Path) -> None:
    shell(blocks("examples/digits/README.md")["0"], folder)
    assert (folder / "out" / "logits.npz").is_file()


@pytest.mark.environment
def test_a_newcomer_tries_it(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks("README.md")["command: try"]],
        cwd=clone,
        env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    report = json.loads((clone / "out" / "report.json").read_text())
    found = {m["target"]: m for m in report["measurements"]}
    assert list(found) == ["native", "onnxruntime", "openvino", "tvm"]
    for target, measurement in found.items():
        assert measurement["outcome"] == "ok", measurement
        if target != "native":
            assert measurement["parity"]["ok"]
            manifest = clone / "out" / "report.bundles" / f"{target}-cpu-fp32" / "manifest.json"
            assert manifest.is_file()
        assert target in done.stdout


def test_ci_runs_the_test_command_of_the_readme() -> None:
    awk = next(
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "command=$(" in line
    )
    script = awk.removeprefix("command=$(").removesuffix(")")
    found = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert found == blocks("README.md")["command: test"]
    assert "pytest" in found


@pytest.mark.environment
def test_the_plugin_of_the_page_on_plugins(folder: Path) -> None:
    page = blocks("docs/plugins.md")
    (name,) = [name for name in page if name.startswith("file: ")]
    file = folder / name.removeprefix("file: ")
    file.parent.mkdir(parents=True)
    file.write_text(page[name])
    said = shell(page["commands: plugin"], folder).stdout
    assert "OpenCV 5" in said
    report = json.loads((folder / "report.json").read_text())
    outcomes = {m["target"]: (m["outcome"], m["parity"]["ok"]) for m in report["measurements"]}
    assert outcomes == {"onnxruntime": ("ok", True), "opencv": ("ok", True)}
