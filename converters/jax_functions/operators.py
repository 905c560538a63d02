"""Primitives that work element by element, on shapes, or along axes."""

# ruff: noqa: ARG001 (every function of the table takes the same arguments)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.jax_functions.lowering import Emit, Lowering


def refused(equation: Any, what: str) -> UnsupportedError:
    """Return the error for a primitive with parameters that have no ONNX form."""
    name = equation.primitive.name
    return UnsupportedError(f"no ONNX form for JAX's `{name}` with {what}", operators=(name,))


def _simple(operator: str, **attributes: Any) -> Emit:
    return lambda low, _, names: low.build.add(operator, *names, **attributes)


def _pair(operator: str, *, negated: bool = False) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        found = low.build.add(operator, *narrowed(low, names))
        return low.build.add("Not", found) if negated else found

    return emit


def narrowed(low: Lowering, names: list[str]) -> list[str]:
    """Return inputs as small as they may be: all but one that has the full shape."""
    full = next((at for at, name in enumerate(names) if name not in low.pending), len(names) - 1)
    return [
        low.whole(name) if at == full else low.pending.get(name, (name,))[0]
        for at, name in enumerate(names)
    ]


def _logical(operator: str) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        if equation.invars[0].aval.dtype != bool:
            raise refused(equation, "bits of whole numbers")
        return low.build.add(operator, *narrowed(low, names))

    return emit


def _not(low: Lowering, equation: Any, names: list[str]) -> str:
    if equation.invars[0].aval.dtype != bool:
        raise refused(equation, "bits of whole numbers")
    return low.build.add("Not", names[0])


