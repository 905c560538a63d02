"""Execution providers as devices: which there are, what each needs, and whether it really runs.

Names and options are those of https://onnxruntime.ai/docs/execution-providers/.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError
from deploykit.processor import architecture

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A device, ONNX Runtime's name of its provider, and the package that brings it.

    `library` is the file of the provider, where it is one of its own.
    """

    device: str
    name: str
    package: str
    library: str = ""

    @property
    def apart(self) -> bool:
        """Whether its package is another than that of the CPU, and cannot be installed beside it."""
        return not self.package.startswith("onnxruntime ") and self.device != "cpu"


PROVIDERS = {
    provider.device: provider
    for provider in (
        Provider(device="cpu", name="CPUExecutionProvider", package="onnxruntime"),
        Provider(
            device="cuda",
            name="CUDAExecutionProvider",
            package="onnxruntime-gpu",
            library="onnxruntime_providers_cuda",
        ),
        Provider(
            device="tensorrt",
            name="TensorrtExecutionProvider",
            package="onnxruntime-gpu",
            library="onnxruntime_providers_tensorrt",
        ),
        Provider(
            device="openvino",
            name="OpenVINOExecutionProvider",
            package="onnxruntime-openvino",
            library="onnxruntime_providers_openvino",
        ),
        Provider(device="dml", name="DmlExecutionProvider", package="onnxruntime-directml"),
        Provider(device="coreml", name="CoreMLExecutionProvider", package="onnxruntime on macOS"),
        Provider(device="qnn", name="QNNExecutionProvider", package="onnxruntime-qnn"),
    )
}
_INSTALL = {
    "cuda": "install CUDA and cuDNN in the versions that onnxruntime-gpu names, and the driver",
    "tensorrt": "install TensorRT in the version that onnxruntime-gpu names, on LD_LIBRARY_PATH",
}

_SIMULATED_CHIP = "57"
"""Snapdragon 8 Gen 3: the oldest chips, which the simulator takes by default, have no float16."""

_DEVICES = {provider.name: device for device, provider in PROVIDERS.items()}


def device_of(provider: str) -> str:
    """Return the device of ONNX Runtime's `provider`; one that is no device of ours by its name."""
    return _DEVICES.get(provider, provider.removesuffix("ExecutionProvider").lower())


def ruled_out(device: str) -> str:
    """Return what this machine lacks for `device`, as far as can be seen without its provider."""
    if device in ("cuda", "tensorrt"):
        return _nvidia()
    if device == "dml" and sys.platform != "win32":
        return "DirectML is part of Windows, and this is another system"
    if device == "coreml" and sys.platform != "darwin":
        return "Core ML is part of macOS, and this is another system"
    if device == "openvino" and architecture() != "x86_64":
        return f"onnxruntime-openvino is built for x86_64 only, this is {architecture()}"
    return ""


def _nvidia() -> str:
    """Return what keeps NVIDIA's driver from being used, by its driver API."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"there is no NVIDIA driver ({name} is missing)"
    code = driver.cuInit(0)
    if code:
        return f"the NVIDIA driver does not start (cuInit gives {code})"
    count = ctypes.c_int()
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    return "" if code == 0 and count.value else "the NVIDIA driver finds no GPU"


def simulated(device: str) -> bool:
    """Return whether what runs `device` here is its vendor's simulator: right values, no speed."""
    return device == "qnn" and architecture() == "x86_64"


def in_build(device: str) -> bool:
    """Return whether this installation of ONNX Runtime has the provider of `device`."""
    import onnxruntime

    if device == "qnn" and importlib.util.find_spec("onnxruntime_qnn") is not None:
        return True
    return PROVIDERS[device].name in onnxruntime.get_available_providers()


def check(device: str) -> None:
    """Raise UnavailableError where `device` cannot be used here."""
    provider = PROVIDERS[device]
    reason = ruled_out(device)
    if not reason and not in_build(device):
        reason = f"this build of ONNX Runtime has no {provider.name}"
    if reason:
        raise UnavailableError(
            f"onnxruntime:{device} cannot run here: {reason}",
            hint=f"it needs {provider.package} and a machine for it",
        )


