"""Scalar operators that are more than one node of ONNX, each by its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit._plugins.converters.theano_graph.emission import SLOW_TYPES, described

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission

LOGIC = {"AND": "And", "OR": "Or", "XOR": "Xor", "Add": "Or", "Mul": "And"}


@dataclass(frozen=True)
class Arguments:
    """The arguments of a scalar operator: ONNX names and dtypes, and the dtype of its result."""

    names: list[str]
    dtypes: list[str]
    result: str
    operator: Any
    node: Any

    def refusal(self, why: str) -> UnsupportedError:
        """Return the error that this operator has no ONNX form."""
        name = type(self.operator).__name__
        return UnsupportedError(
            f"no ONNX form for {name} {why} in {described(self.node)}",
            operators=(name,),
            hint="write this part of the graph with other operators",
        )


Compute: TypeAlias = "Callable[[Emission, Arguments], str]"


def folded(emission: Emission, operator: str, names: list[str]) -> str:
    result = names[0]
    for name in names[1:]:
        result = emission.build.add(operator, result, name)
    return result


def computed(
    emission: Emission, given: Arguments, compute: Callable[[Sequence[str], str], str]
) -> str:
    """Compute in the dtype of the result, or in int64 where that is one that runtimes lack."""
    if given.result == "bool":
        raise given.refusal("of booleans")
    dtype = "int64" if given.result in SLOW_TYPES else given.result
    names = [
        emission.cast(name, own, dtype) for name, own in zip(given.names, given.dtypes, strict=True)
    ]
    return emission.cast(compute(names, dtype), dtype, given.result)


def common_type(dtypes: Sequence[str]) -> str:
    """Return the dtype in which values of these dtypes are compared."""
    import numpy as np

    found = str(np.result_type(*dtypes))
    return "int64" if found in SLOW_TYPES else found


def alike(emission: Emission, given: Arguments) -> list[str]:
    dtype = common_type(given.dtypes)
    dtype = "int32" if dtype == "bool" else dtype
    return [
        emission.cast(name, own, dtype) for name, own in zip(given.names, given.dtypes, strict=True)
    ]


def _equal(emission: Emission, given: Arguments) -> str:
    return emission.build.add("Equal", *alike(emission, given))


def _unequal(emission: Emission, given: Arguments) -> str:
    return emission.build.add("Not", _equal(emission, given))


def _invert(emission: Emission, given: Arguments) -> str:
    if given.dtypes[0] == "bool":
        return emission.build.add("Not", given.names[0])
    # ~x is -x - 1 in two's complement
    return computed(
        emission,
        given,
        lambda names, dtype: emission.build.add(
            "Sub", emission.build.add("Neg", names[0]), emission.scalar(1, dtype)
        ),
    )


def _logic_of_whole(emission: Emission, given: Arguments) -> str:
    kind = type(given.operator).__name__
    if given.result != "bool":
        raise given.refusal("of whole numbers, bit by bit,")
    return folded(
        emission,
        LOGIC[kind],
        [
            emission.cast(name, dtype, "bool")
            for name, dtype in zip(given.names, given.dtypes, strict=True)
        ],
    )


def _switch(emission: Emission, given: Arguments) -> str:
    condition = emission.cast(given.names[0], given.dtypes[0], "bool")
    chosen = [
        emission.cast(name, own, given.result)
        for name, own in zip(given.names[1:], given.dtypes[1:], strict=True)
    ]
    return emission.build.add("Where", condition, *chosen)


def cast(emission: Emission, given: Arguments) -> str:
    return emission.cast(given.names[0], given.dtypes[0], given.result)


def _second(emission: Emission, given: Arguments) -> str:
    value = emission.cast(given.names[1], given.dtypes[1], given.result)
    return emission.build.add("Expand", value, emission.build.add("Shape", given.names[0]))


def _square(emission: Emission, given: Arguments) -> str:
    return computed(emission, given, lambda names, _: emission.build.add("Mul", names[0], names[0]))


def is_float(dtype: str) -> bool:
    return dtype.startswith("float")


def _floor_divide(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], dtype: str) -> str:
        if is_float(dtype):
            return build.add("Floor", build.add("Div", *names))
        # ONNX divides towards zero; what is left says where that was not the floor
        rest = build.add("Mod", *names)
        return build.add("Div", build.add("Sub", names[0], rest), names[1])

    return computed(emission, given, compute)


def _modulo(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], dtype: str) -> str:
        if not is_float(dtype):
            return build.add("Mod", *names)
        # as Python has it: the sign of the divisor
        rest = build.add("Mod", *names, fmod=1)
        zero = emission.scalar(0, dtype)
        is_off = build.add(
            "And",
            build.add("Not", build.add("Equal", rest, zero)),
            build.add("Xor", build.add("Less", rest, zero), build.add("Less", names[1], zero)),
        )
        return build.add("Where", is_off, build.add("Add", rest, names[1]), rest)

    return computed(emission, given, compute)


def _power(emission: Emission, given: Arguments) -> str:
    return computed(emission, given, lambda names, _: emission.build.add("Pow", *names))


def _clip(emission: Emission, given: Arguments) -> str:
    def compute(names: Sequence[str], _: str) -> str:
        raised = emission.build.add("Max", names[0], names[1])
        return emission.build.add("Min", raised, names[2])

    return computed(emission, given, compute)


def _scaled_log(base: float) -> Compute:
    def compute(emission: Emission, given: Arguments) -> str:
        return computed(
            emission,
            given,
            lambda names, dtype: emission.build.add(
                "Div", emission.build.add("Log", *names), emission.scalar(math.log(base), dtype)
            ),
        )

    return compute


def _log1p(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], dtype: str) -> str:
        # where 1 + x loses the digits of x, its own logarithm tells how many (Kahan)
        one = emission.scalar(1, dtype)
        more = build.add("Add", names[0], one)
        kept = build.add("Sub", more, one)
        is_tiny = build.add("Equal", kept, emission.scalar(0, dtype))
        is_whole = build.add("Or", is_tiny, build.add("IsInf", _in_float32(emission, more, dtype)))
        safe = build.add("Where", is_whole, one, kept)
        exact = build.add("Mul", build.add("Log", more), build.add("Div", names[0], safe))
        return build.add(
            "Where", is_whole, build.add("Add", names[0], build.add("Log", more)), exact
        )

    return computed(emission, given, compute)


def _in_float32(emission: Emission, name: str, dtype: str) -> str:
    # IsInf exists for float and double only
    return emission.cast(name, dtype, "float32") if dtype == "float16" else name


def _expm1(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], dtype: str) -> str:
        # exp(x) - 1 = 2 sinh(x/2) exp(x/2), which keeps the digits of a small x
        half = build.add("Mul", names[0], emission.scalar(0.5, dtype))
        small = build.add(
            "Mul",
            build.add("Mul", build.add("Sinh", half), build.add("Exp", half)),
            emission.scalar(2, dtype),
        )
        large = build.add("Sub", build.add("Exp", names[0]), emission.scalar(1, dtype))
        is_small = build.add("Less", build.add("Abs", names[0]), emission.scalar(1, dtype))
        return build.add("Where", is_small, small, large)

    return computed(emission, given, compute)


def _times(factor: float) -> Compute:
    def compute(emission: Emission, given: Arguments) -> str:
        return computed(
            emission,
            given,
            lambda names, dtype: emission.build.add(
                "Mul", names[0], emission.scalar(factor, dtype)
            ),
        )

    return compute


def _softplus(emission: Emission, given: Arguments) -> str:
    if given.result != "float64":
        return computed(emission, given, lambda names, _: emission.build.add("Softplus", *names))
    build = emission.build
    # ONNX Runtime has no kernel for float64: max(x, 0) + log(1 + exp(-|x|))
    name = emission.cast(given.names[0], given.dtypes[0], "float64")
    small = build.add("Exp", build.add("Neg", build.add("Abs", name)))
    rest = build.add("Log", build.add("Add", small, emission.scalar(1, "float64")))
    return build.add("Add", build.add("Max", name, emission.scalar(0, "float64")), rest)


def _exp2(emission: Emission, given: Arguments) -> str:
    return computed(
        emission,
        given,
        lambda names, dtype: emission.build.add("Pow", emission.scalar(2, dtype), names[0]),
    )


def _erfc(emission: Emission, given: Arguments) -> str:
    return computed(
        emission,
        given,
        lambda names, dtype: emission.build.add(
            "Sub", emission.scalar(1, dtype), emission.build.add("Erf", names[0])
        ),
    )


def _truncate(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], _: str) -> str:
        size = build.add("Floor", build.add("Abs", names[0]))
        return build.add("Mul", build.add("Sign", names[0]), size)

    return computed(emission, given, compute)


def _round_away(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], dtype: str) -> str:
        size = build.add("Add", build.add("Abs", names[0]), emission.scalar(0.5, dtype))
        return build.add("Mul", build.add("Sign", names[0]), build.add("Floor", size))

    return computed(emission, given, compute)


def _softsign(emission: Emission, given: Arguments) -> str:
    build = emission.build

    def compute(names: Sequence[str], dtype: str) -> str:
        below = build.add("Add", build.add("Abs", names[0]), emission.scalar(1, dtype))
        return build.add("Div", names[0], below)

    return computed(emission, given, compute)


def _is_nan(emission: Emission, given: Arguments) -> str:
    kind = type(given.operator).__name__
    name, dtype = given.names[0], given.dtypes[0]
    if not is_float(dtype):
        return emission.cast(emission.build.add("Sub", name, name), dtype, "bool")
    return emission.build.add(
        "IsNaN" if kind == "IsNan" else "IsInf", _in_float32(emission, name, dtype)
    )


def _mean(emission: Emission, given: Arguments) -> str:
    count = len(given.names)

    def compute(names: Sequence[str], dtype: str) -> str:
        total = folded(emission, "Add", list(names))
        return emission.build.add("Div", total, emission.scalar(count, dtype))

    return computed(emission, given, compute)


SPECIAL: dict[str, Compute] = {
    "EQ": _equal,
    "NEQ": _unequal,
    "Invert": _invert,
    "AND": _logic_of_whole,
    "OR": _logic_of_whole,
    "XOR": _logic_of_whole,
    "Switch": _switch,
    "Cast": cast,
    "Second": _second,
    "Sqr": _square,
    "IntDiv": _floor_divide,
    "Mod": _modulo,
    "Pow": _power,
    "Clip": _clip,
    "Log2": _scaled_log(2),
    "Log10": _scaled_log(10),
    "Log1p": _log1p,
    "Expm1": _expm1,
    "Exp2": _exp2,
    "Softplus": _softplus,
    "Deg2Rad": _times(math.pi / 180),
    "Rad2Deg": _times(180 / math.pi),
    "Erfc": _erfc,
    "Trunc": _truncate,
    "RoundHalfAwayFromZero": _round_away,
    "ScalarSoftsign": _softsign,
    "IsNan": _is_nan,
    "IsInf": _is_nan,
    "Mean": _mean,
}
"""Operators that are more than one node, or whose dtypes follow rules of their own."""
