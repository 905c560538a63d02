"""Bundles: whole or not at all, the same bytes twice, and damage named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deploykit import bundle as bundle_module
from deploykit import processor
from deploykit.bundle import (
    Manifest,
    Provenance,
    check_files,
    check_machine,
    golden,
    load_request,
    read_manifest,
    write_bundle,
)
from deploykit.errors import BundleError, OutputError, UnavailableError, UsageError
from deploykit.manifest import MANIFEST
from deploykit.parity import default_tolerance
from deploykit.protocol import Signature
from deploykit.tensor_spec import parse_input

FEED = {"x:0": np.arange(3, dtype=np.float32), "words": np.array(["a", "b"], object)}
OUTPUTS = {"a/y": np.ones((2, 2), ml_dtypes.bfloat16)}


def manifest() -> Manifest:
    return Manifest(
        deploykit="0.1.0",
        signature=Signature(
            inputs=(parse_input("x:0:float32[3]"), parse_input("words:string[2]")),
            outputs=(parse_input("a/y:bfloat16[2,2]"),),
        ),
        target="onnxruntime",
        device="cpu",
        precision="fp32",
        threads=2,
        settings={"optimization": "all"},
        notes=("naïve",),
        versions={"onnxruntime": "1.0"},
        machine=platform.machine(),
        tolerance=default_tolerance("fp32"),
        provenance=Provenance(
            source="model.pt2",
            format="pytorch/exported_program",
            source_sha256="0" * 64,
            converter="pytorch",
            operators={"Conv": 2},
        ),
    )


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    folder = tmp_path / "payload"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "inner" / "table.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path, payload: Path) -> Path:
    """A good bundle."""
    write_bundle(tmp_path / "bundle", manifest(), payload, [(FEED, OUTPUTS)])
    return tmp_path / "bundle"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_written_and_read_again(folder: Path) -> None:
    found = read_manifest(folder)
    assert dataclasses.replace(found, golden=(), files={}) == manifest()
    assert found.golden == ("golden/00.npz",)
    assert set(found.files) == {
        "golden/00.npz",
        "payload/inner/table.json",
        "payload/model.bin",
    }
    record = found.files["payload/model.bin"]
    assert (record.bytes, record.sha256) == (7, hashlib.sha256(b"weights").hexdigest())
    check_files(folder, found)
    ((feed, outputs),) = golden(folder, found)
    assert feed.keys() == FEED.keys()
    assert feed["words"].tolist() == ["a", "b"]
    assert outputs["a/y"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(outputs["a/y"], OUTPUTS["a/y"])


def test_same_input_same_bytes_and_no_local_names(tmp_path: Path, payload: Path) -> None:
    for name in ("one", "two"):
        write_bundle(tmp_path / name, manifest(), payload, [(FEED, OUTPUTS)])
        os.utime(payload / "model.bin", (1, 1))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    for content in tree(tmp_path / "one").values():
        assert str(tmp_path).encode() not in content


def test_moved_to_another_folder(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "b"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    found = read_manifest(moved)
    check_files(moved, found)
    assert len(golden(moved, found)) == 1
    assert load_request(moved, found).payload == str(moved / "payload")
    assert load_request(moved, found).threads == 2
    assert load_request(moved, found, threads=1).threads == 1


def test_replaces_an_older_bundle_and_an_empty_folder(folder: Path, payload: Path) -> None:
    (payload / "model.bin").write_bytes(b"better")
    (payload / "inner" / "table.json").unlink()
    write_bundle(folder, manifest(), payload)
    assert tree(folder)["payload/model.bin"] == b"better"
    assert "payload/inner/table.json" not in tree(folder)
    empty = folder.parent / "empty"
    empty.mkdir()
    write_bundle(empty, manifest(), payload)
    check_files(empty, read_manifest(empty))
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "empty", "payload"}


def test_replaces_without_an_exchange_too(
    folder: Path, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(one: Path, other: Path) -> bool:
        return False  # as on file systems that know no exchange

    monkeypatch.setattr(bundle_module, "_exchange", unable)
    (payload / "model.bin").write_bytes(b"better")
    write_bundle(folder, manifest(), payload)
    assert tree(folder)["payload/model.bin"] == b"better"
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "payload"}


def test_refuses_what_is_no_bundle(tmp_path: Path, payload: Path, folder: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "file").touch()
    (folder / "notes.txt").write_text("mine")
    for name, says in (
        ("photos", "not a bundle"),
        ("file", "is a file"),
        ("bundle", r"files of others: notes\.txt"),
    ):
        with pytest.raises(OutputError, match=says):
            write_bundle(tmp_path / name, manifest(), payload)
    assert (tmp_path / "photos" / "cat.jpg").exists()
    assert (folder / "notes.txt").exists()


def test_refuses_links_in_the_payload(tmp_path: Path, payload: Path) -> None:
    (payload / "link").symlink_to("/etc/passwd")
    with pytest.raises(OutputError, match="`link`, which is not a plain file"):
        write_bundle(tmp_path / "a" / "b", manifest(), payload)
    assert not (tmp_path / "a").exists()


def test_pair_that_lacks_a_tensor_is_not_written(tmp_path: Path, payload: Path) -> None:
    with pytest.raises(BundleError, match="lacks `out_a/y`"):
        write_bundle(tmp_path / "b", manifest(), payload, [(FEED, {})])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["write_tensors", "sha256_of", "_exchange"])
def test_failure_leaves_the_old_bundle_and_nothing_else(
    folder: Path,
    payload: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | type[BaseException],
    step: str,
) -> None:
    def fail(*args: object) -> None:
        raise error

    before = tree(folder.parent)
    monkeypatch.setattr(bundle_module, step, fail)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else OutputError
    with pytest.raises(expected):
        write_bundle(folder, manifest(), payload, [(FEED, OUTPUTS)])
    assert tree(folder.parent) == before
    assert {path.name for path in folder.parent.iterdir()} == {"bundle", "payload"}


def test_full_disk(folder: Path, payload: Path) -> None:
    """The kernel refuses to let a file grow, as it does on a full disk."""
    before = tree(folder.parent)
    with (payload / "large.bin").open("wb") as stream:
        stream.truncate(200_000)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limit[1]))
    try:
        with pytest.raises(OutputError, match="cannot write the bundle"):
            write_bundle(folder, manifest(), payload)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    (payload / "large.bin").unlink()
    assert tree(folder.parent) == before


def test_unwritable(payload: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the bundle"):
        write_bundle("/proc/nowhere/bundle", manifest(), payload)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / MANIFEST).read_text())
        change(value)
        (folder / MANIFEST).write_text(json.dumps(value))

    return edit


def named(name: str) -> Callable[[Path], None]:
    return edited(lambda value: value["files"].update({name: value["files"]["payload/model.bin"]}))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / MANIFEST).unlink(), "no bundle: it has no manifest.json"),
    (lambda folder: (folder / MANIFEST).write_text("{"), "is not JSON"),
    (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    (lambda folder: (folder / MANIFEST).write_text("[" * 100_000), "is not JSON"),
    (lambda folder: (folder / MANIFEST).write_text("[]"), "has schema None"),
    (lambda folder: (folder / MANIFEST).write_text('{"schema": 1}'), "is damaged"),
    (lambda folder: (folder / MANIFEST).write_text(" " * (2**24 + 1)), "has more than"),
    (edited(lambda value: value.update(schema=2)), "has schema 2, this deploykit reads 1"),
    (edited(lambda value: value.update(schema=True)), "has schema True"),
    (edited(lambda value: value.update(threads="two")), "threads"),
    (edited(lambda value: value["tolerance"].update(atol=float("nan"))), "NaN is no number"),
    (edited(lambda value: value["files"]["golden/00.npz"].update(sha256="x")), "wrong hash"),
    (edited(lambda value: value["files"]["golden/00.npz"].update(bytes=-1)), "wrong hash or size"),
    (edited(lambda value: value["files"].pop("golden/00.npz")), "without a hash"),
    (named("../outside"), "'../outside', which is not in payload or golden"),
    (named("payload/../../outside"), "which is not in"),
    (named("/etc/passwd"), "which is not in"),
    (named("payload/./model.bin"), "which is not in"),
    (named("payload"), "which is not in"),
    (named("payload\\..\\x"), "which is not in"),
    (named("payload/a\0b"), "which is not in"),
    (named(MANIFEST), "which is not in"),
    (named(""), "which is not in"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGE)
def test_damaged_manifest(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(folder)
    with pytest.raises(BundleError) as caught:
        read_manifest(folder)
    assert says in caught.value.message


def test_schema_of_another_version_names_the_deploykit(folder: Path) -> None:
    edited(lambda value: value.update(schema=2, deploykit="7.0"))(folder)
    with pytest.raises(BundleError) as caught:
        read_manifest(folder)
    assert "7.0" in caught.value.hint


def test_no_folder_and_a_file(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="no bundle at"):
        read_manifest(tmp_path / "none")
    with pytest.raises(BundleError, match="is no bundle"):
        read_manifest(folder / "payload" / "model.bin")


def link_over(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


FILE_DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda folder: (folder / "payload/model.bin").unlink(), "model.bin", "is missing"),
    (lambda folder: (folder / "payload/model.bin").write_bytes(b"weight5"), "model.bin", "changed"),
    (lambda folder: (folder / "payload/model.bin").write_bytes(b"w"), "model.bin", "has 1 bytes"),
    (lambda folder: (folder / "payload/extra.so").touch(), "extra.so", "does not belong"),
    (lambda folder: link_over(folder / "payload/model.bin"), "model.bin", "is a link"),
    (lambda folder: link_over(folder / "payload/inner"), "inner", "is a link"),
    (lambda folder: shutil.rmtree(folder / "payload/inner"), "table.json", "is missing"),
]


@pytest.mark.parametrize(("damage", "file", "says"), FILE_DAMAGE)
def test_damaged_files(
    folder: Path, damage: Callable[[Path], object], file: str, says: str
) -> None:
    found = read_manifest(folder)
    damage(folder)
    with pytest.raises(BundleError) as caught:
        check_files(folder, found)
    assert file in caught.value.message
    assert says in caught.value.message


def test_manifest_that_is_a_link(folder: Path) -> None:
    link_over(folder / MANIFEST)
    with pytest.raises(BundleError, match="not a plain file"):
        read_manifest(folder)


def test_damaged_golden(folder: Path) -> None:
    found = read_manifest(folder)
    (folder / "golden" / "00.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(BundleError, match="holds no golden pair"):
        golden(folder, found)


def test_machine_that_lacks_something() -> None:
    check_machine(manifest())
    here = platform.machine()
    other = dataclasses.replace(manifest(), machine="riscv64", system="Plan9")
    with pytest.raises(UnavailableError) as caught:
        check_machine(other)
    assert f"the system Plan9 (this is {platform.system()})" in caught.value.message
    assert f"the architecture riscv64 (this is {here})" in caught.value.message
    flags = sorted(processor.instruction_sets())
    check_machine(dataclasses.replace(manifest(), cpu_flags=tuple(flags)))
    wanted = dataclasses.replace(manifest(), cpu_flags=(*flags, "avx9000", "amx9"))
    if flags:
        with pytest.raises(UnavailableError, match="the processor's amx9, avx9000"):
            check_machine(wanted)
