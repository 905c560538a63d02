"""MXNet operators on each element as ONNX nodes, where one does not stand for one."""

from __future__ import annotations

import math
from collections.abc import Callable

from deploykit._plugins.converters.mxnet.emission import Emit, Value, broadcast
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.graph_building import GraphBuilder

Formula = Callable[[GraphBuilder, str], str]
Pair = Callable[[GraphBuilder, str, str], str]
FLOAT32 = 1
"""ONNX's number of the dtype."""


def _of_one(formula: Formula) -> Emit:
    def emit(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
        return [Value(formula(build, ins[0].name), ins[0].shape)]

    return emit


def _of_two(pair: Pair) -> Emit:
    def emit(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
        name = pair(build, ins[0].name, ins[1].name)
        return [Value(name, broadcast([one.shape for one in ins]))]

    return emit


def _of_number(pair: Pair, reverse: bool = False) -> Emit:
    def emit(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        names = [ins[0].name, build.constant(node.value("scalar", 1.0))]
        return [Value(pair(build, *(names[::-1] if reverse else names)), ins[0].shape)]

    return emit


def _plain(operator: str) -> Formula:
    return lambda build, x: build.add(operator, x)


def _times(factor: float, inner: str = "") -> Formula:
    def formula(build: GraphBuilder, x: str) -> str:
        return build.add("Mul", build.add(inner, x) if inner else x, build.constant(factor))

    return formula


def _signed(inner: Formula) -> Formula:
    """An odd function from what it is of positive numbers."""

    def formula(build: GraphBuilder, x: str) -> str:
        return build.add("Mul", build.add("Sign", x), inner(build, build.add("Abs", x)))

    return formula


def _rounded(build: GraphBuilder, x: str) -> str:
    return build.add("Floor", build.add("Add", x, build.constant(0.5)))


def _to_the_lower(build: GraphBuilder, x: str) -> str:
    """Return the nearest whole number, of two the lower one."""
    return build.add("Ceil", build.add("Sub", x, build.constant(0.5)))


def _root(build: GraphBuilder, x: str) -> str:
    return build.add("Pow", x, build.constant(1 / 3))


def _mod(build: GraphBuilder, x: str, y: str) -> str:
    """Return the rest with the sign of the divisor, zero where that is zero."""
    zero = build.constant(0.0)
    whole = build.add("Mul", build.add("Floor", build.add("Div", x, y)), y)
    return build.add("Where", build.add("Equal", y, zero), zero, build.add("Sub", x, whole))


def _hypot(build: GraphBuilder, x: str, y: str) -> str:
    total = build.add("Add", build.add("Mul", x, x), build.add("Mul", y, y))
    return build.add("Sqrt", total)


def _logical(operator: str) -> Pair:
    def pair(build: GraphBuilder, x: str, y: str) -> str:
        found = build.add(operator, _truth(build, x), _truth(build, y))
        return build.add("Cast", found, to=FLOAT32)

    return pair


def _truth(build: GraphBuilder, x: str) -> str:
    return build.add("Not", build.add("Equal", x, build.constant(0.0)))


def _negated(build: GraphBuilder, x: str) -> str:
    return build.add("Cast", build.add("Equal", x, build.constant(0.0)), to=FLOAT32)


def _smooth(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """Quadratic within 1 / scalar ** 2 of zero, linear beyond."""
    square = node.value("scalar", 1.0) ** 2
    x, size = ins[0].name, build.add("Abs", ins[0].name)
    near = build.add("Mul", build.add("Mul", x, x), build.constant(0.5 * square))
    far = build.add("Sub", size, build.constant(0.5 / square))
    inside = build.add("Less", size, build.constant(1 / square))
    return [Value(build.add("Where", inside, near, far), ins[0].shape)]


def _quadratic(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    a, b, c = (build.constant(node.value(key, 0.0)) for key in "abc")
    inner = build.add("Add", build.add("Mul", ins[0].name, a), b)
    return [Value(build.add("Add", build.add("Mul", inner, ins[0].name), c), ins[0].shape)]


FORMULAS: dict[str, Formula] = {
    "log1p": lambda build, x: build.add("Log", build.add("Add", x, build.constant(1.0))),
    "expm1": lambda build, x: build.add("Sub", build.add("Exp", x), build.constant(1.0)),
    "log2": _times(1 / math.log(2), "Log"),
    "log10": _times(1 / math.log(10), "Log"),
    "round": _signed(_rounded),
    "rint": _to_the_lower,
    **dict.fromkeys(("fix", "trunc"), _signed(_plain("Floor"))),
    "cbrt": _signed(_root),
    "rcbrt": lambda build, x: build.add("Reciprocal", _signed(_root)(build, x)),
    "tan": _plain("Tan"),
    "arcsin": _plain("Asin"),
    "arccos": _plain("Acos"),
    "arctan": _plain("Atan"),
    "sinh": _plain("Sinh"),
    "cosh": _plain("Cosh"),
    "arcsinh": _plain("Asinh"),
    "arccosh": _plain("Acosh"),
    "arctanh": _plain("Atanh"),
    "degrees": _times(180 / math.pi),
    "radians": _times(math.pi / 180),
    "logical_not": _negated,
}

PAIRS: dict[str, Pair] = {
    "mod": _mod,
    "hypot": _hypot,
    "logical_and": _logical("And"),
    "logical_or": _logical("Or"),
    "logical_xor": _logical("Xor"),
}

EMIT: dict[str, Emit] = {
    **{op: _of_one(formula) for op, formula in FORMULAS.items()},
    **{f"broadcast_{op}": _of_two(pair) for op, pair in PAIRS.items()},
    **{f"_{op}": _of_two(pair) for op, pair in PAIRS.items()},
    **{f"_{op}_scalar": _of_number(pair) for op, pair in PAIRS.items()},
    "_rmod_scalar": _of_number(_mod, reverse=True),
    "smooth_l1": _smooth,
    "_contrib_quadratic": _quadratic,
}
