"""PyTorch modules to ONNX: the same values under the source's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import DynamicAxis, Signature, Source
from deploykit.steps import Worker
from tests.converters.pytorch_models import (
    ZOO,
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

IMAGE = "input:float32[1,3,16,16]"


def test_a_module_keeps_names_and_fixed_sizes(worker: Worker, tmp_path: Path) -> None:
    source, output = module("convnet", outputs="logits"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == ([IMAGE], ["logits:float32[1,5]"])
    assert names(worker.call("inspect", source, Signature)) == names(result.signature)
    assert result.opset == 18
    assert set(result.versions) == {"torch", "onnx", "onnxscript"}
    assert_same(worker, source, output, {"input": random(1, 3, 16, 16)})
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_file_says_nothing_about_this_machine(worker: Worker, tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    convert(worker, module("convnet"), output)
    first = output.read_bytes()
    assert b"make_pytorch_models" not in first
    assert b"site-packages" not in first
    convert(worker, module("convnet"), output)
    assert output.read_bytes() == first


def test_axes_become_dynamic_although_the_example_has_one_of_them(
    worker: Worker, tmp_path: Path
) -> None:
    source, output = module("convnet"), tmp_path / "m.onnx"
    axes = [
        DynamicAxis(input="input", axis=axis, name=name) for axis, name in ((0, "n"), (2, "rows"))
    ]
    result = convert(worker, source, output, *axes)
    assert names(result.signature) == (
        ["input:float32[n,3,rows,16]"],
        ["output:float32[n,5]"],
    )
    sizes = [(1, 3, 16, 16), (4, 3, 21, 16), (2, 3, 40, 16)]
    assert_same(worker, source, output, *({"input": random(*size)} for size in sizes))


def test_dict_outputs_keyword_examples_and_own_dynamic_shapes(
    worker: Worker, tmp_path: Path
) -> None:
    source, output = module("tagger"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (
        ["tokens:int64[batch,time]", "keep:float32[batch,time]"],
        ["logits:float32[batch,time,7]", "state:float32[batch,16]"],
    )
    feeds = [
        {
            "tokens": np.random.default_rng(seed).integers(0, 50, size, dtype=np.int64),
            "keep": random(*size, seed=seed),
        }
        for seed, size in enumerate([(2, 9), (1, 4), (5, 17)])
    ]
    assert_same(worker, source, output, *feeds)


def test_recurrent_modules_of_any_batch_and_length(worker: Worker, tmp_path: Path) -> None:
    source, output = module("recurrences", code=ZOO), tmp_path / "m.onnx"
    axes = [DynamicAxis(input="x", axis=axis, name=name) for axis, name in ((0, "n"), (1, "time"))]
    result = convert(worker, source, output, *axes)
    assert names(result.signature) == (
        ["x:float32[n,time,6]"],
        ["output_0:float32[n,time,3]", "output_1:float32[4,n,5]", "output_2:float32[4,n,5]"],
    )
    kinds = [node.op_type for node in onnx.load(output).graph.node]
    assert [kinds.count(kind) for kind in ("LSTM", "GRU", "RNN")] == [2, 1, 1]  # never unrolled
    sizes = [(2, 7, 6), (1, 1, 6), (5, 13, 6)]
    assert_same(worker, source, output, *({"x": random(*size)} for size in sizes))


def test_an_encoder_with_a_mask_of_booleans(worker: Worker, tmp_path: Path) -> None:
    source, output = module("encoder", code=ZOO), tmp_path / "m.onnx"
    axes = [DynamicAxis(input=name, axis=0, name="n") for name in ("tokens", "padding")]
    result = convert(worker, source, output, *axes)
    assert names(result.signature)[0] == ["tokens:int64[n,5]", "padding:bool[n,5]"]
    padding = np.array([[False, False, False, True, True]] * 3)
    tokens = np.arange(15, dtype=np.int64).reshape(3, 5)
    assert_same(worker, source, output, {"tokens": tokens, "padding": padding})


def test_a_dataclass_gives_its_fields_as_names(worker: Worker, tmp_path: Path) -> None:
    source, output = module("with_result", code=ZOO), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (
        ["x:float32[2,3]", "scale:float32[2,1]"],
        ["logits:float32[2]", "features:float32[2,4]"],
    )
    feed = {"x": random(2, 3), "scale": random(2, 1)}
    (outputs,) = assert_same(worker, source, output, feed)
    # the flag of the examples doubles them
    np.testing.assert_allclose(outputs["logits"], outputs["features"].sum(1) * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "feed"),
    [
        ("bags", {"ids": np.arange(18, dtype=np.int64).reshape(3, 6)}),
        ("spectrum", {"x": random(1, 100)}),
        ("half", {"x": random(2, 4).astype(np.float16)}),
    ],
)
def test_other_layers_and_dtypes(
    worker: Worker, tmp_path: Path, name: str, feed: dict[str, Array]
) -> None:
    source, output = module(name, code=ZOO), tmp_path / "m.onnx"
    convert(worker, source, output)
    assert_same(worker, source, output, feed, atol=1e-4 if name == "spectrum" else 1e-5)


def test_nested_absent_constant_and_unused_arguments(worker: Worker, tmp_path: Path) -> None:
    source, output = module("several"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (
        ["pair_0:float32[3]", "pair_1:float32[2,2]", "unused:float32[4]"],
        ["output_0:float32[3]", "output_1_0:float32[2,2]", "output_1_1:bool[]"],
    )
    feed = {"pair_0": random(3), "pair_1": random(2, 2), "unused": random(4)}
    (outputs,) = assert_same(worker, source, output, feed)
    np.testing.assert_allclose(outputs["output_0"], feed["pair_0"] * 3, rtol=1e-6)


def test_another_opset(worker: Worker, tmp_path: Path) -> None:
    source, output = module("convnet"), tmp_path / "m.onnx"
    assert convert(worker, source, output, opset=20).opset == 20
    assert max(entry.version for entry in onnx.load(output).opset_import) == 20
    assert_same(worker, source, output, {"input": random(1, 3, 16, 16)})


def test_shapes_come_from_the_user_where_the_module_has_none(
    worker: Worker, tmp_path: Path
) -> None:
    source, output = module("without_examples", "input:float32[?,3,8,8]"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature)[0] == ["input:float32[input_axis0,3,8,8]"]
    assert_same(worker, source, output, {"input": random(3, 3, 8, 8)})


@pytest.mark.parametrize(
    ("source", "error", "says", "advises"),
    [
        (module("without_examples"), UsageError, "no `--input` for input", "--input input:"),
        (module("convnet", "x:float32[1]"), UsageError, "no input `x`", "inputs: input"),
        (module("convnet", inputs="x"), UsageError, "no setting `inputs`", "outputs"),
        (module("convnet", outputs="a,b"), UsageError, "names 2 outputs, the model has 1", ""),
        (module("nothing"), SourceError, "defines no `nothing`", "convnet"),
        (module("no_module"), SourceError, "returned a int", "return the module"),
        (module("branching"), UnsupportedError, "torch.export cannot trace", "TorchScript"),
        (module("bessel"), UnsupportedError, "bessel_j1 (in `forward (Bessel)`)", "leave it out"),
        (module("deep", code=ZOO), UnsupportedError, "(in `stages.1 (Inner)`)", "leave it out"),
        (module("projected", code=ZOO), UnsupportedError, "LSTM with projections", "a loop over"),
        (module("bfloat", code=ZOO), UnsupportedError, "computes in bfloat16", "module.float()"),
        (module("needs_arguments", code=ZOO), SourceError, "asks for width", "def make()"),
        (
            file("pytorch/module", "/nowhere.py:f"),
            SourceError,
            "no python file",
            "file.py:function",
        ),
    ],
)
def test_what_cannot_be_converted_says_why(
    worker: Worker, tmp_path: Path, source: Source, error: type, says: str, advises: str
) -> None:
    with pytest.raises(DeploykitError) as raised:
        convert(worker, source, tmp_path / "m.onnx")
    assert type(raised.value) is error, raised.value.message
    assert says in raised.value.message
    assert advises in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_axis_that_the_model_fixes_is_refused_by_name(worker: Worker, tmp_path: Path) -> None:
    axis = DynamicAxis(input="input", axis=1, name="channels")
    with pytest.raises(UnsupportedError, match="input:1=channels"):
        convert(worker, module("convnet"), tmp_path / "m.onnx", axis)
    with pytest.raises(UsageError, match="4 axes, none of them is 7"):
        convert(
            worker,
            module("convnet"),
            tmp_path / "m.onnx",
            DynamicAxis(input="input", axis=7, name="a"),
        )
