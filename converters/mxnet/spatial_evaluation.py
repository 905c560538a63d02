"""MXNet's convolutions and pooling by definition, in numpy and float64."""

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


def _tuple(node: Node, key: str, rank: int, default: int) -> list[int]:
    return list(node.value(key, ())) or [default] * rank


def _convolution(node: Node, ins: list[Array]) -> Array:
    x, weight = ins[:2]
    rank = x.ndim - 2
    return define.convolution(
        x,
        weight,
        ins[2] if len(ins) > 2 else None,
        strides=_tuple(node, "stride", rank, 1),
        pads=[(one, one) for one in _tuple(node, "pad", rank, 0)],
        dilations=_tuple(node, "dilate", rank, 1),
        groups=node.value("num_group", 1),
    )


def _deconvolution(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x, weight = ins[:2]
    rank = x.ndim - 2
    strides, dilations = _tuple(node, "stride", rank, 1), _tuple(node, "dilate", rank, 1)
    target = node.value("target_shape", ())
    if any(target):
        # `DeconvolutionParam::InferPad`: what is too much is cut off, more of it at the front
        full = define.transposed_convolution(
            x,
            weight,
            strides=strides,
            pads=[(0, 0)] * rank,
            dilations=dilations,
            groups=node.value("num_group", 1),
        )
        for axis, wanted in enumerate(target, 2):
            front = (full.shape[axis] - wanted + 1) // 2
            full = full.take(range(front, front + wanted), axis=axis)
        bias = 0 if node.value("no_bias", True) else ins[2].reshape(-1, *[1] * rank)
        return np.asarray(full + bias)
    return define.transposed_convolution(
        x,
        weight,
        None if node.value("no_bias", True) else ins[2],
        strides=_tuple(node, "stride", rank, 1),
        pads=[(one, one) for one in _tuple(node, "pad", rank, 0)],
        extra=_tuple(node, "adj", rank, 0),
        dilations=_tuple(node, "dilate", rank, 1),
        groups=node.value("num_group", 1),
    )


def _pooling(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0].astype(np.float64)
    kind = node.value("pool_type", "max")
    mean = kind == "avg"
    space = tuple(range(2, x.ndim))
    if node.value("global_pool", False):
        functions: dict[str, Any] = {"avg": x.mean, "max": x.max, "sum": x.sum}
        return np.asarray(functions[kind](axis=space, keepdims=True))
    kernel = list(node.value("kernel", (1,)))
    strides = _tuple(node, "stride", len(kernel), 1)
    pads = _tuple(node, "pad", len(kernel), 0)
    is_old = node.op == "Pooling_v1"
    if is_old:  # its padding is zeros, of which the largest may be one
        x, pads = define.pad(x, [(p, p) for p in pads]), [0] * len(kernel)
    full = node.value("pooling_convention", "valid") == "full"
    edges = []
    for size, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        places = (size + 2 * p - k) / s
        count = 1 + (math.ceil(places) if full else math.floor(places))
        if is_old and full:
            count = min(count, (size - 1) // s + 1)
        edges.append((p, max(p, (count - 1) * s + k - size - p)))
    if kind == "sum":
        view = define.windows(define.pad(x, edges), kernel, strides, [1] * len(kernel))
        return np.asarray(view.sum(axis=tuple(range(x.ndim, x.ndim + len(kernel)))))
    if not mean:
        return define.max_pool(x, kernel, strides=strides, pads=edges)
    if is_old:  # and all of a window counts, also what lies beyond
        return define.average_pool(x, kernel, strides=strides, pads=edges, counted=edges)
    counted = [(p, p) if node.value("count_include_pad", True) else (0, 0) for p in pads]
    return define.average_pool(x, kernel, strides=strides, pads=edges, counted=counted)


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(("Convolution", "Convolution_v1"), _convolution),
    "Deconvolution": _deconvolution,
    **dict.fromkeys(("Pooling", "Pooling_v1"), _pooling),
}
