"""Convolutions, pools, matrix products and resizing of TensorFlow Lite by definition.

Integers in, integers out: sums are exact, and rounded as TensorFlow Lite's kernels do. Float
activations against int8 weights are rounded at run time first (hybrid).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute, away, real

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


LAST_DIGITS = 1e-5
"""Relative; ten times what sums in float32 differ by, to see what it can lead to."""


def pads_of(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return (before, after) of each axis: VALID none, SAME as much as `ceil(n / stride)` needs."""
    names = "dhw" if len(kernel) == 3 else "hw"
    found = []
    for name, n, k in zip(names, sizes, kernel, strict=True):
        stride = call.option(f"stride_{name}")
        reach = (k - 1) * call.op.options.get(f"dilation_{name}", 1) + 1
        lacking = max(0, (-(-n // stride) - 1) * stride + reach - n)
        found.append(
            (lacking // 2, lacking - lacking // 2) if not call.option("padding") else (0, 0)
        )
    return found


def levels(call: Call, x: Array, axes: tuple[int, ...], asymmetric: bool) -> Any:
    """Return float activations rounded to int8 and back, one scale for each place off `axes`.

    Where the call is shaken, their last digits are: other kernels sum in another order.
    """
    import numpy as np

    if call.shaken:
        x = x * (1 + LAST_DIGITS * np.random.default_rng(0).uniform(-1, 1, x.shape))
    x32 = x.astype(np.float32)
    if not asymmetric:
        reach = np.abs(x32).max(axis=axes, keepdims=True)
        safe = np.where(reach == 0, np.float32(127), reach).astype(np.float32)
        numbers = away(x32 * (np.float32(127) / safe))
        return np.clip(numbers, -127, 127) * (safe / np.float32(127)).astype(np.float64)
    low = np.minimum(x32.min(axis=axes, keepdims=True), 0).astype(np.float64)
    high = np.maximum(x32.max(axis=axes, keepdims=True), 0).astype(np.float64)
    flat = low == high
    step = np.where(flat, 255.0, high - low) / 255
    from_low, from_high = -128 - low / step, 127 - high / step
    nearer = 128 + np.abs(low / step) < 127 + np.abs(high / step)
    zero = np.where(flat, 0, np.clip(away(np.where(nearer, from_low, from_high)), -128, 127))
    step32 = step.astype(np.float32)
    numbers = away((x32 * (np.float32(1) / step32) + zero.astype(np.float32)).astype(np.float32))
    return np.asarray((np.clip(numbers, -128, 127) - zero) * step32.astype(np.float64))


def hybrid(call: Call, x: int, weight: int) -> bool:
    """Whether float activations meet quantised weights."""
    return not call.tensor(x).quantized and call.tensor(weight).quantized


def centred(call: Call, at: int) -> Any:
    """Return stored integers less their zero point, as float64, in which their sums are exact."""
    import numpy as np

    about, value = call.tensor(at).quantization, call.stored(at).astype(np.float64)
    if about is None:
        return value
    if not about.per_channel:
        return np.asarray(value - about.zero_point[0])
    shape = [1] * value.ndim
    shape[about.axis] = -1
    return np.asarray(value - about.zero_point.reshape(shape))


def scales(call: Call, x: int, weight: int) -> Any:
    """Return what a sum of products of stored integers is worth in steps of the output."""
    import numpy as np

    parts = [call.tensor(at).quantization for at in (x, weight)]
    out = call.outs[0].quantization
    assert parts[0] is not None
    assert parts[1] is not None
    assert out is not None
    return parts[0].scale.astype(np.float64)[0] * parts[1].scale.astype(np.float64) / out.scale[0]


def _finished(call: Call, total: Array, x: int, weight: int, bias: int) -> Any:
    """Return sums with channels last as the output stores them."""
    if call.tensor(x).quantized:
        if call.has(bias):
            total = total + call.stored(bias)
        return call.clamped(call.requantized(total, scales(call, x, weight)))
    if call.has(bias):
        total = total + call.real(bias)
    return call.given(call.activated(total))


def _operands(call: Call, x: int, weight: int) -> tuple[Array, Array]:
    if call.tensor(x).quantized:
        return centred(call, x), centred(call, weight)
    return call.real(x), real(call.stored(weight), call.tensor(weight))


def _dilations(call: Call) -> list[int]:
    return [call.op.options.get(f"dilation_{axis}", 1) for axis in "hw"]


def _strides(call: Call) -> list[int]:
    return [call.option("stride_h"), call.option("stride_w")]


def convolution(call: Call) -> Any:
    """CONV_2D."""
    import numpy as np

    x, w = _operands(call, 0, 1)
    groups = x.shape[3] // w.shape[3]
    about = call.tensor(1).quantization
    if hybrid(call, 0, 1):
        many = groups > 1 or (about is not None and about.per_channel)
        x = levels(call, x, (1, 2, 3), many)
    total = define.convolution(
        np.moveaxis(x, 3, 1),
        np.moveaxis(w, 3, 1),
        strides=_strides(call),
        pads=pads_of(call, x.shape[1:3], w.shape[1:3]),
        dilations=_dilations(call),
        groups=groups,
    )
    return _finished(call, np.moveaxis(total, 1, 3), 0, 1, 2)


def depthwise(call: Call) -> Any:
    """DEPTHWISE_CONV_2D: kernel `c * multiplier + m` looks at channel `c`."""
    import numpy as np

    x, w = _operands(call, 0, 1)
    if hybrid(call, 0, 1):
        x = levels(call, x, (1, 2, 3), True)
    many = w.shape[3] // x.shape[3]
    first = np.moveaxis(x, 3, 1)
    padded = define.pad(first, pads_of(call, x.shape[1:3], w.shape[1:3]))
    view = define.windows(padded, w.shape[1:3], _strides(call), _dilations(call))
    view = np.repeat(view, many, axis=1)
    total = np.einsum("nchwij,ijc->nhwc", view, w[0], optimize=True)
    return _finished(call, total, 0, 1, 2)


def transposed(call: Call) -> Any:
    """TRANSPOSE_CONV: the gradient of a convolution of the output that it names."""
    import numpy as np

    x, w = _operands(call, 2, 1)
    size = call.integers(0)[1:3]
    steps, kernel = _strides(call), w.shape[1:3]
    pads = []
    for n, o, s, k in zip(x.shape[1:3], size, steps, kernel, strict=True):
        del n
        lacking = max(0, (-(-o // s) - 1) * s + k - o) if not call.option("padding") else 0
        pads.append(lacking // 2)
    full = define.transposed_convolution(
        np.moveaxis(x, 3, 1),
        np.transpose(w, (3, 0, 1, 2)),
        strides=steps,
        pads=[(0, 0), (0, 0)],
        extra=[o + k for o, k in zip(size, kernel, strict=True)],
    )
    total = full[:, :, pads[0] : pads[0] + size[0], pads[1] : pads[1] + size[1]]
    return _finished(call, np.moveaxis(total, 1, 3), 2, 1, 3)


def volume(call: Call) -> Any:
    """CONV_3D."""
    import numpy as np

    x, w = call.real(0), call.real(1)
    total = define.convolution(
        np.moveaxis(x, 4, 1),
        np.transpose(w, (4, 3, 0, 1, 2)),
        strides=[call.option(f"stride_{axis}") for axis in "dhw"],
        pads=pads_of(call, x.shape[1:4], w.shape[:3]),
        dilations=[call.option(f"dilation_{axis}") for axis in "dhw"],
    )
    return _finished(call, np.moveaxis(total, 1, 4), 0, 1, 2)


def pooling(call: Call) -> Any:
    """The largest, the mean, or the root of the mean square of what each window covers."""
    import numpy as np

    kernel = [call.option("filter_h"), call.option("filter_w")]
    x = np.moveaxis(call.stored(0).astype(np.float64), 3, 1)
    pads = pads_of(call, x.shape[2:], kernel)
    if call.op.kind == "MAX_POOL_2D":
        found = define.max_pool(x, kernel, strides=_strides(call), pads=pads)
    elif call.op.kind == "L2_POOL_2D":
        found = np.sqrt(define.average_pool(x * x, kernel, strides=_strides(call), pads=pads))
    else:
        found = define.average_pool(x, kernel, strides=_strides(call), pads=pads)
    found = np.moveaxis(found, 1, 3)
    if not call.quantized():
        return call.given(call.activated(found))
    about = call.outs[0].quantization
    assert about is not None
    whole = np.rint(found) if call.once else away(found)
    return call.clamped(whole - about.zero_point[0])


def dense(call: Call) -> Any:
    """FULLY_CONNECTED."""
    x, w = _operands(call, 0, 1)
    rows = x.reshape(-1, w.shape[1])
    if hybrid(call, 0, 1):
        rows = levels(call, rows, (1,), bool(call.option("asymmetric")))
    found = _finished(call, rows @ w.T, 0, 1, 2)
    if call.option("keep_num_dims") and x.shape[-1] == w.shape[1]:
        return found.reshape(*x.shape[:-1], w.shape[0])
    return found


def products(call: Call) -> Any:
    """BATCH_MATMUL."""
    import numpy as np

    x, y = _operands(call, 0, 1)
    x = np.swapaxes(x, -1, -2) if call.option("turn_x") else x
    y = np.swapaxes(y, -1, -2) if call.option("turn_y") else y
    if hybrid(call, 0, 1):
        x = levels(call, x, (x.ndim - 1,), bool(call.option("asymmetric")))
    total = x @ y
    if call.tensor(0).quantized:
        return call.clamped(call.requantized(total, scales(call, 0, 1)))
    return call.given(total)


def resize(call: Call) -> Any:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR: where each new place lies among the old ones."""
    import numpy as np

    x = call.real(0)
    corners, middle = call.option("align_corners"), call.option("half_pixel")
    for axis, new in enumerate(call.integers(1), start=1):
        old = x.shape[axis]
        step = (old - 1) / (new - 1) if corners and new > 1 else old / new
        at = np.arange(new)
        if call.op.kind == "RESIZE_NEAREST_NEIGHBOR":
            place = (at + 0.5) * step if middle else at * step
            place = away(place) if corners else np.floor(place + 1e-9)
            x = np.take(x, np.clip(place, 0, old - 1).astype(int), axis=axis)
            continue
        place = (at + 0.5) * step - 0.5 if middle else at * step
        low = np.floor(place)
        shape = [1] * x.ndim
        shape[axis] = -1
        share = (place - low).reshape(shape)
        left = np.take(x, np.clip(low, 0, old - 1).astype(int), axis=axis)
        right = np.take(x, np.clip(low + 1, 0, old - 1).astype(int), axis=axis)
        x = left * (1 - share) + right * share
    return call.given(x)


COMPUTE: dict[str, Compute] = {
    "CONV_2D": convolution,
    "DEPTHWISE_CONV_2D": depthwise,
    "TRANSPOSE_CONV": transposed,
    "CONV_3D": volume,
    "AVERAGE_POOL_2D": pooling,
    "MAX_POOL_2D": pooling,
    "L2_POOL_2D": pooling,
    "FULLY_CONNECTED": dense,
    "BATCH_MATMUL": products,
    "RESIZE_BILINEAR": resize,
    "RESIZE_NEAREST_NEIGHBOR": resize,
}
