"""Every target on every device that is here, over real models; `docs/targets.md` says what was found."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import deploykit as dk
from deploykit import plugins
from deploykit.bundle import golden, read_manifest
from deploykit.parity import compare
from deploykit.target_choice import available_targets
from deploykit.tensors import write_tensors

from .cases import golden_tensors
from .test_support import by_name, reason

pytestmark = pytest.mark.environment

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "targets.md"
BEGIN, END = "<!-- generated -->\n", "<!-- end of generated -->\n"

MODELS = {
    "onnx/mnist_conv_o8": "digits, convolutions",
    "onnx/optimum_tiny_bert": "text, attention",
    "onnx/espcn_x3_nnresize_float": "super-resolution",
    "caffe/mtcnn_det1": "face proposals, any size",
    "mxnet/mtcnn_det2": "face refinement",
    "tflite/mlperf_vww96_float": "visual wake words, MobileNet",
    "keras_h5/mlperf_toycar_ae": "anomalous sounds, dense",
    "keras_v3/derived_mlperf_resnet8_k3": "ResNet-8",
    "cntk/v2_policy_mlp": "policy of reinforcement learning, dense",
    "onnx/dtln_1": "speech, LSTM with its state outside",
}
"""Read by deploykit itself: no environment of a framework is needed."""

QUANTISED = "tflite/mlperf_resnet8_cifar_int8"
SETTINGS = {"tvm.tune": "0"}
"""A table of what works needs no tuned kernels."""


SOFTWARE = ("iree:vulkan", "ncnn:vulkan")
"""Mesa's software device is slow, and some kernels come out wrong on it, other ones in each version. The
proof catches them; what the document says holds for the version that it was made with.
"""
LIGHT = ("onnx/mnist_conv_o8", "onnx/dtln_1", "cntk/v2_policy_mlp", "keras_h5/mlperf_toycar_ae")
"""Those that it runs."""


@dataclass
class Found:
    """What a target on one device made of everything: a word for each cell."""

    models: dict[str, str] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def here() -> list[str]:
    """The targets and devices that can run on this machine."""
    return [f"{plugin.name}:{device}" for plugin, device in available_targets(dk.Conditions())]


@pytest.fixture(scope="module")
def found(here: list[str]) -> dict[str, Found]:
    return {name: Found() for name in here}


def words(bundle: Any, shared_models: Path) -> str:
    """Return what a table says of a bundle: `yes`, or why not."""
    kind = bundle.outcome.kind
    if kind == "wrong":  # the figures of a difference are not the same on every processor
        return "wrong: caught by the proof"
    return "yes" if kind == "ok" else f"{kind}: {reason(bundle.outcome.detail, shared_models)}"


@pytest.mark.parametrize("model", MODELS)
def test_a_real_model_on_every_target(
    model: str, shared_models: Path, here: list[str], found: dict[str, Found], tmp_path: Path
) -> None:
    folder = shared_models / model
    feed, expected = golden_tensors(folder)
    here = [name for name in here if name not in SOFTWARE or model in LIGHT]
    sample = tmp_path / "sample.npz"
    write_tensors(sample, {name.removesuffix(":0"): array for name, array in feed.items()})
    made = dk.compile(
        folder,
        here,
        tmp_path / "bundles",
        shapes={name.removesuffix(":0"): array.shape for name, array in feed.items()},
        settings=SETTINGS,
        checks=dk.Checks(sample=sample),
        conditions=dk.Conditions(threads=2, limits=dk.Limits(timeout_s=300)),
    )
    tolerance = dk.Tolerance(atol=1e-4, rtol=1e-3)
    for name, bundle in zip(here, made.bundles, strict=True):
        found[name].models[model] = words(bundle, shared_models)
        allowed = ("ok", "unsupported", *(["wrong"] if name in SOFTWARE else []))
        assert bundle.outcome.kind in allowed, f"{name}: {bundle.outcome}"
        if bundle.folder is None:
            continue
        # proven in a fresh process against the pair in the bundle; that pair against the framework's
        ((_, outputs),) = golden(bundle.folder, read_manifest(bundle.folder))
        wanted = by_name(expected, made.conversion.signature.outputs)
        assert len(wanted) == len(expected)
        parities = compare(wanted, {name: outputs[name] for name in wanted}, tolerance)
        assert all(parity.ok for parity in parities), parities
        if bundle.placement:
            found[name].cells["operators"] = "yes"
    assert sum(bundle.folder is not None for bundle in made.bundles) >= len(here) / 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precisions(
    precision: str,
    small_onnx: Path,
    shared_models: Path,
    here: list[str],
    found: dict[str, Found],
    tmp_path: Path,
) -> None:
    made = dk.compile(
        small_onnx,
        here,
        tmp_path,
        precision=precision,
        settings=SETTINGS,
        shapes={"x": (1, 3, 8, 8)},
        checks=dk.Checks(seeds=1),
    )
    for name, bundle in zip(here, made.bundles, strict=True):
        assert bundle.outcome.kind in ("ok", "unsupported"), f"{name}: {bundle.outcome}"
        found[name].cells[precision] = words(bundle, shared_models)


def test_a_quantised_model(
    shared_models: Path, here: list[str], found: dict[str, Found], tmp_path: Path
) -> None:
    feed, _ = golden_tensors(shared_models / QUANTISED)
    sample = tmp_path / "sample.npz"
    write_tensors(sample, feed)
    made = dk.compile(
        shared_models / QUANTISED,
        here,
        tmp_path / "bundles",
        settings=SETTINGS,
        checks=dk.Checks(sample=sample, tolerance=dk.Tolerance(atol=1e-4, rtol=1e-3, steps=21)),
    )
    for name, bundle in zip(here, made.bundles, strict=True):
        assert bundle.outcome.kind in ("ok", "unsupported", "wrong"), f"{name}: {bundle.outcome}"
        found[name].cells["int8"] = words(bundle, shared_models)


def test_dynamic_sizes(
    small_onnx: Path, shared_models: Path, here: list[str], found: dict[str, Found], tmp_path: Path
) -> None:
    made = dk.compile(small_onnx, here, tmp_path, settings=SETTINGS, checks=dk.Checks(seeds=1))
    for name, bundle in zip(here, made.bundles, strict=True):
        if bundle.folder is None:
            assert bundle.outcome.kind == "unsupported", f"{name}: {bundle.outcome}"
            assert "--shape" in f"{bundle.outcome.detail} {bundle.outcome.hint}", bundle.outcome
            found[name].cells["dynamic"] = words(bundle, shared_models)
            continue
        (spec,) = read_manifest(bundle.folder).signature.inputs
        fixed = isinstance((spec.shape or (None,))[0], int)
        assert not fixed or bundle.notes, f"{name} fixed the batch, and no note says so"
        found[name].cells["dynamic"] = "fixed, with a note" if fixed else "yes"


def test_for_another_machine(
    small_onnx: Path, shared_models: Path, here: list[str], found: dict[str, Found], tmp_path: Path
) -> None:
    made = dk.compile(
        small_onnx,
        here,
        tmp_path,
        settings=SETTINGS,
        hardware="raspberry-pi-5",
        shapes={"x": (1, 3, 8, 8)},
        checks=dk.Checks(seeds=1),
    )
    for name, bundle in zip(here, made.bundles, strict=True):
        assert bundle.outcome.kind in ("ok", "unsupported"), f"{name}: {bundle.outcome}"
        found[name].cells["cross"] = words(bundle, shared_models)
        if bundle.folder is not None:
            assert read_manifest(bundle.folder).machine in ("aarch64", "any")


COLUMNS = {
    "compiles": "compiles",
    "fresh": "loads in a fresh process",
    "parity": "parity",
    "dynamic": "dynamic sizes",
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8 (QDQ)",
    "operators": "operator profile",
    "cross": "for aarch64",
}


def generated(found: dict[str, Found]) -> dict[str, list[str]]:
    """Return the cells of each row by target and device, why-nots among them."""
    rows = {}
    for plugin in plugins.plugins("target"):
        for device in plugin.devices:
            name = f"{plugin.name}:{device}"
            if name not in found:
                rows[name] = ["no", *("-" for _ in COLUMNS)]
                continue
            result = found[name]
            right = sum(text == "yes" for text in result.models.values())
            share = f"{right} of {len(result.models)}"
            given = {"compiles": share, "fresh": share, "parity": share, "operators": "no"}
            rows[name] = ["yes", *((given | result.cells)[key] for key in COLUMNS)]
    return rows


def lines(rows: dict[str, list[str]], found: dict[str, Found]) -> Iterator[str]:
    """Yield the document's generated part."""
    notes: list[str] = []

    def short(text: str) -> str:
        if text in ("yes", "no", "-") or " of " in text[:8] or text.startswith("fixed"):
            return text
        if text not in notes:
            notes.append(text)
        return f"no ({notes.index(text) + 1})"

    yield "| target | device | here | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---|---|---|" + "---|" * len(COLUMNS)
    for name, cells in rows.items():
        target, _, device = name.partition(":")
        yield f"| {target} | {device} | " + " | ".join(short(cell) for cell in cells) + " |"
    yield ""
    yield "| model | what it is | " + " | ".join(found) + " |"
    yield "|---|---|" + "---|" * len(found)
    for model, what in MODELS.items():
        cells = [short(result.models.get(model, "-")) for result in found.values()]
        yield f"| {model} | {what} | " + " | ".join(cells) + " |"
    yield ""
    for number, note in enumerate(notes, 1):
        yield f"{number}. {note}"


