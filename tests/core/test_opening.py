"""A bundle in a worker of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit import errors
from deploykit.bundle import golden, read_manifest
from deploykit.compilation import compile
from deploykit.opening import open_bundle
from deploykit.options import Checks, Conditions

pytestmark = pytest.mark.usefixtures("odd_plugins")


@pytest.fixture(scope="module")
def bundle(small_onnx: Path, odd_plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    compile(
        small_onnx,
        ["odd"],
        folder,
        checks=Checks(seeds=1),
        conditions=Conditions(threads=1),
    )
    return folder / "odd-cpu-fp32"


@pytest.mark.parametrize(("asked", "got"), [(None, "1"), (2, "2")])
def test_it_runs_with_the_threads_asked_for(bundle: Path, asked: int | None, got: str) -> None:
    manifest = read_manifest(bundle)
    worker, session = open_bundle(bundle, manifest, Conditions(threads=asked))
    with worker:
        environment = Path(f"/proc/{worker.pid}/environ").read_text().split("\0")
        assert f"OMP_NUM_THREADS={got}" in environment
        feed, expected = golden(bundle, manifest)[0]
        np.testing.assert_allclose(session.run(feed)["y"], expected["y"], rtol=1e-4, atol=1e-6)
        request = json.loads((worker.folder / "request-1.json").read_text())
        assert request["threads"] == int(got)
    assert not worker.alive


def test_another_machines_bundle_is_refused(bundle: Path, odd_plugins: Path) -> None:
    manifest = read_manifest(bundle)
    jobs = set((odd_plugins / "jobs").iterdir())
    with pytest.raises(errors.UnavailableError, match="riscv128"):
        open_bundle(bundle, replace(manifest, machine="riscv128"), Conditions())
    assert set((odd_plugins / "jobs").iterdir()) == jobs, "no worker was started for it"


def test_a_failure_to_load_leaves_no_worker(bundle: Path, tmp_path: Path) -> None:
    manifest = replace(read_manifest(bundle), target="odd")
    with pytest.raises(errors.PluginError, match=r"model\.onnx") as caught:
        open_bundle(tmp_path, manifest, Conditions())
    assert caught.value.phase == "loading"
    assert Path(caught.value.log).with_name("reproduce.sh").is_file()
