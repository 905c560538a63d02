"""Element by element: TensorFlow Lite's arithmetic, on real numbers and on integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute, scaled

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _unary(compute: Callable[[Any, Call], Array]) -> Compute:
    return lambda call: call.given(compute(call.real(0), call))


def _numpy(name: str) -> Compute:
    def compute(call: Call) -> Any:
        import numpy as np

        return call.given(getattr(np, name)(call.real(0)))

    return compute


def _erf(x: Array) -> Array:
    import numpy as np

    return np.asarray(np.vectorize(math.erf, otypes=[float])(x))


def _gelu(x: Any, call: Call) -> Any:
    import numpy as np

    if call.option("approximate"):
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _where(x: Any, below: Callable[[Any], Any]) -> Array:
    import numpy as np

    found: Array = np.where(x >= 0, x, below(np.minimum(x, 0)))
    return found


def _elu(x: Any, _call: Call) -> Any:
    import numpy as np

    return _where(x, np.expm1)


def _leaky(x: Any, call: Call) -> Any:
    return _where(x, lambda low: low * call.option("alpha"))


def _leaky_relu(call: Call) -> Any:
    """LEAKY_RELU: integers have one multiplier for each side of zero."""
    import numpy as np

    if not call.quantized():
        return _unary(_leaky)(call)
    about, out = call.tensor(0).quantization, call.outs[0].quantization
    assert about is not None
    assert out is not None
    x = call.stored(0).astype(np.int64) - about.zero_point[0]
    factor = float(about.scale[0]) / float(out.scale[0])
    above = scaled(x, factor, call.once)
    below = scaled(x, factor * call.option("alpha"), call.once)
    return call.clamped(np.where(x >= 0, above, below))


def _hard_swish(x: Any, _call: Call) -> Any:
    import numpy as np

    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


def _limit(low: float, high: float) -> Compute:
    def compute(call: Call) -> Any:
        import numpy as np

        return call.given(np.clip(call.real(0), low, high))

    return compute


def _fake(x: Any, call: Call) -> Any:
    """Between a nudged smallest and largest level, as `fake_quant_ops` has it."""
    import numpy as np

    low = 1 if call.option("narrow") else 0
    high = 2 ** call.option("bits") - 1
    scale = (call.option("most") - call.option("least")) / (high - low)
    start = low - call.option("least") / scale
    zero = low if start < low else high if start > high else math.floor(start + 0.5)
    bottom, top = (low - zero) * scale, (high - zero) * scale
    return np.asarray(np.floor((np.clip(x, bottom, top) - bottom) / scale + 0.5) * scale + bottom)


def _sum(call: Call) -> Any:
    """ADD and SUB: integers are brought to a common scale with 20 more bits, 15 for int16."""
    import numpy as np

    sign = -1 if call.op.kind == "SUB" else 1
    if not call.quantized() or (call.outs[0].dtype == "int16" and call.option("pot_scale")):
        x, y = call.real(0), call.real(1)
        return call.given(call.activated(x + sign * y) if x.dtype.kind == "f" else x + sign * y)
    more = 15 if call.outs[0].dtype == "int16" else 20
    parts = [call.tensor(at).quantization for at in (0, 1)]
    out = call.outs[0].quantization
    assert out is not None
    whole = 2.0 * max(float(one.scale[0]) for one in parts if one is not None)
    total: Any = 0
    for at, about in enumerate(parts):
        assert about is not None
        wide = (call.stored(at).astype(np.int64) - about.zero_point[0]) << more
        part = scaled(wide, float(about.scale[0]) / whole, call.once)
        total = total + (sign if at else 1) * part
    factor = whole / ((1 << more) * float(out.scale[0]))
    return call.clamped(scaled(total, factor, call.once))


def _product(call: Call) -> Any:
    import numpy as np

    if not call.quantized():
        x, y = call.real(0), call.real(1)
        return call.given(call.activated(x * y) if x.dtype.kind == "f" else x * y)
    parts = [call.tensor(at).quantization for at in (0, 1)]
    out = call.outs[0].quantization
    assert parts[0] is not None
    assert parts[1] is not None
    assert out is not None
    x, y = (
        call.stored(at).astype(np.int64) - one.zero_point[0]
        for at, one in enumerate(parts)
        if one is not None
    )
    factor = float(parts[0].scale[0]) * float(parts[1].scale[0]) / float(out.scale[0])
    return call.clamped(scaled(x * y, factor, call.once))


def _binary(compute: Callable[[Any, Any], Any]) -> Compute:
    def run(call: Call) -> Any:
        found = compute(call.real(0), call.real(1))
        return call.given(call.activated(found) if found.dtype.kind == "f" else found)

    return run


def _numpy_two(name: str) -> Compute:
    def compute(call: Call) -> Any:
        import numpy as np

        return call.given(getattr(np, name)(call.real(0), call.real(1)))

    return compute


def _divided(call: Call) -> Any:
    import numpy as np

    x, y = call.real(0), call.real(1)
    if x.dtype.kind == "f":
        with np.errstate(divide="ignore", invalid="ignore"):
            return call.given(call.activated(x / y))
    return np.asarray(np.trunc(x / y)).astype(x.dtype)


def _squared_difference(x: Any, y: Any) -> Any:
    return (x - y) * (x - y)


def _all(call: Call) -> Any:
    total = call.real(0)
    for at in range(1, len(call.ins)):
        total = total + call.real(at)
    return call.given(total)


def _prelu(call: Call) -> Any:
    """PRELU: of integers the slope multiplies below zero only, and is rounded with the scale."""
    import numpy as np

    if not call.quantized():
        x = call.real(0)
        return call.given(np.where(x >= 0, x, x * call.real(1)))
    about, slopes = call.tensor(0).quantization, call.tensor(1).quantization
    out = call.outs[0].quantization
    assert about is not None
    assert slopes is not None
    assert out is not None
    x = call.stored(0).astype(np.int64) - about.zero_point[0]
    slope = call.stored(1).astype(np.int64) - slopes.zero_point[0]
    factor = float(about.scale[0]) / float(out.scale[0])
    above = scaled(x, factor, call.once)
    below = scaled(x * slope, factor * float(slopes.scale[0]), call.once)
    return call.clamped(np.where(x >= 0, above, below))


def _select(call: Call) -> Any:
    import numpy as np

    chosen, x = call.stored(0), call.real(1)
    if call.op.kind == "SELECT" and chosen.ndim == 1 and x.ndim > 1:
        chosen = chosen.reshape(-1, *[1] * (x.ndim - 1))
    return call.given(np.where(chosen, x, call.real(2)))


def _cast(call: Call) -> Any:
    import numpy as np

    with np.errstate(invalid="ignore"):
        return call.stored(0).astype(call.outs[0].dtype)


def _requantized(call: Call) -> Any:
    x, out = call.tensor(0), call.outs[0]
    if call.op.kind == "QUANTIZE" and call.quantized():
        assert x.quantization is not None
        assert out.quantization is not None
        total = call.stored(0).astype("int64") - x.quantization.zero_point[0]
        factor = float(x.quantization.scale[0]) / float(out.quantization.scale[0])
        return call.clamped(scaled(total, factor, call.once))
    return call.given(call.real(0))


def _softmax(call: Call) -> Any:
    import numpy as np

    x = call.real(0)
    if call.op.kind == "LOG_SOFTMAX":
        top = x - x.max(axis=-1, keepdims=True)
        return call.given(top - np.log(np.exp(top).sum(axis=-1, keepdims=True)))
    return call.given(define.softmax(x * call.option("beta")))


def _unit_length(call: Call) -> Any:
    import numpy as np

    x = call.real(0)
    length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return call.given(call.activated(x / np.maximum(length, 1e-6)))


def _neighbours(call: Call) -> Any:
    import numpy as np

    x = call.real(0)
    reach = call.option("radius")
    square = np.pad(x * x, [(0, 0)] * (x.ndim - 1) + [(reach, reach)])
    total = sum(square[..., at : at + x.shape[-1]] for at in range(2 * reach + 1))
    scale = call.option("bias") + call.option("alpha") * total
    return call.given(x * scale ** -call.option("beta"))


COMPUTE: dict[str, Compute] = {
    **{
        kind: _numpy(name)
        for kind, name in (
            ("TANH", "tanh"),
            ("EXP", "exp"),
            ("LOG", "log"),
            ("SQRT", "sqrt"),
            ("SIN", "sin"),
            ("COS", "cos"),
            ("ABS", "abs"),
            ("NEG", "negative"),
            ("FLOOR", "floor"),
            ("CEIL", "ceil"),
            ("ROUND", "rint"),
            ("SIGN", "sign"),
            ("SQUARE", "square"),
            ("LOGICAL_NOT", "logical_not"),
        )
    },
    **{
        kind: _numpy_two(name)
        for kind, name in (
            ("POW", "power"),
            ("MAXIMUM", "maximum"),
            ("MINIMUM", "minimum"),
            ("LOGICAL_AND", "logical_and"),
            ("LOGICAL_OR", "logical_or"),
            ("EQUAL", "equal"),
            ("NOT_EQUAL", "not_equal"),
            ("LESS", "less"),
            ("GREATER", "greater"),
            ("LESS_EQUAL", "less_equal"),
            ("GREATER_EQUAL", "greater_equal"),
            ("FLOOR_DIV", "floor_divide"),
            ("FLOOR_MOD", "mod"),
        )
    },
    "RELU": _limit(0, math.inf),
    "RELU6": _limit(0, 6),
    "RELU_N1_TO_1": _limit(-1, 1),
    "RELU_0_TO_1": _limit(0, 1),
    "LOGISTIC": _unary(lambda x, _call: define.sigmoid(x)),
    "RSQRT": _unary(lambda x, _call: 1 / x**0.5),
    "ELU": _unary(_elu),
    "LEAKY_RELU": _leaky_relu,
    "GELU": _unary(_gelu),
    "HARD_SWISH": _unary(_hard_swish),
    "FAKE_QUANT": _unary(_fake),
    "ADD": _sum,
    "SUB": _sum,
    "MUL": _product,
    "DIV": _divided,
    "SQUARED_DIFFERENCE": _binary(_squared_difference),
    "ADD_N": _all,
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
