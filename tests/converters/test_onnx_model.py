"""ONNX in, ONNX out: same values, safer file."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import onnx_opset, plugins
from deploykit.errors import (
    DeploykitError,
    OutputError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    DynamicAxis,
    ReferenceRequest,
    Session,
    Source,
    TensorSpec,
)
from deploykit.steps import Worker

PACKAGE = "deploykit._plugins.converters.onnx_model"
plugin = importlib.import_module(f"{PACKAGE}.plugin")
reading = importlib.import_module(f"{PACKAGE}.reading")

writing = importlib.import_module(f"{PACKAGE}.writing")

SHARED = (
    "dtln_1",
    "espcn_x3_nnresize_float",
    "mnist_conv_o8",
    "optimum_tiny_bert",
    "silero_vad_v5",
    "ultraface_rfb320",
    "ultraface_slim320_simplified",
    "xdl_dnn",
)


def source(path: Path, *inputs: TensorSpec) -> Source:
    return Source(location=str(path), format="onnx", inputs=inputs)


def convert(path: Path, output: Path, *inputs: TensorSpec, **options: Any) -> ConvertResult:
    request = ConvertRequest(source=source(path, *inputs), output=str(output), **options)
    result: ConvertResult = plugin.convert(request)
    onnx.checker.check_model(os.fspath(output), full_check=True)
    return result


def open_reference(path: Path, *inputs: TensorSpec, threads: int | None = 1) -> Session:
    session: Session = plugin.reference(
        ReferenceRequest(source=source(path, *inputs), threads=threads)
    )
    return session


def spec(name: str, *shape: int | str | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def save(path: Path, graph: onnx.GraphProto, *, opset: int = 18, **options: Any) -> Path:
    options.setdefault("ir_version", 9)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **options)
    path.write_bytes(model.SerializeToString())
    return path


def value(name: str, *shape: int | str | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize("name", SHARED)
def test_shared_models_keep_their_outputs(shared_models: Path, tmp_path: Path, name: str) -> None:
    folder = shared_models / "onnx" / name
    (path,) = folder.glob("*.onnx")
    output = tmp_path / "out.onnx"
    result = convert(path, output)
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]
    with np.load(folder / "golden.npz") as golden:
        feed = {tensor: golden[f"in_{key}"] for key, tensor in names["in"].items()}
        expected = {tensor: golden[f"out_{key}"] for key, tensor in names["out"].items()}
    assert {tensor.name for tensor in result.signature.inputs} == set(feed)
    assert result.opset >= onnx_opset.OLDEST_LEFT_ALONE
    for location in (path, output):
        session = open_reference(location)
        outputs = session.run(feed)
        session.close()
        for tensor, wanted in expected.items():
            np.testing.assert_allclose(outputs[tensor], wanted, rtol=1e-5, atol=1e-6)
    constants = {t.name for t in onnx.load(output).graph.initializer}
    assert not constants & {v.name for v in onnx.load(output).graph.input}


def test_models_before_onnx_1_0_are_rejected_with_the_reason(
    shared_models: Path, tmp_path: Path
) -> None:
    path = shared_models / "onnx" / "dl4j_sm_cnn" / "sm_cnn.onnx"
    for function in (lambda: convert(path, tmp_path / "out.onnx"), lambda: open_reference(path)):
        with pytest.raises(
            UnsupportedError, match=r"older than ONNX 1\.0 \(IR version 1, no operator"
        ):
            function()
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# a text file, not a model\n" * 20, "is no ONNX model"),
        (bytes(range(256)) * 8, "is no ONNX model"),
        (b"\x08\x09", "it has no graph"),
    ],
)
def test_what_is_no_model_is_a_source_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        convert(path, tmp_path / "out.onnx")


def test_a_truncated_model_is_a_source_error(small_onnx: Path, tmp_path: Path) -> None:
    content = small_onnx.read_bytes()
    path = tmp_path / "short.onnx"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match="is no ONNX model"):
        convert(path, tmp_path / "out.onnx")


def test_a_folder_needs_exactly_one_model(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "a.onnx").write_bytes(small_onnx.read_bytes())
    assert convert(tmp_path, tmp_path / "out").opset == 18
    (tmp_path / "b.onnx").write_bytes(small_onnx.read_bytes())
    with pytest.raises(SourceError, match=r"`a\.onnx`, `b\.onnx`"):
        convert(tmp_path, tmp_path / "out")


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with 4 KB of weights in `model/weights.bin`."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = np.arange(1024, dtype=np.float32).reshape(32, 32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "external",
        [value("x", "batch", 32)],
        [value("y", "batch", 32)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return folder / "model.onnx"


def redirect(path: Path, **entries: str) -> None:
    """Change where the model at `path` says its first tensor lies."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())


