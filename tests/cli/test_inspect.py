"""`deploykit inspect` as a user runs it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "formats"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploykit", "inspect", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_prints_what_the_model_is() -> None:
    done = run(FIXTURES / "frozen.pb")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = {line[2:].split("  ")[0]: line for line in done.stdout.splitlines()[1:]}
    assert done.stdout.splitlines()[0] == str(FIXTURES / "frozen.pb")
    assert "tensorflow/graph_def (TensorFlow), converter `tensorflow`" in lines["format"]
    assert lines["inputs"].endswith("x:0:float32[?,3]") or "x:0:float32[?,3]" in done.stdout
    assert "MatMul 1" in lines["operators"]
    assert lines["parameters"].endswith("  8")
    assert "486 B" in lines["files"]


def test_says_where_there_is_no_converter() -> None:
    done = run(FIXTURES / "keras.h5")
    assert done.returncode == 0
    assert "keras/hdf5 (Keras), " in done.stdout


def test_json() -> None:
    done = run("--json", FIXTURES / "paddle_pir")
    value = json.loads(done.stdout)
    assert value["format"] == "paddle/pir"
    assert value["parameters"] == 8
    assert set(value) == {
        "location",
        "format",
        "framework",
        "converter",
        "signature",
        "operators",
        "parameters",
        "files",
        "details",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((ROOT / "pyproject.toml",), 3, "text file"),
        ((ROOT / "pyproject.tom",), 3, "does not exist"),
        ((FIXTURES,), 3, "models"),
        ((FIXTURES / "frozen.pb", "--from", "tensorflow/graph"), 2, "no format"),
        ((FIXTURES / "keras.h5", "--from", "onnx"), 3, "damaged or truncated ONNX"),
        ((), 2, "MODEL"),
    ],
    ids=["text", "missing", "several", "format", "forced", "nothing"],
)
def test_errors_are_one_line_with_a_code(
    arguments: tuple[str | Path, ...], code: int, words: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_names_from_the_file_cannot_command_the_terminal(tmp_path: Path) -> None:
    name = b"\x1b[2J\x07x"
    node = b"\x0a" + bytes([len(name)]) + name + b"\x12\x0bPlaceholder"
    (tmp_path / "g.pb").write_bytes(b"\x0a" + bytes([len(node)]) + node)
    done = run(tmp_path / "g.pb", "--from", "tensorflow/graph_def")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "Placeholder 1" in done.stdout


def test_help_lists_the_formats_with_examples() -> None:
    done = run("--help")
    assert "deploykit inspect model.onnx" in done.stdout
    for format in ("onnx", "paddle/pir", "pytorch/module", "cntk/v2"):
        assert format in done.stdout


def test_is_fast_and_imports_no_framework() -> None:
    program = (
        "import sys; from deploykit.cli import run; run(['inspect', sys.argv[1]]);"
        "print([name for name in ('numpy', 'onnx', 'torch', 'onnxruntime') if name in sys.modules])"
    )
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", program, str(FIXTURES / "program.pt2")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.splitlines()[-1] == "[]"
    # of a processor's time, for the machine may be busy with others
    assert min(took) < 0.3
