"""A bundle compiled here for a Raspberry Pi is verified by deploykit itself, in an aarch64 Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploykit import __version__
from deploykit.bundle import write_bundle
from deploykit.home import home
from deploykit.manifest import Manifest, Provenance
from deploykit.parity import default_tolerance
from deploykit.protocol import Hardware
from tests.fixtures.make_aarch64_root import MISSING

TARGET = "tvm"
SCRIPT = Path(__file__).parent.parent / "fixtures" / "make_aarch64_root.py"
PI = Hardware(
    name="raspberry-pi-5",
    triple="aarch64-linux-gnu",
    cpu="cortex-a76",
    features=("+dotprod",),
    cores=4,
)
pytestmark = pytest.mark.environment


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter for aarch64, which is made once and kept."""
    named = os.environ.get("DEPLOYKIT_AARCH64_ROOT")
    folder = Path(named) if named else home() / "aarch64-root"
    done = subprocess.run(
        [sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=590, check=False
    )
    if done.returncode == MISSING:
        pytest.skip(f"no aarch64 Python: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def _deploykit(python: Path, place: Path, *arguments: str | Path) -> Any:
    environment = {**os.environ, "DEPLOYKIT_HOME": str(place / "home")}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        [python, "-m", "deploykit", *arguments],
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
        env=environment,
    )


def _bundle(bench: Any, case: Any, folder: Path) -> Path:
    result = bench.compile(case.path, hardware=PI)
    manifest = Manifest(
        deploykit=__version__,
        signature=result.signature,
        target=TARGET,
        device="cpu",
        precision="fp32",
        threads=2,
        settings=result.settings,
        versions=result.versions,
        machine=PI.architecture,
        cpu_flags=result.cpu_flags,
        tolerance=default_tolerance("fp32"),
        provenance=Provenance(
            source=case.path.name, format="onnx", source_sha256="", converter="onnx"
        ),
    )
    write_bundle(folder, manifest, bench.payload, [(case.feed, case.outputs)])
    return folder


def test_a_cross_compiled_bundle_proves_itself(
    bench: Any, golden: Callable[[str], Any], python: Path, tmp_path: Path
) -> None:
    """The golden outputs are the original framework's; qemu stops at what a Cortex-A76 lacks."""
    bundle = _bundle(bench, golden("mnist_conv_o8"), tmp_path / "bundle")
    done = _deploykit(python, tmp_path, "verify", bundle, "--no-install", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cases"] == 1
    assert all(output["ok"] for output in found["parity"])

    golden_file = next((bundle / "golden").iterdir())
    assert golden_file.stat().st_size > 0
    # the same command on this machine
    here = _deploykit(Path(sys.executable), tmp_path, "verify", bundle, "--no-install")
    assert here.returncode != 0
    assert "aarch64" in here.stderr
