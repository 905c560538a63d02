"""Which precision takes effect on which device, and the model in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.ort.providers import PROVIDERS

from deploykit.errors import UnsupportedError
from deploykit.onnx_graph import every_node
from deploykit.processor import architecture

if TYPE_CHECKING:
    import onnx

PRECISIONS = {
    "cpu": ("fp32", "fp16"),
    "cuda": ("fp32", "tf32", "fp16"),
    "tensorrt": ("fp32", "tf32", "fp16", "bf16"),
    "openvino": ("fp32", "fp16"),
    "dml": ("fp32", "fp16"),
    "coreml": ("fp32",),
    "qnn": ("fp32", "fp16"),
}
"""Device to the precisions it may have; the first is the default.

int8 is no precision of this target: a quantised model (QuantizeLinear and DequantizeLinear around
its operators) is compiled as it is, under fp32, and its integer kernels are used.
"""

# The operators that take nearly all of a model's time decide whether a precision takes effect.
ARITHMETIC = {"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}


def check(device: str, precision: str, settings: Mapping[str, str], *, quantised: bool) -> None:
    """Raise UnsupportedError where `device` would compute in another precision than asked for.

    `quantised` says that the model is: Qualcomm's NPU (htp) computes in integers where it is, and
    all else in float16, also with the option that promises float32 (seen in its simulator).
    """
    known, what = list(PRECISIONS[device]), f"device {device}"
    if device == "openvino":
        # of its processors the CPU computes in float32, the NPU in float16
        known = {"CPU": ["fp32"], "GPU": known, "NPU": ["fp16"]}[settings["openvino_device"]]
    if device == "qnn":
        known = ["fp32"]
        if settings["qnn_backend"] == "htp" and not quantised:
            known, what = ["fp16"], "device qnn: Qualcomm's NPU computes floats in float16"
    if device == "cpu" and precision == "bf16":
        return  # refused by `converted`, which names the operators
    if precision not in known:
        raise UnsupportedError(
            f"target onnxruntime has no precision `{precision}` on the {what}",
            hint=f"it has {' and '.join(known)}",
        )


def is_quantised(model: onnx.ModelProto) -> bool:
    """Return whether the model has quantised operators, or tensors around operators."""
    return any(
        node.op_type in ("DequantizeLinear", "QLinearConv", "QLinearMatMul")
        for node in every_node(model.graph)
    )


def converts(device: str, precision: str) -> bool:
    """Return whether the graph itself must be converted: the other providers do it by an option."""
    return precision in ("fp16", "bf16") and device in ("cpu", "cuda", "dml")


def converted(
    model: onnx.ModelProto, path: str, device: str, precision: str
) -> tuple[onnx.ModelProto, str]:
    """Return the model in `precision` with float32 inputs and outputs, and a note about it.

    ONNX Runtime wraps an operator that lacks a kernel in casts and computes it in float32: slower
    than fp32, and less exact. So its own list of kernels is asked first.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    missing = _without_kernels(model, device, precision)
    onnx.load_external_data_for_model(model, str(Path(path).resolve().parent))
    made = convert_float_to_float16(model, keep_io_types=True)
    partly = f"; {', '.join(missing)} in float32 for want of kernels" if missing else ""
    return made, f"weights and arithmetic in float16, inputs and outputs as they were{partly}"


def _without_kernels(model: onnx.ModelProto, device: str, precision: str) -> list[str]:
    """Return the deciding operators without a kernel in `precision`; raise where none has one."""
    dtype = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}[precision]
    kernels = {
        kernel.op_name
        for kernel in _kernels()
        if kernel.provider == PROVIDERS[device].name
        and any(dtype in types for types in kernel.type_constraints.values())
    }
    operators = {node.op_type for node in every_node(model.graph)}
    deciding = operators & ARITHMETIC or operators - {"Constant"}
    missing = sorted(deciding - kernels)
    if len(missing) == len(deciding) or precision == "bf16":
        where = f"processor ({architecture()})" if device == "cpu" else f"device ({device})"
        raise UnsupportedError(
            f"target onnxruntime has no {precision} kernels on this {where} "
            f"for {', '.join(missing or sorted(deciding))}: "
            "the model would run in float32 between casts",
            hint="use --precision fp32",
            operators=tuple(missing),
        )
    return missing


def _kernels() -> list[Any]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: list[Any] = state.get_all_opkernel_def()
    return found
