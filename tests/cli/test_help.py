"""Help pages: there at once, with an example; words that are nearly right are recognised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.cli import COMMANDS, run

ROOT = Path(__file__).resolve().parents[2]
ENV = ("list", "create", "remove", "path")
PAGES = [(name,) for name in COMMANDS] + [("env", name) for name in ENV]
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "psutil", "uv", "platformdirs"}


def page(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_every_page(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    text = page(capsys, *words)
    assert f"Usage: deploykit {' '.join(words)}" in text
    if words != ("env",):
        assert "--json" in text
        assert "-q, --quiet" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "env"])
def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    lines = page(capsys, name).splitlines()
    assert any(line.strip().startswith(f"deploykit {name}") for line in lines)


def test_the_first_page_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(page(capsys).split())
    for name, summary in COMMANDS.items():
        assert name in text
        assert summary in text
    for code in ("5 outputs disagree", "130 interrupted"):
        assert code in text


def test_help_imports_nothing_heavy() -> None:
    pages = [[*words, "--help"] for words in PAGES]
    code = f"from deploykit.cli import run\nassert not any(map(run, {pages!r}))\n"
    code += "import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["convrt"], "convert"),
        (["profil", "x"], "profile"),
        (["convert", "x", "--ouput", "y"], "--output"),
        (["compile", "x", "--targt", "y"], "--target"),
        (["verify", "x", "--tolerence", "1"], "--tolerance"),
    ],
)
def test_a_word_that_is_nearly_right(
    capsys: pytest.CaptureFixture[str], words: list[str], meant: str
) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert meant in captured.err.splitlines()[-1]
    assert "did you mean" in captured.err.lower()


@pytest.mark.parametrize(
    "words", [["convert"], ["compile", "x", "-o", "y"], ["run", "x"], ["profile"], ["env", "path"]]
)
def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(words) == 2
    assert "Missing" in capsys.readouterr().err
