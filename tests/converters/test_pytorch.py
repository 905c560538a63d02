"""PyTorch to ONNX: the same values under the source's names, and no code run that nobody asked for."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

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

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_pytorch_models.py"
IMAGE = "input:float32[1,3,16,16]"
FACES = {"scores": "out_scores", "boxes": "out_boxes"}

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def python() -> Path:
    return environments.interpreter(plugins.converter("pytorch"))


@pytest.fixture(scope="module")
def files(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pytorch")
    subprocess.run([python, "-I", MAKE_MODELS, folder], check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def worker(python: Path) -> Iterator[Worker]:
    with Worker(plugins.converter("pytorch"), python=python, label="pytorch", threads=2) as worker:
        yield worker


def module(function: str, *inputs: str, **settings: str) -> Source:
    return file("pytorch/module", f"{MAKE_MODELS}:{function}", *inputs, **settings)


def file(format: str, location: str | Path, *inputs: str, **settings: str) -> Source:
    return Source(
        location=str(location),
        format=format,
        inputs=tuple(parse_input(text) for text in inputs),
        options=settings,
    )


def convert(
    worker: Worker, source: Source, output: Path, *axes: DynamicAxis, opset: int | None = None
) -> ConvertResult:
    request = ConvertRequest(source=source, output=str(output), opset=opset, dynamic=axes)
    return worker.call("convert", request, ConvertResult)


def names(signature: Signature) -> tuple[list[str], list[str]]:
    return [str(spec) for spec in signature.inputs], [str(spec) for spec in signature.outputs]


def assert_same(
    worker: Worker, source: Source, output: Path, *feeds: dict[str, Array], atol: float = 1e-5
) -> list[dict[str, Array]]:
    """Run `feeds` through PyTorch and through ONNX Runtime; return PyTorch's outputs."""
    session = onnxruntime.InferenceSession(output)
    outputs = [value.name for value in session.get_outputs()]
    expected = []
    reference = worker.open(ReferenceRequest(source=source))
    assert [spec.name for spec in reference.signature.outputs] == outputs
    for feed in feeds:
        wanted = reference.run(feed)
        for name, value in zip(outputs, session.run(outputs, feed), strict=True):
            assert value.dtype == wanted[name].dtype
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=atol)
        expected.append(wanted)
    reference.close()
    return expected


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


# ---- modules


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


def test_a_recurrent_module_of_any_batch(worker: Worker, tmp_path: Path) -> None:
    source, output = module("recurrent"), tmp_path / "m.onnx"
    result = convert(worker, source, output, DynamicAxis(input="x", axis=0, name="batch"))
    assert names(result.signature)[0] == ["x:float32[batch,7,6]"]
    assert_same(worker, source, output, {"x": random(2, 7, 6)}, {"x": random(5, 7, 6)})
    with pytest.raises(UnsupportedError, match="x:1=time"):  # torch.export unrolls the recurrence
        convert(worker, source, output, DynamicAxis(input="x", axis=1, name="time"))


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
        (
            module("counter"),
            UnsupportedError,
            "keeps state between calls (it writes calls)",
            "state",
        ),
        (module("branching"), UnsupportedError, "torch.export cannot trace", "TorchScript"),
        (module("bessel"), UnsupportedError, "bessel_j1", ""),
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


# ---- files


def test_an_exported_program_keeps_its_axes(worker: Worker, files: Path, tmp_path: Path) -> None:
    source, output = file("pytorch/exported_program", files / "tagger.pt2"), tmp_path / "m.onnx"
    axes = (
        DynamicAxis(input="tokens", axis=0, name="batch"),
        DynamicAxis(input="tokens", axis=1, name="time"),
    )
    result = convert(worker, source, output, *axes)
    assert names(result.signature) == (
        ["tokens:int64[batch,time]", "keep:float32[batch,time]"],
        ["logits:float32[batch,time,7]", "state:float32[batch,16]"],
    )
    tokens = np.arange(12, dtype=np.int64).reshape(3, 4)
    assert_same(worker, source, output, {"tokens": tokens, "keep": random(3, 4)})
    fixed = file("pytorch/exported_program", files / "tagger.pt2", "tokens:int32[2,9]")
    with pytest.raises(UnsupportedError, match="fixes `tokens` to int64"):
        convert(worker, fixed, tmp_path / "n.onnx")


@pytest.mark.parametrize("name", ["traced.pt", "traced.ptl"])
def test_traced_torchscript(worker: Worker, files: Path, tmp_path: Path, name: str) -> None:
    format = "pytorch/lite" if name.endswith("l") else "pytorch/torchscript"
    with pytest.raises(UsageError, match="does not say the shape of `input`"):
        convert(worker, file(format, files / name), tmp_path / "m.onnx")
    source, output = file(format, files / name, "input:float32[n,3,16,16]"), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature)[0] == ["input:float32[n,3,16,16]"]
    feeds = [{"input": random(size, 3, 16, 16)} for size in (1, 5)]
    assert_same(worker, source, output, *feeds)


def test_a_recurrence_of_any_length_by_torchscript(
    worker: Worker, files: Path, tmp_path: Path
) -> None:
    source, output = (
        file("pytorch/torchscript", files / "recurrent.pt", "x:float32[batch,time,6]"),
        tmp_path / "m.onnx",
    )
    convert(worker, source, output)
    feeds = [{"x": random(*size)} for size in ((2, 7, 6), (1, 3, 6), (4, 11, 6))]
    assert_same(worker, source, output, *feeds)


