"""Small models of every format, made by the scripts in `tests/fixtures/formats`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "formats"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A copy of the small models, free to be damaged."""
    return shutil.copytree(FIXTURES, tmp_path / "models", ignore=shutil.ignore_patterns("*.py"))
