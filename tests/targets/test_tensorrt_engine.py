"""The target tensorrt: all of it that needs no GPU, and a real model on one where there is one.

TensorRT and the driver are stood in for by doubles that keep to their documented calls: what they
compute says nothing of TensorRT, only of what we pass to it and make of its answers.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

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
from tests.targets.tensorrt_doubles import DriverDouble, TensorrtDouble, engine_double

FLOAT = TensorProto.FLOAT
ENGINE = "deploykit._plugins.targets.tensorrt_engine"
building = importlib.import_module(f"{ENGINE}.building")
cuda = importlib.import_module(f"{ENGINE}.cuda")
inference = importlib.import_module(f"{ENGINE}.inference")
layers = importlib.import_module(f"{ENGINE}.layers")
plugin = importlib.import_module(f"{ENGINE}.plugin")

H100 = cuda.Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_bytes=1 << 36)
T4 = cuda.Gpu(name="Tesla T4", capability=(7, 5), memory_bytes=1 << 34)


# what is missing


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
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (found,) = plugin.probe()
    assert not found.available
    assert "tensorrt-cu12" in found.detail


def test_a_gpu_with_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_library", DriverDouble)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    (found,) = plugin.probe()
    assert found.available
    assert found.detail == "A double (sm_86), driver for CUDA 12.8"
    assert found.versions == {"tensorrt": "11.4.0.106"}


def test_memory_of_the_gpu_that_is_full() -> None:
    driver = cuda.Driver(library=DriverDouble(full=True))
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        driver.allocate(8)


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


def _spec(name: str, *shape: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def _session() -> tuple[Any, DriverDouble]:
    signature = Signature(
        inputs=(_spec("unread", 2), _spec("x", "n", 2), _spec("scale")),
        outputs=(_spec("positive", None), _spec("total", "n", 2)),
    )
    double = DriverDouble()
    driver = cuda.Driver(library=double)
    return inference.TensorrtSession(TensorrtDouble(), driver, engine_double(), signature), double


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


# compiled and loaded, on doubles


@pytest.fixture
def product(build: Any, tmp_path: Path) -> Path:
    """The model whose engine `ContextDouble` stands for."""
    model = build(
        [
            ("Mul", ["x", "scale"], ["total"], {"name": "product"}),
            ("Greater", ["x", "zero"], ["over"], {}),
            ("Reshape", ["over", "flat"], ["which"], {}),
            ("Compress", ["x", "which"], ["positive"], {}),
        ],
        [("unread", FLOAT, [2]), ("x", FLOAT, ["n", 2]), ("scale", FLOAT, [])],
        [("positive", FLOAT, ["found"]), ("total", FLOAT, ["n", 2])],
        {"zero": np.array(0, np.float32), "flat": np.array([-1])},
    )
    path = tmp_path / "product.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., TensorrtDouble]:
    """Put doubles in place of driver and TensorRT; returns the latter."""
    monkeypatch.setattr(cuda, "_library", DriverDouble)
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "home"))

    def make(**more: Any) -> TensorrtDouble:
        double = TensorrtDouble(**more)
        monkeypatch.setitem(sys.modules, "tensorrt", double)
        return double

    return make


def _load_request(request: CompileRequest, result: CompileResult) -> LoadRequest:
    return LoadRequest(
        payload=request.payload,
        signature=result.signature,
        device="gpu",
        precision=request.precision,
        settings=result.settings,
    )


def test_an_engine_is_built_and_run(
    machine: Callable[..., TensorrtDouble], product: Path, tmp_path: Path
) -> None:
    double = machine()
    payload = tmp_path / "payload"
    payload.mkdir()
    settings = {"axes": "n=1:2:4", "workspace": "64", "optimization": "5"}
    request = _request(product, payload, settings=settings)
    result = plugin.compile(request)
    assert sorted(path.name for path in payload.iterdir()) == ["build.json", "model.plan"]
    assert double.network_flags == 2
    assert double.shapes == {"x": ((1, 2), (2, 2), (4, 2))}
    assert double.config.flags == set(), "fp32 shall be fp32"
    assert double.config.limits == {"WORKSPACE": 64 << 20}
    assert [spec.shape for spec in result.signature.outputs] == [("found",), ("n", 2)]
    assert result.settings == {**plugin.settings_in_force({}), **settings}
    assert any("n=1:2:4" in note for note in result.notes)
    product.unlink()
    session = plugin.load(_load_request(request, result))
    actual = session.run(_feed(3))
    np.testing.assert_array_equal(actual["total"], _feed(3)["x"] * 3)
    assert double.host_code == [False]
    write_tensors(tmp_path / "feed.npz", _feed(3))
    (run,) = plugin.operators(
        OperatorsRequest(load=_load_request(request, result), feed=str(tmp_path / "feed.npz"))
    )
    assert run == OperatorRun(
        name="product",
        operator="PointWise",
        nodes=("product",),
        device="gpu",
        precision="fp32",
        time_us=250.0,
    )


def test_flags_and_timings(
    machine: Callable[..., TensorrtDouble], product: Path, tmp_path: Path
) -> None:
    settings = {"version_compatible": "true", "hardware_compatibility": "ampere"}
    for number, expected in ((0, b"timing;"), (1, b"timing;timing;")):
        double = machine()
        folder = tmp_path / str(number)
        folder.mkdir()
        request = _request(product, folder, precision="tf32", settings=settings)
        result = plugin.compile(request)
        assert double.config.flags == {"TF32", "VERSION_COMPATIBLE"}
        assert getattr(double.config, "hardware_compatibility_level") == "AMPERE_PLUS"  # noqa: B009
        (cache,) = (tmp_path / "home" / "tensorrt").iterdir()
        assert cache.read_bytes() == expected
    plugin.load(_load_request(request, result))
    assert double.host_code == [True]
    cache.write_bytes(b"damaged")
    machine()
    plugin.compile(request)
    assert cache.read_bytes() == b"timing;"
    double = machine()
    cache.unlink()
    plugin.compile(_request(product, folder, settings={"timing_cache": "false"}))
    assert not cache.exists()
    with pytest.raises(UnsupportedError, match="SAME_COMPUTE_CAPABILITY"):
        plugin.compile(_request(product, folder, settings={"hardware_compatibility": "same"}))


def test_what_tensorrt_cannot_take_is_named(
    machine: Callable[..., TensorrtDouble], product: Path, tmp_path: Path
) -> None:
    machine(lacks="Compress")
    with pytest.raises(UnsupportedError, match="no importer") as raised:
        plugin.compile(_request(product, tmp_path))
    assert raised.value.operators == ("Compress",)
    machine(plan=None)
    with pytest.raises(UnsupportedError, match="for layer product"):
        plugin.compile(_request(product, tmp_path))


def test_a_plan_that_tensorrt_refuses(
    machine: Callable[..., TensorrtDouble], product: Path, tmp_path: Path
) -> None:
    machine()
    payload = tmp_path / "payload"
    payload.mkdir()
    request = _request(product, payload)
    load = _load_request(request, plugin.compile(request))
    (payload / "model.plan").write_bytes(b"cut off")
    with pytest.raises(UnavailableError, match="refuses the engine"):
        plugin.load(load)


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
