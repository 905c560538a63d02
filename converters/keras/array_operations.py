"""More functions of arrays within a graph of layers, as ONNX nodes; the first of them: `operations.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.converters.keras.operations import Arguments

Emit = Callable[["Arguments"], str]

UNARY = {
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "reciprocal": "Reciprocal",
    "softsign": "Softsign",
    "convert_to_tensor": "Identity",
    "stop_gradient": "Identity",
}


def _number(a: Arguments, value: float) -> str:
    return str(a.build.constant(value, dtype=a.value().dtype))


def _axes(a: Arguments, position: int = 1) -> list[int]:
    axis = a.plain(position, "axis")
    if axis is None:
        return list(range(a.value().rank))
    return [int(axis)] if isinstance(axis, int) else [int(one) for one in axis]


def _unary(operator: str) -> Emit:
    return lambda a: a.build.add(operator, a.value().name)


def _log1p(a: Arguments) -> str:
    return a.build.add("Log", a.build.add("Add", a.value().name, _number(a, 1.0)))


def _gelu(a: Arguments) -> str:
    x, build = a.value().name, a.build
    if a.plain(1, "approximate", a.approximates):
        cube = build.add("Mul", build.add("Mul", x, x), x)
        inner = build.add("Add", x, build.add("Mul", cube, _number(a, 0.044715)))
        shape = build.add("Tanh", build.add("Mul", inner, _number(a, math.sqrt(2 / math.pi))))
    else:
        shape = build.add("Erf", build.add("Div", x, _number(a, math.sqrt(2.0))))
    share = build.add("Mul", build.add("Add", shape, _number(a, 1.0)), _number(a, 0.5))
    return build.add("Mul", x, share)


def _leaky(a: Arguments) -> str:
    return a.build.add("LeakyRelu", a.value().name, alpha=float(a.plain(1, "negative_slope", 0.2)))


def _moment(root: bool) -> Emit:
    def emit(a: Arguments) -> str:
        build, x, axes = a.build, a.value().name, _axes(a)
        keep = int(bool(a.plain(2, "keepdims", False)))
        centred = build.add("Sub", x, build.add("ReduceMean", x, axes=axes, keepdims=1))
        square = build.add("Mul", centred, centred)
        found = build.add("ReduceMean", square, axes=axes, keepdims=keep)
        return build.add("Sqrt", found) if root else found

    return emit


def _reduced(operator: str) -> Emit:
    return lambda a: a.build.add(
        operator, a.value().name, axes=_axes(a), keepdims=int(bool(a.plain(2, "keepdims", False)))
    )


def _normalised(a: Arguments) -> str:
    """L2 only; TensorFlow's floor is that of the sum of squares."""
    build, x = a.build, a.value().name
    if a.plain(2, "order", 2) != 2:
        raise UnsupportedError("normalize of another order than 2", operators=("normalize",))
    axes = build.shape_constant(_axes(a))
    total = build.add("ReduceSum", build.add("Mul", x, x), axes, keepdims=1)
    length = build.add("Sqrt", build.add("Max", total, _number(a, 1e-12)))
    return build.add("Div", x, length)


def _where(a: Arguments) -> str:
    names = ("x1", "x2") if "x1" in a.settings else ("x", "y")
    parts = [a.tensor_like(at, name) for at, name in zip((1, 2), names, strict=True)]
    return a.build.add("Where", a.tensor(0, "condition"), *parts)


def _swapped(a: Arguments) -> str:
    rank = a.value().rank
    order = list(range(rank))
    one, other = (int(a.plain(at, f"axis{at}")) % rank for at in (1, 2))
    order[one], order[other] = order[other], order[one]
    return a.build.add("Transpose", a.value().name, perm=order)


def _tiled(a: Arguments) -> str:
    counts = [int(one) for one in a.plain(1, "repeats")]
    if len(counts) != a.value().rank:
        raise UnsupportedError("tile with fewer counts than axes", operators=("tile",))
    return a.build.add("Tile", a.value().name, a.build.shape_constant(counts))


def _repeated(a: Arguments) -> str:
    build, x, count, axis = a.build, a.value(), a.plain(1, "repeats"), a.plain(2, "axis")
    size = x.shape[axis] if isinstance(axis, int) else None
    if not isinstance(count, int) or size is None:
        raise UnsupportedError("repeat other than of one known axis", operators=("repeat",))
    places = [at for at in range(size) for _ in range(count)]
    return build.add("Gather", x.name, build.shape_constant(places), axis=axis)