def test_external_data_come_along(external: Path, tmp_path: Path) -> None:
    feed = {"x": np.eye(32, dtype=np.float32)[:3]}
    expected = np.arange(96, dtype=np.float32).reshape(3, 32)
    convert(external, tmp_path / "inside.onnx")
    model = reading.read(str(external))
    signature = writing.write(model, tmp_path / "beside.onnx", largest=1000)
    assert signature.outputs == (spec("y", "batch", 32),)
    assert (tmp_path / "beside.onnx.data").stat().st_size >= 4096
    assert (tmp_path / "beside.onnx").stat().st_size < 1000
    (external.parent / "weights.bin").unlink()
    for name in ("inside.onnx", "beside.onnx"):
        assert np.array_equal(open_reference(tmp_path / name).run(feed)["y"], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "beside.onnx",
        "beside.onnx.data",
        "inside.onnx",
        "model",
    ]


def test_weights_beside_an_input_of_another_size(external: Path) -> None:
    session = open_reference(external, spec("x", 2, 32))
    assert session.inputs == (spec("x", 2, 32),)
    assert session.run({"x": np.ones((2, 32), np.float32)})["y"].shape == (2, 32)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "", "link.bin"])
def test_external_data_outside_of_the_folder_are_refused(external: Path, location: str) -> None:
    (external.parent.parent / "secret.bin").write_bytes(bytes(4096))
    (external.parent / "link.bin").symlink_to("../secret.bin")
    redirect(external, location=location)
    functions: tuple[Callable[[], object], ...] = (
        lambda: plugin.inspect(source(external)),
        lambda: convert(external, external.with_name("out")),
        lambda: open_reference(external),
    )
    for function in functions:
        with pytest.raises(SourceError, match="outside of the model's folder"):
            function()
    assert not external.with_name("out").exists()


def test_missing_and_short_external_data_are_source_errors(external: Path) -> None:
    weights = external.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(
        SourceError, match=r"needs bytes 0 to 4096 of `weights\.bin`, which has 100"
    ):
        convert(external, external.with_name("out.onnx"))
    weights.unlink()
    with pytest.raises(SourceError, match=r"`weights\.bin`, which is missing"):
        convert(external, external.with_name("out.onnx"))


def test_what_old_exporters_leave_is_mended(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["product", "b"], ["y"], name="same"),
        helper.make_node("MatMul", ["x", "w"], ["product"], name="same"),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "messy",
        [value("x", -1, 4), value("w", 4, 3), value("b", 3)],
        [value("z", -1, 3)],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.ones(3, np.float32), "b"),
            numpy_helper.from_array(np.ones(7, np.float32), "forgotten"),
        ],
        value_info=[value("product", 9, 99)],
    )
    path = save(tmp_path / "messy.onnx", graph, ir_version=3)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(os.fspath(path), full_check=True)
    result = convert(path, tmp_path / "clean.onnx")
    assert result.signature.inputs == (spec("x", "batch", 4),)
    assert result.signature.outputs == (spec("z", "batch", 3),)
    repairs = " | ".join(result.repairs)
    for repair in (
        "2 initializers removed from the inputs",
        "1 unused initializers",
        "2 sizes of -1",
        "2 nodes moved",
        "2 nodes without a name",
        "1 recorded shapes",
    ):
        assert repair in repairs
    clean = onnx.load(tmp_path / "clean.onnx")
    assert len({node.name for node in clean.graph.node}) == 3
    feed = {"x": np.random.default_rng(2).standard_normal((5, 4)).astype(np.float32)}
    expected = np.maximum(feed["x"] @ weights + 1, 0)
    for location in (path, tmp_path / "clean.onnx"):
        actual = open_reference(location).run(feed)["z"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_invalid_graph_is_a_source_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["nowhere"], ["y"])], "bad", [value("x", 2)], [value("y", 2)]
    )
    path = save(tmp_path / "bad.onnx", graph)
    with pytest.raises(SourceError, match=r"not a valid ONNX model: .*nowhere"):
        convert(path, tmp_path / "out.onnx")
    with pytest.raises(SourceError, match="ONNX Runtime cannot load"):
        open_reference(path)
    assert [item.name for item in tmp_path.iterdir()] == ["bad.onnx"]


