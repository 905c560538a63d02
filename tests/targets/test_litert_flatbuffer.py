"""The target litert: real models, sizes, layouts, files, and what it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

import deploykit
from deploykit import plugins
from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.protocol import Availability, CompileRequest, CompileResult, Hardware, Signature
from deploykit.steps import Worker
from tests.targets.litert_worker import (
    Array,
    Feed,
    Litert,
    Nodes,
    assert_close,
    by_onnxruntime,
    model_of,
    network,
    normal,
)

pytest_plugins = ["tests.targets.litert_fixtures"]
pytestmark = pytest.mark.environment

SMALL = "onnx/ultraface_slim320_simplified/version-slim-320_simplified.onnx"


def kinds(litert: Litert) -> dict[str, int]:
    """Return how often each operator is in the file compiled last, by our own reader."""
    reading = deploykit.inspect(Path(litert.request.payload) / "model.tflite")
    return dict(reading.operators)


def golden(folder: Path) -> tuple[Path, Feed, list[Array]]:
    """Return a shared model, and the inputs and outputs that its framework computed."""
    path = next(folder.glob("*.onnx"))
    session = onnxruntime.InferenceSession(path)
    held = np.load(folder / "golden.npz")

    def named(kind: str, name: str) -> Array:
        plain = name.replace(":", "_").replace("/", "_").replace(".", "_")
        found: Array = next(
            held[key] for key in (f"{kind}_{name}", f"{kind}_{plain}") if key in held.files
        )
        return found

    inputs = {value.name: named("in", value.name) for value in session.get_inputs()}
    return path, inputs, [named("out", value.name) for value in session.get_outputs()]


@pytest.mark.parametrize(
    "name",
    [
        "dtln_1",
        "espcn_x3_nnresize_float",
        "mnist_conv_o8",
        "optimum_tiny_bert",
        "ultraface_rfb320",
        "ultraface_slim320_simplified",
        "xdl_dnn",
    ],
)
def test_a_real_model_gives_its_golden_outputs(
    litert: Litert, shared_models: Path, name: str
) -> None:
    path, feed, wanted = golden(shared_models / "onnx" / name)
    result = litert.compile(path)
    assert result.portable
    (found,) = litert.run(feed)
    assert list(found) == [spec.name for spec in result.signature.outputs]
    assert_close(found, wanted, tolerance=1e-4)


def test_control_flow_is_refused_with_its_node(litert: Litert, shared_models: Path) -> None:
    with pytest.raises(UnsupportedError, match="If_0") as raised:
        litert.compile(shared_models / "onnx/silero_vad_v5/silero_vad.onnx")
    assert "If" in raised.value.operators


@pytest.mark.parametrize(
    ("nodes", "feed", "weights", "said"),
    [
        (
            [("MaxPool", ["x"], ["y"], {"kernel_shape": [2], "dilations": [2]})],
            (1, 2, 9),
            {},
            "dilated",
        ),
        ([("Mod", ["x", "z"], ["y"], {"fmod": 1})], (3,), {"z": np.ones(3, np.float32)}, "fmod"),
        (
            [("TopK", ["x", "k"], ["y", "i"], {"largest": 0})],
            (3,),
            {"k": np.array([1])},
            "smallest",
        ),
        ([("Shrink", ["x"], ["y"], {}), ("Det", ["y"], ["d"], {})], (2, 2), {}, "Det"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(
    litert: Litert, nodes: Nodes, feed: Any, weights: Feed, said: str
) -> None:
    model = model_of(nodes, {"x": normal(*feed)}, [nodes[-1][2][0]], weights)
    with pytest.raises(UnsupportedError, match=said) as raised:
        litert.compile(model)
    assert nodes[-1][0] in raised.value.operators
    assert "litert" in raised.value.message


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_refused(litert: Litert, dtype: Any) -> None:
    model = model_of([("Neg", ["x"], ["y"], {})], {"x": np.ones(3, dtype)}, ["y"])
    with pytest.raises(UnsupportedError, match=np.dtype(dtype).name):
        litert.compile(model)


def test_narrow_integers_are_no_numbers_to_its_kernels(litert: Litert) -> None:
    """An ADD of plain int8 ends the process in LiteRT 2.3: it must not get there."""
    feed = {"x": np.ones(3, np.int8), "z": np.ones(3, np.int8)}
    model = model_of([("Add", ["x", "z"], ["y"], {})], feed, ["y"])
    with pytest.raises(UnsupportedError, match="int8"):
        litert.compile(model)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_precisions_without_effect_are_refused(litert: Litert, precision: str) -> None:
    model = model_of([("Neg", ["x"], ["y"], {})], {"x": normal(3)}, ["y"])
    with pytest.raises(UnsupportedError, match=precision):
        litert.compile(model, precision=precision)


def test_no_model_is_said_in_one_line(litert: Litert, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
    request = CompileRequest(
        model=str(tmp_path / "m.onnx"),
        payload=str(tmp_path),
        signature=Signature(inputs=(), outputs=()),
        device="cpu",
    )
    with pytest.raises(SourceError, match=r"m\.onnx"):
        litert.worker.call("compile", request, CompileResult)


def test_a_damaged_payload_is_refused(litert: Litert) -> None:
    litert.compile(model_of([("Neg", ["x"], ["y"], {})], {"x": normal(3)}, ["y"]))
    path = Path(litert.request.payload) / "model.tflite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnavailableError, match=r"model\.tflite"):
        litert.run({"x": normal(3)})


def test_no_transposition_remains_in_a_model_of_channels_last(litert: Litert) -> None:
    """As TensorFlow's exporters write it: each convolution between two transpositions."""
    first, last = [0, 3, 1, 2], [0, 2, 3, 1]
    nodes: Nodes = [
        ("Transpose", ["x"], ["t1"], {"perm": first}),
        ("Conv", ["t1", "w1"], ["c1"], {"pads": [1, 1, 1, 1]}),
        ("Transpose", ["c1"], ["t2"], {"perm": last}),
        ("Add", ["t2", "b"], ["a"], {}),
        ("Relu", ["a"], ["r"], {}),
        ("Transpose", ["r"], ["t3"], {"perm": first}),
        ("Conv", ["t3", "w2"], ["c2"], {}),
        ("Transpose", ["c2"], ["y"], {"perm": last}),
    ]
    feed = {"x": normal(1, 9, 7, 3)}
    weights = {"w1": normal(4, 3, 3, 3), "w2": normal(2, 4, 2, 2), "b": normal(4)}
    model = model_of(nodes, feed, ["y"], weights)
    litert.compile(model)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))
    assert kinds(litert) == {"CONV_2D": 2}  # the term has become the bias, the activation is fused


