"""Graphs built layer by layer come out valid, under the source's names, and compute what was meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from deploykit.graph_building import GraphBuilder, finish
from deploykit.protocol import ConvertRequest, Source


def run(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed))


def model_of(build: GraphBuilder) -> onnx.ModelProto:
    model, weights = build.model()
    assert not weights
    return model


def request(output: Path, opset: int | None = None) -> ConvertRequest:
    return ConvertRequest(source=Source(location="/x", format="x"), output=str(output), opset=opset)


def test_nodes_carry_the_layer_that_made_them() -> None:
    build = GraphBuilder("net")
    x = build.input("x", "float32", ["batch", 2])
    with build.layer("dense1"):
        y = build.add("MatMul", x, build.constant(np.eye(2, dtype=np.float32)))
        y = build.add("Relu", y)
    build.output("y", y, "float32", ["batch", 2])
    model = model_of(build)
    assert [node.name for node in model.graph.node] == ["dense1/MatMul", "dense1/Relu"]
    assert model.graph.node[-1].output == ["y"]
    (out,) = run(model, x=np.array([[1, -2]], np.float32))
    np.testing.assert_array_equal(out, [[1, 0]])


def test_an_output_may_be_called_like_an_inner_value_an_input_or_another_output() -> None:
    build = GraphBuilder("net")
    x = build.input("x", "float32", [2])
    a = build.add("Neg", x, name="a")
    b = build.add("Neg", a, name="b")
    build.output("b", a, "float32", [2])  # the name of another inner value
    build.output("same", x, "float32", [2])  # an input as it is
    build.output("again", a, "float32", [2])  # one value twice
    build.output("c", b, "float32", [2])
    one = np.array([1, 2], np.float32)
    b_out, same, again, c = run(model_of(build), x=one)
    np.testing.assert_array_equal(b_out, -one)
    np.testing.assert_array_equal(same, one)
    np.testing.assert_array_equal(again, -one)
    np.testing.assert_array_equal(c, one)


def test_swapped_output_names_stay_apart() -> None:
    build = GraphBuilder("net")
    x = build.input("x", "float32", [1])
    a = build.add("Neg", x, name="a")
    b = build.add("Abs", x, name="b")
    build.output("a", b, "float32", [1])
    build.output("b", a, "float32", [1])
    first, second = run(model_of(build), x=np.array([-3], np.float32))
    assert (first[0], second[0]) == (3, 3)
    first, second = run(model_of(build), x=np.array([3], np.float32))
    assert (first[0], second[0]) == (3, -3)


def test_unused_constants_are_not_written() -> None:
    build = GraphBuilder("net")
    x = build.input("x", "float32", [1])
    build.constant(np.zeros(1000, np.float32), "unused")
    build.output("y", build.add("Neg", x), "float32")
    assert not model_of(build).graph.initializer


def test_finish_reaches_the_opset_asked_for(tmp_path: Path) -> None:
    build = GraphBuilder("net")
    x = build.input("x", "float32", ["batch", 3])
    build.output("y", build.add("ReduceMean", x, axes=[1], keepdims=0), "float32", ["batch"])
    result = finish(build, request(tmp_path / "m.onnx", opset=18))
    assert result.opset == 18
    assert result.signature.outputs[0].shape == ("batch",)
    (out,) = run(onnx.load(tmp_path / "m.onnx"), x=np.ones((2, 3), np.float32))
    np.testing.assert_allclose(out, [1, 1])


def test_large_weights_lie_beside_the_file_and_runtimes_find_them(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    values = np.random.default_rng(0).standard_normal((256, 300)).astype(np.float32)
    values.tofile(path)
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(256, 300))
    build = GraphBuilder("net")
    x = build.input("x", "float32", ["batch", 256])
    y = build.add("MatMul", x, build.constant(mapped, "w"))
    small = build.constant(np.arange(300, dtype=np.float32), "b")
    build.output("y", build.add("Add", y, small), "float32")
    result = finish(build, request(tmp_path / "m.onnx", opset=18), largest=10_000)
    assert result.signature.outputs[0].shape == ("batch", 300)
    assert (tmp_path / "m.onnx").stat().st_size < 10_000
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "m.onnx",
        "m.onnx.data",
        "weights.bin",
    ]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    one = np.ones((2, 256), np.float32)
    (found,) = session.run(None, {"x": one})
    np.testing.assert_allclose(found, one @ values + np.arange(300), rtol=1e-4, atol=1e-4)


def test_the_body_of_a_loop_is_collected_apart() -> None:
    builder = GraphBuilder("g")
    x = builder.input("x", "float32", ("time", 2))
    one = builder.constant(1.0)
    with builder.body() as nodes:
        total = builder.add("Add", "state", "step")
        shown = builder.add("Add", total, one)
    kind = onnx.TensorProto.FLOAT
    body = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(name, kind, [2]) for name in ("state", "step")],
        [helper.make_tensor_value_info(name, kind, [2]) for name in (total, shown)],
    )
    begin = builder.constant(np.zeros(2, np.float32))
    _, y = builder.add_many("Scan", begin, x, count=2, body=body, num_scan_inputs=1)
    builder.output("y", y, "float32", ("time", 2))
    made, _ = builder.model()
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["Scan"]
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (found,) = session.run(None, {"x": np.array([[1, 2], [3, 4]], np.float32)})
    # the constant of the body lies outside of it
    np.testing.assert_array_equal(found, [[2, 3], [5, 7]])