def _flipped(a: Arguments) -> str:
    build, axes = a.build, _axes(a)
    lists = ([-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes))
    return build.add("Slice", a.value().name, *(build.shape_constant(one) for one in lists))


def _padded(a: Arguments) -> str:
    build, edges = a.build, a.plain(1, "pad_width")
    value = a.plain(3, "constant_values") or 0
    if str(a.plain(2, "mode", "constant")).lower() != "constant" or isinstance(edges, int):
        raise UnsupportedError("pad other than with a constant", operators=("pad",))
    pads = build.shape_constant([one for one, _ in edges] + [other for _, other in edges])
    return build.add("Pad", a.value().name, pads, _number(a, value))


def _taken(a: Arguments) -> str:
    axis, places = a.plain(2, "axis"), a.plain(1, "indices")
    size = a.value().shape[axis] if isinstance(axis, int) else None
    flat = places if isinstance(places, list) else [places]
    if size is None or not all(isinstance(one, int) and -size <= one < size for one in flat):
        raise UnsupportedError("take of places that are computed", operators=("take",))
    index = a.build.constant(places, dtype="int64")
    return a.build.add("Gather", a.value().name, index, axis=axis)


def _furthest(operator: str) -> Emit:
    def emit(a: Arguments) -> str:
        axis, keep = a.plain(1, "axis"), int(bool(a.plain(2, "keepdims", False)))
        if axis is None:
            raise UnsupportedError(f"{a.operation} without an axis", operators=(a.operation,))
        found = a.build.add(operator, a.value().name, axis=axis, keepdims=keep)
        return found if a.version < 3 else a.build.add("Cast", found, to=6)

    return emit


def _summed(a: Arguments) -> str:
    """Einstein's sum of tensors; the equation must name every axis."""
    equation = str(a.plain(9, "subscripts")).replace(" ", "")
    names = [a.tensor(at, f"x{at}") for at in range(equation.count(",") + 1)]
    if "..." in equation or "->" not in equation:
        raise UnsupportedError(f"einsum of `{equation}`", operators=("einsum",))
    return a.build.add("Einsum", *names, equation=equation)


def _filled(value: int) -> Emit:
    def emit(a: Arguments) -> str:
        shape = a.build.add("Shape", a.value().name)
        one = a.build.constant(value, dtype=a.value().dtype)
        return a.build.add("Expand", one, shape)

    return emit


def _remainder(a: Arguments) -> str:
    build, x, y = a.build, a.tensor(0, "x1"), a.tensor(1, "x2" if "x2" in a.settings else "y")
    if not a.dtype.startswith("float"):
        return build.add("Mod", x, y)
    return build.add("Sub", x, build.add("Mul", y, build.add("Floor", build.add("Div", x, y))))


def _one_hot(a: Arguments) -> str:
    build, count = a.build, int(a.plain(1, "num_classes"))
    if a.plain(2, "axis", -1) not in (-1, a.value().rank) or a.plain(9, "sparse"):
        raise UnsupportedError("one_hot along another axis than the last", operators=("one_hot",))
    index = build.add("Cast", a.value().name, to=7)
    wide = build.add("Unsqueeze", index, build.shape_constant([-1]))
    return build.add("Cast", build.add("Equal", wide, build.shape_constant(range(count))), to=1)


EMIT: dict[str, Emit] = {
    **{name: _unary(operator) for name, operator in UNARY.items()},
    "argmax": _furthest("ArgMax"),
    "argmin": _furthest("ArgMin"),
    "einsum": _summed,
    "flip": _flipped,
    "gelu": _gelu,
    "leaky_relu": _leaky,
    "log1p": _log1p,
    "logsumexp": _reduced("ReduceLogSumExp"),
    "mod": _remainder,
    "normalize": _normalised,
    "one_hot": _one_hot,
    "ones_like": _filled(1),
    "pad": _padded,
    "prod": _reduced("ReduceProd"),
    "repeat": _repeated,
    "std": _moment(root=True),
    "swapaxes": _swapped,
    "take": _taken,
    "tile": _tiled,
    "var": _moment(root=False),
    "where": _where,
    "zeros_like": _filled(0),
}