def test_activations_join_the_operator_before_them(litert: Litert) -> None:
    model, feed = network(batch=None)
    litert.compile(model)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))
    assert "RELU" not in kinds(litert)


def test_an_activation_does_not_join_what_others_read(litert: Litert) -> None:
    nodes: Nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("Reshape", ["c", "same"], ["d"], {}),
        ("Relu", ["d"], ["r"], {}),
        ("Sub", ["c", "r"], ["y"], {}),
    ]
    feed = {"x": normal(1, 2, 4, 4)}
    model = model_of(
        nodes, feed, ["y", "r"], {"w": normal(2, 2, 2, 2), "same": np.array([1, 2, 3, 3])}
    )
    litert.compile(model)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))


@pytest.mark.parametrize("form", ["half first", "half last", "by product"])
def test_gelu_written_out_is_one_operator(litert: Litert, form: str) -> None:
    inverse = form == "by product"
    nodes: Nodes = [
        ("Mul" if inverse else "Div", ["x", "inverse" if inverse else "root"], ["d"], {}),
        ("Erf", ["d"], ["e"], {}),
        ("Add", ["e", "one"], ["p"], {}),
    ]
    if form == "half first":
        nodes += [("Mul", ["x", "half"], ["h"], {}), ("Mul", ["h", "p"], ["y"], {})]
    else:
        nodes += [("Mul", ["x", "p"], ["m"], {}), ("Mul", ["m", "half"], ["y"], {})]
    numbers = {"root": 2**0.5, "inverse": 0.5**0.5, "one": 1.0, "half": 0.5}
    used = {name for node in nodes for name in node[1]}
    weights = {n: np.array(v, np.float32) for n, v in numbers.items() if n in used}
    feed = {"x": normal(3, 40) * 2}
    model = model_of(nodes, feed, ["y"], weights)
    litert.compile(model)
    assert kinds(litert) == {"GELU": 1}
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))


def test_what_is_no_gelu_stays_what_it_is(litert: Litert) -> None:
    nodes: Nodes = [
        ("Div", ["x", "root"], ["d"], {}),
        ("Erf", ["d"], ["e"], {}),
        ("Add", ["e", "one"], ["p"], {}),
        ("Mul", ["z", "p"], ["m"], {}),
        ("Mul", ["m", "half"], ["y"], {}),
    ]
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    weights = {name: np.array(value, np.float32) for name, value in numbers.items()}
    feed = {"x": normal(3, 4), "z": normal(3, 4)}
    model = model_of(nodes, feed, ["y"], weights)
    litert.compile(model)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))


