"""Hugging Face folders to ONNX: the outputs that transformers computes, under its own names."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import deploykit as dk
from deploykit import environments, plugins
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ConvertResult, ReferenceRequest, Signature, Source
from deploykit.steps import Worker
from deploykit.tensor_spec import parse_input

pytestmark = pytest.mark.environment

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_hugging_face_models.py"
NAMES = ("bert", "gpt2", "llama", "vit", "whisper", "clip")

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def python() -> Path:
    return environments.interpreter(plugins.converter("hugging-face"))


@pytest.fixture(scope="module")
def folders(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hugging_face")
    command: list[str | Path] = [python, "-I", MAKE_MODELS, folder, *NAMES]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def worker(python: Path) -> Iterator[Worker]:
    plugin = plugins.converter("hugging-face")
    with Worker(plugin, python=python, label="hugging-face", threads=2) as worker:
        yield worker


def source(path: Path, *inputs: str, **settings: str) -> Source:
    return Source(
        location=str(path),
        format="hugging-face/folder",
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
    )


def ids(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(3, 60, shape, dtype=np.int64)


def mask(*shape: int) -> Array:
    found = np.ones(shape, np.int64)
    found[0, shape[1] // 2 :] = 0
    return found


def floats(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


CASES: dict[str, tuple[dict[str, str], list[str], list[dict[str, Array]], list[str]]] = {
    "bert": (
        {},
        [
            f"{name}:int64[batch,sequence]"
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [
            {
                "input_ids": ids(*size),
                "attention_mask": mask(*size),
                "token_type_ids": ids(*size) % 2,
            }
            for size in ((1, 5), (3, 20))
        ],
        ["logits"],
    ),
    "gpt2": (
        {},
        ["input_ids:int64[batch,sequence]", "attention_mask:int64[batch,sequence]"],
        [{"input_ids": ids(*size), "attention_mask": mask(*size)} for size in ((1, 5), (3, 20))],
        ["logits"],
    ),
    "llama": (
        {},
        ["input_ids:int64[batch,sequence]", "attention_mask:int64[batch,sequence]"],
        [{"input_ids": ids(*size), "attention_mask": mask(*size)} for size in ((1, 5), (3, 20))],
        ["logits"],
    ),
    "vit": (
        {},
        ["pixel_values:float32[batch,3,16,16]"],
        [{"pixel_values": floats(size, 3, 16, 16)} for size in (1, 3)],
        ["logits"],
    ),
    "whisper": (
        {"part": "encoder"},
        ["input_features:float32[batch,8,40]"],
        [{"input_features": floats(size, 8, 40)} for size in (1, 3)],
        ["last_hidden_state"],
    ),
    "clip": (
        {"outputs": "logits_per_image,text_embeds"},
        [
            "input_ids:int64[text_batch,sequence]",
            "pixel_values:float32[image_batch,3,16,16]",
            "attention_mask:int64[text_batch,sequence]",
        ],
        [
            {
                "input_ids": ids(texts, 9),
                "pixel_values": floats(images, 3, 16, 16),
                "attention_mask": np.ones((texts, 9), np.int64),
            }
            for texts, images in ((2, 3), (4, 1))
        ],
        ["logits_per_image", "text_embeds"],
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_transformers_computes(
    worker: Worker, folders: Path, tmp_path: Path, name: str
) -> None:
    settings, inputs, feeds, outputs = CASES[name]
    model, output = source(folders / name, **settings), tmp_path / "m.onnx"
    request = ConvertRequest(source=model, output=str(output))
    result = worker.call("convert", request, ConvertResult)
    assert [str(spec) for spec in result.signature.inputs] == inputs
    assert [spec.name for spec in result.signature.outputs] == outputs
    session = onnxruntime.InferenceSession(output)
    reference = worker.open(ReferenceRequest(source=model))
    for feed in feeds:
        wanted = reference.run(feed)
        for key, value in zip(outputs, session.run(outputs, feed), strict=True):
            assert value.std() > 1e-2
            np.testing.assert_allclose(value, wanted[key], rtol=1e-3, atol=1e-4)
    reference.close()


def test_recognised_before_the_weights_alone(folders: Path) -> None:
    inspection = dk.inspect(folders / "bert")
    assert (inspection.format, inspection.converter) == ("hugging-face/folder", "hugging-face")
    assert inspection.details["class"] == "BertForSequenceClassification"
    assert inspection.parameters == 6819


def test_shards_and_older_weights(
    worker: Worker, python: Path, folders: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, torch, transformers, safetensors.torch as s\n"
        "source, shards, old = sys.argv[1:]\n"
        "model = transformers.BertForSequenceClassification.from_pretrained(source)\n"
        "model.save_pretrained(shards, max_shard_size='8KB')\n"
        "model.config.save_pretrained(old)\n"
        "torch.save(model.state_dict(), old + '/pytorch_model.bin')\n"
    )
    shards, old = tmp_path / "shards", tmp_path / "old"
    command: list[str | Path] = [python, "-I", "-c", code, folders / "bert", shards, old]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    assert dk.inspect(shards).parameters == dk.inspect(folders / "bert").parameters
    _, _, feeds, _ = CASES["bert"]
    found = []
    for folder in (folders / "bert", shards, old):
        assert dk.inspect(folder).format == "hugging-face/folder"
        reference = worker.open(ReferenceRequest(source=source(folder)))
        found.append(reference.run(feeds[0])["logits"])
        reference.close()
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    next(shards.glob("model-00002*")).unlink()
    with pytest.raises(SourceError, match="lacks model-00002"):
        dk.inspect(shards)


def changed(folder: Path, copy: Path, **values: Any) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | values))
    return copy


def test_weights_that_would_start_at_random_are_refused(
    worker: Worker, folders: Path, tmp_path: Path
) -> None:
    other = changed(folders / "bert", tmp_path / "a", architectures=["BertForMaskedLM"])
    with pytest.raises(SourceError, match="would start at random") as raised:
        worker.call("inspect", source(other), Signature)
    assert "--set class=" in raised.value.hint
    base = worker.call("inspect", source(folders / "bert", **{"class": "BertModel"}), Signature)
    assert base.outputs[0].name == "last_hidden_state"


def test_code_of_the_folders_own_is_not_run(worker: Worker, folders: Path, tmp_path: Path) -> None:
    other = changed(
        folders / "bert",
        tmp_path / "own",
        architectures=["OwnModel"],
        auto_map={"AutoModel": "own.OwnModel"},
    )
    (other / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnsupportedError, match="is code in") as raised:
        worker.call("inspect", source(other), Signature)
    assert "--trust" in raised.value.hint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"class": "NoModel"}, UnsupportedError, "no class `NoModel`"),
        ({"class": "os.system"}, UnsupportedError, "no class"),
        ({"part": "encoder"}, UsageError, "no encoder"),
        ({"part": "tail"}, UsageError, "cannot be `tail`"),
        ({"outputs": "nothing"}, UsageError, "no output `nothing`"),
        ({"colour": "red"}, UsageError, "no setting `colour`"),
    ],
)
def test_wrong_settings_say_so(
    worker: Worker, folders: Path, settings: dict[str, str], error: type, says: str
) -> None:
    with pytest.raises(DeploykitError) as raised:
        worker.call("inspect", source(folders / "bert", **settings), Signature)
    assert type(raised.value) is error, raised.value.message
    assert says in raised.value.message


def test_damaged_weights(worker: Worker, folders: Path, tmp_path: Path) -> None:
    other = changed(folders / "bert", tmp_path / "cut")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="lies outside the file"):
        dk.inspect(other)
    with pytest.raises(SourceError, match=r"cannot load|damaged"):
        worker.call("inspect", source(other), Signature)