def _divide(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Div", *narrowed(low, names))


def _rest(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Mod", *narrowed(low, names), fmod=1)


def _rsqrt(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Reciprocal", low.build.add("Sqrt", names[0]))


def _square(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Mul", names[0], names[0])


def _integer_power(low: Lowering, equation: Any, names: list[str]) -> str:
    power = equation.params["y"]
    if power == 2:
        return _square(low, equation, names)
    dtype = equation.invars[0].aval.dtype
    return low.build.add("Pow", names[0], low.zero(dtype, power))


def _one_plus(operator: str) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        one = low.zero(equation.invars[0].aval.dtype, 1)
        if operator == "log1p":
            return low.build.add("Log", low.build.add("Add", names[0], one))
        inner = low.build.add("Exp" if operator == "expm1" else "Erf", names[0])
        pair = (inner, one) if operator == "expm1" else (one, inner)
        return low.build.add("Sub", *pair)

    return emit


def _exp2(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Pow", low.zero(equation.invars[0].aval.dtype, 2), names[0])


def _is_finite(low: Lowering, equation: Any, names: list[str]) -> str:
    odd = low.build.add("Or", low.build.add("IsInf", names[0]), low.build.add("IsNaN", names[0]))
    return low.build.add("Not", odd)


def _round(low: Lowering, equation: Any, names: list[str]) -> str:
    if int(equation.params["rounding_method"]) != 1:
        raise refused(equation, "halves rounded away from zero")
    return low.build.add("Round", names[0])


def _clamp(low: Lowering, equation: Any, names: list[str]) -> str:
    least, value, most = names
    return low.build.add("Min", low.build.add("Max", value, least), most)


def _same(low: Lowering, equation: Any, names: list[str]) -> list[str]:
    return names


def _convert(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.cast(names[0], equation.params["new_dtype"])


def _select(low: Lowering, equation: Any, names: list[str]) -> str:
    if equation.invars[0].aval.dtype != bool or len(names) != 3:
        raise refused(equation, f"{len(names) - 1} cases")
    if not equation.invars[0].aval.shape and equation.outvars[0].aval.shape:
        names = [names[0], *(low.whole(name) for name in names[1:])]
        return low.build.add("Where", names[0], names[2], names[1])
    which, otherwise, chosen = narrowed(low, names)
    return low.build.add("Where", which, chosen, otherwise)


# ---- shapes


def _broadcast(low: Lowering, equation: Any, names: list[str]) -> str:
    shape = tuple(equation.params["shape"])
    kept = tuple(equation.params["broadcast_dimensions"])
    value = low.whole(names[0])
    added = [axis for axis in range(len(shape)) if axis not in kept]
    if added:
        value = low.build.add("Unsqueeze", value, low.build.shape_constant(added))
    old = equation.invars[0].aval.shape
    if all(axis in kept and old[kept.index(axis)] == shape[axis] for axis in range(len(shape))):
        return value
    if all(shape[axis] == 1 for axis in added) and all(
        old[at] == shape[axis] for at, axis in enumerate(kept)
    ):
        return value
    name = low.build.fresh("broadcast")
    low.pending[name] = (value, shape)
    return name


def _reshape(low: Lowering, equation: Any, names: list[str]) -> str:
    if equation.params.get("dimensions") is not None:
        raise refused(equation, "axes in another order")
    return low.reshaped(names[0], equation.params["new_sizes"])


def _squeeze(low: Lowering, equation: Any, names: list[str]) -> str:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    return low.build.add("Squeeze", names[0], low.build.shape_constant(axes)) if axes else names[0]


def _expand_dims(low: Lowering, equation: Any, names: list[str]) -> str:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    return low.build.add("Unsqueeze", names[0], low.build.shape_constant(axes))


def _transpose(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.transposed(names[0], equation.params["permutation"])


def _concatenate(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Concat", *names, axis=int(equation.params["dimension"]))


def _stack(low: Lowering, equation: Any, names: list[str]) -> str:
    axis = low.build.shape_constant([int(equation.params["axis"])])
    parts = [low.build.add("Unsqueeze", name, axis) for name in names]
    return low.build.add("Concat", *parts, axis=int(equation.params["axis"]))


def _tile(low: Lowering, equation: Any, names: list[str]) -> str:
    return low.build.add("Tile", names[0], low.shape(equation.params["reps"]))


def _split(low: Lowering, equation: Any, names: list[str]) -> tuple[str, ...]:
    sizes = equation.params["sizes"]
    return low.build.add_many(
        "Split", names[0], low.shape(sizes), count=len(sizes), axis=int(equation.params["axis"])
    )


def _pad(low: Lowering, equation: Any, names: list[str]) -> str:
    value, fill = names
    config = equation.params["padding_config"]
    if any(int(inner) for _, _, inner in config):
        raise refused(equation, "padding between elements")
    before = [low_ for low_, _, _ in config]
    after = [high for _, high, _ in config]
    # negative padding cuts off, in ONNX too
    return low.build.add("Pad", value, low.shape([*before, *after]), fill)


def _reverse(low: Lowering, equation: Any, names: list[str]) -> str:
    axes = [int(axis) for axis in equation.params["dimensions"]]
    vector = low.build.shape_constant
    ends = vector([-(2**62)] * len(axes))
    return low.build.add(
        "Slice", names[0], vector([-1] * len(axes)), ends, vector(axes), vector([-1] * len(axes))
    )


def _iota(low: Lowering, equation: Any, names: list[str]) -> str:
    import numpy as np

    shape, axis = equation.params["shape"], int(equation.params["dimension"])
    dtype = equation.params["dtype"]
    if low.is_symbolic(shape[axis]):
        zero = low.build.constant(np.asarray(0, np.int64))
        one = low.build.constant(np.asarray(1, np.int64))
        count = low.build.add("Squeeze", low.size(shape[axis]), low.build.shape_constant([0]))
        steps = low.cast(low.build.add("Range", zero, count, one), dtype)
    else:
        steps = low.build.constant(np.arange(int(shape[axis])).astype(dtype))
    if len(shape) == 1:
        return steps
    others = [other for other in range(len(shape)) if other != axis]
    column = low.build.add("Unsqueeze", steps, low.build.shape_constant(others))
    return low.build.add("Expand", column, low.shape(shape))


def _dimension(low: Lowering, equation: Any, names: list[str]) -> str:
    size = low.build.add("Squeeze", low.size(equation.params["dim"]), low.build.shape_constant([0]))
    return low.cast(size, equation.outvars[0].aval.dtype)


# ---- along axes


def _reduce(operator: str) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        axes = [int(axis) for axis in equation.params["axes"]]
        if not axes:
            return names[0]
        if operator == "ReduceSum":
            return low.build.add(operator, names[0], low.build.shape_constant(axes), keepdims=0)
        return low.build.add(operator, names[0], axes=axes, keepdims=0)

    return emit


def _reduce_logical(operator: str) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        if equation.invars[0].aval.dtype != bool:
            raise refused(equation, "bits of whole numbers")
        axes = [int(axis) for axis in equation.params["axes"]]
        found = low.build.add(operator, low.cast(names[0], "int32"), axes=axes, keepdims=0)
        return low.cast(found, "bool")

    return emit


def _extreme(operator: str) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        (axis,) = equation.params["axes"]
        found = low.build.add(operator, names[0], axis=int(axis), keepdims=0)
        return low.cast(found, equation.params["index_dtype"])

    return emit


def _cumulative(low: Lowering, equation: Any, names: list[str]) -> str:
    import numpy as np

    axis = low.build.constant(np.asarray(int(equation.params["axis"]), np.int64))
    return low.build.add("CumSum", names[0], axis, reverse=int(equation.params["reverse"]))


def _sort(low: Lowering, equation: Any, names: list[str]) -> list[str]:
    if equation.params["num_keys"] != 1:
        raise refused(equation, f"{equation.params['num_keys']} keys")
    axis = int(equation.params["dimension"])
    count = low.size(equation.invars[0].aval.shape[axis])
    values, places = low.build.add_many(
        "TopK", names[0], count, count=2, axis=axis, largest=0, sorted=1
    )
    rest = [low.build.add("GatherElements", name, places, axis=axis) for name in names[1:]]
    return [values, *rest]


def _top(low: Lowering, equation: Any, names: list[str]) -> list[str]:
    axis = int(equation.params.get("axis", len(equation.invars[0].aval.shape) - 1))
    values, places = low.build.add_many(
        "TopK", names[0], low.size(equation.params["k"]), count=2, axis=axis, largest=1, sorted=1
    )
    return [values, low.cast(places, equation.outvars[1].aval.dtype)]


EMIT: dict[str, Emit] = {
    **{
        name: _simple(name.capitalize())
        for name in (
            *("exp", "log", "tanh", "sqrt", "abs", "neg", "floor", "ceil", "sign", "sin", "cos"),
            *("tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf"),
        )
    },
    "logistic": _simple("Sigmoid"),
    "rsqrt": _rsqrt,
    "square": _square,
    "integer_pow": _integer_power,
    "log1p": _one_plus("log1p"),
    "expm1": _one_plus("expm1"),
    "erfc": _one_plus("erfc"),
    "exp2": _exp2,
    "is_finite": _is_finite,
    "round": _round,
    "not": _not,
    "add": _pair("Add"),
    "add_any": _pair("Add"),
    "sub": _pair("Sub"),
    "mul": _pair("Mul"),
    "div": _divide,
    "rem": _rest,
    "max": _pair("Max"),
    "min": _pair("Min"),
    "pow": _pair("Pow"),
    "eq": _pair("Equal"),
    "ne": _pair("Equal", negated=True),
    "lt": _pair("Less"),
    "le": _pair("LessOrEqual"),
    "gt": _pair("Greater"),
    "ge": _pair("GreaterOrEqual"),
    "and": _logical("And"),
    "or": _logical("Or"),
    "xor": _logical("Xor"),
    "clamp": _clamp,
    "select_n": _select,
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
    "optimization_barrier": _same,
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "split": _split,
    "tile": _tile,
    "pad": _pad,
    "rev": _reverse,
    "iota": _iota,
    "dim_as_value": _dimension,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_and": _reduce_logical("ReduceMin"),
    "reduce_or": _reduce_logical("ReduceMax"),
    "argmax": _extreme("ArgMax"),
    "argmin": _extreme("ArgMin"),
    "cumsum": _cumulative,
    "sort": _sort,
    "top_k": _top,
}
