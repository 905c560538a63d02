"""MXNet operators on each element by definition, in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def _one(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x = ins[0].astype(np.float64)
    special: dict[str, Callable[[], Any]] = {
        "round": lambda: np.trunc(x + np.copysign(0.5, x)),
        "rint": lambda: np.where(x - np.floor(x) <= 0.5, np.floor(x), np.floor(x) + 1),
        "rcbrt": lambda: 1 / np.cbrt(x),
        "fix": lambda: np.trunc(x),
        "logical_not": lambda: (x == 0).astype(np.float64),
    }
    return special[node.op]() if node.op in special else getattr(np, node.op)(x)


def _two(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x = ins[0].astype(np.float64)
    y = node.value("scalar", 1.0) if node.op.endswith("_scalar") else ins[1].astype(np.float64)
    name = node.op.removesuffix("_scalar").removeprefix("broadcast").removeprefix("_")
    if name == "rmod":
        name, x, y = "mod", np.asarray(y), x
    if name == "mod":
        return np.where(np.equal(y, 0), 0, np.mod(x, np.where(np.equal(y, 0), 1, y)))
    return np.asarray(getattr(np, name)(x, y)).astype(np.float64)


def _smooth(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x, sigma = ins[0].astype(np.float64), node.value("scalar", 1.0)
    return np.where(np.abs(x) < sigma**-2, 0.5 * (sigma * x) ** 2, np.abs(x) - 0.5 / sigma**2)


def _quadratic(node: Node, ins: list[Array]) -> Any:
    a, b, c = (node.value(key, 0.0) for key in "abc")
    return a * ins[0].astype("float64") ** 2 + b * ins[0] + c


ONES = (
    *("log1p", "expm1", "log2", "log10", "round", "rint", "fix", "trunc", "cbrt", "rcbrt", "tan"),
    *("arcsin", "arccos", "arctan", "sinh", "cosh", "arcsinh", "arccosh", "arctanh", "degrees"),
    *("radians", "logical_not"),
)
TWOS = ("mod", "hypot", "logical_and", "logical_or", "logical_xor")

COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(ONES, _one),
    **{
        f"{a}{op}{b}": _two
        for op in TWOS
        for a, b in (("broadcast_", ""), ("_", ""), ("_", "_scalar"))
    },
    "_rmod_scalar": _two,
    "smooth_l1": _smooth,
    "_contrib_quadratic": _quadratic,
}