def softmax_model(path: Path, opset: int) -> Path:
    """Softmax changed its meaning in opset 13, so a conversion that forgets it gives other values."""
    graph = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"], name="softmax")],
        "old",
        [value("x", 2, 3, 4)],
        [value("y", 2, 3, 4)],
    )
    return save(path, graph, opset=opset, ir_version=6)


@pytest.mark.parametrize(("opset", "asked", "found"), [(9, None, 17), (11, 18, 18), (17, 17, 17)])
def test_the_opset_is_raised_with_the_same_values(
    tmp_path: Path, opset: int, asked: int | None, found: int
) -> None:
    path = softmax_model(tmp_path / "old.onnx", opset)
    result = convert(path, tmp_path / "new.onnx", opset=asked)
    new = onnx.load(tmp_path / "new.onnx")
    assert result.opset == found
    assert [item.version for item in new.opset_import] == [found]
    assert any("brought to" in repair for repair in result.repairs) == (opset != found)
    feed = {"x": np.random.default_rng(3).standard_normal((2, 3, 4)).astype(np.float32)}
    old, changed = (open_reference(p).run(feed)["y"] for p in (path, tmp_path / "new.onnx"))
    np.testing.assert_allclose(changed, old, rtol=1e-6)


def test_recent_models_keep_their_opset(small_onnx: Path, tmp_path: Path) -> None:
    assert convert(small_onnx, tmp_path / "out.onnx").opset == 18


def test_an_opset_out_of_reach_is_named(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no opset 999"):
        convert(small_onnx, tmp_path / "out.onnx", opset=999)
    # a reduction of opset 18 has no meaning in 9
    graph = helper.make_graph(
        [helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=0, reduction="max")],
        "new",
        [value("x", 3), value("i", 3, kind=TensorProto.INT64), value("u", 3)],
        [value("y", 3)],
    )
    path = save(tmp_path / "new.onnx", graph)
    with pytest.raises(UnsupportedError, match="cannot be brought from opset 18 to 9"):
        convert(path, tmp_path / "out.onnx", opset=9)
    assert not (tmp_path / "out.onnx").exists()


def two_inputs(path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Exp", ["sum"], ["y"])],
        "two",
        [value("a", "batch", 4, None), value("b", "batch", 4, 1)],
        [value("y", "batch", 4, None)],
    )
    return save(path, graph)


def test_input_shapes_are_applied(tmp_path: Path) -> None:
    path = two_inputs(tmp_path / "two.onnx")
    output = tmp_path / "out.onnx"
    fixed = convert(path, output, spec("a", 2, 4, 5))
    assert fixed.signature.inputs == (spec("a", 2, 4, 5), spec("b", 2, 4, 1))
    assert fixed.signature.outputs == (spec("y", 2, 4, 5),)
    named = convert(path, output, spec("a", "n", 4, "time"))
    assert named.signature.inputs[0] == spec("a", "n", 4, "time")
    assert named.signature.outputs[0].shape is not None
    assert named.signature.outputs[0].shape[2] == "time"
    assert plugin.inspect(source(path, spec("a", 2, 4, 5))).inputs == fixed.signature.inputs


def test_fixed_axes_become_dynamic(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "fixed", [value("x", 1, 4)], [value("y", 1, 4)]
    )
    path = save(tmp_path / "fixed.onnx", graph)
    result = convert(
        path, tmp_path / "out.onnx", dynamic=(DynamicAxis(input="x", axis=0, name="batch"),)
    )
    assert result.signature.inputs == (spec("x", "batch", 4),)
    assert result.signature.outputs == (spec("y", "batch", 4),)
    feed = {"x": -np.ones((3, 4), np.float32)}
    assert not open_reference(tmp_path / "out.onnx").run(feed)["y"].any()


