"""The clean-up after conversion: fewer nodes, the same outputs, and nothing that carries meaning lost."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import deploykit._plugins  # noqa: F401  the namespace of plugins

tidying = importlib.import_module("deploykit._plugins.converters.onnx_model.tidying")

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 3])


def model(
    nodes: list[onnx.NodeProto],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    inputs: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [X],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def same_outputs(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    random = np.random.default_rng(0)
    feed = {"x": random.standard_normal((4, 2, 3)).astype(np.float32)}
    found = [
        onnxruntime.InferenceSession(
            one.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, feed)
        for one in (before, after)
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loop_keeps_an_output_for_each_of_its_values() -> None:
    """A state that is also the step's output: ONNX Runtime miscomputes one value given out twice."""
    kind = TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Add", ["s", "v"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["next"]),
            helper.make_node("Identity", ["sum"], ["shown"]),
        ],
        "step",
        [helper.make_tensor_value_info(name, kind, [3]) for name in ("s", "v")],
        [helper.make_tensor_value_info(name, kind, [3]) for name in ("next", "shown")],
    )
    scan = helper.make_node("Scan", ["zero", "rows"], ["last", "y"], body=body, num_scan_inputs=1)
    join = helper.make_node("Reshape", ["x", "flat"], ["rows"])
    constants = {"zero": np.zeros(3, np.float32), "flat": np.array([-1, 3])}
    before = model([join, scan], ["y"], constants)
    after = tidied(before)
    (loop,) = [node for node in after.graph.node if node.op_type == "Scan"]
    (inner,) = [attribute.g for attribute in loop.attribute if attribute.HasField("g")]
    assert len({value.name for value in inner.output}) == 2


def tidied(before: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(before.SerializeToString())
    after, _ = tidying.tidy(copy)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(after), full_check=True)
    assert [value.name for value in after.graph.output] == [v.name for v in before.graph.output]
    same_outputs(before, after)
    result: onnx.ModelProto = after
    return result


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    before = model(
        [
            helper.make_node("Mul", ["a", "b"], ["ab"]),
            helper.make_node("Exp", ["ab"], ["e"]),
            helper.make_node("Add", ["x", "e"], ["y"]),
        ],
        ["y"],
        {"a": np.ones(3, np.float32), "b": np.full(3, 2, np.float32)},
    )
    assert operators(tidied(before)) == ["Add"]


def test_transposes_that_cancel_go_and_others_merge() -> None:
    before = model(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
            helper.make_node("Relu", ["u"], ["r"]),
            helper.make_node("Transpose", ["r"], ["v"], perm=[1, 2, 0]),
            helper.make_node("Transpose", ["v"], ["y"], perm=[1, 0, 2]),
        ],
        ["y"],
    )
    after = tidied(before)
    assert operators(after) == ["Relu", "Transpose"]
    assert list(after.graph.node[1].attribute[0].ints) == [2, 1, 0]


def test_a_transpose_that_is_also_needed_by_others_stays_for_them() -> None:
    before = model(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
            helper.make_node("Add", ["u", "x"], ["y"]),
            helper.make_node("Relu", ["t"], ["z"]),
        ],
        ["y", "z"],
    )
    assert sorted(operators(tidied(before))) == ["Add", "Relu", "Transpose"]


