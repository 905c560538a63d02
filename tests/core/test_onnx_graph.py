"""What targets do to an ONNX graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.onnx_graph import (
    NUMBERS,
    check_dtypes,
    every_node,
    fixed_inputs,
    read_whole,
    set_inputs,
)
from deploykit.protocol import TensorSpec

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
MASK = TensorSpec(name="mask", dtype="bool", shape=("batch", "length", 4))
FREE = TensorSpec(name="free", dtype="float32", shape=None)


def test_a_named_axis_has_one_size_everywhere() -> None:
    fixed = fixed_inputs((IDS, MASK, FREE), {"ids": (2, 7)})
    assert [spec.shape for spec in fixed] == [(2, 7), (2, 7, 4), None]


def test_an_input_of_unknown_rank_takes_any_shape() -> None:
    assert fixed_inputs((FREE,), {"free": (1, 2, 3)})[0].shape == (1, 2, 3)


def test_a_size_of_minus_one_is_dynamic() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(-1, 540))
    assert fixed_inputs((spec,), {})[0].shape == (None, 540)
    assert fixed_inputs((spec,), {"x": (3, 540)})[0].shape == (3, 540)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"idz": (1, 2)}, "no input `idz`"),
        ({"ids": (1,)}, "has 2 axes, not 1"),
        ({"mask": (1, 2, 5)}, "axis 2"),
        ({"ids": (1, 2), "mask": (3, 2, 4)}, "sizes 1 and 3"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fixed_inputs((IDS, MASK), shapes)


def _model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [value("x", TensorProto.FLOAT, ["n", 3]), value("w", TensorProto.FLOAT, [3, 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)


def test_defaults_that_nobody_named_become_constants() -> None:
    model = _model()
    x = TensorSpec(name="x", dtype="float32", shape=("n", 3))
    assert set_inputs(model, (x,))
    assert [value.name for value in model.graph.input] == ["x"]
    onnx.checker.check_model(model, full_check=True)
    assert not set_inputs(model, (x,))


def test_a_default_that_was_named_stays_an_input() -> None:
    model = _model()
    specs = tuple(
        TensorSpec(name=name, dtype="float32", shape=shape)
        for name, shape in (("x", ("n", 3)), ("w", (3, 3)))
    )
    assert not set_inputs(model, specs)
    assert [value.name for value in model.graph.input] == ["x", "w"]


def test_sizes_reach_the_outputs() -> None:
    model = _model()
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]))
    assert set_inputs(model, (TensorSpec(name="x", dtype="float32", shape=(5, 3)),))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for value in (inferred.graph.input[0], inferred.graph.output[0]):
        assert [size.dim_value for size in value.type.tensor_type.shape.dim] == [5, 3]


def test_nodes_of_branches_are_found() -> None:
    value = helper.make_tensor_value_info

    def branch(inner: str) -> onnx.GraphProto:
        node = helper.make_node(inner, ["x"], [inner])
        return helper.make_graph([node], inner, [], [value(inner, TensorProto.FLOAT, [1])])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("Abs"), else_branch=branch("Neg")
    )
    graph = helper.make_graph(
        [node],
        "graph",
        [value("c", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    assert sorted(each.op_type for each in every_node(graph)) == ["Abs", "If", "Neg"]


def test_element_types_that_a_target_lacks() -> None:
    check_dtypes((IDS, MASK), NUMBERS, target="test")
    words = TensorSpec(name="words", dtype="string", shape=(1,))
    with pytest.raises(
        UnsupportedError, match="target test takes no string tensors: `words"
    ) as raised:
        check_dtypes((IDS, words), NUMBERS, target="test", hint="none")
    assert raised.value.hint == "none"


@pytest.mark.parametrize("content", [b"no model", None])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=r"broken\.onnx"):
        read_whole(str(path))
