"""Float activations against int8 weights: TensorFlow Lite rounds them at run time, and so do we.

Each row of the batch gets a scale of its own. `tensor_utils::SymmetricQuantizeFloats` and
`AsymmetricQuantizeFloats` of TensorFlow Lite are written out in ONNX operators; what follows
computes with the rounded numbers in float32, which is exact but for the last digit.
"""

from __future__ import annotations

from collections.abc import Sequence

from deploykit._plugins.converters.tflite.emitting import Emitter, Value


def is_hybrid(x: Value, weight: Value) -> bool:
    """Whether float activations meet quantised weights."""
    found: bool = x.tensor.dtype == "float32" and weight.tensor.quantized
    return found


def rounded(m: Emitter, x: str, axes: Sequence[int], *, asymmetric: bool) -> str:
    """Return `x` rounded to 256 levels, one scale for all places along `axes`."""
    return _asymmetric(m, x, axes) if asymmetric else _symmetric(m, x, axes)


def _away(m: Emitter, x: str) -> str:
    """Round halves away from zero, as C does; ONNX's Round goes to even."""
    up = m.add("Floor", m.add("Add", m.add("Abs", x), m.number(0.5)))
    found: str = m.add("Mul", m.add("Sign", x), up)
    return found


def _symmetric(m: Emitter, x: str, axes: Sequence[int]) -> str:
    largest = m.add("ReduceMax", m.add("Abs", x), axes=list(axes), keepdims=1)
    none = m.add("Equal", largest, m.number(0.0))
    reach = m.add("Where", none, m.number(127.0), largest)
    inverse = m.add("Div", m.number(127.0), reach)
    scale = m.add("Div", reach, m.number(127.0))
    levels = _away(m, m.add("Mul", x, inverse))
    found: str = m.add("Mul", m.add("Clip", levels, m.number(-127.0), m.number(127.0)), scale)
    return found


def _asymmetric(m: Emitter, x: str, axes: Sequence[int]) -> str:
    def wide(value: float) -> str:
        found: str = m.number(value, "float64")
        return found

    def extreme(kind: str, limit: str) -> str:
        found = m.add(kind, x, axes=list(axes), keepdims=1)
        result: str = m.add(limit, m.add("Cast", found, to=11), wide(0.0))
        return result

    low, high = extreme("ReduceMin", "Min"), extreme("ReduceMax", "Max")
    span = m.add("Sub", high, low)
    none = m.add("Equal", span, wide(0.0))
    scale = m.add("Div", m.add("Where", none, wide(255.0), span), wide(255.0))
    down, up = m.add("Div", low, scale), m.add("Div", high, scale)
    from_low, from_high = m.add("Sub", wide(-128.0), down), m.add("Sub", wide(127.0), up)
    nearer = m.add(
        "Less",
        m.add("Add", wide(128.0), m.add("Abs", down)),
        m.add("Add", wide(127.0), m.add("Abs", up)),
    )
    exact = m.add("Where", nearer, from_low, from_high)
    whole = m.add("Floor", m.add("Add", m.add("Abs", exact), wide(0.5)))
    signed = m.add("Mul", m.add("Sign", exact), whole)
    limited = m.add("Min", m.add("Max", signed, wide(-128.0)), wide(127.0))
    zero = m.add("Where", none, wide(0.0), limited)
    zero, scale = m.add("Cast", zero, to=1), m.add("Cast", scale, to=1)
    levels = m.add("Add", m.add("Mul", x, m.add("Div", m.number(1.0), scale)), zero)
    limited = m.add("Clip", _away(m, levels), m.number(-128.0), m.number(127.0))
    result: str = m.add("Mul", m.add("Sub", limited, zero), scale)
    return result