def attach(
    device: str, options: onnxruntime.SessionOptions, provider_options: Mapping[str, str]
) -> dict[str, Any]:
    """Make `options` use `device`, and return what else to give InferenceSession for it.

    What the provider does not take goes to the CPU: ONNX Runtime always adds that one.
    """
    name = PROVIDERS[device].name
    if device == "cpu":
        return {"providers": [name]}
    check(device)
    if device in ("cuda", "tensorrt"):
        _preload()
    if problem := _library_problem(device):
        raise UnavailableError(
            f"onnxruntime:{device} cannot run here: {problem}", hint=_INSTALL.get(device, "")
        )
    if device == "qnn":
        chosen = _qnn_devices()[:1]
        options.add_provider_for_devices(chosen, dict(provider_options))
        return {}
    following = ["CUDAExecutionProvider"] if device == "tensorrt" else []
    return {"providers": [(name, dict(provider_options)), *following, "CPUExecutionProvider"]}


def _qnn_devices() -> list[Any]:
    """Return QNN's devices, the NPU first; its library is one that ONNX Runtime loads on request."""
    import onnxruntime
    import onnxruntime_qnn

    name = PROVIDERS["qnn"].name

    def found() -> list[Any]:
        return [each for each in onnxruntime.get_ep_devices() if each.ep_name == name]

    if not found():
        onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    kinds = onnxruntime.OrtHardwareDeviceType
    order = [kinds.NPU, kinds.GPU, kinds.CPU]
    return sorted(found(), key=lambda each: order.index(each.device.type))


def qnn_library(backend: str) -> Path:
    """Return the library of QNN's `backend` (`htp`, `gpu`, `cpu`).

    Raises UnavailableError where the package for this machine has none.
    """
    import onnxruntime_qnn

    path = Path(getattr(onnxruntime_qnn, f"get_qnn_{backend}_path")())
    if not path.is_file():
        raise UnavailableError(
            f"onnxruntime-qnn for {architecture()} has no backend {backend}: it lacks {path.name}",
            hint="use qnn_backend=htp",
        )
    return path


def _preload() -> None:
    """Load CUDA and cuDNN from NVIDIA's packages, where those are installed beside ONNX Runtime."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        # what it cannot load it prints, and stdout is not ours
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()


def _library_problem(device: str) -> str:
    """Return which library keeps the provider of `device` from loading; ONNX Runtime only logs it."""
    import onnxruntime

    provider = PROVIDERS[device]
    if not provider.library:
        return ""
    folder = Path(onnxruntime.__file__).parent / "capi"
    windows = sys.platform == "win32"
    prefix, suffix = ("", ".dll") if windows else ("lib", ".so")
    path = folder / f"{prefix}{provider.library}{suffix}"
    try:
        # the provider's own library wants this one, which ONNX Runtime loads before it
        shared = folder / f"{prefix}onnxruntime_providers_shared{suffix}"
        ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path.name} does not load: {' '.join(str(error).split())}"
    return ""


def options_for(
    device: str, settings: Mapping[str, str], *, precision: str, threads: int | None
) -> dict[str, str]:
    """Return the provider's own options, so that `precision` means what it says."""
    if device == "cuda":
        # by default float32 products are computed with 10 bits of mantissa
        return {
            "device_id": settings["device_id"],
            "use_tf32": "1" if precision == "tf32" else "0",
        }
    if device == "tensorrt":
        if precision != "tf32":
            # the provider has no option for it; NVIDIA's libraries read this one when they start
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        return {
            "device_id": settings["device_id"],
            "trt_fp16_enable": str(precision == "fp16"),
            "trt_bf16_enable": str(precision == "bf16"),
        }
    if device == "openvino":
        named = {"fp32": "FP32", "fp16": "FP16"}
        found = {"device_type": settings["openvino_device"], "precision": named[precision]}
        return found | ({"num_of_threads": str(threads)} if threads else {})
    if device == "dml":
        return {"device_id": settings["device_id"]}
    if device == "coreml":
        # its older form, NeuralNetwork, computes float32 models in float16
        return {
            "ModelFormat": "MLProgram",
            "MLComputeUnits": settings["coreml_units"],
            "AllowLowPrecisionAccumulationOnGPU": "0",
        }
    if device == "qnn":
        found = {"backend_path": str(qnn_library(settings["qnn_backend"]))}
        if settings["qnn_backend"] == "htp":
            found["enable_htp_fp16_precision"] = "1" if precision == "fp16" else "0"
            found["htp_performance_mode"] = settings["qnn_performance"]
            chip = settings["qnn_soc"]
            if chip == "0" and simulated(device):
                chip = _SIMULATED_CHIP
            if chip != "0":
                found["soc_model"] = chip
        return found
    return {}
