"""How far outputs are from a reference, and whether that is close enough.

Everything is computed in float64, whatever the outputs' own dtype. With a the actual values, b the
reference, sums and maxima over the elements that are finite in both:

- max abs error: max |a - b|
- max rel error: max |a - b| / max(|b|, f), where f is a thousandth of the largest |b|: an element
  near zero is measured against that, else a harmless last digit reads as an error of many percent
- cosine: Σab / (√Σa² √Σb²), the similarity of directions (Salton & McGill, Introduction to Modern
  Information Retrieval, 1983); 1 where both are all zero, 0 where one is
- SQNR in dB: 10 log₁₀(Σb² / Σ(a - b)²), the signal-to-quantisation-noise ratio (Oppenheim &
  Schafer, Discrete-Time Signal Processing, section on quantisation errors)

numpy is imported inside the functions.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError
from deploykit.protocol import to_json

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAX_SQNR_DB = 320.0
"""Of identical outputs: 53 bits of float64 at 6.02 dB each can tell nothing apart beyond it."""

SMALLEST_SCALE = 1e-2
"""Outputs that stay below this are judged as if they reached it: what is left of values of order 1
after a sigmoid or a difference is their rounding noise (in ONNX Runtime 7e-8 for a sigmoid)."""

_RELATIVE_FLOOR = 1e-3
_LARGEST = sys.float_info.max


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Close enough means |a - b| <= atol * max|b| + rtol * |b| for every element.

    `atol` is relative to the largest magnitude of the reference output (to `SMALLEST_SCALE` where
    that is smaller), so that it means the same for logits and for probabilities. Integer outputs may differ by
    `steps`: 0, exact equality, unless asked for (quantised models differ by steps between kernels).
    """

    atol: float
    rtol: float
    steps: int = 0

    def __str__(self) -> str:
        steps = f", steps={self.steps}" if self.steps else ""
        return f"atol={self.atol:g}, rtol={self.rtol:g}{steps}"


# Unit roundoffs are 2^-24, 2^-11 and 2^-8. Errors add up over layers, as the square root of their
# number where they are independent, and kernels may sum in any order. The largest error seen on six
# real models (OpenVINO on a CPU, relative to the largest output) was 2.2e-6 in fp32 and 5.4e-2 in
# bf16; fp16 stands between as its roundoff does. A wrong operator is off by far more than 1e-3.
# tf32 has the mantissa of fp16. An int8 model is quantised already where it is compared: a step of
# its 8 bits is as wide as bf16's roundoff.
_DEFAULTS = {
    "fp32": Tolerance(atol=1e-4, rtol=1e-3),
    "tf32": Tolerance(atol=1e-2, rtol=1e-2),
    "fp16": Tolerance(atol=1e-2, rtol=1e-2),
    "bf16": Tolerance(atol=5e-2, rtol=5e-2),
    "int8": Tolerance(atol=5e-2, rtol=5e-2),
}


def default_tolerance(precision: str) -> Tolerance:
    """Return the tolerance for a model computed in `precision`, such as `fp32` or `bf16`.

    Raises UsageError for another word.
    """
    if precision not in _DEFAULTS:
        raise UsageError(
            f"precision `{precision}` is unknown", hint=f"precisions: {', '.join(_DEFAULTS)}"
        )
    return _DEFAULTS[precision]


def parse_tolerance(text: str) -> Tolerance:
    """Return the tolerance that `text` writes: `1e-3` for both, or `atol=1e-3,rtol=1e-2,steps=1`.

    What is left out is 0. Raises UsageError where it cannot be read.
    """
    hint = "write one number, such as `1e-3`, or `atol=1e-3,rtol=1e-2` (and `steps=1` for integers)"
    if "=" not in text:
        both = _number(text, text, hint)
        return Tolerance(atol=both, rtol=both)
    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in ("atol", "rtol", "steps") or key in values:
            raise UsageError(f"cannot read `{part}` in the tolerance `{text}`", hint=hint)
        values[key] = _number(value, text, hint)
    steps = values.get("steps", 0.0)
    if not steps.is_integer():
        raise UsageError(f"the tolerance `{text}` has {steps:g} steps", hint=hint)
    return Tolerance(atol=values.get("atol", 0.0), rtol=values.get("rtol", 0.0), steps=int(steps))


