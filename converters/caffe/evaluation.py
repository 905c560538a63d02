"""A Caffe network computed layer by layer by definition, in numpy and float64.

Written from the layer catalogue of Caffe and its sources, apart from the mapping to ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.caffe import measuring_evaluation
from deploykit._plugins.converters.caffe.reading import CaffeNet, Layer, Settings

from deploykit import definitions as define
from deploykit.formats.protobuf_text import messages

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Layer, list[Array]], list[Array]]


def evaluate(net: CaffeNet, feed: dict[str, Array]) -> dict[str, Array]:
    """Return the outputs of `net`."""
    blobs = dict(feed)
    for layer in net.layers:
        found = COMPUTE[layer.kind](layer, [blobs[name] for name in layer.bottoms])
        blobs.update(zip(layer.tops, found, strict=False))
    return {name: blobs[name] for name in net.outputs}


def _pair(settings: Settings, name: str, short: str, default: int) -> list[int]:
    both: list[int] = settings.integers(f"{short}_h") + settings.integers(f"{short}_w")
    if len(both) == 2:
        return both
    given = settings.integers(name) or [default]
    return given if len(given) > 1 else given * 2


def _convolution(layer: Layer, ins: list[Array]) -> list[Array]:
    settings = layer.settings("convolution_param")
    weight = layer.blobs[0]
    default = len(weight) if "epthwise" in layer.kind else 1
    arguments: dict[str, Any] = {
        "strides": _pair(settings, "stride", "stride", 1),
        "pads": [(one, one) for one in _pair(settings, "pad", "pad", 0)],
        "dilations": _pair(settings, "dilation", "dilation", 1),
        "groups": settings.integer("group", default),
    }
    bias = layer.blobs[1].reshape(-1) if settings.flag("bias_term", True) else None
    compute = define.transposed_convolution if layer.kind == "Deconvolution" else define.convolution
    return [compute(ins[0], weight, bias, **arguments)]


def _pooling(layer: Layer, ins: list[Array]) -> list[Array]:
    """Window by window, as the loops of `pooling_layer.cpp` go."""
    import numpy as np

    settings, x = layer.settings("pooling_param"), ins[0].astype(np.float64)
    mean = settings.word("pool", "MAX") in ("AVE", "1")
    if settings.flag("global_pooling", False):
        return [x.mean(axis=(2, 3), keepdims=True) if mean else x.max(axis=(2, 3), keepdims=True)]
    kernel = _pair(settings, "kernel_size", "kernel", 1)
    strides = _pair(settings, "stride", "stride", 1)
    pads = _pair(settings, "pad", "pad", 0)
    floor = settings.word("round_mode", "CEIL") in ("FLOOR", "1")
    floor = floor or not settings.flag("ceil_mode", True)
    counts = []
    for size, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        exact = (size + 2 * p - k) / s
        count = (math.floor(exact) if floor else math.ceil(exact)) + 1
        counts.append(count - 1 if p > 0 and (count - 1) * s >= size + p else count)
    found = np.zeros((*x.shape[:2], *counts))
    for i in range(counts[0]):
        for j in range(counts[1]):
            top, left = i * strides[0] - pads[0], j * strides[1] - pads[1]
            bottom = min(top + kernel[0], x.shape[2] + pads[0])
            right = min(left + kernel[1], x.shape[3] + pads[1])
            area = (bottom - top) * (right - left)
            part = x[
                :, :, max(top, 0) : min(bottom, x.shape[2]), max(left, 0) : min(right, x.shape[3])
            ]
            found[:, :, i, j] = part.sum(axis=(2, 3)) / area if mean else part.max(axis=(2, 3))
    return [found]


def _inner_product(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, x = layer.settings("inner_product_param"), ins[0]
    axis = settings.integer("axis", 1)
    units = settings.integer("num_output", 1)
    flat = x.reshape(*x.shape[:axis], -1).astype("float64")
    weight = layer.blobs[0]
    if settings.flag("transpose", False):
        found = flat @ weight.reshape(-1, units)
    else:
        found = flat @ weight.reshape(units, -1).T
    return [found + layer.blobs[1].reshape(-1) if settings.flag("bias_term", True) else found]


def _rectified(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    x = ins[0].astype(np.float64)
    if layer.kind == "ReLU6":
        return [np.clip(x, 0, 6)]
    if layer.kind == "ELU":
        alpha = layer.settings("elu_param").real("alpha", 1.0)
        return [np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))]
    if layer.kind == "PReLU":
        slope: Any = layer.blobs[0].reshape(1, -1, *[1] * (x.ndim - 2))
    else:
        slope = layer.settings("relu_param").real("negative_slope", 0.0)
    return [np.where(x > 0, x, slope * x)]


def _unary(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    x = ins[0].astype(np.float64)
    functions: dict[str, Callable[[], Any]] = {
        "AbsVal": lambda: np.abs(x),
        "Sigmoid": lambda: define.sigmoid(x),
        "TanH": lambda: np.tanh(x),
        "BNLL": lambda: np.logaddexp(0, x),
    }
    return [functions[layer.kind]()]


def _power(layer: Layer, ins: list[Array]) -> list[Array]:
    settings = layer.settings("power_param")
    inner = settings.real("shift", 0.0) + settings.real("scale", 1.0) * ins[0].astype("float64")
    return [inner ** settings.real("power", 1.0)]


def _exponential(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings = layer.settings("log_param" if layer.kind == "Log" else "exp_param")
    base = settings.real("base", -1.0)
    inner = settings.real("shift", 0.0) + settings.real("scale", 1.0) * ins[0].astype(np.float64)
    base = math.e if base == -1.0 else base
    return [np.log(inner) / math.log(base) if layer.kind == "Log" else base**inner]


def _lrn(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, x = layer.settings("lrn_param"), ins[0].astype("float64")
    size, alpha = settings.integer("local_size", 5), settings.real("alpha", 1.0)
    beta = settings.real("beta", 0.75)
    if settings.word("norm_region", "ACROSS_CHANNELS") in ("ACROSS_CHANNELS", "0"):
        bias = settings.real("k", 1.0)
        return [
            define.local_response_normalisation(x, size=size, alpha=alpha, beta=beta, bias=bias)
        ]
    half = (size - 1) // 2
    total = define.windows(define.pad(x**2, [(half, half)] * 2), [size] * 2, [1, 1], [1, 1])
    return [x / (1 + alpha * total.sum(axis=(4, 5)) / size**2) ** beta]


def _batch_norm(layer: Layer, ins: list[Array]) -> list[Array]:
    mean, variance, count = (one.reshape(-1).astype("float64") for one in layer.blobs[:3])
    factor = 1 / count[0] if count[0] else 0.0
    epsilon = layer.settings("batch_norm_param").real("eps", 1e-5)
    return [
        define.batch_normalisation(
            ins[0], None, None, mean * factor, variance * factor, epsilon=epsilon
        )
    ]


def _scale(layer: Layer, ins: list[Array]) -> list[Array]:
    x = ins[0].astype("float64")
    is_bias = layer.kind == "Bias"
    settings = layer.settings("bias_param" if is_bias else "scale_param")
    axis = settings.integer("axis", 1) % x.ndim
    operands = [*ins[1:], *layer.blobs]

    def spread(one: Array) -> Array:
        return one.reshape(one.shape + (1,) * (x.ndim - axis - one.ndim))

    found = x + spread(operands[0]) if is_bias else x * spread(operands[0])
    if not is_bias and settings.flag("bias_term", False):
        found = found + spread(operands[1])
    return [found]


def _eltwise(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings = layer.settings("eltwise_param")
    kind = settings.word("operation", "SUM")
    if kind in ("PROD", "0"):
        return [np.prod(np.stack(ins).astype(np.float64), axis=0)]
    if kind in ("MAX", "2"):
        return [np.max(np.stack(ins), axis=0)]
    factors = settings.reals("coeff") or [1.0] * len(ins)
    return [np.asarray(sum(factor * one for factor, one in zip(factors, ins, strict=True)))]


def _concat(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings = layer.settings("concat_param")
    return [np.concatenate(ins, axis=settings.integer("axis", settings.integer("concat_dim", 1)))]


def _slice(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings = layer.settings("slice_param")
    axis = settings.integer("axis", settings.integer("slice_dim", 1))
    return list(np.split(ins[0], settings.integers("slice_point") or len(layer.tops), axis=axis))


def _flatten(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, x = layer.settings("flatten_param"), ins[0]
    first, last = settings.integer("axis", 1) % x.ndim, settings.integer("end_axis", -1) % x.ndim
    return [x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :])]


def _reshape(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, x = layer.settings("reshape_param"), ins[0]
    first = settings.integer("axis", 0) % (x.ndim + 1)
    count = settings.integer("num_axes", -1)
    end = x.ndim if count == -1 else first + count
    shape = messages(settings.message, "shape")
    wanted = Settings(layer.name, shape[0]).integers("dim") if shape else []
    sizes = [x.shape[first + at] if size == 0 else size for at, size in enumerate(wanted)]
    return [x.reshape(*x.shape[:first], *sizes, *x.shape[end:])]


def _permute(layer: Layer, ins: list[Array]) -> list[Array]:
    order = layer.settings("permute_param").integers("order")
    rest = [axis for axis in range(ins[0].ndim) if axis not in order]
    return [ins[0].transpose(*order, *rest)]


def _crop(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, (x, like) = layer.settings("crop_param"), ins
    axis = settings.integer("axis", 2) % x.ndim
    offsets = settings.integers("offset") or [0]
    place = [slice(None)] * x.ndim
    for at in range(axis, x.ndim):
        start = offsets[at - axis] if len(offsets) > 1 else offsets[0]
        place[at] = slice(start, start + like.shape[at])
    return [x[tuple(place)]]


def _normalize(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings, x = layer.settings("norm_param"), ins[0].astype(np.float64)
    axes = (1, 2, 3) if settings.flag("across_spatial", True) else (1,)
    length = np.sqrt((x**2).sum(axis=axes, keepdims=True) + settings.real("eps", 1e-10))
    return [x / length * layer.blobs[0].reshape(1, -1, 1, 1)]


def _shuffle(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    groups = layer.settings("shuffle_channel_param").integer("group", 1)
    channels = np.arange(ins[0].shape[1]).reshape(groups, -1).T.reshape(-1)
    return [ins[0][:, channels]]


def _softmax(layer: Layer, ins: list[Array]) -> list[Array]:
    return [define.softmax(ins[0], axis=layer.settings("softmax_param").integer("axis", 1))]


COMPUTE: dict[str, Compute] = {
    **measuring_evaluation.COMPUTE,
    **dict.fromkeys(("AbsVal", "Sigmoid", "TanH", "BNLL"), _unary),
    **dict.fromkeys(("Dropout", "Split"), lambda layer, ins: ins * len(layer.tops)),
    **dict.fromkeys(("Convolution", "Deconvolution", "ConvolutionDepthwise"), _convolution),
    "DepthwiseConvolution": _convolution,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    **dict.fromkeys(("ReLU", "ReLU6", "PReLU", "ELU"), _rectified),
    "Power": _power,
    **dict.fromkeys(("Exp", "Log"), _exponential),
    "LRN": _lrn,
    "BatchNorm": _batch_norm,
    **dict.fromkeys(("Scale", "Bias"), _scale),
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Softmax": _softmax,
    "Crop": _crop,
    "Normalize": _normalize,
    "ShuffleChannel": _shuffle,
}
