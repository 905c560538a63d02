"""The wheel holds the core and the plugins, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.environment
def test_what_is_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("deploykit-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"deploykit"}
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]
    assert "deploykit/py.typed" in names
    for folder in ("converters", "targets"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"deploykit/_plugins/{path.relative_to(ROOT).as_posix()}" in names
    profiles = list((ROOT / "profiles").glob("*.toml"))
    assert profiles
    for path in profiles:
        assert f"deploykit/_plugins/profiles/{path.name}" in names
