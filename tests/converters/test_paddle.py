"""Paddle models to ONNX: right where the bare exporter is wrong, and clear where nothing helps."""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from deploykit import environments, plugins
from deploykit.errors import (
    DeploykitError,
    PluginError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    DynamicAxis,
    ReferenceRequest,
    Signature,
    Source,
    TensorSpec,
)
from deploykit.steps import Worker

PACKAGE = "deploykit._plugins.converters.paddlepaddle"
files = importlib.import_module(f"{PACKAGE}.files")
operators = importlib.import_module(f"{PACKAGE}.operators")
repairs = importlib.import_module(f"{PACKAGE}.repairs")
symbols = importlib.import_module(f"{PACKAGE}.symbols")

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_paddle_models.py"

SHARED = {
    "paddle1/fit_a_line": ("paddle/fluid", 1e-5),
    # its last layers sharpen a probability map fifty times, and rounding with it
    "paddle1/ocr_det_db": ("paddle/fluid", 1e-3),
    "paddle2/ppocr_cls_v2": ("paddle/program", 1e-5),
    "paddle2/ppocr_det_v3_ch": ("paddle/program", 1e-4),
    "paddle3/derived_ppocr_cls_v2_pir": ("paddle/pir", 1e-5),
    "paddle3/derived_ppocr_det_v3_en_pir": ("paddle/pir", 1e-4),
}

# ---- without Paddle: documents and files ----


def tensor(number: int, dims: list[int]) -> dict[str, Any]:
    kind = {"#": "0.t_dtensor", "D": [{"#": "0.t_f32"}, dims, "NCHW", [], 0]}
    return {"%": number, "TT": kind}


def operation(name: str, inputs: list[int], output: dict[str, Any], **attributes: Any) -> Any:
    return {
        "#": f"1.{name}",
        "A": [{"N": key, "AT": item} for key, item in attributes.items()],
        "I": [{"%": number} for number in inputs],
        "O": [output],
        "OA": [],
    }


def array(kind: str, *items: float) -> dict[str, Any]:
    return {"#": "0.a_array", "D": [{"#": f"0.{kind}", "D": item} for item in items]}


def document(*operations: Any) -> dict[str, Any]:
    return {"program": {"regions": [{"blocks": [{"ops": list(operations)}]}]}}


def test_double_scales_become_floats() -> None:
    wide = document(
        operation("nearest_interp", [1], tensor(2, [1, 1, 4, 4]), scale=array("a_f64", 2.0, 2.0))
    )
    assert repairs.mend(wide) == [
        "1 interpolation scales from double, as Paddle 3.3 has them, to float"
    ]
    (op,) = wide["program"]["regions"][0]["blocks"][0]["ops"]
    assert op["A"][0]["AT"] == array("a_f32", 2.0, 2.0)
    assert repairs.mend(wide) == []


@pytest.mark.parametrize(("dims", "kept"), [([1], []), ([], [0])])
def test_slices_keep_the_axis_that_their_type_has(dims: list[int], kept: list[int]) -> None:
    sliced = document(
        operation("shape", [1], tensor(2, [4])),
        operation("slice", [2], tensor(3, dims), decrease_axis=array("a_i64", 0)),
    )
    before = copy.deepcopy(sliced)
    done = repairs.mend(sliced)
    op = sliced["program"]["regions"][0]["blocks"][0]["ops"][1]
    assert op["A"][0]["AT"] == array("a_i64", *kept)
    assert bool(done) == (sliced != before) == (dims == [1])


def test_reductions_name_their_axes() -> None:
    reduced = document(
        operation("relu", [1], tensor(2, [-1, 3, 4])),
        operation("full_int_array", [], tensor(3, [0]), value=array("a_i64")),
        operation("mean", [2, 3], tensor(4, [])),
    )
    assert repairs.mend(reduced) == ["1 reductions over all axes, now named one by one"]
    op = reduced["program"]["regions"][0]["blocks"][0]["ops"][1]
    assert op["A"][0]["AT"] == array("a_i64", 0, 1, 2)
    assert op["O"][0]["TT"]["D"][1] == [3]


