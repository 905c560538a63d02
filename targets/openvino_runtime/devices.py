"""OpenVINO's devices: which are here, what one that is not lacks, and how each is configured.

Only the CPU was at hand when this was written: GPU and NPU follow OpenVINO's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.plugin_settings import Setting
from deploykit.protocol import Availability

if TYPE_CHECKING:
    import openvino

SETTINGS = {
    "hint": Setting(default="latency", choices=("latency", "throughput")),
    "streams": Setting(default="auto", least=1),
    "pinning": Setting(default="auto", choices=("auto", "true", "false")),
    "fallback": Setting(default="true", choices=("true", "false")),
}

HETERO = "hetero:"
"""Several devices in order of preference, each operation on the first that has it."""

# precision asked for -> OpenVINO's name of the element type that floating point is computed in;
# int8 arithmetic comes from the model's own quantisation, the rest of it stays as exact as it is
PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


def versions() -> dict[str, str]:
    """Return the version of OpenVINO, as its packages name it."""
    import openvino

    # such as 2026.4.1-22982-e213a147257-releases/2026/4
    return {"openvino": openvino.__version__.split("-")[0]}


def probe(core: openvino.Core) -> tuple[Availability, ...]:
    """Return for each device whether it is here, under its name, or what is missing."""
    made = versions()
    here = sorted({name.partition(".")[0] for name in core.available_devices})
    found = []
    for device in ("cpu", "gpu", "npu"):
        name = device.upper()
        if name in here:
            detail = str(core.get_property(name, "FULL_DEVICE_NAME"))
        else:
            detail = _missing(core, name)
        found.append(
            Availability(device=device, available=name in here, detail=detail, versions=made)
        )
    names = ", ".join(name.lower() for name in here)
    shared = {
        "auto": f"chooses among {names}",
        f"{HETERO}*": f"splits the model over devices in the order you name: {names}",
    }
    for device, detail in shared.items():
        detail = detail if here else "OpenVINO finds no device"
        found.append(
            Availability(device=device, available=bool(here), detail=detail, versions=made)
        )
    return tuple(found)


def openvino_name(device: str) -> str:
    """Return OpenVINO's name of `device`: `HETERO:GPU,CPU` for `hetero:gpu,cpu`."""
    return device.upper()


def members(device: str) -> tuple[str, ...]:
    """Return the devices that `device` names, in OpenVINO's words; none for `auto`."""
    if device == "auto":
        return ()
    return tuple(openvino_name(device.removeprefix(HETERO)).split(","))


def require(core: openvino.Core, device: str) -> None:
    """Raise UnavailableError, with what is missing, where `device` is not here."""
    here = {name.partition(".")[0] for name in core.available_devices} | {*core.available_devices}
    for name in members(device):
        if name not in here:
            raise UnavailableError(
                f"OpenVINO has no device `{name.lower()}` here: {_missing(core, name)}",
                hint=f"devices here: {', '.join(sorted(here)).lower() or 'none'}",
            )


def check_precision(core: openvino.Core, device: str, precision: str) -> None:
    """Raise UnsupportedError where `device` cannot compute in `precision` at all."""
    if precision not in PRECISIONS:
        raise UnsupportedError(
            f"target openvino has no precision `{precision}`",
            hint=f"it has {', '.join(PRECISIONS)}",
        )
    for name in members(device) if precision in ("fp32", "int8") else ():
        can = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in can:
            floats = [kind.lower() for kind in ("FP16", "BF16", "INT8") if kind in can]
            raise UnsupportedError(
                f"OpenVINO's device {name.lower()} does not compute in {precision}",
                hint=f"it computes in {', '.join(floats) or 'none of the precisions known'}",
            )


def can_export(core: openvino.Core, device: str) -> bool:
    """Whether a model compiled for `device` can be written to a file and imported again."""
    own = "HETERO" if device.startswith(HETERO) else openvino_name(device)
    names = {own, *members(device)}
    return all(
        "EXPORT_IMPORT" in core.get_property(name, "OPTIMIZATION_CAPABILITIES") for name in names
    )


def configuration(
    core: openvino.Core,
    device: str,
    precision: str,
    threads: int | None,
    settings: Mapping[str, str],
) -> dict[str, Any]:
    """Return OpenVINO's properties; the precision is always asked for, it chooses others itself."""
    found: dict[str, Any] = {"PERFORMANCE_HINT": settings["hint"].upper()}
    if device == "auto":
        # else it begins on the CPU and moves on while the model runs, or moves where one fails
        found["ENABLE_STARTUP_FALLBACK"] = found["ENABLE_RUNTIME_FALLBACK"] = False
    named = members(device) or tuple(core.available_devices)
    own = {name: _own(core, name, precision, threads, settings) for name in dict.fromkeys(named)}
    if settings["pinning"] != "auto" and not any(name == "CPU" for name in own):
        raise UnsupportedError(
            f"setting `pinning` binds threads of the CPU; the device is {device}",
            hint="leave it out",
        )
    if device in ("cpu", "gpu", "npu"):
        return {**found, **own[openvino_name(device)]}
    return {**found, "DEVICE_PROPERTIES": own}


def _own(
    core: openvino.Core,
    name: str,
    precision: str,
    threads: int | None,
    settings: Mapping[str, str],
) -> dict[str, Any]:
    """Return the properties that one device takes."""
    found: dict[str, Any] = {}
    if "INFERENCE_PRECISION_HINT" in core.get_property(name, "SUPPORTED_PROPERTIES"):
        found["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    if settings["streams"] != "auto":
        found["NUM_STREAMS"] = settings["streams"]
    if name == "CPU":
        if threads:
            found["INFERENCE_NUM_THREADS"] = threads
        if settings["pinning"] != "auto":
            found["ENABLE_CPU_PINNING"] = settings["pinning"] == "true"
    return found


def _missing(core: openvino.Core, name: str) -> str:
    """Say in one line what a device that OpenVINO does not list lacks."""
    family = name.partition(".")[0]
    try:
        core.get_property(family, "AVAILABLE_DEVICES")
    except RuntimeError as error:
        reason = last_line(error)
        if "libOpenCL" in reason:
            return (
                "no OpenCL loader (libOpenCL.so.1): install it with Intel's GPU driver "
                "(packages ocl-icd-libopencl1 and intel-opencl-icd)"
            )
        if "is not registered" in reason:
            return f"OpenVINO {versions()['openvino']} knows no such device"
        return f"its plugin does not load: {reason}"
    if family == "NPU":
        if not Path("/dev/accel").is_dir():
            return "no Intel NPU that the kernel drives (no /dev/accel: module intel_vpu)"
        return "no NPU driver: install intel-level-zero-npu and intel-driver-compiler-npu"
    if family == "GPU":
        if not any(Path("/dev/dri").glob("renderD*")):
            return "no GPU that the kernel drives (no /dev/dri/renderD*)"
        return "no Intel GPU with a driver for OpenCL (package intel-opencl-icd, group render)"
    return f"OpenVINO finds only {', '.join(core.available_devices) or 'no device'}"


def last_line(error: RuntimeError) -> str:
    """Return the last line that says something of what OpenVINO raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
