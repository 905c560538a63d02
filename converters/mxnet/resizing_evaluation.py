"""MXNet operators that crop, resize and normalise groups, by definition in numpy and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def _adaptive(node: Node, ins: list[Array]) -> Any:
    """From `adaptive_avg_pooling.cc`: a part begins at floor and ends at ceil of its share."""
    import numpy as np

    x = ins[0].astype(np.float64)
    wanted = node.value("output_size", (1,))
    height, width = wanted if len(wanted) == 2 else (wanted[0], wanted[0])
    found = np.zeros((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * x.shape[2] / height, (i + 1) * x.shape[2] / height
            left, right = j * x.shape[3] / width, (j + 1) * x.shape[3] / width
            part = x[:, :, math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)]
            found[:, :, i, j] = part.mean(axis=(2, 3))
    return found


def _resized(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x = ins[0].astype(np.float64)
    for axis, key in ((2, "height"), (3, "width")):
        size, factor = x.shape[axis], node.value(f"scale_{key}", None)
        count = node.value(key, 1) if factor is None else int(size * factor)
        if node.value("mode", "size") == "like":
            count = ins[1].shape[axis]
        if node.value("align_corners", True):
            places = np.arange(count) * ((size - 1) / (count - 1) if count > 1 else 0.0)
        else:
            places = np.maximum((np.arange(count) + 0.5) * size / count - 0.5, 0)
        low = np.minimum(np.floor(places).astype(int), size - 1)
        high = np.minimum(low + 1, size - 1)
        share = (places - low).reshape([-1 if at == axis else 1 for at in range(4)])
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def _crop(node: Node, ins: list[Array]) -> Any:
    x = ins[0]
    height, width = ins[1].shape[2:] if len(ins) > 1 else node.value("h_w", (0, 0))
    top, left = node.value("offset", (0, 0))
    if node.value("center_crop", False):
        top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def _group_norm(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x, gamma, beta = (one.astype(np.float64) for one in ins)
    groups = node.value("num_groups", 1)
    parts = x.reshape(len(x), groups, -1)
    spread = np.sqrt(parts.var(axis=-1, keepdims=True) + node.value("eps", 1e-5))
    found = ((parts - parts.mean(axis=-1, keepdims=True)) / spread).reshape(x.shape)
    along = (1, -1, *[1] * (x.ndim - 2))
    gamma, beta = (one.repeat(x.shape[1] // len(one)).reshape(along) for one in (gamma, beta))
    return found * gamma + beta


def _upsampling(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    scale = node.value("scale", 1)
    if node.value("sample_type", "nearest") == "bilinear":
        pad = math.ceil((scale - 1) / 2)
        return define.transposed_convolution(
            *ins, strides=[scale] * 2, pads=[(pad, pad)] * 2, groups=ins[1].shape[0]
        )
    wanted = [size * scale for size in ins[0].shape[2:]]
    found = []
    for x in ins:
        for axis, size in enumerate(wanted, 2):
            x = x.repeat(size // x.shape[axis], axis=axis)
        found.append(x.astype(np.float64))
    is_sum = node.value("multi_input_mode", "concat") == "sum"
    return np.sum(found, axis=0) if is_sum else np.concatenate(found, axis=1)


COMPUTE: dict[str, Compute] = {
    "_contrib_AdaptiveAvgPooling2D": _adaptive,
    "_contrib_BilinearResize2D": _resized,
    "Crop": _crop,
    "GroupNorm": _group_norm,
    "UpSampling": _upsampling,
}
