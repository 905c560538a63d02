"""Weights alone with the code of their network; nothing is unpickled that nobody trusts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import Signature, Source
from deploykit.steps import Worker
from tests.converters.pytorch_models import (
    CODE,
    FIXTURES,
    Array,
    assert_same,
    convert,
    file,
    module,
    names,
    random,
)

pytest_plugins = ["tests.converters.pytorch_fixtures"]
pytestmark = pytest.mark.environment

WEIGHTS = "pytorch/state_dict"
NETWORK = f"{CODE}:network"
IMAGE = {"image": random(1, 1, 6, 6)}


def outputs_of(worker: Worker, source: Source, output: Path) -> tuple[Array, tuple[str, ...]]:
    """Convert, compare, and return the network's output with the repairs."""
    result = convert(worker, source, output)
    assert names(result.signature) == (["image:float32[1,1,6,6]"], ["output:float32[1,2]"])
    (outputs,) = assert_same(worker, source, output, IMAGE)
    return outputs["output"], result.repairs


@pytest.fixture(scope="module")
def plain(worker: Worker, zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Array:
    """What the network gives with the weights that `state.pth` holds."""
    source = file(WEIGHTS, zoo / "state.pth", module=NETWORK)
    output = tmp_path_factory.mktemp("plain") / "m.onnx"
    value, repairs = outputs_of(worker, source, output)
    assert repairs == ()
    return value


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("legacy.pth", ""),
        ("state.safetensors", ""),
        ("parallel.pth", "begin with `module.`, which was taken off"),
        ("checkpoint.pth", "the weights are under `state_dict` of the checkpoint"),
    ],
)
def test_the_same_weights_however_they_are_kept(
    worker: Worker, zoo: Path, tmp_path: Path, plain: Array, name: str, repair: str
) -> None:
    source = file(WEIGHTS, zoo / name, module=NETWORK)
    value, repairs = outputs_of(worker, source, tmp_path / "m.onnx")
    np.testing.assert_array_equal(value, plain)
    assert bool(repairs) == bool(repair)
    assert any(repair in line for line in repairs) or not repair


def test_weights_named_from_the_side_of_the_code(
    worker: Worker, zoo: Path, tmp_path: Path, plain: Array
) -> None:
    source = module("network", code=CODE, weights=str(zoo / "state.safetensors"))
    value, _ = outputs_of(worker, source, tmp_path / "m.onnx")
    np.testing.assert_array_equal(value, plain)


def test_another_set_of_a_checkpoint(
    worker: Worker, zoo: Path, tmp_path: Path, plain: Array
) -> None:
    source = file(WEIGHTS, zoo / "checkpoint.pth", module=NETWORK, key="ema")
    value, _ = outputs_of(worker, source, tmp_path / "m.onnx")
    assert np.abs(value - plain).max() > 0.1
    source = file(WEIGHTS, zoo / "checkpoint.pth", module=NETWORK, key="emma")
    with pytest.raises(UsageError, match="has no `emma`") as raised:
        convert(worker, source, tmp_path / "n.onnx")
    assert "state_dict, ema" in raised.value.hint


def test_half_precision_becomes_what_the_module_has(
    worker: Worker, zoo: Path, tmp_path: Path, plain: Array
) -> None:
    source = file(WEIGHTS, zoo / "half.safetensors", module=NETWORK)
    value, repairs = outputs_of(worker, source, tmp_path / "m.onnx")
    assert repairs == ("weights of float16 became float32, as the module has them",)
    np.testing.assert_allclose(value, plain, atol=2e-3)


def test_a_whole_module_needs_trust(
    worker: Worker, zoo: Path, tmp_path: Path, plain: Array
) -> None:
    location = str(zoo / "whole.pth")
    with pytest.raises(UnsupportedError, match="a pickle can run any code") as raised:
        convert(worker, Source(location=location, format=WEIGHTS), tmp_path / "m.onnx")
    assert "--trust" in raised.value.hint
    # the script that saved it was the main one: its classes are found in the file that is named
    trusted = Source(location=location, format=WEIGHTS, trust=True, options={"module": NETWORK})
    value, _ = outputs_of(worker, trusted, tmp_path / "m.onnx")
    np.testing.assert_array_equal(value, plain)


def test_a_pickle_does_not_run(worker: Worker, files: Path) -> None:
    with pytest.raises(UnsupportedError, match="a pickle can run any code") as raised:
        worker.call("inspect", file(WEIGHTS, files / "pickled.pth"), Signature)
    assert "--trust" in raised.value.hint
    assert not list(worker.folder.rglob("ran"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "settings", "error", "says", "advises"),
    [
        ("state.pth", {}, UnsupportedError, "holds weights only (9 tensors: ", "--set module="),
        ("state.pth", {"module": "network"}, SourceError, "is `network`", "FILE.py:callable"),
        ("state.pth", {"module": "no.py:f"}, SourceError, "`module` names no file", "full path"),
        (
            "other_names.pth",
            {"module": NETWORK},
            SourceError,
            "missing 1: `head.bias`, unexpected 1: `tail.bias`",
            "the arguments that it was trained with",
        ),
        (
            "other_shape.pth",
            {"module": NETWORK},
            SourceError,
            "`head.weight` is [2, 5], the module has [2, 4]",
            "",
        ),
        ("nothing.pth", {"module": NETWORK}, SourceError, "missing 8", ""),
    ],
)
def test_what_does_not_fit_is_listed(
    worker: Worker,
    zoo: Path,
    tmp_path: Path,
    name: str,
    settings: dict[str, str],
    error: type,
    says: str,
    advises: str,
) -> None:
    with pytest.raises(DeploykitError) as raised:
        convert(worker, file(WEIGHTS, zoo / name, **settings), tmp_path / "m.onnx")
    assert type(raised.value) is error, raised.value.message
    assert says in raised.value.message
    assert advises in raised.value.hint


@pytest.mark.parametrize("name", ["state.pth", "legacy.pth", "state.safetensors"])
def test_damaged_weights(worker: Worker, zoo: Path, tmp_path: Path, name: str) -> None:
    cut = tmp_path / name
    cut.write_bytes((zoo / name).read_bytes()[:500])
    with pytest.raises(SourceError):
        convert(worker, file(WEIGHTS, cut, module=NETWORK), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ultraface_rfb320/version-RFB-320.pth", "rfb"),
        ("ultraface_slim320/version-slim-320.pth", "slim"),
    ],
)
def test_published_weights_give_their_golden_outputs(
    worker: Worker, shared_models: Path, tmp_path: Path, name: str, variant: str
) -> None:
    location = shared_models / "pytorch" / name
    source = file(WEIGHTS, location, module=f"{FIXTURES / 'ultraface.py'}:{variant}")
    output = tmp_path / "m.onnx"
    convert(worker, source, output)
    golden = np.load(location.parent / "golden.npz")
    (outputs,) = assert_same(worker, source, output, {"input": golden["in_input"]})
    for key in ("scores", "boxes"):
        np.testing.assert_allclose(outputs[key], golden[f"out_{key}"], rtol=1e-4, atol=1e-5)