def _number(word: str, text: str, hint: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise UsageError(f"cannot read the tolerance `{text}`", hint=hint) from None
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"the tolerance `{text}` is no finite number from 0 up", hint=hint)
    return value


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output against its reference: `reason` says why it is not ok.

    Every figure is finite. Where the two cannot be compared element by element (another shape, an
    output missing), the figures are the worst there are: errors the largest float, cosine 0, SQNR
    -320. The figures are over elements that are finite in both; `elements` counts all.
    """

    output: str
    ok: bool
    reason: str = ""
    max_abs_error: float = _LARGEST
    max_rel_error: float = _LARGEST
    cosine: float = 0.0
    sqnr_db: float = -MAX_SQNR_DB
    elements: int = 0
    largest: float = 0.0
    """The largest magnitude of the reference output; of texts, the length of the longest."""

    def to_json(self) -> dict[str, Any]:
        """Return the parity as JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def compare(
    reference: Mapping[str, Array], actual: Mapping[str, Array], tolerance: Tolerance
) -> tuple[OutputParity, ...]:
    """Compare every output by name, in the order of `reference`; extra ones come last and are wrong.

    Floats (and complex numbers, part by part) must be within the tolerance, and NaN and infinities
    in the same places. Integers may differ by `tolerance.steps`; bools and strings must be equal.
    Another dtype or shape is wrong.
    """
    found = [
        _compare_output(name, expected, actual[name], tolerance)
        if name in actual
        else OutputParity(output=name, ok=False, reason="the output is missing")
        for name, expected in reference.items()
    ]
    extra = [
        OutputParity(output=name, ok=False, reason="the reference has no such output")
        for name in actual
        if name not in reference
    ]
    return (*found, *extra)


def worst(parities: Sequence[OutputParity]) -> OutputParity:
    """Return the output that agrees least: a wrong one if any is, else the one of lowest SQNR.

    Raises ValueError where there is none.
    """
    return min(parities, key=lambda parity: (parity.ok, parity.sqnr_db, -parity.max_abs_error))


def _compare_output(name: str, expected: Any, found: Any, tolerance: Tolerance) -> OutputParity:
    import numpy as np

    b, a = np.asarray(expected), np.asarray(found)
    text = b.dtype.kind in "OSU"
    if text != (a.dtype.kind in "OSU") or (not text and a.dtype != b.dtype):
        reason = f"dtype is {a.dtype}, expected {b.dtype}"
        return OutputParity(output=name, ok=False, reason=reason, elements=b.size)
    if a.shape != b.shape:
        reason = f"shape is {list(a.shape)}, expected {list(b.shape)}"
        return OutputParity(output=name, ok=False, reason=reason, elements=b.size)
    if text:
        return _compare_text(name, b, a)
    if b.dtype.kind in "biu":
        return _compare_whole(name, b, a, 0 if b.dtype.kind == "b" else tolerance.steps)
    return _compare_floats(name, b, a, tolerance)


def _compare_text(name: str, b: Array, a: Array) -> OutputParity:
    import numpy as np

    different = np.asarray(a.astype(object) != b.astype(object), dtype=bool)
    if different.any():
        reason = f"{_count(different)} differ; {_first(different, b, a)}"
        return OutputParity(output=name, ok=False, reason=reason, elements=b.size)
    return OutputParity(
        output=name,
        ok=True,
        max_abs_error=0.0,
        max_rel_error=0.0,
        cosine=1.0,
        sqnr_db=MAX_SQNR_DB,
        largest=float(max((len(str(text)) for text in b.ravel()), default=0)),
        elements=b.size,
    )


def _compare_whole(name: str, b: Array, a: Array, steps: int) -> OutputParity:
    import numpy as np

    # larger minus smaller, as unsigned: exact for every pair, where int64's own difference is not
    wide = np.uint64
    distance = np.where(a > b, a.astype(wide) - b.astype(wide), b.astype(wide) - a.astype(wide))
    different = distance > steps
    reason = f"{_count(different)} differ; {_first(different, b, a)}" if different.any() else ""
    return _measured(name, b.astype(np.float64), a.astype(np.float64), reason)


