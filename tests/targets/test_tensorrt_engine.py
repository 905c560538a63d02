"""The target tensorrt: all of it that needs no GPU, and a real model on one where there is one.

TensorRT and the driver are stood in for by doubles that keep to their documented calls: what they
compute says nothing of TensorRT, only of what we pass to it and make of its answers.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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

from deploykit import environments, plugins
from deploykit.errors import (
    BundleError,
    SourceError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from deploykit.onnx_file import signature_of
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    Hardware,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
    Signature,
    TensorSpec,
)
from deploykit.steps import Worker
from deploykit.system_libraries import missing_libraries
from deploykit.tensors import write_tensors

FLOAT = TensorProto.FLOAT
ENGINE = "deploykit._plugins.targets.tensorrt_engine"
building = importlib.import_module(f"{ENGINE}.building")
cuda = importlib.import_module(f"{ENGINE}.cuda")
inference = importlib.import_module(f"{ENGINE}.inference")
layers = importlib.import_module(f"{ENGINE}.layers")
narrowing = importlib.import_module(f"{ENGINE}.narrowing")
plugin = importlib.import_module(f"{ENGINE}.plugin")
sizes = importlib.import_module(f"{ENGINE}.sizes")

H100 = cuda.Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_bytes=1 << 36)
T4 = cuda.Gpu(name="Tesla T4", capability=(7, 5), memory_bytes=1 << 34)


# what is missing


class DriverDouble:
    """The calls of `libcuda.so.1`, on ordinary memory."""

    def __init__(self, *, status: int = 0, count: int = 1, full: bool = False) -> None:
        self.status = status
        self.count = count
        self.full = full
        self.blocks: dict[int, Any] = {}

    def cuInit(self, _flags: Any) -> int:
        return self.status

    def cuGetErrorName(self, status: Any, name: Any) -> int:
        words = {100: b"CUDA_ERROR_NO_DEVICE", 2: b"CUDA_ERROR_OUT_OF_MEMORY"}
        if status.value not in words:
            return 1
        name._obj.value = words[status.value]
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, number: Any) -> int:
        device._obj.value = number.value
        return 0

    def cuDeviceGetName(self, name: Any, _size: Any, _device: Any) -> int:
        name.value = b"A double"
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, _device: Any) -> int:
        size._obj.value = 1 << 33
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, _device: Any) -> int:
        value._obj.value = {75: 8, 76: 6}[attribute.value]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, _device: Any) -> int:
        context._obj.value = 1
        return 0

    def cuCtxSetCurrent(self, _context: Any) -> int:
        return 0

    def cuStreamCreate(self, stream: Any, _flags: Any) -> int:
        stream._obj.value = 7
        return 0

    def cuStreamSynchronize(self, _stream: Any) -> int:
        return 0

    def cuStreamDestroy_v2(self, _stream: Any) -> int:
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        assert size.value > 0
        if self.full:
            return 2
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[address._obj.value] = block
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        del self.blocks[address.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, _stream: Any) -> int:
        assert size.value <= len(self.blocks[to.value])
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, _stream: Any) -> int:
        assert size.value <= len(self.blocks[source.value])
        ctypes.memmove(to.value, source.value, size.value)
        return 0


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda_absent.so.1")
    (found,) = plugin.probe()
    assert (found.device, found.available) == ("gpu", False)
    assert found.detail == "no NVIDIA driver (libcuda_absent.so.1 is missing)"


@pytest.mark.parametrize(
    ("double", "said"),
    [
        (DriverDouble(status=100), "CUDA_ERROR_NO_DEVICE"),
        (DriverDouble(status=999), "CUDA error 999"),
        (DriverDouble(count=0), "it finds 0 GPUs"),
    ],
)
def test_a_driver_without_a_gpu(
    double: DriverDouble, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_library", lambda: double)
    (found,) = plugin.probe()
    assert not found.available
    assert said in found.detail
    assert "\n" not in found.detail


def test_a_gpu_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_library", DriverDouble)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    (found,) = plugin.probe()
    assert not found.available
    assert "tensorrt-cu12" in found.detail


def test_a_gpu_with_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_library", DriverDouble)
    monkeypatch.setitem(
        __import__("sys").modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106")
    )
    (found,) = plugin.probe()
    assert found.available
    assert found.detail == "A double (sm_86), driver for CUDA 12.8"
    assert found.versions == {"tensorrt": "11.4.0.106"}


def test_memory_of_the_gpu_that_is_full() -> None:
    driver = cuda.Driver(library=DriverDouble(full=True))
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        driver.allocate(8)


# sizes


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


# requests that are refused before a GPU is looked for


def _request(model: Path, folder: Path, **more: Any) -> CompileRequest:
    return CompileRequest(
        model=str(model),
        payload=str(folder),
        signature=signature_of(onnx.load(model)),
        device="gpu",
        **more,
    )


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"precision": "fp12"}, UnsupportedError, "fp12"),
        ({"settings": {"workspacce": "1"}}, UsageError, "workspacce"),
        ({"settings": {"optimization": "9"}}, UsageError, "optimization"),
        ({"settings": {"axes": "n=1:2:3"}}, UsageError, "no input has a dynamic axis"),
        ({"shapes": {"z": (1,)}}, UsageError, "no input `z`"),
    ],
)
def test_requests_that_make_no_sense(
    convolutions: Any, tmp_path: Path, more: dict[str, Any], kind: type[Exception], said: str
) -> None:
    onnx.save(convolutions, tmp_path / "model.onnx")
    with pytest.raises(kind, match=said):
        plugin.compile(_request(tmp_path / "model.onnx", tmp_path, **more))


def test_the_settings_are_those_declared() -> None:
    assert set(plugin.settings_in_force({})) == set(plugins.target("tensorrt").settings)


def test_types_that_tensorrt_has_not(build: Any, tmp_path: Path) -> None:
    model = build(
        [("Identity", ["x"], ["y"], {})],
        [("x", TensorProto.DOUBLE, [2])],
        [("y", TensorProto.DOUBLE, [2])],
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedError, match="float64"):
        plugin.compile(_request(tmp_path / "model.onnx", tmp_path))


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_a_file_that_is_no_model(convolutions: Any, tmp_path: Path, content: bytes) -> None:
    onnx.save(convolutions, tmp_path / "model.onnx")
    request = _request(tmp_path / "model.onnx", tmp_path)
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises((SourceError, UnavailableError)) as raised:
        plugin.compile(request)
    assert content == b"" or isinstance(raised.value, SourceError)


def test_another_gpu_and_another_machine() -> None:
    request = CompileRequest(
        model="m",
        payload="p",
        signature=Signature(inputs=(), outputs=()),
        device="gpu",
        hardware=Hardware(name="a Jetson", triple="aarch64-linux-gnu", gpu="sm_87"),
    )
    with pytest.raises(UnsupportedError, match="sm_87"):
        plugin._check_gpu(request, H100)
    request = CompileRequest(
        model="m",
        payload="p",
        signature=Signature(inputs=(), outputs=()),
        device="gpu",
        precision="bf16",
    )
    plugin._check_gpu(request, H100)
    with pytest.raises(UnsupportedError, match="sm_75"):
        plugin._check_gpu(request, T4)


# the engine elsewhere


def _built(**more: Any) -> Any:
    return plugin.Build(
        **{
            "tensorrt": "11.2.0.1",
            "gpu": H100.name,
            "capability": H100.capability,
            "nodes": (),
            **more,
        }
    )


@pytest.mark.parametrize(
    ("gpu", "version", "settings", "said"),
    [
        (H100, "11.2.0.1", {}, ""),
        (T4, "11.2.0.1", {}, "sm_90"),
        (H100, "11.3.0.1", {}, "11.2.0.1"),
        (H100, "11.3.0.1", {"version_compatible": "true"}, ""),
        (H100, "11.1.0.1", {"version_compatible": "true"}, "11.2.0.1"),
        (H100, "12.0.0.1", {"version_compatible": "true"}, "11.2.0.1"),
        (T4, "11.2.0.1", {"hardware_compatibility": "ampere"}, "sm_90"),
        (
            cuda.Gpu(name="NVIDIA A10", capability=(8, 6), memory_bytes=1),
            "11.2.0.1",
            {"hardware_compatibility": "ampere"},
            "",
        ),
    ],
)
def test_where_an_engine_runs(gpu: Any, version: str, settings: dict[str, str], said: str) -> None:
    force = plugin.settings_in_force(settings)
    if not said:
        plugin.check_fit(_built(), gpu, version, force)
        return
    with pytest.raises(UnavailableError, match=said):
        plugin.check_fit(_built(), gpu, version, force)


def test_another_model_of_the_same_architecture_is_said() -> None:
    gpu = cuda.Gpu(name="NVIDIA H200", capability=(9, 0), memory_bytes=1)
    with pytest.warns(UserWarning, match="H200"):
        plugin.check_fit(_built(), gpu, "11.2.0.1", plugin.settings_in_force({}))


@pytest.mark.parametrize("content", ["", "[]", '{"tensorrt": 1}'])
def test_a_damaged_payload(tmp_path: Path, content: str) -> None:
    (tmp_path / "build.json").write_text(content)
    request = LoadRequest(
        payload=str(tmp_path), signature=Signature(inputs=(), outputs=()), device="gpu"
    )
    with pytest.raises(BundleError, match=r"build\.json"):
        plugin.load(request)


def test_timings_are_kept_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
    paths = {building.cache_path(v, gpu) for v in ("10.1.0", "11.4.0") for gpu in (H100, T4)}
    assert len(paths) == 4
    assert all(path.parent == tmp_path / "tensorrt" for path in paths)
    assert building.cache_path("11.4.0", T4).name == "11.4.0-tesla-t4-sm-75.timing"


# what TensorRT answers


def test_what_the_parser_refuses() -> None:
    def error(operator: str, node: str, text: str) -> Any:
        return SimpleNamespace(
            node_operator=lambda: operator, node_name=lambda: node, desc=lambda: text
        )

    refused = building.refusal([error("Det", "d1", "no importer\n"), error("Optional", "", "no")])
    assert isinstance(refused, UnsupportedError)
    assert refused.operators == ("Det", "Optional")
    assert "`d1`" in refused.message
    assert "no importer" in refused.message
    assert isinstance(building.refusal([error("", "", "bad file")]), SourceError)
    assert isinstance(building.refusal([]), SourceError)


TOLD = {
    "Layers": [
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}],
            "TacticName": "sm80_xmma_fprop_f16f16",
            "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: node_of_r]\x1f[ONNX Layer: invented]",
        },
        {
            "Name": "gemm",
            "LayerType": "gemm",
            "Inputs": [{"Format/Datatype": "Float"}, {"Format/Datatype": "Int8"}],
            "Metadata": "[ONNX Layer: deploykit_cast_w_fp16][ONNX Layer: gemm]",
        },
        {
            "Name": "product",
            "LayerType": "gemm",
            "Inputs": [{"Format/Datatype": "Float"}],
            "TacticName": "sm80_xmma_gemm_f32f32_tf32f32_f32",
        },
        {"Name": "b", "Inputs": [{"Format/Datatype": "BFloat16"}]},
        "only a name",
    ]
}


def test_layers_as_the_inspector_tells_them() -> None:
    known = {"conv", "r", "gemm", "deploykit_cast_w_fp16"}
    found = layers.layers(json.dumps(TOLD), known)
    assert found["conv + relu"] == layers.Layer("CaskConvolution", "fp16", ("conv", "r"))
    assert found["gemm"] == layers.Layer("gemm", "int8", ("gemm",))
    assert found["product"].precision == "tf32"
    assert found["b"].precision == "bf16"
    assert found["only a name"] == layers.Layer("", "", ())
    runs = layers.operator_runs({"gemm": [3.0, 1.0, 2.0], "new": [0.5]}, found)
    assert [(run.name, run.operator, run.time_us, run.device) for run in runs] == [
        ("gemm", "gemm", 2000.0, "gpu"),
        ("new", "layer", 500.0, "gpu"),
    ]


# a session on doubles


class ContextDouble:
    """An execution context that computes `total` and, of a size that follows from it, `positive`."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return all(size <= 4 for size in shape)

    def infer_shapes(self) -> list[str]:
        return [name for name in ("x", "scale") if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"total": self.shapes["x"], "positive": (-1,)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def _at(self, name: str, shape: tuple[int, ...]) -> Any:
        count = int(np.prod(shape, dtype=int))
        floats: Any = (ctypes.c_float * count).from_address(self.addresses[name])
        return np.frombuffer(floats, np.float32).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        x, scale = self._at("x", self.shapes["x"]), self._at("scale", ())
        self._at("total", self.shapes["x"])[...] = x * scale
        positive = x[x > 0]
        allocator = self.allocators["positive"]
        self.addresses["positive"] = allocator.reallocate_output(
            "positive", 0, positive.nbytes, 256
        )
        self._at("positive", positive.shape)[...] = positive
        allocator.notify_shape("positive", positive.shape)
        return True


def _session() -> tuple[Any, DriverDouble]:
    host, device = object(), object()
    trt = SimpleNamespace(
        TensorLocation=SimpleNamespace(HOST=host), IOutputAllocator=type("IOutputAllocator", (), {})
    )
    names = ["x", "scale", "total", "positive"]
    engine = SimpleNamespace(
        create_execution_context=ContextDouble,
        num_io_tensors=len(names),
        get_tensor_name=names.__getitem__,
        get_tensor_location=lambda name: host if name == "scale" else device,
    )
    signature = Signature(
        inputs=(_spec("unread", 2), _spec("x", "n", 2), _spec("scale")),
        outputs=(_spec("positive", None), _spec("total", "n", 2)),
    )
    double = DriverDouble()
    driver = cuda.Driver(library=double)
    return inference.TensorrtSession(trt, driver, engine, signature), double


def _feed(rows: int) -> dict[str, Any]:
    x = np.asfortranarray(np.arange(2 * rows, dtype=np.float32).reshape(rows, 2) - 1)
    x.flags.writeable = False
    return {
        "unread": np.zeros(2, np.float32),
        "x": x,
        "scale": np.array(3, np.float32),
    }


def test_a_session_moves_tensors_there_and_back() -> None:
    session, double = _session()
    bound = session.bind(_feed(2))
    bound()
    for rows in (1, 3, 0, 2):
        feed = _feed(rows)
        actual = session.run(feed)
        assert list(actual) == ["positive", "total"]
        np.testing.assert_array_equal(actual["total"], feed["x"] * 3)
        np.testing.assert_array_equal(actual["positive"], feed["x"][feed["x"] > 0])
    np.testing.assert_array_equal(bound.outputs()["total"], _feed(2)["x"] * 3)
    bound.close()
    session.close()
    assert double.blocks == {}
    with pytest.raises(ValueError, match="closed"):
        session.run(_feed(1))


def test_sizes_that_the_engine_was_not_built_for() -> None:
    session, _ = _session()
    with pytest.raises(UsageError, match="`x` of 5x2") as raised:
        session.run(_feed(5))
    assert "axes" in raised.value.hint


# on a GPU


@pytest.mark.gpu
@pytest.mark.environment
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["optimum_tiny_bert", "ultraface_slim320_simplified", "xdl_dnn"])
def test_real_models_on_a_gpu(
    golden: Callable[[str], Any], name: str, precision: str, tmp_path: Path
) -> None:
    target = plugins.target("tensorrt")
    missing = missing_libraries(target)
    if missing:
        pytest.skip(missing)
    case = golden(name)
    python = environments.interpreter(target)
    payload = tmp_path / "payload"
    payload.mkdir()
    with Worker(target, python=python, label="tensorrt") as worker:
        (here,) = worker.call("probe", None, tuple[Availability, ...])
        assert here.available, here.detail
        request = _request(case.path, payload, precision=precision)
        result = worker.call("compile", request, CompileResult)
    load = LoadRequest(
        payload=str(payload),
        signature=result.signature,
        device="gpu",
        precision=precision,
        settings=result.settings,
    )
    write_tensors(tmp_path / "feed.npz", case.feed)
    with Worker(target, python=python, label="tensorrt") as worker:
        session = worker.open(load)
        actual = session.run(case.feed)
        found = worker.call(
            "operators",
            OperatorsRequest(load=load, feed=str(tmp_path / "feed.npz")),
            tuple[OperatorRun, ...],
        )
    tolerance = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}[precision]
    for output, expected in case.outputs.items():
        error = np.abs(actual[output].astype(np.float64) - expected).max()
        assert error <= tolerance * np.abs(expected).max(), (output, error)
    assert sum(each.time_us or 0 for each in found) > 0
    names = {node.name or node.output[0] for node in onnx.load(case.path).graph.node}
    assert {node for each in found for node in each.nodes} <= names
