"""TorchScript's quantised layers, written with what ONNX has.

A quantised tensor is a float tensor whose values lie on a grid. Static layers compute in float on
such values and round to the grid of their output, as QuantizeLinear and DequantizeLinear do; dynamic
ones choose the grid of their input at each call.
https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/quantized/cpu/QuantUtils.h
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

SMALLEST_SCALE = 6.1e-5
"""Below it the grid is made coarser, so that a sum of squares does not vanish (QuantUtils.h)."""

VALUE_PRESERVING = frozenset(
    [
        *("relu", "relu_", "max_pool2d", "max_pool1d", "view", "reshape", "flatten", "permute"),
        *("transpose", "contiguous", "squeeze", "unsqueeze", "select", "slice", "clone", "detach"),
        *("expand", "chunk", "dropout", "feature_dropout", "index_select", "unflatten", "narrow"),
        *(
            "t",
            "alias",
            "pixel_shuffle",
            "channel_shuffle",
            "upsample_nearest2d",
            "unbind",
            "split",
        ),
    ]
)
"""Operators that give only values that they got (or zero, which is on every grid)."""
AVERAGING = frozenset(["adaptive_avg_pool2d", "avg_pool2d", "mean", "adaptive_avg_pool1d"])
"""Operators whose result torch rounds to the grid of the input."""


@dataclasses.dataclass(frozen=True)
class Quantised:
    """Float `values` on the grid of `scale` and `zero_point` of the quantised `dtype`."""

    values: Any
    scale: Any
    zero_point: Any
    dtype: Any
    is_quantized = True

    @property
    def shape(self) -> Any:
        return self.values.shape

    @property
    def device(self) -> Any:
        return self.values.device


def quantise(x: Any, scale: Any, zero_point: Any, dtype: Any) -> Quantised:
    """Round `x` to a grid. `dtype` is torch.quint8 or torch.qint8, also by its number in TorchScript."""
    import torch
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 - it defines the operators

    if isinstance(dtype, int):
        dtype = {12: torch.qint8, 13: torch.quint8}.get(dtype)
    limits = {torch.qint8: (-128, 127, torch.int8), torch.quint8: (0, 255, torch.uint8)}
    if dtype not in limits:
        raise NotImplementedError(f"quantised tensors of {dtype}")
    low, high, integer = limits[dtype]
    operators = torch.ops.quantized_decomposed
    whole = operators.quantize_per_tensor.default(x, scale, zero_point, low, high, integer)
    values = operators.dequantize_per_tensor.default(whole, scale, zero_point, low, high, integer)
    return Quantised(values, scale, zero_point, dtype)


def steps(x: Quantised) -> Any:
    """Return how many steps of its grid each value is from zero: whole numbers, as floats.

    Means of these are exact, while means of the values would fall beside the ties of the rounding.
    """
    import torch

    return torch.round(x.values / x.scale)


def from_steps(mean: Any, like: Quantised) -> Quantised:
    """Round means of `steps` to the grid of `like`, ties to even as torch does."""
    import torch

    return dataclasses.replace(like, values=torch.round(mean) * like.scale)


def special(weights: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """Return the quantised operators; `weights` gives float weight and bias of packed parameters."""
    import torch
    from torch.nn import functional

    def finished(y: Any, relu: bool, scale: Any, zero_point: Any) -> Quantised:
        return quantise(functional.relu(y) if relu else y, scale, zero_point, torch.quint8)

    def convolution(relu: bool) -> Callable[..., Any]:
        def run(x: Quantised, packed: Any, *rest: Any) -> Quantised:
            weight, bias = weights(packed)
            y = torch.convolution(
                x.values,
                weight,
                bias,
                list(packed.stride()),
                list(packed.padding()),
                list(packed.dilation()),
                bool(packed.transpose()),
                list(packed.output_padding()),
                packed.groups(),
            )
            return finished(y, relu, *rest[-2:])

        return run

    def linear(relu: bool) -> Callable[..., Any]:
        def run(x: Quantised, packed: Any, scale: Any, zero_point: Any) -> Quantised:
            return finished(functional.linear(x.values, *weights(packed)), relu, scale, zero_point)

        return run

    def dynamic(relu: bool) -> Callable[..., Any]:
        def run(x: Any, packed: Any, reduce_range: bool = False) -> Any:
            y = functional.linear(on_own_grid(x, 127 if reduce_range else 255), *weights(packed))
            return functional.relu(y) if relu else y

        return run

    def half(relu: bool) -> Callable[..., Any]:
        def run(x: Any, packed: Any) -> Any:
            y = functional.linear(x, *weights(packed))
            return functional.relu(y) if relu else y

        return run

    def binary(operation: Callable[..., Any], relu: bool) -> Callable[..., Any]:
        def run(a: Quantised, b: Quantised, scale: Any, zero_point: Any) -> Quantised:
            return finished(operation(a.values, b.values), relu, scale, zero_point)

        return run

    def cat(items: list[Quantised], axis: int, scale: Any = None, zero_point: Any = None) -> Any:
        y = torch.cat([item.values for item in items], axis)
        first = items[0]
        if scale is None:
            scale, zero_point = first.scale, first.zero_point
        return quantise(y, scale, zero_point, first.dtype)

    def dequantise(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [dequantise(item) for item in x]
        return x.values if isinstance(x, Quantised) else x

    found: dict[str, Callable[..., Any]] = {
        "aten::quantize_per_tensor": quantise,
        "aten::dequantize": dequantise,
        "quantized::add": binary(torch.add, relu=False),
        "quantized::add_relu": binary(torch.add, relu=True),
        "quantized::mul": binary(torch.mul, relu=False),
        "quantized::mul_relu": binary(torch.mul, relu=True),
        "quantized::cat": cat,
        "quantized::linear": linear(relu=False),
        "quantized::linear_relu": linear(relu=True),
        "quantized::linear_dynamic": dynamic(relu=False),
        "quantized::linear_relu_dynamic": dynamic(relu=True),
        "quantized::linear_dynamic_fp16": half(relu=False),
        "quantized::linear_relu_dynamic_fp16": half(relu=True),
        "aten::q_scale": lambda x: x.scale,
        "aten::q_zero_point": lambda x: x.zero_point,
    }
    for dimensions in ("1d", "2d", "3d"):
        found[f"quantized::conv{dimensions}"] = convolution(relu=False)
        found[f"quantized::conv{dimensions}_relu"] = convolution(relu=True)
        found[f"quantized::conv_transpose{dimensions}"] = convolution(relu=False)
    return found


def on_own_grid(x: Any, highest: int) -> Any:
    """Return `x` rounded to a grid of 0 … `highest` that spans its own values.

    As torch chooses it for dynamically quantised layers: scale and zero point over the whole tensor,
    zero on the grid.
    """
    import torch

    low = torch.clamp(x.min(), max=0.0)
    high = torch.clamp(x.max(), min=0.0)
    scale = (high - low) / float(highest)
    # a constant tensor of zeros has no span: torch takes 0.1, and any scale gives zeros
    scale = torch.where(scale < 1e-30, torch.full_like(scale, 0.1), scale)
    scale = torch.clamp(scale, min=SMALLEST_SCALE / 256)
    zero_point = torch.clamp(torch.round(-low / scale), 0.0, float(highest))
    whole = torch.clamp(torch.round(x * (1.0 / scale)) + zero_point, 0.0, float(highest))
    return (whole - zero_point) * scale


def unpacked(packed: Any) -> tuple[Any, Any]:
    """Return weight and bias, as float tensors, of the packed parameters of a quantised layer.

    Raises NotImplementedError for a kind of packed parameters that is not known.
    """
    import torch

    name = str(packed._type())
    if "Linear" in name:
        weight, bias = torch.ops.quantized.linear_unpack(packed)
    elif "Conv" in name:
        weight, bias = packed.unpack()
    else:
        raise NotImplementedError(f"the packed parameters {name}")
    weight = weight.dequantize() if weight.is_quantized else weight.to(torch.float32)
    return weight, bias
