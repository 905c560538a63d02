"""The converter's worker, and the files that PyTorch makes: once for all of its tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit import environments, plugins
from deploykit.steps import Worker
from tests.converters.pytorch_models import CODE, SMALL, ZOO


@pytest.fixture(scope="session")
def python() -> Path:
    return environments.interpreter(plugins.converter("pytorch"))


@pytest.fixture(scope="session")
def files(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make_pytorch_models.py` writes."""
    folder = tmp_path_factory.mktemp("pytorch")
    subprocess.run([python, "-I", SMALL, folder], check=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def zoo(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make_torch_zoo.py` and `make_torch_weights.py` write."""
    folder = tmp_path_factory.mktemp("zoo")
    for script in (ZOO, CODE):
        subprocess.run([python, "-I", script, folder], check=True, timeout=300)
    return folder


# of one module: a worker that outlives it shows where others look for workers left behind
@pytest.fixture(scope="module")
def worker(python: Path) -> Iterator[Worker]:
    with Worker(plugins.converter("pytorch"), python=python, label="pytorch", threads=2) as worker:
        yield worker
