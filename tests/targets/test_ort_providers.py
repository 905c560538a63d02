"""The providers of the target onnxruntime: what gates them, and what each precision means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deploykit._plugins.targets.ort import plugin as ort_plugin
from deploykit._plugins.targets.ort import precision, probing, providers, saving
from onnx import TensorProto

from deploykit import plugins
from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.plugin_settings import in_force
from deploykit.probing import interpreter

TARGET = "onnxruntime"
FLOAT = TensorProto.FLOAT
DEFAULTS = in_force({}, ort_plugin.SETTINGS, plugin="onnxruntime")


# --- what is not here ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "said"),
    [("dml", "Windows"), ("coreml", "macOS"), ("openvino", "onnxruntime-openvino")],
)
def test_a_device_that_is_not_here_says_what_it_lacks(device: str, said: str) -> None:
    if providers.in_build(device):
        pytest.skip(f"{device} is in this build")
    answer = probing.probe(device, DEFAULTS)
    assert not answer.available
    assert said in answer.detail
    assert "\n" not in answer.detail


def test_a_simulator_is_there_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "architecture", lambda: "x86_64")
    answer = probing.probe("qnn", DEFAULTS)
    assert (answer.available, answer.unprobed, answer.by_name) == (False, False, True)
    monkeypatch.setattr(providers, "architecture", lambda: "aarch64")
    answer = probing.probe("qnn", DEFAULTS)
    assert (answer.available, answer.unprobed, answer.by_name) == (False, True, False)
    assert "onnxruntime-qnn" in answer.detail


def test_no_driver_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(providers.ctypes, "CDLL", missing)
    for device in ("cuda", "tensorrt"):
        answer = probing.probe(device, DEFAULTS)
        assert not answer.available
        assert not answer.unprobed, "no environment needs to be made to know"
        assert "NVIDIA driver" in answer.detail


@pytest.mark.parametrize(
    ("init", "count", "said"),
    [(100, 0, "does not start (cuInit gives 100)"), (0, 0, "finds no GPU"), (0, 1, "")],
)
def test_what_the_driver_says(
    monkeypatch: pytest.MonkeyPatch, init: int, count: int, said: str
) -> None:
    class Driver:
        def cuInit(self, _flags: int) -> int:
            return init

        def cuDeviceGetCount(self, found: Any) -> int:
            found._obj.value = count
            return 0

    monkeypatch.setattr(providers.ctypes, "CDLL", lambda _: Driver())
    assert said in providers.ruled_out("cuda")
    assert bool(providers.ruled_out("cuda")) == bool(said)


def test_a_provider_whose_library_does_not_load_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = replace(providers.PROVIDERS["openvino"], library="onnxruntime_providers_broken")
    monkeypatch.setitem(providers.PROVIDERS, "openvino", broken)
    monkeypatch.setattr(providers, "in_build", lambda _: True)
    monkeypatch.setattr(providers, "ruled_out", lambda _: "")
    answer = probing.probe("openvino", DEFAULTS)
    assert not answer.available
    assert "does not load" in answer.detail
    assert "cannot open shared object file" in answer.detail
    assert "\n" not in answer.detail


def test_a_provider_that_runs_nothing_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    # the CPU's session passes for the provider's
    monkeypatch.setattr(providers, "in_build", lambda _: True)
    monkeypatch.setattr(providers, "ruled_out", lambda _: "")
    impostor = providers.Provider(device="dml", name="CPUExecutionProvider", package="impostor")
    monkeypatch.setitem(providers.PROVIDERS, "dml", impostor)
    monkeypatch.setattr(providers, "attach", lambda *_: {"providers": ["CPUExecutionProvider"]})
    answer = probing.probe("dml", DEFAULTS)
    assert not answer.available
    assert "runs nothing" in answer.detail


def test_nothing_is_installed_for_a_device_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path))
    target, _ = plugins.parse_target("onnxruntime:dml")
    with pytest.raises(UnavailableError, match="Windows"):
        interpreter(replace(target, dependencies=("no-such-package-anywhere",)))
    assert not (tmp_path / "environments").exists()


# --- what each precision means ---------------------------------------------------------------------


def _options(device: str, asked: str, **settings: str) -> dict[str, str]:
    force = {**DEFAULTS, **settings}
    found: dict[str, str] = providers.options_for(device, force, precision=asked, threads=3)
    return found


def test_fp32_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _options("cuda", "fp32", device_id="1") == {"device_id": "1", "use_tf32": "0"}
    assert _options("cuda", "tf32")["use_tf32"] == "1"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert _options("tensorrt", "tf32")["trt_fp16_enable"] == "False"
    assert "NVIDIA_TF32_OVERRIDE" not in providers.os.environ
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert _options("tensorrt", "fp16")["trt_fp16_enable"] == "True"
    assert providers.os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_openvino_and_core_ml_are_asked_for_float32() -> None:
    found = _options("openvino", "fp32")
    assert found == {"device_type": "CPU", "precision": "FP32", "num_of_threads": "3"}
    assert _options("coreml", "fp32")["ModelFormat"] == "MLProgram"


@pytest.mark.parametrize(
    ("device", "asked", "settings", "quantised"),
    [
        ("qnn", "fp32", {}, False),
        ("qnn", "fp16", {}, True),
        ("qnn", "fp16", {"qnn_backend": "gpu"}, False),
        ("openvino", "fp16", {}, False),
        ("openvino", "fp32", {"openvino_device": "NPU"}, False),
        ("coreml", "fp16", {}, False),
        ("cuda", "bf16", {}, False),
        ("cpu", "tf32", {}, False),
    ],
)
def test_a_precision_that_would_be_another_is_refused(
    device: str, asked: str, settings: dict[str, str], quantised: bool
) -> None:
    with pytest.raises(UnsupportedError, match=asked) as raised:
        precision.check(device, asked, {**DEFAULTS, **settings}, quantised=quantised)
    assert raised.value.hint.startswith("it has ")


# --- the model as it came --------------------------------------------------------------------------


def test_weights_that_are_not_beside_the_model_are_refused(build: Any, tmp_path: Path) -> None:
    model = build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 4])],
        {"w": np.eye(4, dtype=np.float32)},
    )
    inner = tmp_path / "inner"
    inner.mkdir()
    path = inner / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = saving.read(str(path))
    payload = tmp_path / "payload"
    payload.mkdir()
    saving.as_it_came(loaded, str(path), payload, edited=False)
    assert (payload / "w.bin").read_bytes() == (inner / "w.bin").read_bytes()
    (inner / "w.bin").rename(tmp_path / "w.bin")
    for entry in loaded.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../w.bin"
    with pytest.raises(SourceError, match="not beside"):
        saving.as_it_came(loaded, str(path), payload, edited=True)
