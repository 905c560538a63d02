"""`deploykit verify` as a user runs it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from deploykit.tensors import read_tensors, write_tensors

from .conftest import CommandLine


def test_a_moved_bundle(deploykit: CommandLine, small_bundle: Path) -> None:
    shutil.copytree(small_bundle, deploykit.folder / "elsewhere [1]")
    done = deploykit("verify", "elsewhere [1]")
    assert done.code == 0, done.stderr
    assert f"{deploykit.folder}/elsewhere [1]: worst of 3 golden pairs" in done.stdout.splitlines()
    value = json.loads(deploykit("verify", "elsewhere [1]", "--json", "-q").stdout)
    assert value["bundle"] == str(deploykit.folder / "elsewhere [1]")
    assert (value["cases"], value["parity"][0]["ok"]) == (3, True)
    assert deploykit.left_behind() == []


def test_golden_outputs_that_are_not_met(deploykit: CommandLine, small_bundle: Path) -> None:
    bundle = deploykit.folder / "bundle"
    shutil.copytree(small_bundle, bundle)
    path = bundle / "golden" / "00.npz"
    tensors = read_tensors(path)
    write_tensors(path, tensors | {"out_y": tensors["out_y"] * np.float32(1.5)})
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = path.read_bytes()
    manifest["files"]["golden/00.npz"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = deploykit("verify", "bundle")
    assert done.code == 5
    assert "output `y` at golden pair 0" in done.errors[0]
    assert done.stdout == ""
    assert deploykit("verify", "bundle", "--tolerance", "1").code == 0
