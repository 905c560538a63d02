"""More functions of arrays within a graph of layers, by numpy's definition of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Get = Callable[..., Any]
Compute = Callable[[Get, list["Array"], Mapping[str, Any]], Any]


def _numpy(name: str) -> Compute:
    def compute(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
        import numpy as np

        return getattr(np, name)(get(0, "x"))

    return compute


def _axis(get: Get) -> Any:
    axis = get(1, "axis")
    return tuple(axis) if isinstance(axis, list) else axis


def _reduced(name: str) -> Compute:
    def compute(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
        import numpy as np

        return getattr(np, name)(get(0, "x"), axis=_axis(get), keepdims=bool(get(2, "keepdims")))

    return compute


def _error(x: Array) -> Array:
    import numpy as np

    return np.vectorize(math.erf, otypes=[float])(x)


def _gelu(get: Get, _inputs: list[Array], settings: Mapping[str, Any]) -> Any:
    import numpy as np

    x = get(0, "x")
    if get(1, "approximate", "approximate" in settings):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _error(x / np.sqrt(2)))


def _leaky(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
    import numpy as np

    x = get(0, "x")
    return np.where(x > 0, x, get(1, "negative_slope", 0.2) * x)


def _log_of_sum(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
    import numpy as np

    x = get(0, "x")
    return np.log(np.sum(np.exp(x), axis=_axis(get), keepdims=bool(get(2, "keepdims"))))


def _normalised(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
    import numpy as np

    x = get(0, "x")
    return x / np.maximum(np.sqrt(np.sum(x**2, axis=_axis(get), keepdims=True)), 1e-6)


def _where(get: Get, _inputs: list[Array], settings: Mapping[str, Any]) -> Any:
    import numpy as np

    names = ("x1", "x2") if "x1" in settings else ("x", "y")
    return np.where(get(0, "condition"), get(1, names[0]), get(2, names[1]))


def _summed(get: Get, inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.einsum(get(9, "subscripts").replace(" ", ""), *inputs)


def _padded(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.pad(get(0, "x"), get(1, "pad_width"), constant_values=get(3, "constant_values") or 0)


def _one_hot(get: Get, _inputs: list[Array], _settings: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.eye(get(1, "num_classes"), dtype=np.float32)[get(0, "x").astype(int)]


def _remainder(get: Get, _inputs: list[Array], settings: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.mod(get(0, "x1"), get(1, "x2" if "x2" in settings else "y"))


def _furthest(name: str) -> Compute:
    def compute(get: Get, _inputs: list[Array], settings: Mapping[str, Any]) -> Any:
        import numpy as np

        found = getattr(np, name)(get(0, "x"), axis=get(1, "axis"))
        found = np.expand_dims(found, get(1, "axis")) if get(2, "keepdims") else found
        # only Keras 3 writes whether the axis is kept, and its places are int32
        return found.astype(np.int32) if "keepdims" in settings else found

    return compute


COMPUTE: dict[str, Compute] = {
    **{
        name: _numpy(name)
        for name in ("sin", "cos", "floor", "ceil", "round", "sign", "reciprocal", "log1p")
    },
    **{name: _numpy(name) for name in ("ones_like", "zeros_like")},
    **{name: _reduced(name) for name in ("prod", "std", "var")},
    "argmax": _furthest("argmax"),
    "argmin": _furthest("argmin"),
    "convert_to_tensor": lambda get, _inputs, _settings: get(0, "x"),
    "einsum": _summed,
    "erf": lambda get, _inputs, _settings: _error(get(0, "x")),
    "flip": lambda get, _inputs, _settings: _flipped(get(0, "x"), _axis(get)),
    "gelu": _gelu,
    "leaky_relu": _leaky,
    "logsumexp": _log_of_sum,
    "mod": _remainder,
    "normalize": _normalised,
    "one_hot": _one_hot,
    "pad": _padded,
    "repeat": lambda get, _inputs, _settings: get(0, "x").repeat(get(1, "repeats"), get(2, "axis")),
    "softsign": lambda get, _inputs, _settings: get(0, "x") / (1 + abs(get(0, "x"))),
    "stop_gradient": lambda get, _inputs, _settings: get(0, "x"),
    "swapaxes": lambda get, _inputs, _settings: get(0, "x").swapaxes(
        get(1, "axis1"), get(2, "axis2")
    ),
    "take": lambda get, _inputs, _settings: get(0, "x").take(get(1, "indices"), get(2, "axis")),
    "tile": lambda get, _inputs, _settings: _tiled(get(0, "x"), get(1, "repeats")),
    "where": _where,
}


def _flipped(x: Array, axis: Any) -> Array:
    import numpy as np

    return np.flip(x, axis)


def _tiled(x: Array, counts: Any) -> Array:
    import numpy as np

    return np.tile(x, counts)