@pytest.mark.parametrize(
    ("inputs", "dynamic", "message"),
    [
        ([spec("aa", 1)], [], 'no input "aa"'),
        ([spec("a", 1, 4, 1, dtype="int64")], [], "is float32 in the model, not int64"),
        ([spec("a", 1, 4)], [], "has 3 axes in the model"),
        ([spec("a", 2, 4, 1), spec("b", 3, 4, 1)], [], "cannot be both 2 and 3"),
        ([], [DynamicAxis(input="c", axis=0, name="n")], 'no input "c"'),
        ([], [DynamicAxis(input="a", axis=3, name="n")], "no axis 3"),
    ],
)
def test_inputs_that_do_not_fit_are_usage_errors(
    tmp_path: Path, inputs: list[TensorSpec], dynamic: list[DynamicAxis], message: str
) -> None:
    path = two_inputs(tmp_path / "two.onnx")
    with pytest.raises(UsageError, match=message):
        convert(path, tmp_path / "out.onnx", *inputs, dynamic=tuple(dynamic))


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])], "list", [value("x", 2)], [sequence]
    )
    path = save(tmp_path / "list.onnx", graph)
    with pytest.raises(UnsupportedError, match="`y` is no tensor but a sequence"):
        convert(path, tmp_path / "out.onnx")


def test_the_reference_optimises_nothing_and_honours_threads(small_onnx: Path) -> None:
    import onnxruntime

    session: Any = open_reference(small_onnx, threads=2)
    options = session._session.get_session_options()
    disabled = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.graph_optimization_level == disabled
    assert options.intra_op_num_threads == 2


def test_bound_runs_repeat_the_same_values(small_onnx: Path) -> None:
    session = open_reference(small_onnx)
    feed = {"x": np.random.default_rng(4).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    bound = session.bind(feed)
    for _ in range(3):
        bound()
    assert np.array_equal(bound.outputs()["y"], session.run(feed)["y"])


def test_strings_go_through(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("StringConcat", ["a", "b"], ["y"])],
        "words",
        [value("a", "n", kind=TensorProto.STRING), value("b", "n", kind=TensorProto.STRING)],
        [value("y", "n", kind=TensorProto.STRING)],
    )
    path = save(tmp_path / "words.onnx", graph, opset=20)
    result = convert(path, tmp_path / "out.onnx")
    assert result.signature.inputs[0] == spec("a", "n", dtype="string")
    session = open_reference(tmp_path / "out.onnx")
    feed = {"a": np.array(["deploy", "x"], object), "b": np.array(["kit", "y"], object)}
    bound = session.bind(feed)
    bound()
    assert bound.outputs()["y"].tolist() == session.run(feed)["y"].tolist() == ["deploykit", "xy"]


def test_an_unwritable_output_leaves_nothing(small_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        convert(small_onnx, tmp_path / "absent" / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_there_are_no_settings(small_onnx: Path) -> None:
    asked = Source(location=str(small_onnx), format="onnx", options={"speed": "yes"})
    functions: tuple[Callable[[], object], ...] = (
        lambda: plugin.inspect(asked),
        lambda: plugin.convert(ConvertRequest(source=asked, output="unused.onnx")),
        lambda: plugin.reference(ReferenceRequest(source=asked)),
    )
    for function in functions:
        with pytest.raises(DeploykitError, match="no setting `speed`"):
            function()


def test_it_works_in_a_worker(small_onnx: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with Worker(plugins.converter("onnx"), python=Path(sys.executable), label="test") as worker:
        request = ConvertRequest(source=source(small_onnx), output=str(output))
        result = worker.call("convert", request, ConvertResult)
        session = worker.open(ReferenceRequest(source=source(output), threads=1))
        outputs = session.run({"x": np.zeros((2, 3, 8, 8), np.float32)})
    assert result.signature.outputs == session.signature.outputs == (spec("y", "batch", 5),)
    assert outputs["y"].shape == (2, 5)
