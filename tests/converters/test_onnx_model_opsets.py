"""ONNX files as they are found: older opsets, functions, sparse constants, ONNX's own operator tests."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import DeploykitError, UnsupportedError
from deploykit.protocol import ConvertRequest, ConvertResult, Source

plugin = importlib.import_module("deploykit._plugins.converters.onnx_model.plugin")

IMAGE = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)


def build(
    nodes: list[onnx.NodeProto], opset: int, constants: dict[str, Any] | None = None, **options: Any
) -> onnx.ModelProto:
    options.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    return helper.make_model(graph, ir_version=8, **options)


def compute(model: onnx.ModelProto | Path, feed: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feed)
    return found


def convert(
    model: onnx.ModelProto, folder: Path, opset: int | None = None, **options: str
) -> ConvertResult:
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    source = Source(location=str(path), format="onnx", options=options)
    request = ConvertRequest(source=source, output=str(folder / "out.onnx"), opset=opset)
    result: ConvertResult = plugin.convert(request)
    return result


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 2.0, 3.0), (1.0, 1.0, 0.5, 0.6)])
def test_resampling_keeps_its_meaning(
    tmp_path: Path, opset: int, mode: str, scales: tuple[float, ...]
) -> None:
    if opset < 10 and min(scales) < 1:
        return  # an Upsample does not shrink
    kind = "Resize" if opset == 10 else "Upsample"
    written: dict[str, Any] = {"scales": scales} if opset == 7 else {}
    inputs = ["x"] if opset == 7 else ["x", "s"]
    factors = {} if opset == 7 else {"s": np.array(scales, np.float32)}
    model = build([helper.make_node(kind, inputs, ["y"], mode=mode, **written)], opset, factors)
    assert convert(model, tmp_path).opset == 17
    (expected,), (found,) = (compute(m, {"x": IMAGE}) for m in (model, tmp_path / "out.onnx"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_operators_that_changed_their_meaning_keep_the_opset(tmp_path: Path) -> None:
    model = build([helper.make_node("Hardmax", ["x"], ["y"], axis=1)], 11)
    result = convert(model, tmp_path)
    assert result.opset == 11
    assert "Hardmax changed its meaning in opset 13" in " ".join(result.repairs)
    with pytest.raises(UnsupportedError, match="Hardmax changed its meaning in opset 13"):
        convert(model, tmp_path, 17)


def test_local_functions_survive_another_opset(tmp_path: Path) -> None:
    body = [helper.make_node("Softmax", ["a"], ["b"], axis=1)]
    imports = [helper.make_opsetid("", 11), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Share", ["a"], ["b"], body, imports[:1])
    call = [helper.make_node("Share", ["x"], ["y"], domain="own")]
    model = build(call, 11, functions=[function], opset_imports=imports)
    assert convert(model, tmp_path).opset == 17
    (expected,), (found,) = (compute(m, {"x": IMAGE}) for m in (model, tmp_path / "out.onnx"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("tidy", ["no", "yes"])
def test_sparse_constants_are_written_out(tmp_path: Path, rows: bool, tidy: str) -> None:
    places = np.array([[0, 1], [5, 3]]) if rows else np.array([1, 23])
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2, -3], np.float32), "w"),
        numpy_helper.from_array(places),
        [8, 4],
    )
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], 13)
    model.graph.sparse_initializer.append(sparse)
    dense = np.zeros((8, 4), np.float32)
    dense.reshape(-1)[[1, 23]] = 2, -3
    repairs = convert(model, tmp_path, tidy=tidy).repairs
    assert "1 sparse constants written out" in repairs
    (found,) = compute(tmp_path / "out.onnx", {"x": IMAGE})
    np.testing.assert_allclose(found, IMAGE @ dense, rtol=1e-5, atol=1e-6)


def test_a_sparse_constant_of_terabytes_is_not_written_out(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2], np.float32), "w"),
        numpy_helper.from_array(np.array([1])),
        [8, 1 << 40],
    )
    model = build([helper.make_node("Identity", ["x"], ["y"])], 13)
    model.graph.sparse_initializer.append(sparse)
    assert "sparse constants written out" not in " ".join(convert(model, tmp_path).repairs)


def test_outputs_whose_declared_shape_is_wrong_or_unknown(tmp_path: Path) -> None:
    model = build([helper.make_node("Neg", ["x"], ["y"])], 17)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [9, 9]))
    result = convert(model, tmp_path)
    assert "1 outputs given the shape that follows from the graph" in result.repairs
    assert result.signature.outputs[0].shape == IMAGE.shape
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Shape", ["places"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"]),
        helper.make_node("NonZero", ["zeros"], ["none"]),
        helper.make_node("Shape", ["none"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "count"], ["rest"]),
        helper.make_node("ConstantOfShape", ["rest"], ["y"]),
    ]
    nodes[5:5] = [helper.make_node("ReduceMax", ["shape"], ["count"], keepdims=1)]
    unknown = build(nodes, 17, {"one": np.array([1])})
    assert convert(unknown, tmp_path).signature.outputs[0].shape is None
    expected, found = (compute(m, {"x": IMAGE}) for m in (unknown, tmp_path / "out.onnx"))
    np.testing.assert_array_equal(found[0], expected[0])


def own_tests() -> list[Any]:
    """Return the tests that ONNX has of each operator, a sixth of them, with plain tensors."""
    loader = importlib.import_module("onnx.backend.test.loader")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases: list[Any] = loader.load_model_tests(kind="node")[::6]
    return [
        case
        for case in cases
        if all(
            isinstance(array, (np.ndarray, np.generic))
            for arrays in case.data_sets[0]
            for array in arrays
        )
    ]


@pytest.mark.parametrize("opset", [None, 21])
def test_operators_of_onnx_compute_the_same_tidied_and_in_another_opset(
    tmp_path: Path, opset: int | None
) -> None:
    right = 0
    for case in own_tests():
        names = [value.name for value in case.model.graph.input]
        feed = dict(zip(names, case.data_sets[0][0], strict=False))
        expected = attempt(case.model, feed)
        if expected is None:
            continue  # ONNX Runtime has no kernel for it
        try:
            convert(case.model, tmp_path, opset, tidy="yes")
        except DeploykitError as error:
            assert "`" in error.message or "opset" in error.message  # noqa: PT017
            continue
        for one, other in zip(compute(tmp_path / "out.onnx", feed), expected, strict=True):
            assert one.dtype == other.dtype, case.name
            assert one.shape == other.shape, case.name
            if one.dtype.kind in "fc":
                digits = 2e-3 if one.dtype == np.float16 else 1e-4
                np.testing.assert_allclose(
                    one, other, rtol=digits, atol=digits / 10, err_msg=case.name
                )
            else:
                np.testing.assert_array_equal(one, other, err_msg=case.name)
        right += 1
    assert right > 200


def attempt(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any] | None:
    try:
        return compute(model, feed)
    except Exception:  # onnxruntime's classes have no common base
        return None
