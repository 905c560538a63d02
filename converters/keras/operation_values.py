"""Functions called within a graph of layers, by numpy's definition of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import array_values
from deploykit._plugins.converters.keras.operation_calls import Call, Slot

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NUMPY = {
    "divide": "true_divide",
    "concatenate": "concatenate",
    "max": "amax",
    "min": "amin",
}
BINARY = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "matmul"),
    *("equal", "not_equal", "greater", "less", "greater_equal", "less_equal"),
    *("logical_and", "logical_or", "logical_xor"),
)
UNARY = ("abs", "exp", "log", "sqrt", "square", "negative", "tanh", "logical_not")


def compute(operation: str, call: Call, inputs: list[Array]) -> Array:
    """Return the result of one call; numbers among its arguments take part as numbers."""
    import numpy as np

    def filled(value: Any) -> Any:
        if isinstance(value, Slot):
            return inputs[value.index]
        return [filled(one) for one in value] if isinstance(value, list) else value

    def get(position: int, name: str, default: Any = None) -> Any:
        return filled(call.argument(position, name, default))

    function: Callable[..., Any] = getattr(np, NUMPY.get(operation, operation), np.asarray)
    x = get(0, "x") if operation not in ("concatenate", "stack") else None
    if operation in array_values.COMPUTE:
        return np.asarray(array_values.COMPUTE[operation](get, inputs, call.settings))
    if operation in BINARY:
        second = "b" if operation == "matmul" else "y"
        parts = [get(0, "x1"), get(1, second)]
        for at, side in enumerate("ab"):
            if get(9, f"transpose_{side}") or get(9, f"adjoint_{side}"):
                parts[at] = parts[at].swapaxes(-1, -2)
        return np.asarray(function(*parts))
    if operation in UNARY:
        return np.asarray(function(x))
    if operation in ("sum", "mean", "max", "min", "any", "all"):
        axis = get(1, "axis")
        axis = tuple(axis) if isinstance(axis, list) else axis
        return np.asarray(function(x, axis=axis, keepdims=bool(get(2, "keepdims", False))))
    if operation in ("concatenate", "stack"):
        parts = get(0, "xs", call.settings.get("values"))
        return np.asarray(function(parts, axis=get(1, "axis", 0)))
    return np.asarray(_OTHERS[operation](x, get))


def _item(x: Array, get: Callable[..., Any]) -> Array:
    key = get(1, "key")
    return x[tuple(key) if isinstance(key, list) else key]


def _squeezed(x: Array, get: Callable[..., Any]) -> Array:
    axis = get(1, "axis")
    return x.squeeze(tuple(axis) if isinstance(axis, list) else axis)


def _limited(x: Array, get: Callable[..., Any]) -> Array:
    return x.clip(get(1, "x_min"), get(2, "x_max"))


_OTHERS: dict[str, Callable[[Any, Callable[..., Any]], Any]] = {
    "cast": lambda x, get: x.astype(get(1, "dtype")),
    "clip": _limited,
    "expand_dims": lambda x, get: x.reshape(_with_axis(x.shape, get(1, "axis"))),
    "get_item": _item,
    "identity": lambda x, _get: x,
    "relu": lambda x, _get: x * (x > 0),
    "relu6": lambda x, _get: x.clip(0, 6),
    "reshape": lambda x, get: x.reshape(get(1, "newshape")),
    "rsqrt": lambda x, _get: x**-0.5,
    "sigmoid": lambda x, _get: define.sigmoid(x),
    "silu": lambda x, _get: x * define.sigmoid(x),
    "softmax": lambda x, get: define.softmax(x, get(1, "axis", -1)),
    "softplus": lambda x, _get: _softplus(x),
    "squeeze": _squeezed,
    "transpose": lambda x, get: x.transpose(get(1, "axes")),
}


def _softplus(x: Array) -> Array:
    import numpy as np

    return np.logaddexp(x, 0)


def _with_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    at = axis % (len(shape) + 1)
    return (*shape[:at], 1, *shape[at:])


def shape_of(
    operation: str, call: Call, inputs: list[tuple[tuple[int | None, ...], str]]
) -> tuple[tuple[int | None, ...], str]:
    """Return shape and dtype of a call's result: a size that follows an unknown one is None.

    Found by computing with two different sizes for the unknown ones.
    """
    import numpy as np

    found = []
    for stand_in in (12, 24):  # whatever the sizes divide into, they do so for both
        arrays = [
            np.ones([stand_in if size is None else size for size in shape], dtype)
            for shape, dtype in inputs
        ]
        with np.errstate(all="ignore"):
            found.append(compute(operation, call, arrays))
    sizes = tuple(
        a if a == b else None for a, b in zip(found[0].shape, found[1].shape, strict=True)
    )
    kind = str(found[0].dtype)
    known = {dtype for _, dtype in inputs}
    # numpy widens; the graph keeps the dtype of its inputs
    return sizes, "float32" if kind == "float64" and "float64" not in known else kind
