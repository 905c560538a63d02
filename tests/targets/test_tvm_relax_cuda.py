"""The target tvm compiles for NVIDIA's GPUs without one: what is in the library, and what is refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deploykit import plugins
from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_file import signature_of
from deploykit.protocol import CompileRequest, CompileResult, Hardware

TARGET = "tvm"
FLOAT = TensorProto.FLOAT
JETSON = Hardware(name="jetson-orin", triple="aarch64-linux-gnu", cpu="cortex-a78ae", gpu="sm_87")
pytestmark = pytest.mark.environment


def _part(name: str) -> Any:
    package = plugins.target(TARGET).module.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


@pytest.fixture
def nvcc() -> None:
    if _part("cuda").nvcc() is None:
        pytest.skip("nvcc is not here")


def _network(build: Any, rows: int | str = 1) -> Any:
    source = np.random.default_rng(3)
    return build(
        [
            ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c"], ["r"], {}),
            ("GlobalAveragePool", ["r"], ["p"], {}),
            ("Flatten", ["p"], ["f"], {}),
            ("MatMul", ["f", "d"], ["z"], {}),
            ("Softmax", ["z"], ["y"], {}),
        ],
        [("x", FLOAT, [rows, 3, 16, 16])],
        [("y", FLOAT, [rows, 10])],
        {
            "w": source.normal(size=(8, 3, 3, 3)).astype(np.float32),
            "d": source.normal(size=(8, 10)).astype(np.float32),
        },
    )


def _compile(bench: Any, model: onnx.ModelProto, **more: Any) -> CompileResult:
    path = bench.folder / "model.onnx"
    onnx.save(model, path)
    bench.payload = bench.folder / "payload"
    bench.payload.mkdir()
    request = CompileRequest(
        model=str(path),
        payload=str(bench.payload),
        signature=signature_of(model),
        device="cuda",
        threads=2,
        **more,
    )
    result: CompileResult = bench.module.compile(request)
    return result


@pytest.mark.parametrize(
    ("more", "names"),
    [({}, ["sm_80", "sm_90"]), ({"hardware": JETSON}, ["sm_87"])],
    ids=["both servers", "jetson"],
)
def test_code_for_the_gpus_asked_for(
    bench: Any, build: Any, nvcc: None, more: Any, names: list[str]
) -> None:
    result = _compile(bench, _network(build), **more)
    content = (bench.payload / "model.so").read_bytes()
    for name in names:
        # the machine code of each carries the options that it was assembled with
        assert f"-arch {name}".encode() in content
    assert b"-arch sm_75" not in content
    assert any("not been seen on a GPU" in note for note in result.notes)
    if more:
        assert "asimd" in result.cpu_flags


def test_dynamic_sizes(bench: Any, build: Any, nvcc: None) -> None:
    result = _compile(bench, _network(build, "n"))
    assert result.signature.inputs[0].shape == ("n", 3, 16, 16)


def test_a_gpu_of_another_maker_is_refused(bench: Any, build: Any) -> None:
    with pytest.raises(UnsupportedError, match="gfx942"):
        _compile(
            bench,
            _network(build),
            hardware=Hardware(name="server", triple="x86_64-linux-gnu", gpu="gfx942"),
        )


def test_a_gpu_that_nvcc_does_not_know_is_refused(nvcc: None) -> None:
    with pytest.raises(UnsupportedError, match="nvcc knows no such GPU"):
        _part("cuda").compiled("__global__ void f() {}", ["sm_13"])


def test_without_nvcc_it_says_so(bench: Any, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_part("cuda"), "nvcc", lambda: None)
    with pytest.raises(UnavailableError, match="nvcc"):
        _compile(bench, _network(build))
    _, cuda = bench.module.probe()
    assert "nvcc" in cuda.detail or cuda.available


def _driver_is_here() -> bool:
    done = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False)
    return "libcuda.so.1" in done.stdout


def test_without_a_gpu_the_bundle_says_what_is_missing(bench: Any, build: Any, nvcc: None) -> None:
    if _driver_is_here():
        pytest.skip("this machine has NVIDIA's driver")
    _compile(bench, _network(build))
    code = (
        "import sys; from deploykit.protocol import LoadRequest, Signature\n"
        f"from {bench.plugin.module} import load, probe\n"
        "assert not probe()[1].available and 'driver' in probe()[1].detail\n"
        "try: load(LoadRequest(payload=sys.argv[1], device='cuda',"
        " signature=Signature(inputs=(), outputs=())))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    # afresh: the stand-in for the driver is in the memory of the process that compiled
    done = subprocess.run(
        [sys.executable, "-c", code, bench.payload],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith("UnavailableError"), done.stdout
    assert "libcuda.so.1" in done.stdout
