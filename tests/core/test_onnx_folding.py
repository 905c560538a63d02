"""Constants folded by ONNX Runtime: the values stay, and so does the model that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit import onnx_folding
from deploykit.errors import UnsupportedError
from deploykit.onnx_folding import fold


def model(operator: str = "Transpose", domain: str = "") -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "w")
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["w"], ["turned"], domain=domain),
            helper.make_node("MatMul", ["x", "turned"], ["y"]),
        ],
        "folding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def outputs(one: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    results: Any = ReferenceEvaluator(one).run(None, feed)
    return results[0]


@pytest.mark.parametrize("large", [1 << 30, 1])
def test_constants_are_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    """Also where the weights go to a file of their own."""
    monkeypatch.setattr(onnx_folding, "LARGE_BYTES", large)
    given = model()
    before = given.SerializeToString()
    folded = onnx.load(fold(given, tmp_path, target="test"))
    assert [node.op_type for node in folded.graph.node] == ["MatMul"]
    after = onnx.ModelProto.FromString(given.SerializeToString())
    assert after.graph.node == onnx.ModelProto.FromString(before).graph.node
    feed: dict[str, Any] = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    expected = outputs(onnx.ModelProto.FromString(before), feed)
    for one in (given, folded):
        np.testing.assert_allclose(outputs(one, feed), expected)


def test_what_it_cannot_take_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="target test has its graph folded"):
        fold(model("Nothing", "example"), tmp_path, target="test")
