"""MXNet operators on whole arrays by definition, in numpy and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def _layer_norm(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x, gamma, beta = (one.astype(np.float64) for one in ins)
    x = np.moveaxis(x, node.value("axis", -1), -1)
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + node.value("eps", 1e-5))
    return np.moveaxis(gamma * centred / spread + beta, -1, node.value("axis", -1))


def _slice(node: Node, ins: list[Array]) -> Array:
    steps = node.value("step", None) or [None] * len(node.value("begin", None))
    places = zip(node.value("begin", None), node.value("end", None), steps, strict=True)
    return ins[0][tuple(slice(*one) for one in places)]


def _cast(node: Node, ins: list[Array]) -> Array:
    return ins[0].astype(node.value("dtype", "float32")).astype("float64")


def _stack(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    return np.stack(ins, axis=node.value("axis", 0))


def _tile(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    return np.tile(ins[0], node.value("reps", ()))


def _to_space(node: Node, ins: list[Array]) -> Array:
    """From the documentation: reshape to [n, b, b, c, h, w], transpose, reshape."""
    n, c, h, w = ins[0].shape
    b = node.value("block_size", 2)
    x = ins[0].reshape(n, b, b, c // b**2, h, w)
    return x.transpose(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def _to_depth(node: Node, ins: list[Array]) -> Array:
    n, c, h, w = ins[0].shape
    b = node.value("block_size", 2)
    x = ins[0].reshape(n, c, h // b, b, w // b, b)
    return x.transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def _hard_sigmoid(node: Node, ins: list[Array]) -> Array:
    return (node.value("alpha", 0.2) * ins[0] + node.value("beta", 0.5)).clip(0, 1)


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(("Cast", "cast", "amp_cast"), _cast),
    **dict.fromkeys(("slice", "crop"), _slice),
    "LayerNorm": _layer_norm,
    "_contrib_div_sqrt_dim": lambda _node, ins: ins[0] / math.sqrt(ins[0].shape[-1]),
    "depth_to_space": _to_space,
    "hard_sigmoid": _hard_sigmoid,
    "rsqrt": lambda _node, ins: ins[0].astype("float64") ** -0.5,
    "space_to_depth": _to_depth,
    "square": lambda _node, ins: ins[0].astype("float64") ** 2,
    "stack": _stack,
    "tile": _tile,
}
