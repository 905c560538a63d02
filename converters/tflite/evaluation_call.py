"""One operator at work in numpy: its stored inputs, the real numbers they stand for, its results.

`requantized` is TensorFlow Lite's integer arithmetic (`MultiplyByQuantizedMultiplier` of
`tensorflow/lite/kernels/internal/common.h`): a scale becomes 31 bits and a shift. Its reference
kernels round twice, after the product and after the shift; its fast ones once. Both are at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.reading import Operator, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LEAST_MOST = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
WIDE = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
"""Operators whose sums of int16 activations are of 64 bits."""

RANGES = {"RELU": (0, math.inf), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator with its inputs as they are stored (None where left out).

    `once` asks for the rounding of the fast kernels, `shaken` for other last digits where real
    numbers are rounded at run time.
    """

    op: Operator
    ins: Sequence[Array | None]
    tensors: Sequence[Tensor | None]
    outs: Sequence[Tensor]
    once: bool = False
    shaken: bool = False

    def option(self, name: str) -> Any:
        """Return an option."""
        return self.op.options[name]

    def stored(self, at: int) -> Any:
        """Return an input as it is stored."""
        found = self.ins[at]
        if found is None:
            raise ValueError(f"input {at} of {self.op.kind} is missing")
        return found

    def has(self, at: int) -> bool:
        """Whether there is such an input."""
        return at < len(self.ins) and self.ins[at] is not None

    def tensor(self, at: int) -> Tensor:
        """Return what the file says of an input."""
        found = self.tensors[at]
        if found is None:
            raise ValueError(f"input {at} of {self.op.kind} is missing")
        return found

    def real(self, at: int) -> Any:
        """Return the numbers that an input stands for, in float64; its own where it is no real one."""
        return real(self.stored(at), self.tensor(at))

    def integers(self, at: int) -> list[int]:
        """Return an input as a list of integers."""
        return [int(one) for one in self.stored(at).reshape(-1)]

    def quantized(self) -> bool:
        """Whether first input and first output are quantised."""
        found: bool = self.tensor(0).quantized and self.outs[0].quantized
        return found

    def given(self, value: Array, at: int = 0) -> Any:
        """Return the real numbers `value` as output `at` stores them."""
        return stored(value, self.outs[at])

    def activated(self, value: Array) -> Any:
        """Return real numbers after the fused activation."""
        import numpy as np

        kind = self.op.options.get("activation", "NONE")
        if kind == "TANH":
            return np.tanh(value)
        low, high = RANGES.get(kind, (-math.inf, math.inf))
        return np.clip(value, low, high)

    def clamped(self, value: Array) -> Any:
        """Return integers, the zero point added, within dtype and fused activation of the output."""
        import numpy as np

        out = self.outs[0]
        assert out.quantization is not None
        scale, zero = float(out.quantization.scale[0]), int(out.quantization.zero_point[0])
        least, most = LEAST_MOST[out.dtype]
        low, high = RANGES.get(self.op.options.get("activation", "NONE"), (-math.inf, math.inf))
        if low > -math.inf:
            least = max(least, zero + round(low / scale))
        if high < math.inf:
            most = min(most, zero + round(high / scale))
        return np.clip(value + zero, least, most).astype(out.dtype)

    def requantized(self, total: Array, scale: Any) -> Any:
        """Return the integers `total` times the real `scale` (one, or one for each last place)."""
        import numpy as np

        factors = np.broadcast_to(np.asarray(scale, np.float64), total.shape[-1:] or (1,))
        result = np.empty(total.shape or (1,), np.int64)
        total = total.astype(np.int64).reshape(result.shape)
        wide = self.outs[0].dtype == "int16" and self.op.kind in WIDE
        for factor in set(factors.tolist()):
            which = factors == factor
            part = total[..., which]
            found = scaled_wide(part, factor) if wide else scaled(part, factor, self.once)
            result[..., which] = found
        return result


Compute = Callable[[Call], Any]


def real(value: Array, tensor: Tensor) -> Array:
    """Return the numbers that `value` stands for as `tensor` says, in float64."""
    import numpy as np

    if tensor.quantized and tensor.quantization is not None:
        about = tensor.quantization
        shape = [1] * value.ndim
        if about.per_channel:
            shape[about.axis] = -1
            scale, zero = about.scale.reshape(shape), about.zero_point.reshape(shape)
        else:
            scale, zero = about.scale[0], about.zero_point[0]
        return np.asarray((value.astype(np.float64) - zero) * np.float64(scale))
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def stored(value: Array, tensor: Tensor) -> Array:
    """Return real numbers as `tensor` stores them: halves rounded away from zero."""
    import numpy as np

    if not tensor.quantized or tensor.quantization is None:
        return np.asarray(value)
    about = tensor.quantization
    levels = away(np.asarray(value, np.float64) / np.float64(about.scale[0]))
    levels = levels + about.zero_point[0]
    if tensor.dtype in LEAST_MOST:
        levels = np.clip(levels, *LEAST_MOST[tensor.dtype])
    found: Array = levels.astype(tensor.dtype)
    return found


def away(value: Array) -> Array:
    """Round halves away from zero, as C's `round`."""
    import numpy as np

    return np.asarray(np.sign(value) * np.floor(np.abs(value) + 0.5))


def multiplier(factor: float) -> tuple[int, int]:
    """Return 31 bits and a left shift that make `factor`: `QuantizeMultiplier`."""
    if factor == 0:
        return 0, 0
    part, shift = math.frexp(factor)
    bits = int(part * (1 << 31) + 0.5)
    if bits == 1 << 31:
        return bits // 2, shift + 1
    return (0, 0) if shift < -31 else (bits, shift)


def scaled_wide(total: Array, factor: float) -> Array:
    """Return sums of int16 activations times `factor`, which is cut to 15 bits: int64 in C."""
    import numpy as np

    bits, shift = multiplier(factor)
    reduced = (bits + (1 << 15)) >> 16 if bits < 0x7FFF0000 else 0x7FFF
    down = 15 - shift
    return np.asarray((total * reduced + (1 << (down - 1))) >> down)


def scaled(total: Array, factor: float, once: bool) -> Array:
    """Return the int64 `total` times `factor`, rounded once or twice."""
    import numpy as np

    bits, shift = multiplier(factor)
    if once and shift < 31:
        down = 31 - shift
        return np.asarray((total * bits + (1 << (down - 1))) >> down)
    product = (total << max(shift, 0)) * bits
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = product + nudge
    high = np.where(high >= 0, high >> 31, -((-high) >> 31))
    down = max(-shift, 0)
    mask = (1 << down) - 1
    limit = (mask >> 1) + (high < 0)
    return np.asarray((high >> down) + ((high & mask) > limit))
