"""Element by element: arithmetic, comparison, activations, casts and quantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from deploykit._plugins.converters.tflite.emitting import FIRST, Emitter, Value
from deploykit._plugins.converters.tflite.reading import Operator, Tensor

Emit = Callable[[Emitter, Operator, list[Any], list[Tensor]], list[Value]]

UNARY = {
    "RELU": "Relu",
    "LOGISTIC": "Sigmoid",
    "TANH": "Tanh",
    "ELU": "Elu",
    "HARD_SWISH": "HardSwish",
    "EXP": "Exp",
    "LOG": "Log",
    "SQRT": "Sqrt",
    "SIN": "Sin",
    "COS": "Cos",
    "ABS": "Abs",
    "NEG": "Neg",
    "FLOOR": "Floor",
    "CEIL": "Ceil",
    "ROUND": "Round",
    "SIGN": "Sign",
    "LOGICAL_NOT": "Not",
}
BINARY = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "POW": "Pow",
    "MAXIMUM": "Max",
    "MINIMUM": "Min",
    "LOGICAL_AND": "And",
    "LOGICAL_OR": "Or",
}
COMPARE = {
    "EQUAL": "Equal",
    "LESS": "Less",
    "GREATER": "Greater",
    "LESS_EQUAL": "LessOrEqual",
    "GREATER_EQUAL": "GreaterOrEqual",
}


def plain(m: Emitter, value: Value, *, first: bool = False) -> str:
    """Return the numbers of `value`: real ones where it stands for them."""
    if value.is_float:
        found: str = m.real(value, first=first)
    else:
        found = m.stored_first(value) if first else m.stored(value)
    return found


def joint(ins: Sequence[Value]) -> tuple[int, ...]:
    """Return the shape that operands are broadcast to. Raises ValueError where they do not fit."""
    import numpy as np

    return tuple(np.broadcast_shapes(*(one.shape for one in ins)))


def _each(compute: Callable[[Emitter, Operator, str], Any]) -> Emit:
    """Let `compute` work in whichever layout the value is in."""

    def emit(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
        x = ins[0]
        first = x.has_first
        name = compute(m, op, plain(m, x, first=first))
        return [m.made(outs[0], name, batch=x.batch, shape=x.shape, first=first)]

    return emit


def _clamp(low: float, high: float) -> Callable[[Emitter, Operator, str], str]:
    def compute(m: Emitter, _op: Operator, x: str) -> str:
        found: str = m.add("Clip", x, m.number(low), m.number(high))
        return found

    return compute


def _rsqrt(m: Emitter, _op: Operator, x: str) -> str:
    found: str = m.add("Reciprocal", m.add("Sqrt", x))
    return found


def _square(m: Emitter, _op: Operator, x: str) -> str:
    found: str = m.add("Mul", x, x)
    return found


def _leaky(m: Emitter, op: Operator, x: str) -> str:
    found: str = m.add("LeakyRelu", x, alpha=op.options["alpha"])
    return found


def _gelu(m: Emitter, op: Operator, x: str) -> str:
    if op.options["approximate"]:
        cube = m.add("Mul", m.add("Mul", x, x), x)
        inner = m.add("Add", x, m.add("Mul", cube, m.number(0.044715)))
        bent = m.add("Tanh", m.add("Mul", inner, m.number(math.sqrt(2 / math.pi))))
    else:
        bent = m.add("Erf", m.add("Mul", x, m.number(math.sqrt(0.5))))
    found: str = m.add("Mul", m.add("Mul", x, m.number(0.5)), m.add("Add", bent, m.number(1.0)))
    return found


def _fake_quantised(m: Emitter, op: Operator, x: str) -> str:
    """Round to the levels of FAKE_QUANT, its range first moved so that zero is a level."""
    least, most, bits = op.options["least"], op.options["most"], op.options["bits"]
    if not (2 <= bits <= 16 and least <= 0 <= most and least < most):
        raise m.refuse(f"its range is {least:g} to {most:g} in {bits} bits")
    low = 1.0 if op.options["narrow"] else 0.0
    high = float((1 << bits) - 1)
    scale = (most - least) / (high - low)
    zero = float(min(max(math.floor(low - least / scale + 0.5), low), high))
    down, up = (low - zero) * scale, (high - zero) * scale
    limited = m.add("Clip", x, m.number(down), m.number(up))
    steps = m.add("Div", m.add("Sub", limited, m.number(down)), m.number(scale))
    whole = m.add("Floor", m.add("Add", steps, m.number(0.5)))
    found: str = m.add("Add", m.add("Mul", whole, m.number(scale)), m.number(down))
    return found


def _unary(kind: str) -> Emit:
    return _each(lambda m, _op, x: m.add(kind, x))


def _operands(m: Emitter, ins: list[Any]) -> tuple[list[str], bool]:
    """Return the operands in one layout: channels first where that costs nothing."""
    moving = [one for one in ins if one.constant is None]
    first = bool(moving) and all(one.has_first and one.rank == 4 for one in moving)
    if not first:
        return [plain(m, one) for one in ins], False
    names = []
    for one in ins:
        if one.constant is None or one.rank == 4:
            names.append(plain(m, one, first=True))
        elif one.rank == 0:
            names.append(plain(m, one))
        else:
            shape = [1] * (4 - one.rank) + list(one.shape)
            wide = m.add("Reshape", plain(m, one), m.sizes(shape))
            names.append(m.add("Transpose", wide, perm=FIRST))
    return names, True


def _binary(compute: Callable[[Emitter, Operator, list[str]], Any]) -> Emit:
    def emit(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
        shape = joint(ins)
        batch = m.together(ins, len(shape))
        names, first = _operands(m, ins)
        name = m.activated(compute(m, op, names), op.options.get("activation", "NONE"), outs[0])
        return [m.made(outs[0], name, batch=batch, shape=shape, first=first)]

    return emit


def _arithmetic(kind: str) -> Emit:
    return _binary(lambda m, _op, names: m.add(kind, *names))


def _division(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    # ONNX and C divide integers alike, towards zero
    return _arithmetic("Div")(m, op, ins, outs)


def _not_equal(m: Emitter, _op: Operator, names: list[str]) -> str:
    found: str = m.add("Not", m.add("Equal", *names))
    return found


def _squared_difference(m: Emitter, _op: Operator, names: list[str]) -> str:
    difference = m.add("Sub", *names)
    found: str = m.add("Mul", difference, difference)
    return found


def _floor_division(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    shape = joint(ins)
    batch = m.together(ins, len(shape))
    names, first = _operands(m, ins)
    if ins[0].is_float:
        name = m.add("Floor", m.add("Div", *names))
    else:
        # ONNX divides integers towards zero: subtract the modulus, which has the divisor's sign
        rest = m.add("Mod", *names)
        name = m.add("Div", m.add("Sub", names[0], rest), names[1])
    return [m.made(outs[0], name, batch=batch, shape=shape, first=first)]


def _floor_modulus(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    shape = joint(ins)
    batch = m.together(ins, len(shape))
    names, first = _operands(m, ins)
    if ins[0].is_float:
        whole = m.add("Floor", m.add("Div", *names))
        name = m.add("Sub", names[0], m.add("Mul", whole, names[1]))
    else:
        name = m.add("Mod", *names)
    return [m.made(outs[0], name, batch=batch, shape=shape, first=first)]


def _sum_of_all(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    shape = joint(ins)
    batch = m.together(ins, len(shape))
    names, first = _operands(m, ins)
    return [m.made(outs[0], m.add("Sum", *names), batch=batch, shape=shape, first=first)]


def _prelu(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    shape = joint(ins)
    batch = m.together(ins, len(shape))
    (x, slope), first = _operands(m, ins)
    name = m.add("PRelu", x, slope)
    return [m.made(outs[0], name, batch=batch, shape=shape, first=first)]


def _select(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SELECT (a vector of conditions chooses rows) and SELECT_V2 (all are broadcast)."""
    condition, x, y = ins
    choice = m.stored(condition)
    if op.kind == "SELECT" and condition.rank == 1 and x.rank > 1:
        column = [condition.shape[0]] + [1] * (x.rank - 1)
        choice, batch = m.reshaped(choice, condition, column)
        condition = Value(tensor=condition.tensor, shape=tuple(column), batch=batch)
    shape = joint([condition, x, y])
    batch = m.together([condition, x, y], len(shape))
    name = m.add("Where", choice, plain(m, x), plain(m, y))
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _cast(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    import numpy as np
    from onnx import helper

    (x,) = ins
    if "complex" in x.tensor.dtype + outs[0].dtype or "string" in (x.tensor.dtype, outs[0].dtype):
        raise m.refuse(f"from {x.tensor.dtype} to {outs[0].dtype}")
    first = bool(x.first)
    stored = m.stored_first(x) if first else m.stored(x)
    name = m.add("Cast", stored, to=helper.np_dtype_to_tensor_dtype(np.dtype(outs[0].dtype)))
    value = Value(tensor=outs[0], shape=x.shape, batch=x.batch)
    value.first, value.stored = (name, "") if first else ("", name)
    return [value]


def _requantized(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """QUANTIZE, DEQUANTIZE, and what only renames: the real numbers stay."""
    (x,) = ins
    first = x.has_first
    name = m.real(x, first=first)
    return [m.made(outs[0], name, batch=x.batch, shape=x.shape, first=first)]


def _softmax(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    (x,) = ins
    batch = m.apart(x, [-1])
    data = m.real(x)
    if op.kind == "LOG_SOFTMAX":
        return [m.made(outs[0], m.add("LogSoftmax", data, axis=-1), batch=batch, shape=x.shape)]
    if op.options["beta"] != 1.0:
        data = m.add("Mul", data, m.number(op.options["beta"]))
    return [m.made(outs[0], m.add("Softmax", data, axis=-1), batch=batch, shape=x.shape)]


def _unit_length(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """L2_NORMALIZATION along the last axis, the length at least 1e-6."""
    (x,) = ins
    batch = m.apart(x, [-1])
    data = m.real(x)
    length = m.add("Sqrt", m.add("ReduceSumSquare", data, axes=[x.rank - 1], keepdims=1))
    name = m.add("Div", data, m.add("Max", length, m.number(1e-6)))
    name = m.activated(name, op.options["activation"], outs[0])
    return [m.made(outs[0], name, batch=batch, shape=x.shape)]


def _neighbours(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """LOCAL_RESPONSE_NORMALIZATION: alpha counts once per neighbour, in ONNX it is shared out."""
    (x,) = ins
    if x.rank != 4:
        raise m.refuse(f"its input has {x.rank} axes")
    size = 2 * op.options["radius"] + 1
    if size < 1:
        raise ValueError(f"a radius of {op.options['radius']}")
    name = m.add(
        "LRN",
        m.real(x, first=True),
        alpha=op.options["alpha"] * size,
        beta=op.options["beta"],
        bias=op.options["bias"],
        size=size,
    )
    return [m.made(outs[0], name, batch=m.apart(x, [3]), shape=x.shape, first=True)]


EMIT: dict[str, Emit] = {
    **{kind: _unary(name) for kind, name in UNARY.items()},
    **{kind: _arithmetic(name) for kind, name in BINARY.items()},
    **{kind: _arithmetic(name) for kind, name in COMPARE.items()},
    "DIV": _division,
    "NOT_EQUAL": _binary(_not_equal),
    "SQUARED_DIFFERENCE": _binary(_squared_difference),
    "FLOOR_DIV": _floor_division,
    "FLOOR_MOD": _floor_modulus,
    "ADD_N": _sum_of_all,
    "RELU6": _each(_clamp(0.0, 6.0)),
    "RELU_N1_TO_1": _each(_clamp(-1.0, 1.0)),
    "RELU_0_TO_1": _each(_clamp(0.0, 1.0)),
    "RSQRT": _each(_rsqrt),
    "SQUARE": _each(_square),
    "LEAKY_RELU": _each(_leaky),
    "GELU": _each(_gelu),
    "FAKE_QUANT": _each(_fake_quantised),
    "PRELU": _prelu,
    "SELECT": _select,
    "SELECT_V2": _select,
    "CAST": _cast,
    "QUANTIZE": _requantized,
    "DEQUANTIZE": _requantized,
    "DENSIFY": _requantized,
    "SOFTMAX": _softmax,
    "LOG_SOFTMAX": _softmax,
    "L2_NORMALIZATION": _unit_length,
    "LOCAL_RESPONSE_NORMALIZATION": _neighbours,
}
