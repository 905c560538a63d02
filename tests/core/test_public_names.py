"""The surface of the package: its names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import deploykit
from deploykit import errors

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich", "psutil", "uv", "platformdirs"}


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_every_public_name_exists() -> None:
    for name in deploykit.__all__:
        assert getattr(deploykit, name) is not None, name
    assert sorted(deploykit.__all__) == dir(deploykit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(deploykit, "convrt")


def test_importing_the_package_imports_nothing_else() -> None:
    plain = imported_by("pass")
    with_deploykit = imported_by("import deploykit")
    assert with_deploykit - plain - sys.stdlib_module_names == {"deploykit"}


def test_help_imports_nothing_heavy() -> None:
    code = "from deploykit.cli import run; assert run(['--help']) == 0"
    assert not imported_by(code) & HEAVY


def test_every_error_has_its_own_exit_code_and_is_drawn_in_the_tree() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.DeploykitError)
    ]
    leaves = [kind for kind in kinds if kind not in (errors.DeploykitError, errors.StepError)]
    codes = [kind.exit_code for kind in leaves]
    assert len(set(codes)) == len(codes)
    drawn = {
        words[0]: int(words[1])
        for line in (errors.__doc__ or "").splitlines()
        if len(words := line.strip(" │├└─").split()) > 1 and words[1].isdigit()
    }
    assert drawn == {kind.__name__: kind.exit_code for kind in leaves}