def test_outputs_of_every_kind(litert: Litert) -> None:
    """An input, a constant, one tensor under two names, a scalar, and strange names."""
    nodes: Nodes = [
        ("Identity", ["a/b:0"], ["same"], {}),
        ("Neg", ["a/b:0"], ["n"], {}),
        ("Identity", ["n"], ["n again"], {}),
        ("Constant", [], ["c"], {"value_floats": [1.0, 2.0]}),
        ("ReduceSum", ["n"], ["total"], {"keepdims": 0}),
    ]
    feed = {"a/b:0": normal(2, 3), "unread": normal(4)}
    model = model_of(nodes, feed, ["total", "n again", "c", "same", "n"])
    litert.compile(model)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))


def test_half_the_size_with_weights_of_float16(litert: Litert) -> None:
    feed = {"x": normal(4, 300)}
    model = model_of([("MatMul", ["x", "w"], ["y"], {})], feed, ["y"], {"w": normal(300, 200)})
    sizes = {}
    for stored in ("float32", "float16"):
        result = litert.compile(model, settings={"weights": stored})
        sizes[stored] = (Path(litert.request.payload) / "model.tflite").stat().st_size
        tolerance = 1e-5 if stored == "float32" else 2e-3
        assert_close(litert.run(feed)[0], by_onnxruntime(model, feed), tolerance=tolerance)
    assert any("float16" in note for note in result.notes)
    assert sizes["float16"] < 0.6 * sizes["float32"]


def test_the_kernels_without_a_delegate_agree(litert: Litert) -> None:
    model, feed = network(batch=None)
    result = litert.compile(model, settings={"delegate": "none"})
    assert result.settings["delegate"] == "none"
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))


def test_the_file_is_for_every_machine(litert: Litert) -> None:
    model, _ = network(batch=None)
    contents = []
    for hardware in (None, Hardware(name="board", triple="aarch64-linux-gnu")):
        litert.compile(model, hardware=hardware)
        contents.append((Path(litert.request.payload) / "model.tflite").read_bytes())
    assert contents[0] == contents[1]


def test_an_application_finds_inputs_and_outputs_by_their_onnx_names(
    litert: Litert, litert_python: Path, tmp_path: Path
) -> None:
    model, feed = network(batch=None)
    litert.compile(model)
    np.save(tmp_path / "x.npy", feed["x"])
    code = (
        "import sys, numpy\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        "run = Interpreter(sys.argv[1]).get_signature_runner('serving_default')\n"
        "numpy.save(sys.argv[3], run(x=numpy.load(sys.argv[2]))['y'])\n"
    )
    file = Path(litert.request.payload) / "model.tflite"
    arguments = [str(file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([litert_python, "-c", code, *arguments], check=True, timeout=120)
    assert_close({"y": np.load(tmp_path / "y.npy")}, by_onnxruntime(model, feed))


def test_our_own_reader_reads_what_we_write(litert: Litert, tmp_path: Path) -> None:
    """ONNX to TensorFlow Lite and back, by a reader that was written apart from the writer."""
    model, feed = network(batch=None)
    litert.compile(model)
    file = Path(litert.request.payload) / "model.tflite"
    back = tmp_path / "back.onnx"
    deploykit.convert(file, back)
    assert_close({"y": by_onnxruntime(back, feed)[0]}, by_onnxruntime(model, feed))


def test_a_bundle_from_the_library(shared_models: Path, tmp_path: Path) -> None:
    made = deploykit.compile(shared_models / SMALL, ["litert"], tmp_path / "out")
    (bundle,) = made.bundles
    assert bundle.outcome.kind == "ok", bundle.outcome
    assert bundle.folder is not None
    deploykit.verify(bundle.folder)  # raises where the outputs are others


def test_the_probe_says_what_it_runs_on(litert_python: Path) -> None:
    with Worker(plugins.target("litert"), python=litert_python, label="litert") as worker:
        (found,) = worker.call("probe", None, tuple[Availability, ...])
    assert found.available
    assert found.versions["ai-edge-litert"]


def test_types_of_the_file_are_those_of_the_model(litert: Litert) -> None:
    nodes: Nodes = [("Cast", ["x"], ["y"], {"to": TensorProto.INT32}), ("Not", ["b"], ["z"], {})]
    feed = {"x": np.arange(6).reshape(2, 3), "b": np.array([True, False])}
    litert.compile(model_of(nodes, feed, ["y", "z"]))
    signature = deploykit.inspect(Path(litert.request.payload) / "model.tflite").signature
    assert signature is not None
    assert [str(spec) for spec in signature.inputs] == ["x:int64[2,3]", "b:bool[2]"]
    assert [str(spec) for spec in signature.outputs] == ["y:int32[2,3]", "z:bool[2]"]