def _compare_floats(name: str, b: Array, a: Array, tolerance: Tolerance) -> OutputParity:
    import numpy as np

    if b.dtype.kind == "c":
        # last axis: real and imaginary part
        b, a = (np.stack([value.real, value.imag], axis=-1) for value in (b, a))
    b, a = b.astype(np.float64), a.astype(np.float64)
    finite = np.isfinite(b) & np.isfinite(a)
    # unlike `a == b`, NaN equals NaN here; between finite ones the tolerance decides
    odd = ~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))
    largest = float(np.abs(b, where=finite, out=np.zeros_like(b)).max(initial=0.0))
    scale = max(largest, SMALLEST_SCALE)
    with np.errstate(invalid="ignore", over="ignore"):
        far = finite & (np.abs(a - b) > tolerance.atol * scale + tolerance.rtol * np.abs(b))
    reason = ""
    if odd.any():
        reason = f"{_count(odd)} are NaN or infinite in one only; {_first(odd, b, a)}"
    elif far.any():
        error = np.where(far, np.abs(a - b), 0.0)
        worst_at = np.unravel_index(int(error.argmax()), error.shape)
        reason = (
            f"{_count(far)} beyond the tolerance ({tolerance}); worst {_at(worst_at, b, a)}, "
            f"{float(error.max()) / scale:.1e} of the scale {scale:.4g}"
        )
    return _measured(name, b[finite], a[finite], reason, elements=b.size)


def _measured(
    name: str, b: Array, a: Array, reason: str, *, elements: int | None = None
) -> OutputParity:
    """Return the figures of the finite float64 values `a` and `b`; they are ok without a `reason`."""
    import numpy as np

    total = b.size if elements is None else elements
    largest = float(np.abs(b).max(initial=0.0))
    # squares of large values overflow; dividing by a power of two rounds nothing
    scale = 2.0 ** (math.frexp(max(largest, float(np.abs(a).max(initial=0.0))))[1] - 1)
    a, b = (a / scale).ravel(), (b / scale).ravel()
    error = np.abs(a - b)
    floor = max(_RELATIVE_FLOOR * largest / scale, sys.float_info.min)
    relative = error / np.maximum(np.abs(b), floor)
    signal, noise, power = (float(value @ value) for value in (b, error, a))
    return OutputParity(
        output=name,
        ok=not reason,
        reason=reason,
        max_abs_error=_finite(float(error.max(initial=0.0)) * scale),
        max_rel_error=_finite(float(relative.max(initial=0.0))),
        cosine=_cosine(float(a @ b), power, signal),
        sqnr_db=_sqnr_db(signal, noise),
        largest=_finite(largest),
        elements=total,
    )


def _cosine(product: float, power: float, signal: float) -> float:
    if power == 0.0 or signal == 0.0:
        return float(power == signal)
    return max(-1.0, min(1.0, product / (math.sqrt(power) * math.sqrt(signal))))


def _sqnr_db(signal: float, noise: float) -> float:
    if noise == 0.0:
        return MAX_SQNR_DB
    if signal == 0.0:
        return -MAX_SQNR_DB
    return max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10 * (math.log10(signal) - math.log10(noise))))


def _finite(value: float) -> float:
    return min(value, _LARGEST)


def _count(wrong: Array) -> str:
    return f"{int(wrong.sum())} of {wrong.size} elements"


def _first(wrong: Array, b: Array, a: Array) -> str:
    import numpy as np

    return f"first {_at(np.unravel_index(int(wrong.argmax()), wrong.shape), b, a)}"


def _at(index: tuple[Any, ...], b: Array, a: Array) -> str:
    where = f" at {[int(i) for i in index]}" if index else ""
    found, expected = (
        f"{value:.7g}" if isinstance(value, float) else repr(value)
        for value in (
            array[index].item() if hasattr(array[index], "item") else array[index]
            for array in (a, b)
        )
    )
    return f"{where.strip() or 'here'}: {found}, expected {expected}"
