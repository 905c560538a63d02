"""JAX to ONNX: the same values as JAX computes, for Flax modules, functions and control flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import deploykit as dk
from deploykit import environments, plugins
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    DynamicAxis,
    ReferenceRequest,
    Signature,
    Source,
)
from deploykit.steps import Worker
from deploykit.tensor_spec import parse_input

pytestmark = pytest.mark.environment

FUNCTIONS = Path(__file__).resolve().parent.parent / "fixtures" / "jax_functions.py"

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    plugin = plugins.converter("jax")
    python = environments.interpreter(plugin)
    with Worker(plugin, python=python, label="jax", threads=2) as worker:
        yield worker


def source(name: str, *inputs: str, **settings: str) -> Source:
    return Source(
        location=f"{FUNCTIONS}:{name}",
        format="jax/reference",
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
    )


def convert(
    worker: Worker, model: Source, output: Path, *axes: DynamicAxis, opset: int | None = None
) -> ConvertResult:
    request = ConvertRequest(source=model, output=str(output), opset=opset, dynamic=axes)
    return worker.call("convert", request, ConvertResult)


def names(signature: Signature) -> tuple[list[str], list[str]]:
    return [str(spec) for spec in signature.inputs], [str(spec) for spec in signature.outputs]


def assert_same(worker: Worker, model: Source, output: Path, *feeds: dict[str, Array]) -> None:
    """Run `feeds` through JAX and through ONNX Runtime."""
    session = onnxruntime.InferenceSession(output)
    reference = worker.open(ReferenceRequest(source=model))
    outputs = [value.name for value in session.get_outputs()]
    assert [spec.name for spec in reference.signature.outputs] == outputs
    for feed in feeds:
        wanted = reference.run(feed)
        for name, value in zip(outputs, session.run(outputs, feed), strict=True):
            assert value.dtype == wanted[name].dtype, name
            assert value.shape == wanted[name].shape, name
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    reference.close()


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_recognised_by_what_the_file_imports(tmp_path: Path) -> None:
    inspection = dk.inspect(f"{FUNCTIONS}:control")
    assert (inspection.format, inspection.converter) == ("jax/reference", "jax")
    other = tmp_path / "other.py"
    other.write_text("import torch\nimport jax\n\ndef make():\n    return None\n")
    assert dk.inspect(f"{other}:make").format == "pytorch/module"
    other.write_text("from jaxtyping import Array\n\ndef make():\n    import flax.linen\n")
    assert dk.inspect(f"{other}:make").format == "jax/reference"
    other.write_text("from neighbour import make\n")
    assert dk.inspect(f"{other}:make", format="jax/reference").format == "jax/reference"


@pytest.mark.parametrize(
    ("name", "input", "shapes"),
    [
        ("convolutions", "image:float32[batch,16,16,3]", [(1, 16, 16, 3), (3, 16, 16, 3)]),
        ("upsampling", "x:float32[batch,5,5,3]", [(1, 5, 5, 3), (4, 5, 5, 3)]),
        ("recurrent", "x:float32[batch,time,3]", [(2, 7, 3), (1, 4, 3), (3, 1, 3)]),
        ("nnx_module", "x:float32[n,8,8,3]", [(1, 8, 8, 3), (5, 8, 8, 3)]),
    ],
)
def test_flax_modules_of_any_batch(
    worker: Worker, tmp_path: Path, name: str, input: str, shapes: list[tuple[int, ...]]
) -> None:
    model, output = source(name, input), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    assert names(result.signature)[0] == [input]
    key = input.partition(":")[0]
    assert_same(worker, model, output, *({key: random(*shape)} for shape in shapes))


def test_two_symbolic_axes_of_a_transformer(worker: Worker, tmp_path: Path) -> None:
    model, output = source("transformer"), tmp_path / "m.onnx"
    result = convert(worker, model, output)
    assert names(result.signature) == (
        ["tokens:int32[batch,time]"],
        ["last:float32[batch,16]", "logits:float32[batch,time,50]"],
    )
    generator = np.random.default_rng(0)
    sizes = [(2, 7), (1, 3), (4, 12), (1, 1)]
    feeds = [{"tokens": generator.integers(0, 50, size, dtype=np.int32)} for size in sizes]
    assert_same(worker, model, output, *feeds)


def test_loops_and_branches(worker: Worker, tmp_path: Path) -> None:
    model, output = source("control"), tmp_path / "m.onnx"
    convert(worker, model, output)
    feeds = [
        {"x": random(5, 3, seed=seed) * sign, "flag": np.array(flag, np.int32)}
        for seed, sign, flag in ((0, 1, 0), (1, -3, 1), (2, 2, 2), (3, 1, 9), (4, 1, -5))
    ]
    assert_same(worker, model, output, *feeds)


@pytest.mark.parametrize("opset", [None, 21])
def test_one_primitive_after_the_other(worker: Worker, tmp_path: Path, opset: int | None) -> None:
    model, output = source("various"), tmp_path / "m.onnx"
    assert convert(worker, model, output, opset=opset).opset == (opset or 17)
    feeds = [
        {
            "x": random(size, 4, seed=size),
            "y": random(size, 4, seed=9),
            "ids": np.array(ids, np.int32),
        }
        for size, ids in ((1, [2, 0, 1]), (3, [0, 2, 3]), (5, [1, 1, 2]))
    ]
    assert_same(worker, model, output, *feeds)


def test_axes_and_names_of_the_users_own(worker: Worker, tmp_path: Path) -> None:
    model, output = source("convolutions", outputs="scores"), tmp_path / "m.onnx"
    axis = DynamicAxis(input="image", axis=0, name="images")
    result = convert(worker, model, output, axis)
    assert names(result.signature) == (
        ["image:float32[images,16,16,3]"],
        ["scores:float32[images,5]"],
    )
    assert set(result.versions) == {"jax", "flax", "onnx", "numpy"}
    assert b"jax_functions" not in output.read_bytes()


@pytest.mark.parametrize(
    ("model", "error", "says", "advises"),
    [
        (source("random"), UnsupportedError, "random_bits", "make it deterministic"),
        (source("fourier"), UnsupportedError, "fft", ""),
        (source("branching"), UnsupportedError, "TracerBoolConversionError", "jax.lax.cond"),
        (source("squared", "x:float32[n,3]"), UnsupportedError, "Inconclusive", "leave out"),
        (source("nothing"), SourceError, "returned a ndarray", "return (function"),
        (source("absent"), SourceError, "defines no `absent`", "return (function"),
        (source("control", "z:float32[2]"), UsageError, "no input `z`", "flag, x"),
        (source("squared", outputs="a,b"), UsageError, "names 2 outputs", ""),
        (source("squared", shape="1"), UsageError, "no setting `shape`", "outputs"),
    ],
)
def test_what_cannot_be_converted_says_why(
    worker: Worker, tmp_path: Path, model: Source, error: type, says: str, advises: str
) -> None:
    with pytest.raises(DeploykitError) as raised:
        convert(worker, model, tmp_path / "m.onnx")
    assert type(raised.value) is error, raised.value.message
    assert says in raised.value.message
    assert advises in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_whole_command(tmp_path: Path) -> None:
    conversion = dk.convert(f"{FUNCTIONS}:transformer", tmp_path / "m.onnx")
    assert (conversion.converter, conversion.verified) == ("jax", True)
    assert all(parity.ok for parity in conversion.parity)
