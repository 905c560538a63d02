"""TorchScript and the lite interpreter's files to ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deploykit.errors import DeploykitError, UnsupportedError, UsageError
from deploykit.protocol import ReferenceRequest
from deploykit.steps import Worker
from tests.converters.pytorch_models import (
    Array,
    assert_same,
    convert,
    file,
    names,
    random,
)

pytest_plugins = ["tests.converters.pytorch_fixtures"]
pytestmark = pytest.mark.environment

SCRIPT = "pytorch/torchscript"
STFT = "torch.stft without return_complex, which torch 2 refuses, gives real and imaginary parts"


@pytest.mark.parametrize("name", ["traced.pt", "traced.ptl"])
def test_a_traced_file_knows_its_shapes(
    worker: Worker, files: Path, tmp_path: Path, name: str
) -> None:
    format = "pytorch/lite" if name.endswith("l") else SCRIPT
    result = convert(worker, file(format, files / name), tmp_path / "m.onnx")
    assert names(result.signature) == (["input:float32[1,3,16,16]"], ["output:float32[1,5]"])
    source, output = file(format, files / name, "input:float32[n,3,16,16]"), tmp_path / "n.onnx"
    result = convert(worker, source, output)
    assert names(result.signature)[0] == ["input:float32[n,3,16,16]"]
    feeds = [{"input": random(size, 3, 16, 16)} for size in (1, 5)]
    assert_same(worker, source, output, *feeds)


def test_a_single_input_may_be_called_anything(worker: Worker, files: Path, tmp_path: Path) -> None:
    source = file(SCRIPT, files / "traced.pt", "image:float32[2,3,16,16]")
    result = convert(worker, source, tmp_path / "m.onnx")
    assert names(result.signature)[0] == ["input:float32[2,3,16,16]"]
    note = "the input `image` is the model's `input`: it has only this one"
    assert note in result.repairs


@pytest.mark.parametrize("name", ["recurrences.pt"])
def test_recurrences_of_any_length(worker: Worker, zoo: Path, tmp_path: Path, name: str) -> None:
    source, output = file(SCRIPT, zoo / name, "x:float32[batch,time,6]"), tmp_path / "m.onnx"
    convert(worker, source, output)
    feeds = [{"x": random(*size)} for size in ((2, 7, 6), (1, 3, 6), (4, 11, 6))]
    assert_same(worker, source, output, *feeds)


def test_a_branch_on_a_value_is_kept(worker: Worker, files: Path, tmp_path: Path) -> None:
    source, output = file(SCRIPT, files / "scripted.pt", "x:float32[2,3]"), tmp_path / "m.onnx"
    convert(worker, source, output)
    first, second = assert_same(worker, source, output, {"x": random(2, 3)}, {"x": -random(2, 3)})
    np.testing.assert_allclose(first["output"], random(2, 3) * 2, rtol=1e-6)
    np.testing.assert_allclose(second["output"], -random(2, 3) - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "format"),
    [("loops.pt", SCRIPT), ("loops.ptl", "pytorch/lite"), ("flat.ptl", "pytorch/lite")],
)
def test_loops_lists_and_constants(
    worker: Worker, zoo: Path, tmp_path: Path, name: str, format: str
) -> None:
    feeds: list[dict[str, Array]] = [
        {"x": np.random.default_rng(seed).standard_normal(size).astype(np.float32)}
        for seed, size in enumerate([(2, 4, 3), (1, 9, 3), (3, 1, 3)])
    ]
    results = []
    for mode in ("mean", "sum"):
        output = tmp_path / f"{mode}.onnx"
        constants = {} if mode == "mean" else {"constants": '{"mode": "sum"}'}
        source = file(format, zoo / name, "x:float32[batch,time,3]", **constants)
        convert(worker, source, output)
        results.append(assert_same(worker, source, output, *feeds))
    for mean, total, feed in zip(*results, feeds, strict=True):
        length = feed["x"].shape[1]
        np.testing.assert_allclose(mean["output"] * length, total["output"], rtol=1e-4, atol=1e-5)


def test_a_spectrum_of_an_old_file(worker: Worker, zoo: Path, tmp_path: Path) -> None:
    """Torch 2 cannot run it; numpy's transform says what it is."""
    source, output = file(SCRIPT, zoo / "old_stft.pt", "x:float32[n,100]"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert STFT in result.repairs
    x = random(3, 100)
    (outputs,) = assert_same(worker, source, output, {"x": x}, atol=1e-4)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(32) / 32)
    frames = np.stack([x[:, at : at + 32] for at in range(0, 69, 8)], 1)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    np.testing.assert_allclose(outputs["output"], power.swapaxes(1, 2), rtol=1e-3, atol=1e-4)
    assert "STFT" not in {node.op_type for node in onnx.load(output).graph.node}