def test_the_document_says_what_was_found(found: dict[str, Found]) -> None:
    if len(found["onnxruntime:cpu"].models) < len(MODELS):
        pytest.skip("only a part of the models was run")
    rows = generated(found)
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    written, _, tail = rest.partition(END)
    if os.environ.get("DEPLOYKIT_WRITE_SUPPORT"):
        written = "\n".join(lines(rows, found)) + "\n"
        DOCUMENT.write_text(f"{head}{BEGIN}{written}{END}{tail}", encoding="utf-8")
    table = written.partition("\n\n")[0].splitlines()[2:]
    said = {}
    for line in table:
        _, target, device, *cells, _ = [cell.strip() for cell in line.split("|")]
        said[f"{target}:{device}"] = cells
    assert said.keys() == rows.keys()
    for name, cells in rows.items():
        if name not in found or name in SOFTWARE:
            continue  # what the document says of it was found elsewhere
        # which of these take effect depends on the processor
        steady = [n for n, key in enumerate(["here", *COLUMNS]) if key not in ("fp16", "bf16")]
        assert [plain(said[name][n]) for n in steady] == [plain(cells[n]) for n in steady], (
            f"{name}: DEPLOYKIT_WRITE_SUPPORT=1 pytest tests/support/test_targets.py"
        )


def plain(cell: str) -> str:
    """Return a cell without the reason, whose words differ from machine to machine."""
    return cell if cell in ("yes", "-") or " of " in cell[:8] or cell.startswith("fixed") else "no"