def test_control_flow_of_torchscript_is_kept(worker: Worker, files: Path, tmp_path: Path) -> None:
    source, output = (
        file("pytorch/torchscript", files / "scripted.pt", "x:float32[2,3]"),
        tmp_path / "m.onnx",
    )
    convert(worker, source, output)
    first, second = assert_same(worker, source, output, {"x": random(2, 3)}, {"x": -random(2, 3)})
    np.testing.assert_allclose(first["output"], random(2, 3) * 2, rtol=1e-6)
    np.testing.assert_allclose(second["output"], -random(2, 3) - 1, rtol=1e-6)


def test_state_of_torchscript_is_refused(worker: Worker, files: Path, tmp_path: Path) -> None:
    source = file("pytorch/torchscript", files / "counter.pt", "x:float32[2]")
    with pytest.raises(UnsupportedError, match="keeps state between calls"):
        convert(worker, source, tmp_path / "m.onnx")


def test_weights_alone_are_not_a_model(worker: Worker, files: Path) -> None:
    with pytest.raises(UnsupportedError, match="holds weights only") as raised:
        worker.call("inspect", file("pytorch/state_dict", files / "weights.pth"), Signature)
    assert "file.py:function" in raised.value.hint


# ---- code that nobody asked for


def test_a_pickle_does_not_run(worker: Worker, files: Path) -> None:
    with pytest.raises(UnsupportedError, match="a pickle can run any code") as raised:
        worker.call("inspect", file("pytorch/state_dict", files / "pickled.pth"), Signature)
    assert "--trust" in raised.value.hint
    assert not list(worker.folder.rglob("ran"))
    assert not Path("ran").exists()


def replace_in_graph(archive: Path, output: Path, key: str, value: str) -> None:
    """Copy a `.pt2` file with the first `key` of its graph set to `value`."""

    def replaced(item: Any) -> bool:
        if isinstance(item, dict) and isinstance(item.get(key), str):
            item[key] = value
            return True
        children = (
            item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        )
        return any(replaced(child) for child in children)

    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(output, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/models/model.json"):
                graph = json.loads(content)
                assert replaced(graph), key
                content = json.dumps(graph).encode()
            new.writestr(name, content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "torch.serialization.os.system"),
        ("target", "torch.hub.load"),
        ("target", "_operator.methodcaller"),
        ("expr_str", "exec(chr(112))"),
        ("expr_str", "().__class__"),
    ],
)
def test_an_exported_program_cannot_name_functions(
    worker: Worker, files: Path, tmp_path: Path, key: str, value: str
) -> None:
    evil = tmp_path / "evil.pt2"
    replace_in_graph(files / "tagger.pt2", evil, key, value)
    with pytest.raises(UnsupportedError, match="would run code of its own") as raised:
        worker.call("inspect", file("pytorch/exported_program", evil), Signature)
    assert repr(value) in raised.value.message


def test_a_damaged_exported_program(worker: Worker, files: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes((files / "tagger.pt2").read_bytes()[:4000])
    with pytest.raises(SourceError, match="cannot read"):
        worker.call("inspect", file("pytorch/exported_program", cut), Signature)


# ---- real models


@pytest.mark.parametrize(
    ("format", "path", "inputs"),
    [
        ("exported_program", "torch_export/derived_ultraface_rfb320/ultraface_rfb320.pt2", ()),
        ("exported_program", "torch_export/derived_ultraface_slim320/ultraface_slim320.pt2", ()),
        (
            "torchscript",
            "torchscript/derived_ultraface_slim320_traced/ultraface_slim320.pt",
            ("x:float32[1,3,240,320]",),
        ),
        (
            "lite",
            "torch_lite/derived_ultraface_slim320/ultraface_slim320.ptl",
            ("x:float32[1,3,240,320]",),
        ),
    ],
)
def test_shared_models_give_their_golden_outputs(
    worker: Worker, shared_models: Path, tmp_path: Path, format: str, path: str, inputs: Any
) -> None:
    source = file(f"pytorch/{format}", shared_models / path, *inputs, outputs="scores,boxes")
    output = tmp_path / "m.onnx"
    convert(worker, source, output)
    golden = np.load((shared_models / path).parent / "golden.npz")
    feed = {"x": golden["in_image"]}
    (reference,) = assert_same(worker, source, output, feed)
    for name, key in FACES.items():
        np.testing.assert_allclose(reference[name], golden[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "inputs", "settings", "says"),
    [
        (
            "silero_vad_v5/silero_vad.jit",
            "x:float32[1,512]",
            {"constants": '{"sr": 16000}'},
            "_state",
        ),
        ("silero_vad_mini_v2/model_mini.jit", "x:float32[1,4000]", {}, "stft requires"),
    ],
)
def test_shared_models_that_cannot_be_converted_say_why(
    worker: Worker,
    shared_models: Path,
    tmp_path: Path,
    path: str,
    inputs: str,
    settings: dict[str, str],
    says: str,
) -> None:
    location = shared_models / "torchscript" / path
    source = file("pytorch/torchscript", location, inputs, **settings)
    with pytest.raises(UnsupportedError, match=says):
        convert(worker, source, tmp_path / "m.onnx")
