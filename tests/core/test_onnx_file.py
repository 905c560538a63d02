"""The last step of a conversion: shapes, names of axes, the check, and a file that is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import onnx_file
from deploykit.errors import OutputError, PluginError


def made(
    rows: str | None = "s0", kind: str = "MatMul", y: list[int] | None = None
) -> onnx.ModelProto:
    """`x` [rows, 3] times a constant [3, 2]; nothing says the shape of `y`."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "weight")
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node(
                    kind, ["x", "weight"], ["y"], name="n", doc_string="/home/me/model.py"
                )
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 30)],
        ir_version=9,
    )


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        ("batch", "x:float32[batch,3]", "y:float32[batch,2]"),
        ("unk__4", "x:float32[x_axis0,3]", "y:float32[y_axis0,2]"),
        (None, "x:float32[x_axis0,3]", "y:float32[y_axis0,2]"),
    ],
)
def test_shapes_are_completed_and_axes_named(
    tmp_path: Path, rows: str | None, inputs: str, outputs: str
) -> None:
    signature = onnx_file.write_model(made(rows), tmp_path / "m.onnx")
    assert [str(spec) for spec in signature.inputs] == [inputs]
    assert [str(spec) for spec in signature.outputs] == [outputs]
    assert onnx_file.signature_of(onnx.load(tmp_path / "m.onnx")) == signature
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_dimensions_are_renamed_inside_expressions() -> None:
    model = made("s0")
    (axis, _) = model.graph.input[0].type.tensor_type.shape.dim
    axis.dim_param = "2*s0 + s01"
    onnx_file.rename_dimensions(model, {"s0": "batch"})
    assert axis.dim_param == "2*batch + s01"


def test_large_weights_lie_beside_the_model(tmp_path: Path) -> None:
    model = made("n")
    big = numpy_helper.from_array(np.ones((3, 800), np.float32), "weight")
    model.graph.initializer[0].CopyFrom(big)
    onnx_file.write_model(model, tmp_path / "m.onnx", largest=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (y,) = session.run(None, {"x": np.ones((2, 3), np.float32)})
    assert np.array_equal(y, np.full((2, 800), 3, np.float32))


def test_what_the_checker_rejects_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"onnx\.checker rejects: .*NoSuch"):
        onnx_file.write_model(made(kind="NoSuch", y=[2, 2]), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        onnx_file.write_model(made(), tmp_path / "none" / "m.onnx")


def test_traces_are_stripped_and_the_opset_is_the_standard_one() -> None:
    model = made()
    assert onnx_file.opset_of(model) == 18
    onnx_file.strip_traces(model)
    assert b"/home/me" not in model.SerializeToString()
