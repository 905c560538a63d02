"""Operators on numbers, applied to each element: pytensor's scalar operators into ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph.emission import described, operator_name
from deploykit._plugins.converters.theano_graph.formulas import (
    LOGIC,
    SPECIAL,
    Arguments,
    alike,
    cast,
    computed,
    folded,
    is_float,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission

SAME = {
    **{name: name for name in ("Abs", "Ceil", "Floor", "Neg", "Exp", "Log", "Sqrt", "Reciprocal")},
    **{name: name for name in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Erf", "Sigmoid")},
    "ArcSin": "Asin",
    "ArcCos": "Acos",
    "ArcTan": "Atan",
    "ArcSinh": "Asinh",
    "ArcCosh": "Acosh",
    "ArcTanh": "Atanh",
    "RoundHalfToEven": "Round",
    "Identity": "Identity",
    "Sgn": "Sign",
}
"""One argument, the same in ONNX."""

FLOAT32_ONLY = frozenset(
    ("Tan", "Sinh", "Cosh", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh", "Erf")
)
"""What ONNX Runtime computes in float32 alone."""

WHOLE = frozenset(("Ceil", "Floor", "Trunc", "RoundHalfToEven", "RoundHalfAwayFromZero"))

FOLDS = {
    "Add": "Add",
    "Mul": "Mul",
    "Sub": "Sub",
    "TrueDiv": "Div",
    "ScalarMaximum": "Max",
    "ScalarMinimum": "Min",
}
"""Several arguments, taken two by two, the same in ONNX."""

COMPARISONS = {"LT": "Less", "GT": "Greater", "LE": "LessOrEqual", "GE": "GreaterOrEqual"}
LOGIC_EXTREMES = {"ScalarMaximum": "Or", "ScalarMinimum": "And"}


def elemwise(emission: Emission, node: Any) -> list[str]:
    """Emit an `Elemwise` of tensors, or a scalar operator on its own."""
    operator = getattr(node.op, "scalar_op", node.op)
    names = emission.values(node.inputs)
    dtypes = [one.type.dtype for one in node.inputs]
    return _scalars(emission, operator, names, dtypes, node)


def _scalars(
    emission: Emission, operator: Any, names: list[str], dtypes: list[str], node: Any
) -> list[str]:
    """Emit a scalar operator on values of these names; one that is made of others, part by part."""
    inner = getattr(operator, "fgraph", None)
    if inner is not None:
        from pytensor.graph.basic import Constant

        held = dict(zip(inner.inputs, names, strict=True))
        for part in inner.toposort():
            for one in part.inputs:
                if one not in held and isinstance(one, Constant):
                    held[one] = emission.build.constant(one.data, dtype=one.type.dtype)
            made = _scalars(
                emission,
                part.op,
                [held[one] for one in part.inputs],
                [one.type.dtype for one in part.inputs],
                part,
            )
            held.update(zip(part.outputs, made, strict=True))
        return [held[one] for one in inner.outputs]
    result = node.outputs[0].type.dtype
    if any(dtype.startswith("complex") for dtype in [*dtypes, result]):
        raise UnsupportedError(
            f"complex numbers in {described(node)}", operators=(operator_name(node),)
        )
    arguments = Arguments(list(names), list(dtypes), result, operator, node)
    return [_one(emission, arguments)]


def _one(emission: Emission, given: Arguments) -> Any:
    """Return the ONNX name of the result of one scalar operator."""
    kind = type(given.operator).__name__
    if kind in WHOLE and not is_float(given.result):
        # a whole number is its own rounding
        return cast(emission, given)
    special = SPECIAL.get(kind)
    if special is not None:
        return special(emission, given)
    if given.result == "bool" and kind in {**LOGIC, **LOGIC_EXTREMES}:
        booleans = [
            emission.cast(name, dtype, "bool")
            for name, dtype in zip(given.names, given.dtypes, strict=True)
        ]
        return folded(emission, {**LOGIC, **LOGIC_EXTREMES}[kind], booleans)
    if kind in COMPARISONS:
        return emission.build.add(COMPARISONS[kind], *alike(emission, given))
    if kind in FOLDS:
        return computed(
            emission, given, lambda names, _: folded(emission, FOLDS[kind], list(names))
        )
    if kind in SAME and given.result == "float64" and SAME[kind] in FLOAT32_ONLY:
        emission.notes[f"{kind} of float64 is computed in float32, for want of a kernel"] = None
        narrow = emission.cast(given.names[0], given.dtypes[0], "float32")
        return emission.cast(emission.build.add(SAME[kind], narrow), "float32", "float64")
    if kind in SAME:
        return computed(emission, given, lambda names, _: emission.build.add(SAME[kind], *names))
    raise UnsupportedError(
        f"no ONNX form for {described(given.node)}"
        + ("" if operator_name(given.node) == kind else f", made with {kind}"),
        operators=(kind,),
        hint="write this part of the graph with other operators",
    )


RULES = {"Elemwise": elemwise, "ScalarOp": elemwise}
