"""Constants of an ONNX graph folded by ONNX Runtime, for compilers that read folded graphs better.

This file also runs inside plugin environments: standard library, onnx and onnxruntime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

LARGE_BYTES = 1 << 30
"""A protobuf message ends at 2 GiB; with this much, the weights go to a file of their own."""


def fold(model: onnx.ModelProto, folder: Path, *, target: str) -> Path:
    """Write `model` with its constants folded into the empty `folder`; return the file.

    At the level that stays within ONNX's own operators. Weights may lie beside the file. Raises
    UnsupportedError where ONNX Runtime cannot take the model, which is as it was in any case.
    """
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    saved = folder / "folded.onnx"
    options.optimized_model_filepath = str(saved)
    source: str | bytes
    if model.ByteSize() < LARGE_BYTES:
        source = model.SerializeToString()
    else:
        source = str(folder / "model.onnx")
        onnx.save(model, source, save_as_external_data=True, location="model.bin")
        onnx.load_external_data_for_model(model, str(folder))
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "folded.bin"
        )
    onnxruntime.disable_telemetry_events()
    try:
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except (
        raised.Fail,
        raised.InvalidArgument,
        raised.InvalidGraph,
        raised.NotImplemented,
        raised.RuntimeException,
    ) as error:
        raise UnsupportedError(
            f"target {target} has its graph folded by ONNX Runtime, which cannot take it: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return saved
