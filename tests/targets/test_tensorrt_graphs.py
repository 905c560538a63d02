"""What an engine is built from: the sizes of its profile, and the ONNX graph typed for a precision.

No GPU and no TensorRT: graphs are run by ONNX Runtime and onnx's reference.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from deploykit.errors import UnsupportedError, UsageError
from deploykit.onnx_file import signature_of
from deploykit.protocol import TensorSpec

FLOAT = TensorProto.FLOAT
ENGINE = "deploykit._plugins.targets.tensorrt_engine"
narrowing = importlib.import_module(f"{ENGINE}.narrowing")
plugin = importlib.import_module(f"{ENGINE}.plugin")
sizes = importlib.import_module(f"{ENGINE}.sizes")


def _spec(name: str, *shape: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def test_profiles_of_a_sequence_and_of_an_image() -> None:
    inputs = (_spec("ids", "batch", "length"), _spec("mask", "batch", "length"), _spec("one", 1))
    found = sizes.ranges(inputs, "")
    assert {name: str(each) for name, each in found.items()} == {
        "batch": "1:1:32",
        "length": "1:128:512",
    }
    assert sizes.profile(inputs, found) == {
        "ids": ((1, 1), (1, 128), (32, 512)),
        "mask": ((1, 1), (1, 128), (32, 512)),
    }
    image = (_spec("x", None, 3, "height", "width"),)
    with pytest.raises(UnsupportedError, match="height, width") as raised:
        sizes.ranges(image, "")
    assert "tensorrt.axes=height=64:224:512,width=64:224:512" in raised.value.hint
    found = sizes.ranges(image, "x:0=1:4:8, height=32:64:96,width=32:64:128")
    assert sizes.profile(image, found) == {"x": ((1, 3, 32, 32), (4, 3, 64, 64), (8, 3, 96, 128))}


def test_fixed_sizes_need_no_profile() -> None:
    assert sizes.ranges((_spec("x", 1, 3, 8, 8), _spec("s")), "") == {}
    assert sizes.profile((_spec("x", 1, 3, 8, 8), _spec("s")), {}) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch", "cannot read `batch`"),
        ("batch=1:2", "cannot read"),
        ("batch=1:x:2", "cannot read"),
        ("batch=-1:2:3", "cannot read"),
        ("batch=0:1:2", "makes no sense"),
        ("batch=2:1:3", "makes no sense"),
        ("batch=1:3:2", "makes no sense"),
        ("batch=1:1:1,batch=1:1:1", "makes no sense"),
        ("rows=1:1:1", "no dynamic axis"),
    ],
)
def test_bounds_that_cannot_be(text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        sizes.read_ranges(text, ("batch",))
    assert said.removeprefix("no ") in raised.value.message


@given(st.text(alphabet="batch=:,0129 x"))
def test_any_text_of_bounds_is_read_or_refused(text: str) -> None:
    try:
        found = sizes.read_ranges(text, ("batch", "x:0"))
    except UsageError:
        return
    assert all(1 <= each.least <= each.best <= each.most for each in found.values())


def test_an_input_of_unknown_rank_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="how many axes"):
        sizes.ranges((TensorSpec(name="x", dtype="float32", shape=None),), "")


# precision


def _run(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _well_typed(model: onnx.ModelProto) -> None:
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


@pytest.mark.parametrize(
    "name", ["dtln_1", "optimum_tiny_bert", "ultraface_slim320_simplified", "xdl_dnn"]
)
def test_real_models_in_fp16(golden: Callable[[str], Any], name: str) -> None:
    case = golden(name)
    model = onnx.load(case.path)
    before = signature_of(model)
    total = sum(node.op_type in narrowing.PRODUCTS for node in model.graph.node)
    plugin.prepare(model, before.inputs, "fp16")
    _well_typed(model)
    assert signature_of(model) == before
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in typed.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in narrowing.PRODUCTS]
    assert len(products) == total
    for node in products:
        assert {types[each] for each in node.input if each} == {TensorProto.FLOAT16}, node.name
    actual = _run(model, case.feed)
    for output, expected in case.outputs.items():
        error = np.abs(actual[output].astype(np.float64) - expected).max()
        assert 0 < error <= 1e-2 * np.abs(expected).max(), (output, error)


def test_bf16(build: Any) -> None:
    source = np.random.default_rng(1)
    weight = source.normal(size=(8, 6)).astype(np.float32)
    model = build(
        [("MatMul", ["x", "w"], ["m"], {}), ("Relu", ["m"], ["y"], {})],
        [("x", FLOAT, [3, 8])],
        [("y", FLOAT, [3, 6])],
        {"w": weight},
    )
    notes = plugin.prepare(model, signature_of(model).inputs, "bf16")
    assert notes == ["1 of 1 convolutions and matrix products run in bf16"]
    _well_typed(model)
    assert [tensor.data_type for tensor in model.graph.initializer] == [TensorProto.BFLOAT16]
    x = source.normal(size=(3, 8)).astype(np.float32)
    actual: Any = ReferenceEvaluator(model).run(None, {"x": x})[0]  # type: ignore[index]
    expected = np.maximum(x @ weight, 0)
    assert actual.dtype == np.float32
    assert 1e-4 < np.abs(actual - expected).max() < 5e-2 * np.abs(expected).max()


def test_convolutions_in_bf16_are_lifted_to_the_opset_that_has_them(convolutions: Any) -> None:
    x = np.random.default_rng(0).normal(size=(1, 16, 20, 36)).astype(np.float32)
    expected = _run(convolutions, {"x": x})["y"]
    model = onnx.ModelProto()
    model.CopyFrom(convolutions)
    assert plugin.prepare(model, signature_of(model).inputs, "bf16")[0].startswith("3 of 3")
    _well_typed(model)
    assert [opset.version for opset in model.opset_import] == [22]
    # the weights alone are rounded here: no runtime at hand convolves in bf16
    narrowed = {tensor.name: tensor for tensor in model.graph.initializer}
    whole = {tensor.name: tensor for tensor in convolutions.graph.initializer}
    rounded = onnx.ModelProto()
    rounded.CopyFrom(convolutions)
    for tensor in rounded.graph.initializer:
        values = onnx.numpy_helper.to_array(narrowed[f"{tensor.name}_bf16"]).astype(np.float32)
        np.testing.assert_allclose(
            values, onnx.numpy_helper.to_array(whole[tensor.name]), rtol=2**-8
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    error = np.abs(_run(rounded, {"x": x})["y"] - expected).max()
    assert 0 < error < 5e-2 * np.abs(expected).max()


@given(stn.arrays(np.float32, 20, elements=st.floats(width=32)))
def test_rounding_to_bfloat16(values: Any) -> None:
    import ml_dtypes

    mine = narrowing.bfloat16_bits(values).view(ml_dtypes.bfloat16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of infinities, which are meant
        theirs = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(mine, theirs)


def test_what_fp16_cannot_hold_stays_in_float32(build: Any) -> None:
    model = build(
        [
            ("Mul", ["x", "huge"], ["far"], {}),
            ("MatMul", ["x", "w"], ["m"], {}),
            ("Add", ["m", "far"], ["y"], {}),
        ],
        [("x", FLOAT, [2, 2])],
        [("y", FLOAT, [2, 2])],
        {"huge": np.array(1e6, np.float32), "w": np.eye(2, dtype=np.float32)},
    )
    plugin.prepare(model, signature_of(model).inputs, "fp16")
    _well_typed(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["huge"] == TensorProto.FLOAT
    x = np.full((2, 2), 0.01, np.float32)
    np.testing.assert_allclose(_run(model, {"x": x})["y"], x * 1e6 + x, rtol=1e-3)


def test_values_that_a_branch_reads_stay_in_float32(build: Any) -> None:
    value = onnx.helper.make_tensor_value_info
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Exp", ["m"], ["e"])], "then", [], [value("e", FLOAT, [2, 2])]
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["m"], ["i"])], "else", [], [value("i", FLOAT, [2, 2])]
    )
    model = build(
        [
            ("MatMul", ["x", "w"], ["m"], {}),
            ("If", ["c"], ["y"], {"then_branch": branch, "else_branch": other}),
        ],
        [("x", FLOAT, [2, 2]), ("c", TensorProto.BOOL, [])],
        [("y", FLOAT, [2, 2])],
        {"w": np.eye(2, dtype=np.float32)},
    )
    plugin.prepare(model, signature_of(model).inputs, "fp16")
    _well_typed(model)
    x = np.ones((2, 2), np.float32)
    actual = _run(model, {"x": x, "c": np.array(True)})["y"]
    np.testing.assert_allclose(actual, np.exp(x), rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_precision_without_effect_is_refused(build: Any, precision: str) -> None:
    model = build([("Exp", ["x"], ["y"], {})], [("x", FLOAT, [4])], [("y", FLOAT, [4])])
    with pytest.raises(UnsupportedError, match="no effect"):
        plugin.prepare(model, signature_of(model).inputs, precision)


def test_int8_comes_from_the_model(build: Any) -> None:
    model = build([("Relu", ["x"], ["y"], {})], [("x", FLOAT, [4])], [("y", FLOAT, [4])])
    with pytest.raises(UnsupportedError, match="not quantised") as raised:
        plugin.prepare(model, signature_of(model).inputs, "int8")
    assert "QuantizeLinear" in raised.value.hint
    ends = ["s", "z"]
    model = build(
        [
            ("QuantizeLinear", ["x", *ends], ["q"], {}),
            ("DequantizeLinear", ["q", *ends], ["y"], {}),
        ],
        [("x", FLOAT, [4])],
        [("y", FLOAT, [4])],
        {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)},
    )
    assert "int8" in plugin.prepare(model, signature_of(model).inputs, "int8")[0]
    assert "int8" in plugin.prepare(model, signature_of(model).inputs, "fp32")[0]