@pytest.mark.parametrize("name", ["spectrum.pt", "bags.pt"])
def test_what_only_one_of_the_two_exporters_takes(
    worker: Worker, zoo: Path, tmp_path: Path, name: str
) -> None:
    x = random(1, 100) if name == "spectrum.pt" else np.arange(18, dtype=np.int64).reshape(3, 6)
    word = "x:float32[1,100]" if name == "spectrum.pt" else "ids:int64[3,6]"
    source, output = file(SCRIPT, zoo / name, word), tmp_path / "m.onnx"
    convert(worker, source, output)
    assert_same(worker, source, output, {word.partition(":")[0]: x}, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "input"),
    [
        ("static.pt", "x:float32[2,3,8,8]"),
        ("fx.pt", "input:float32[2,3,8,8]"),
        ("dynamic.pt", "input:float32[2,6]"),
    ],
)
def test_quantised_layers_round_as_torch_does(
    worker: Worker, zoo: Path, tmp_path: Path, name: str, input: str
) -> None:
    source, output = file(SCRIPT, zoo / name, input), tmp_path / "m.onnx"
    convert(worker, source, output)
    options = onnxruntime.SessionOptions()
    # its own fusions round once more
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(output, options)
    reference = worker.open(ReferenceRequest(source=source))
    (spec,) = reference.signature.inputs
    sizes = tuple(size for size in spec.shape or () if isinstance(size, int))
    for seed in range(8):
        x = np.asarray(np.random.default_rng(seed).standard_normal(sizes), np.float32)
        wanted = reference.run({spec.name: x})["output"]
        (found,) = session.run(None, {spec.name: x})
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    reference.close()
    kinds = {node.op_type for node in onnx.load(output).graph.node}
    assert name == "dynamic.pt" or {"QuantizeLinear", "DequantizeLinear"} <= kinds


@pytest.mark.parametrize(
    ("name", "inputs", "settings", "error", "says", "advises"),
    [
        ("streaming.pt", ("x:float32[2,3]",), {}, UsageError, "`rate` is no tensor", "constants="),
        ("loops.pt", (), {}, UsageError, "does not say the shape of `x`", "--input x:"),
        ("loops.pt", ("x:float32[1]", "y:float32[1]"), {}, UsageError, "no argument named y", ""),
        ("loops.pt", ("x:float32[1,2,3]",), {"constants": "[1]"}, UsageError, "no JSON object", ""),
        (
            "loops.pt",
            ("x:float32[1,2,3]",),
            {"constants": '{"a": 1}'},
            UsageError,
            "`constants` names a",
            "",
        ),
        (
            "foreign.pt",
            ("boxes:float32[3,4]",),
            {},
            UnsupportedError,
            "does not know the operator elsewhere::keep",
            "comes with the package elsewhere",
        ),
    ],
)
def test_what_is_missing_is_asked_for(
    worker: Worker,
    zoo: Path,
    tmp_path: Path,
    name: str,
    inputs: tuple[str, ...],
    settings: dict[str, str],
    error: type,
    says: str,
    advises: str,
) -> None:
    with pytest.raises(DeploykitError) as raised:
        convert(worker, file(SCRIPT, zoo / name, *inputs, **settings), tmp_path / "m.onnx")
    assert type(raised.value) is error, raised.value.message
    assert says in raised.value.message
    assert advises in raised.value.hint
