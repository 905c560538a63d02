"""Whether each device really runs a model here: a small one is given to it, and its result judged."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit._plugins.targets.ort import audit, providers, session

from deploykit.errors import DeploykitError
from deploykit.processor import architecture
from deploykit.protocol import Availability

if TYPE_CHECKING:
    import onnx


def probe(device: str, settings: Mapping[str, str]) -> Availability:
    """Return whether `device` runs a model here, or in one line what it lacks."""
    provider = providers.PROVIDERS[device]
    try:
        import onnxruntime
    except ImportError as error:
        return Availability(device=device, available=False, detail=f"onnxruntime: {error}")
    versions = {"onnxruntime": onnxruntime.__version__}
    if reason := providers.ruled_out(device):
        detail = f"{reason}; it needs {provider.package}"
        return Availability(device=device, available=False, detail=detail)
    if providers.simulated(device):
        return Availability(
            device=device,
            available=False,
            by_name=True,
            detail="no Qualcomm processor; compiled for it by name, a model runs in the vendor's "
            "simulator, whose values are right and whose times mean nothing",
        )
    if not providers.in_build(device):
        lacks = f"this build of ONNX Runtime lacks {provider.name}: it needs {provider.package}"
        if not provider.apart:
            return Availability(device=device, available=False, detail=lacks, versions=versions)
        detail = f"{lacks}, in an environment of its own"
        return Availability(device=device, available=False, unprobed=True, detail=detail)
    try:
        _run(device, settings)
    except (DeploykitError, RuntimeError) as error:
        text = error.message if isinstance(error, DeploykitError) else str(error)
        detail = " ".join(text.split()).removeprefix(f"onnxruntime:{device} cannot run here: ")
        if isinstance(error, DeploykitError) and error.hint:
            detail = f"{detail}; {error.hint}"
        return Availability(device=device, available=False, detail=detail, versions=versions)
    detail = f"{onnxruntime.get_device()} build of ONNX Runtime on {architecture()}"
    return Availability(device=device, available=True, detail=detail, versions=versions)


def _run(device: str, settings: Mapping[str, str]) -> None:
    """Run a small convolution on `device`; raise where another device ran it, or ran it wrong."""
    import numpy as np
    import onnxruntime

    feed = {"x": np.linspace(-1, 1, 3 * 8 * 8, dtype=np.float32).reshape(1, 3, 8, 8)}
    content = _convolution().SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    expected = session.open_model(content, options, "probe").run(None, feed)[0]
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it lacks becomes the detail
        audit.prepare(options, Path(folder))
        precision = "fp16" if settings["openvino_device"] == "NPU" else "fp32"
        own = providers.options_for(device, settings, precision=precision, threads=None)
        opened = session.open_model(content, options, "probe", device=device, provider_options=own)
        (actual,) = opened.run(None, feed)
        ran = {run.device for run in audit.audit(opened, feed, {})}
    if device not in ran:
        raise RuntimeError(f"{providers.PROVIDERS[device].name} is there, and runs nothing")
    if np.abs(actual - expected).max() > 1e-2 * np.abs(expected).max():
        raise RuntimeError(f"{providers.PROVIDERS[device].name} computes a convolution wrong")


def _convolution() -> onnx.ModelProto:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = np.linspace(-0.5, 0.5, 4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
