"""Bundles that proved themselves, and targets that fail in every way there is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx.reference
import pytest

import deploykit as dk
from deploykit import errors
from deploykit.bundle import check_files, golden, read_manifest
from deploykit.errors import UsageError
from deploykit.events import Event
from deploykit.processor import architecture
from deploykit.protocol import Hardware
from deploykit.tensors import write_tensors


def compile(model: Path, output: Path, *devices: str, **more: object) -> dk.Compilation:
    targets = [f"odd:{device}" for device in devices]
    return dk.compile(model, targets, output, **more)  # type: ignore[arg-type]


def test_a_bundle_gives_what_the_model_gives(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    compilation = dk.compile(small_onnx, ["onnxruntime"], tmp_path)
    (bundle,) = compilation.bundles
    assert (bundle.outcome.kind, compilation.failed) == ("ok", ())
    assert bundle.folder == str(tmp_path / "onnxruntime-cpu-fp32")
    feed = {"x": np.random.default_rng(0).standard_normal((7, 3, 8, 8)).astype(np.float32)}
    with dk.load(bundle.folder) as session:
        outputs = session.run(feed)
    expected = onnx.reference.ReferenceEvaluator(str(small_onnx)).run(None, feed)
    np.testing.assert_allclose(outputs["y"], next(iter(expected)), rtol=1e-4, atol=1e-5)
    assert dk.verify(bundle.folder).cases == 3
    assert [path.name for path in tmp_path.iterdir()] == ["onnxruntime-cpu-fp32"]


FAILURES = {
    "raises": ("error", "no such kernel"),
    "lacks": ("unsupported", "Conv"),
    "sleeps": ("timeout", ""),
    "eats": ("out-of-memory", ""),
    "segfaults": ("signal", "SIGSEGV"),
    "aborts": ("signal", "SIGABRT"),
    "absent": ("skipped", "accelerator"),
    "wrong": ("wrong", "`y`"),
    "five": ("wrong", "batch=5"),
}


def test_each_failure_is_one_outcome_and_the_others_go_on(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    limits = dk.Limits(timeout_s=4, memory_bytes=1 << 29)
    compilation = compile(
        small_onnx, tmp_path, *FAILURES, "cpu", conditions=dk.Conditions(limits=limits)
    )
    for bundle, (kind, detail) in zip(compilation.bundles, FAILURES.values(), strict=False):
        assert bundle.outcome.kind == kind, bundle
        assert detail in bundle.outcome.detail
        assert bundle.folder is None
        if kind in ("timeout", "out-of-memory", "signal", "error"):
            assert bundle.outcome.phase == "thinking hard"
        if bundle.device == "raises":
            assert "odd.py" in bundle.outcome.frame
        if bundle.device == "segfaults":
            assert "ctypes" in bundle.outcome.frame
    assert compilation.bundles[-1].outcome.kind == "ok"
    assert len(compilation.failed) == len(FAILURES)
    assert [path.name for path in tmp_path.iterdir()] == ["odd-cpu-fp32"]


def test_a_failed_step_can_be_reproduced(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    compile(small_onnx, tmp_path, "raises")
    jobs = (odd_plugins / "jobs").iterdir()
    job = max((job for job in jobs if "odd" in job.name), key=lambda job: job.stat().st_mtime_ns)
    done = subprocess.run(
        ["bash", job / "reproduce.sh"], capture_output=True, text=True, timeout=60, check=False
    )
    assert '"error"' in done.stdout
    assert "no such kernel" in done.stdout + done.stderr


def test_settings_go_to_their_target(small_onnx: Path, odd_plugins: Path, tmp_path: Path) -> None:
    from deploykit.bundle import read_manifest

    settings = {"odd.colour": "blue", "onnxruntime.optimization": "extended"}
    dk.compile(small_onnx, ["odd", "onnxruntime"], tmp_path, settings=settings)
    assert read_manifest(tmp_path / "odd-cpu-fp32").settings["colour"] == "blue"
    found = read_manifest(tmp_path / "onnxruntime-cpu-fp32").settings
    assert found["optimization"] == "extended"
    assert "colour" not in found
    with pytest.raises(UsageError, match="warp"):
        dk.compile(small_onnx, ["odd"], tmp_path, settings={"warp": "9"})


def test_all_is_what_can_run_here(small_onnx: Path, odd_plugins: Path, tmp_path: Path) -> None:
    from deploykit.target_choice import available_targets

    notes: list[Event] = []
    conditions = dk.Conditions(listen=notes.append, install=False)
    found = {(plugin.name, device) for plugin, device in available_targets(conditions)}
    assert found >= {("odd", "cpu"), ("odd", "wrong"), ("onnxruntime", "cpu")}
    assert ("odd", "absent") not in found
    assert any("odd:absent" in event.message for event in notes if event.kind == "note")


def test_the_same_input_gives_the_same_bytes(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    contents = []
    for name in ("one", "two"):
        compile(small_onnx, tmp_path / name, "cpu")
        folder = tmp_path / name / "odd-cpu-fp32"
        contents.append(
            {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        )
    assert contents[0] == contents[1]


def test_fixed_shapes_are_what_is_verified(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    compilation = dk.compile(small_onnx, ["onnxruntime"], tmp_path, shapes={"x": (11, 3, 8, 8)})
    folder = compilation.bundles[0].folder
    assert folder is not None
    with dk.load(folder) as session:
        assert session.inputs[0].shape == (11, 3, 8, 8)
    assert dk.verify(folder).cases >= 1, "no default size fits: the source was asked again"


def test_what_a_bundle_holds(small_onnx: Path, odd_plugins: Path, tmp_path: Path) -> None:
    made, folder = dk.compile(small_onnx, ["odd", "onnxruntime"], tmp_path), tmp_path
    entry = made.bundles[0]
    assert entry.folder is not None
    assert entry.folder == str(folder / "odd-cpu-fp32")
    assert entry.size_bytes == sum(
        path.stat().st_size for path in (folder / "odd-cpu-fp32" / "payload").iterdir()
    )
    assert entry.notes == ("odd",)
    assert entry.seconds > 0
    manifest = read_manifest(entry.folder)
    check_files(entry.folder, manifest)
    assert (manifest.target, manifest.device, manifest.precision) == ("odd", "cpu", "fp32")
    assert manifest.settings == {"colour": "red"}
    assert manifest.provenance.source == "small.onnx"
    assert manifest.provenance.converter == "onnx"
    assert manifest.provenance.onnx_sha256 == made.conversion.onnx_sha256
    assert str(small_onnx.parent) not in Path(entry.folder, "manifest.json").read_text()
    pairs = golden(entry.folder, manifest)
    assert len(pairs) == 3
    with dk.load(folder / "onnxruntime-cpu-fp32") as session:
        for feed, expected in pairs:
            np.testing.assert_allclose(session.run(feed)["y"], expected["y"], rtol=1e-4, atol=1e-5)


def test_a_sample_of_other_sizes_than_compiled_is_refused(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    sample = tmp_path / "mine.npz"
    write_tensors(sample, {"x": np.zeros((2, 3, 8, 8), np.float32)})
    with pytest.raises(errors.UsageError, match=r"mine\.npz"):
        dk.compile(
            small_onnx,
            ["onnxruntime"],
            tmp_path / "b",
            shapes={"x": (4, 3, 8, 8)},
            checks=dk.Checks(sample=sample),
        )
    made = dk.compile(small_onnx, ["onnxruntime"], tmp_path / "b", checks=dk.Checks(sample=sample))
    assert made.conversion.cases == 1
    ((feed, _),) = golden(made.bundles[0].folder or "", read_manifest(made.bundles[0].folder or ""))
    assert feed["x"].shape == (2, 3, 8, 8)


def test_the_tolerance_is_kept_in_the_bundle(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    loose = dk.Tolerance(atol=100, rtol=1)
    made = compile(small_onnx, tmp_path, "wrong", checks=dk.Checks(seeds=1, tolerance=loose))
    assert made.failed == ()
    assert made.bundles[0].parity[0].max_abs_error == pytest.approx(1, abs=1e-3)
    assert read_manifest(made.bundles[0].folder or "").tolerance == loose


def test_a_bundle_is_replaced_and_anything_else_is_not(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd-cpu-fp32"
    folder.mkdir()
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(errors.OutputError, match="not a bundle"):
        compile(small_onnx, tmp_path, "cpu", checks=dk.Checks(enabled=False))
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]
    (folder / "letter.txt").unlink()
    for colour in ("blue", "green"):
        compile(
            small_onnx,
            tmp_path,
            "cpu",
            settings={"colour": colour},
            checks=dk.Checks(enabled=False),
        )
    assert read_manifest(folder).settings == {"colour": "green"}


STRAYED = "2 of 4 nodes, 4 % of the time, ran on cpu: NonZero, Resize"


def test_what_ran_elsewhere_is_noted_and_kept(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    notes: list[Event] = []
    made = compile(
        small_onnx, tmp_path, "strays", "cpu", conditions=dk.Conditions(listen=notes.append)
    )
    strayed, home = made.bundles
    assert strayed.notes == ("odd", STRAYED)
    assert any(STRAYED in event.message for event in notes if event.kind == "note")
    assert {name: (share.nodes, share.time_share) for name, share in strayed.placement.items()} == {
        "cpu": (2, 0.04),
        "strays": (2, 0.96),
    }
    manifest = read_manifest(strayed.folder or "")
    assert manifest.placement == strayed.placement
    assert manifest.notes == strayed.notes
    path = Path(strayed.folder or "", "manifest.json")
    older = json.loads(path.read_text())
    del older["placement"]
    path.write_text(json.dumps(older))
    assert read_manifest(path.parent).placement == {}, "bundles of before are still read"
    assert home.notes == ("odd",)
    assert home.placement["cpu"].nodes == 4
    assert home.placement["cpu"].time_share == 1.0
    assert made.to_json()["bundles"][0]["placement"]["cpu"]["operators"] == ["NonZero", "Resize"]


def test_strict_placement_fails_where_something_strayed(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    made = compile(small_onnx, tmp_path, "strays", "mute", "cpu", strict_placement=True)
    strayed, mute, home = made.bundles
    assert (strayed.outcome.kind, strayed.folder) == ("unsupported", None)
    assert STRAYED in strayed.outcome.detail
    assert (mute.outcome.kind, mute.folder) == ("error", None)
    assert home.outcome.kind == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["odd-cpu-fp32"]
    with pytest.raises(UsageError, match="--no-verify"):
        compile(small_onnx, tmp_path, "cpu", strict_placement=True, checks=dk.Checks(enabled=False))


def test_an_audit_that_fails_takes_nothing_from_the_proof(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    notes: list[Event] = []
    made = compile(small_onnx, tmp_path, "mute", conditions=dk.Conditions(listen=notes.append))
    assert made.bundles[0].outcome.kind == "ok"
    assert made.bundles[0].placement == {}
    assert any("profiler is broken" in event.message for event in notes)


# --- for other machines

FOREIGN = Hardware(name="far-board", triple="riscv64-linux-gnu", cores=4)


def test_what_is_compiled_for_another_machine_is_proven_there(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    made = dk.compile(small_onnx, ["odd", "tensorrt"], tmp_path, hardware=FOREIGN)
    bundle, host_only = made.bundles
    assert bundle.outcome.kind == "ok"
    assert bundle.folder == str(tmp_path / "odd-cpu-fp32-far-board")
    assert bundle.parity == ()
    assert any("not proven here" in note and "riscv64" in note for note in bundle.notes)
    manifest = read_manifest(bundle.folder)
    assert (manifest.machine, manifest.hardware) == ("riscv64", "far-board")
    assert len(golden(bundle.folder, manifest)) == 3
    with pytest.raises(errors.UnavailableError, match="riscv64"):
        dk.verify(bundle.folder)
    assert host_only.outcome.kind == "unsupported"
    assert "far-board" in host_only.outcome.detail


def test_hardware_that_this_machine_can_stand_for_is_proven_here(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    here = Hardware(name="a-twin", triple=f"{architecture()}-linux-gnu")
    (bundle,) = dk.compile(small_onnx, ["odd"], tmp_path, hardware=here).bundles
    assert bundle.parity
    assert not any("not proven" in note for note in bundle.notes)
    (wrong,) = dk.compile(small_onnx, ["odd:wrong"], tmp_path, hardware=here).bundles
    assert wrong.outcome.kind == "wrong"
    away = {"odd.colour": "elsewhere"}
    (unproven,) = dk.compile(small_onnx, ["odd"], tmp_path, hardware=here, settings=away).bundles
    assert any("not proven here" in note for note in unproven.notes)
    # without hardware named, a payload that cannot be loaded here is a failure
    (failed,) = dk.compile(small_onnx, ["odd"], tmp_path, settings=away).bundles
    assert failed.outcome.kind == "skipped"


def test_a_portable_payload_belongs_to_no_machine(
    small_onnx: Path, odd_plugins: Path, tmp_path: Path
) -> None:
    settings = {"odd.colour": "any"}
    made = dk.compile(small_onnx, ["odd"], tmp_path, hardware=FOREIGN, settings=settings)
    (bundle,) = made.bundles
    assert bundle.parity, "it runs here too, so it is proven here"
    manifest = read_manifest(bundle.folder or "")
    assert (manifest.machine, manifest.system) == ("any", "any")
    assert dk.verify(bundle.folder or "").cases == 3
