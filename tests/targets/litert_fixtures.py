"""The target litert in the environment that deploykit makes for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploykit import environments, plugins
from deploykit.steps import Worker
from tests.targets.litert_worker import Litert


@pytest.fixture(scope="module")
def litert_python() -> Path:
    return environments.interpreter(plugins.target("litert"))


@pytest.fixture(scope="module")
def litert(litert_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Litert]:
    folder = tmp_path_factory.mktemp("litert")
    plugin = plugins.target("litert")
    with Worker(plugin, python=litert_python, label="litert", threads=2) as worker:
        yield Litert(worker, folder)
