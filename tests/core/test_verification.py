"""A bundle proves itself again where it lands, or says what is wrong with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit as dk
from deploykit import errors
from deploykit.bundle import golden, read_manifest, write_bundle
from deploykit.errors import BundleError, MismatchError, UnavailableError
from deploykit.verification import verify


@pytest.fixture(scope="module")
def bundle(small_onnx: Path, odd_plugins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    dk.compile(small_onnx, ["onnxruntime"], folder)
    return folder / "onnxruntime-cpu-fp32"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "moved"))


def test_a_moved_bundle(copy: Path) -> None:
    verification = dk.verify(copy)
    assert (verification.target, verification.cases) == ("onnxruntime", 3)
    assert all(parity.ok for parity in verification.parity)
    assert json.loads(json.dumps(verification.to_json()))["device"] == "cpu"


def test_golden_outputs_that_it_does_not_give(copy: Path, tmp_path: Path) -> None:
    manifest = read_manifest(copy)
    pairs = [
        (feed, {name: value + np.float32(0.5) for name, value in outputs.items()})
        for feed, outputs in golden(copy, manifest)
    ]
    lying = tmp_path / "lying"
    write_bundle(lying, manifest, copy / "payload", pairs)
    with pytest.raises(MismatchError, match="`y`"):
        dk.verify(lying)
    wide = dk.Tolerance(atol=10, rtol=0)
    assert dk.verify(lying, tolerance=wide).tolerance == wide


def test_a_changed_file(copy: Path) -> None:
    with next((copy / "payload").iterdir()).open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(BundleError, match="bytes"):
        dk.verify(copy)


def test_a_bundle_that_was_never_verified(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    dk.compile(small_onnx, ["odd"], tmp_path, checks=dk.Checks(enabled=False))
    with pytest.raises(BundleError, match="no golden pairs"):
        dk.verify(tmp_path / "odd-cpu-fp32")


def test_a_bundle_of_another_machine(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["machine"] = "riscv64"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnavailableError, match="riscv64"):
        dk.verify(copy)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Change a file as someone would who also mends the manifest."""
    (bundle / name).write_bytes(content)

    def mend(value: dict[str, Any]) -> None:
        value["files"][name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
        }

    edit(bundle, mend)


def test_nothing_of_the_bundle_is_changed(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    verify(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("name", ["payload/model.onnx", "golden/01.npz"])
@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_a_damaged_file_is_named(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "the end":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    with pytest.raises(errors.BundleError, match=Path(name).name):
        verify(copy)


def test_a_file_that_does_not_belong_is_named(copy: Path) -> None:
    (copy / "payload" / "extra.so").write_bytes(b"?")
    with pytest.raises(errors.BundleError, match=r"extra\.so"):
        verify(copy)


def test_a_payload_that_cannot_be_loaded(copy: Path) -> None:
    replace_file(copy, "payload/model.onnx", b"no model at all")
    with pytest.raises(errors.DeploykitError) as caught:
        verify(copy)
    assert caught.value.exit_code in (errors.SourceError.exit_code, errors.PluginError.exit_code)
    assert "model.onnx" in caught.value.message


def test_a_target_that_this_deploykit_lacks(copy: Path) -> None:
    edit(copy, lambda value: value.update(target="quantum"))
    with pytest.raises(errors.UnavailableError, match="quantum"):
        verify(copy)


def test_a_read_only_bundle_is_enough(copy: Path) -> None:
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert verify(copy).cases == 3
    finally:
        for path in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
            path.chmod(0o755)