def test_operators_without_a_mapping_are_found_also_in_branches() -> None:
    branch = operation("if", [1], tensor(2, []))
    branch["regions"] = [{"blocks": [{"ops": [operation("eigvalsh", [1], tensor(3, []))]}]}]
    found = operators.without_mapping(
        document(
            branch, operation("add", [1], tensor(4, [])), operation("relu_", [1], tensor(5, []))
        ),
        {"elementwise_add", "relu"},
    )
    assert found == ("pd_op.eigvalsh",)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("shape[S0, 200, 1], data[NULL]", [["S0", 200, 1]]),
        ("shape[Add(Mul(S1, 2), -1), 3], data[NULL]", [["Add(Mul(S1, 2), -1)", 3]]),
        ("shape[2], data[S0], shape[], data[5]", [[2], []]),
        ("", None),
        ("shape[S0, 1", None),
    ],
)
def test_symbolic_shapes_are_read(text: str, shapes: list[list[Any]] | None) -> None:
    assert symbols.parse_shapes(text) == shapes


def parameter(values: np.ndarray[Any, Any]) -> bytes:
    """Return one float32 tensor as Paddle writes it."""
    dims = b"".join(bytes([0x10, size]) for size in values.shape)
    description = b"\x08\x05" + dims
    head = bytes(4) + bytes(8) + bytes(4) + len(description).to_bytes(4, "little")
    return head + description + values.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        (b"", "holds 0 parameters, the graph needs 2"),
        (parameter(np.ones((2, 3))), "holds 1 parameters, the graph needs 2"),
        (parameter(np.ones((2, 3))) * 3, "holds more than the 2 parameters"),
        (parameter(np.ones((2, 3))) + parameter(np.ones((5, 5)))[:-4], "needs 4 more bytes"),
        (b"this is no parameter file but text, long enough", "is damaged at parameter `a`"),
    ],
)
def test_damaged_parameters_never_reach_paddle(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    (tmp_path / "m.json").write_text("{}")
    if content is not None:
        (tmp_path / "m.pdiparams").write_bytes(content)
    with files.open_model(str(tmp_path), "paddle/pir") as model:
        with pytest.raises(SourceError, match=message):
            model.parameters(["b", "a"], ["a", "b"])
        scratch = model.scratch
    assert not scratch.exists()


def test_unneeded_parameters_are_left_out(tmp_path: Path) -> None:
    first, second = parameter(np.ones((2, 3))), parameter(np.zeros(4))
    (tmp_path / "m.pdmodel").write_bytes(b"graph")
    (tmp_path / "m.pdiparams").write_bytes(first + second)
    with files.open_model(str(tmp_path / "m.pdiparams"), "paddle/program") as model:
        assert model.graph.name == "m.pdmodel"
        assert model.parameters(["a", "b"], ["b"]).read_bytes() == second
        assert model.parameters(["a", "b"], ["a", "b"]) == tmp_path / "m.pdiparams"
    (tmp_path / "other.pdmodel").write_bytes(b"graph")
    with (
        pytest.raises(SourceError, match=r"several models: `m\.pdmodel`, `other\.pdmodel`"),
        files.open_model(str(tmp_path), "paddle/program"),
    ):
        pass


# ---- with Paddle ----


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python of the converter's environment."""
    return environments.interpreter(plugins.converter("paddle"))


@pytest.fixture(scope="module")
def worker(python: Path) -> Iterator[Worker]:
    with Worker(
        plugins.converter("paddle"), python=python, label="test paddle", threads=2
    ) as worker:
        yield worker


@pytest.fixture(scope="module")
def made(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models made by Paddle, with what it computes."""
    folder = tmp_path_factory.mktemp("paddle")
    subprocess.run(
        [python, "-W", "ignore", MAKE_MODELS, folder], check=True, timeout=120, capture_output=True
    )
    return folder


def source(path: Path, format: str, *inputs: TensorSpec, **options: str) -> Source:
    return Source(location=str(path), format=format, inputs=inputs, options=options)


def convert(worker: Worker, asked: Source, output: Path, **options: Any) -> ConvertResult:
    result = worker.call(
        "convert", ConvertRequest(source=asked, output=str(output), **options), ConvertResult
    )
    onnx.checker.check_model(os.fspath(output), full_check=True)
    return result


def run_onnx(path: Path, feed: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.environment
@pytest.mark.parametrize("name", SHARED)
def test_shared_models_are_right(
    worker: Worker, shared_models: Path, tmp_path: Path, name: str
) -> None:
    format, tolerance = SHARED[name]
    folder = shared_models / name
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    with np.load(folder / "golden.npz") as golden:
        feed = {actual: golden[f"in_{key}"] for key, actual in names["in"].items()}
        expected = {actual: golden[f"out_{key}"] for key, actual in names["out"].items()}
    result = convert(worker, source(folder, format), tmp_path / "out.onnx")
    assert [spec.name for spec in result.signature.inputs] == list(feed)
    assert [spec.name for spec in result.signature.outputs] == list(expected)
    for spec in result.signature.inputs:
        rank = feed[spec.name].ndim
        assert [size for size in spec.shape or () if isinstance(size, str)] == (
            ["batch"] if rank == 2 else ["batch", "height", "width"]
        )
    session = worker.open(ReferenceRequest(source=source(folder, format), threads=2))
    for outputs in (run_onnx(tmp_path / "out.onnx", feed), session.run(feed)):
        for actual, wanted in expected.items():
            assert outputs[actual].shape == wanted.shape
            error = np.abs(outputs[actual] - wanted).max() / np.abs(wanted).max()
            assert error <= tolerance, f"{actual}: {error}"
    session.close()


@pytest.mark.environment
@pytest.mark.parametrize(
    ("name", "format", "repair"),
    [
        ("convolutional.json", "paddle/pir", "interpolation scales"),
        ("old_convolutional.pdmodel", "paddle/program", "interpolation scales"),
        ("recurrent.json", "paddle/pir", "reductions over all axes"),
        ("attention.json", "paddle/pir", ""),
        ("fixed_head.json", "paddle/pir", ""),
    ],
)
def test_made_models_are_right(
    worker: Worker, made: Path, tmp_path: Path, name: str, format: str, repair: str
) -> None:
    path = made / name
    with np.load(path.with_suffix(".npz")) as stored:
        feed = {key[3:]: stored[key] for key in stored if key.startswith("in_")}
        expected = [stored[key] for key in stored if key.startswith("out_")]
    result = convert(worker, source(path, format), tmp_path / "out.onnx")
    assert [spec.name for spec in result.signature.inputs] == list(feed)
    assert repair in " | ".join(result.repairs)
    session = worker.open(ReferenceRequest(source=source(path, format)))
    for outputs in (run_onnx(tmp_path / "out.onnx", feed), session.run(feed)):
        assert list(outputs) == [spec.name for spec in result.signature.outputs]
        for actual, wanted in zip(outputs.values(), expected, strict=True):
            assert actual.dtype == wanted.dtype
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    bound = session
    bound.bind(feed)
    bound.measure(iterations=3)
    for actual, wanted in zip(bound.outputs().values(), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    session.close()


@pytest.mark.environment
def test_sizes_stay_where_paddle_or_the_user_insists(
    worker: Worker, made: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.onnx"
    fixed = source(made / "fixed_head.json", "paddle/pir")
    assert convert(worker, fixed, output).signature.inputs[0].shape == ("batch", 1, 32, 32)
    path = made / "convolutional.json"
    declared = source(path, "paddle/pir", sizes="declared")
    assert convert(worker, declared, output).signature.inputs[0].shape == ("batch", 3, 32, 64)
    given = TensorSpec(name="image", dtype="float32", shape=(2, 3, 48, 96))
    signature = convert(worker, source(path, "paddle/pir", given), output).signature
    assert signature.inputs == (given,)
    assert [spec.shape for spec in signature.outputs] == [(2, 5), (2, 4, 96, 192)]
    axis = DynamicAxis(input="image", axis=-1, name="columns")
    signature = convert(worker, declared, output, dynamic=(axis,)).signature
    assert signature.inputs[0].shape == ("batch", 3, 32, "columns")
    inspected = worker.call("inspect", source(path, "paddle/pir"), Signature)
    assert inspected.inputs[0].shape == ("batch", 3, 32, 64)
    assert inspected.outputs[1].shape == ("batch", 4, 64, 128)


@pytest.mark.environment
def test_the_opset_is_the_one_asked_for(worker: Worker, made: Path, tmp_path: Path) -> None:
    asked = source(made / "attention.json", "paddle/pir")
    assert convert(worker, asked, tmp_path / "a.onnx", opset=19).opset == 19
    assert convert(worker, asked, tmp_path / "b.onnx").opset == 17
    with pytest.raises(UsageError, match="opset 30 is not available"):
        convert(worker, asked, tmp_path / "c.onnx", opset=30)


@pytest.mark.environment
def test_an_operator_without_mapping_is_named_and_the_worker_lives(
    worker: Worker, made: Path, tmp_path: Path
) -> None:
    asked = source(made / "unsupported.json", "paddle/pir")
    with pytest.raises(UnsupportedError, match=r"no mapping for pd_op\.eigvalsh") as raised:
        convert(worker, asked, tmp_path / "out.onnx")
    assert raised.value.operators == ("pd_op.eigvalsh",)
    assert not list(tmp_path.iterdir())
    assert worker.call("inspect", asked, Signature).inputs[0].name == "x"


@pytest.mark.environment
@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ([("imag", "float32", (1, 3, 4, 4))], {}, UsageError, 'did you mean "image"'),
        ([("image", "float64", (1, 3, 4, 4))], {}, UsageError, "is float32 in the model"),
        ([("image", "float32", (1, 3, 4))], {}, UsageError, "has 4 axes in the model"),
        ([], {"size": "declared"}, UsageError, "no setting `size`"),
        ([], {"sizes": "any"}, UsageError, "cannot be `any`"),
    ],
)
def test_requests_that_do_not_fit_are_usage_errors(
    worker: Worker,
    made: Path,
    tmp_path: Path,
    inputs: list[tuple[str, str, tuple[int, ...]]],
    options: dict[str, str],
    error: type[DeploykitError],
    message: str,
) -> None:
    specs = [TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs]
    asked = source(made / "convolutional.json", "paddle/pir", *specs, **options)
    with pytest.raises(error, match=message):
        convert(worker, asked, tmp_path / "out.onnx")


@pytest.mark.environment
@pytest.mark.parametrize("name", ["convolutional.json", "old_convolutional.pdmodel"])
def test_damaged_graphs_and_missing_weights_are_source_errors(
    worker: Worker, made: Path, tmp_path: Path, name: str
) -> None:
    format = "paddle/pir" if name.endswith(".json") else "paddle/program"
    whole = made / name
    path = tmp_path / name
    asked = source(path, format)

    def expect(message: str) -> None:
        with pytest.raises(SourceError, match=message):
            convert(worker, asked, tmp_path / "out.onnx")
        with pytest.raises(SourceError, match=message):
            worker.open(ReferenceRequest(source=asked))

    shutil.copy(whole, path)
    expect(r"the parameters of .* are missing")
    shutil.copy(whole.with_suffix(".pdiparams"), path.with_suffix(".pdiparams"))
    for content, message in (
        (b"", "is empty"),
        (whole.read_bytes()[: whole.stat().st_size // 2], "is no PIR program|Paddle cannot read"),
        (b"a text file, not a model\n" * 9, "is no PIR program|Paddle cannot read"),
    ):
        path.write_bytes(content)
        expect(message)
    assert sorted(item.suffix for item in tmp_path.iterdir()) == sorted([path.suffix, ".pdiparams"])
    shutil.copy(whole, path)
    assert convert(worker, asked, tmp_path / "out.onnx").opset == 17


@pytest.mark.environment
def test_the_reference_passes_on_what_paddle_rejects(worker: Worker, made: Path) -> None:
    session = worker.open(
        ReferenceRequest(source=source(made / "fixed_head.json", "paddle/pir"), threads=1)
    )
    with pytest.raises(PluginError):
        session.run({"image": np.zeros((1, 1, 64, 64), np.float32)})
    session.close()
