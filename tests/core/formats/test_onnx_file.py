from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import SourceError
from deploykit.formats import inspect
from deploykit.protocol import TensorSpec
from tests.core.formats.protobuf_writer import field


def make(
    path: Path, *, nodes: list[onnx.NodeProto] | None = None, size: int = 12
) -> onnx.ModelProto:
    weights = np.arange(size, dtype=np.float32).reshape(3, -1)
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            # before IR version 4 every initializer was an input too
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, size // 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="us", producer_version="1"
    )
    onnx.save(model, path)
    return model


def test_says_what_is_in_the_graph(tmp_path: Path) -> None:
    # named by content, whatever it is called
    path = tmp_path / "weights.dat"
    make(path)
    found = inspect(path)
    assert found.format == "onnx"
    assert found.framework == "ONNX"
    assert found.location == str(path)
    assert found.signature is not None
    assert found.signature.inputs == (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),)
    assert found.signature.outputs == (TensorSpec(name="y", dtype="float32", shape=None),)
    assert found.operators == {"MatMul": 1}
    assert found.parameters == 12
    assert found.files == {str(path): path.stat().st_size}
    assert found.details["opset"] == "18"
    assert found.details["producer"] == "us 1"


def test_counts_operators_in_branches_and_of_other_domains(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["c"], value=numpy_helper.from_array(np.ones(5, "f4"))
            ),
            helper.make_node("Relu", ["c"], ["r"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, [5])],
    )
    nodes = [
        helper.make_node("If", ["cond"], ["r1"], then_branch=branch, else_branch=branch),
        helper.make_node("Gelu", ["r1"], ["y"], domain="com.microsoft"),
    ]
    make(tmp_path / "m.onnx", nodes=nodes)
    found = inspect(tmp_path / "m.onnx")
    assert found.operators == {"Constant": 2, "Relu": 2, "If": 1, "com.microsoft.Gelu": 1}
    assert found.parameters == 12 + 5 + 5


def test_lists_external_data(tmp_path: Path) -> None:
    model = make(tmp_path / "plain.onnx", size=3000)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.weights", size_threshold=0)
    found = inspect(path)
    assert found.files == {
        str(path): path.stat().st_size,
        str(tmp_path / "m.weights"): (tmp_path / "m.weights").stat().st_size,
    }
    assert found.parameters == 3000


def external(path: Path, location: str, length: int = 4) -> None:
    """Write a model whose weights are elsewhere, as onnx itself would refuse to."""
    data = field(1, "location") + field(2, location)
    size = field(1, "length") + field(2, str(length))
    tensor = field(1, 1) + field(2, 1) + field(8, "w") + field(13, data) + field(13, size)
    node = field(1, "w") + field(2, "y") + field(4, "Relu")
    graph = field(1, node) + field(2, "net") + field(5, tensor + field(14, 1))
    path.write_bytes(field(1, 9) + field(7, graph) + field(8, field(2, 18)))


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "link", "down/w.bin"]
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(b"1234")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "w.bin")
    (folder / "down").symlink_to(tmp_path)
    external(folder / "m.onnx", location)
    with pytest.raises(SourceError, match="outside its own folder") as caught:
        inspect(folder / "m.onnx")
    assert location in caught.value.message


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx", "weights/w.bin")
    with pytest.raises(SourceError, match=r"weights/w\.bin.*missing"):
        inspect(tmp_path / "m.onnx")


def test_truncated_external_data_is_named(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx", "w.bin", length=400)
    (tmp_path / "w.bin").write_bytes(b"1234")
    with pytest.raises(SourceError, match="4 bytes where the model needs 400"):
        inspect(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["w\0.bin", "w" * 5000, "\x1b[31mred"])
def test_strange_names_of_external_data(tmp_path: Path, location: str) -> None:
    external(tmp_path / "m.onnx", location)
    with pytest.raises(SourceError) as caught:
        inspect(tmp_path / "m.onnx")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000 + len(str(tmp_path))


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    graph = field(1, field(4, "Relu"))
    for _ in range(3000):
        graph = field(1, field(4, "If") + field(5, field(1, "then_branch") + field(6, graph)))
    path = tmp_path / "m.onnx"
    path.write_bytes(field(1, 9) + field(7, graph) + field(8, field(2, 18)))
    with pytest.raises(SourceError, match="nested deeper"):
        inspect(path)


def test_every_truncation_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    make(path)
    whole = path.read_bytes()
    for end in range(1, len(whole)):
        short = tmp_path / f"{end}.onnx"
        short.write_bytes(whole[:end])
        with pytest.raises(SourceError) as caught:
            inspect(short)
        assert str(short) in caught.value.message
        if end > len(whole) // 4:
            assert "truncated ONNX" in caught.value.message
        short.unlink()