def test_identities_double_and_dead_nodes_go() -> None:
    before = model(
        [
            helper.make_node("Identity", ["x"], ["i"]),
            helper.make_node("Relu", ["i"], ["a"]),
            helper.make_node("Relu", ["x"], ["b"]),
            helper.make_node("Neg", ["x"], ["dead"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        ["y"],
    )
    assert operators(tidied(before)) == ["Relu", "Add"]


def test_a_shape_is_folded_only_where_every_size_is_fixed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["all"]),
        helper.make_node("Shape", ["x"], ["inner"], start=1),
        helper.make_node("Reshape", ["x", "all"], ["r"]),
        helper.make_node("Expand", ["r", "inner"], ["y"]),
    ]
    assert operators(tidied(model(nodes, ["y"]))) == ["Shape", "Reshape", "Expand"]


def test_quantisation_and_chance_stay_where_they_are() -> None:
    before = model(
        [
            helper.make_node("QuantizeLinear", ["w", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
            helper.make_node("RandomUniform", [], ["r1"], shape=[3], seed=1.0),
            helper.make_node("RandomUniform", [], ["r2"], shape=[3], seed=1.0),
            helper.make_node("Sub", ["r1", "r2"], ["zero"]),
            helper.make_node("Add", ["x", "d"], ["xd"]),
            helper.make_node("Add", ["xd", "zero"], ["y"]),
        ],
        ["y"],
        {"w": np.ones(3, np.float32), "s": np.array(0.5, np.float32)},
    )
    after, _ = tidying.tidy(before)
    assert operators(after).count("RandomUniform") == 2
    assert "QuantizeLinear" in operators(after)


def test_a_small_recipe_for_a_huge_constant_stays_a_recipe() -> None:
    before = model(
        [
            helper.make_node("Expand", ["one", "sizes"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0),
            helper.make_node("Add", ["x", "total"], ["y"]),
        ],
        ["y"],
        {"one": np.ones(1, np.float32), "sizes": np.array([1 << 20, 1 << 8], np.int64)},
    )
    after, _ = tidying.tidy(before)
    assert operators(after)[0] == "Expand"


def test_an_output_that_is_a_constant_keeps_its_name() -> None:
    before = model(
        [helper.make_node("Neg", ["a"], ["c"]), helper.make_node("Relu", ["x"], ["y"])],
        ["c", "y"],
        {"a": np.ones(2, np.float32)},
    )
    assert operators(tidied(before)) == ["Neg", "Relu"]


@pytest.mark.parametrize(
    "folder", ["optimum_tiny_bert", "ultraface_rfb320", "espcn_x3_nnresize_float", "dtln_1"]
)
def test_real_models_compute_the_same_and_never_grow(shared_models: Path, folder: str) -> None:
    (path,) = sorted((shared_models / "onnx" / folder).glob("*.onnx"))
    before = onnx.load(path)
    count = len(before.graph.node)
    after, lines = tidying.tidy(onnx.load(path))
    assert len(after.graph.node) <= count
    assert bool(lines) == (len(after.graph.node) != count)
    names = json.loads((path.parent / "golden.json").read_text())["tensor_names"]["in"]
    golden = np.load(path.parent / "golden.npz")
    feed = {name: golden[f"in_{key}"] for key, name in names.items()}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found = [
        onnxruntime.InferenceSession(
            one.SerializeToString(), options, providers=["CPUExecutionProvider"]
        ).run(None, feed)
        for one in (before, after)
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_branch_that_gives_an_outer_value_stays_valid() -> None:
    """An outer value cannot be the output of a body: the Identity between them has to stay."""

    def branch(name: str, source: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Identity", [source], [f"{name}_out"], name=name)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 2, 3])],
        )

    before = model(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Abs", ["same"], ["abs"]),
            helper.make_node("Neg", ["same"], ["neg"]),
            helper.make_node(
                "If",
                ["flag"],
                ["y"],
                then_branch=branch("then", "abs"),
                else_branch=branch("else", "neg"),
            ),
            helper.make_node("Exp", ["neg"], ["dead"]),
        ],
        ["y"],
        {"flag": np.array(True)},
    )
    after = tidied(before)
    assert "Exp" not in operators(after)
    assert "If" in operators(after)


@pytest.mark.parametrize("first", ["Neg", "Identity"])
def test_outputs_of_one_value_keep_their_names(first: str) -> None:
    before = model(
        [
            helper.make_node(first, ["x"], ["y"]),
            helper.make_node(first, ["x"], ["z"]),
            helper.make_node("Identity", ["y"], ["w"]),
        ],
        ["y", "z", "w"],
    )
    after = tidied(before)
    assert [value.name for value in after.graph.output] == ["y", "z", "w"]


def test_constants_that_numpy_lacks_or_onnx_runtime_cannot_compute_stay() -> None:
    bfloat16 = model(
        [
            helper.make_node("Cast", ["k"], ["short"], to=TensorProto.BFLOAT16),
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Cast", ["short"], ["back"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "back"], ["y"]),
        ],
        ["y"],
        {"k": np.array([0.1, 0.2, 0.3], np.float32)},
    )
    assert "Cast" in operators(tidied(bfloat16))
    # ONNX Runtime has no kernel of Erf for double
    lacking = model(
        [
            helper.make_node("Erf", ["k"], ["error"]),
            helper.make_node("Cast", ["error"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "number"], ["y"]),
        ],
        ["y"],
        {"k": np.array([1.0, 2.0, 3.0])},
    )
    assert operators(tidying.tidy(lacking)[0]) == ["Erf", "Cast", "Add"]
