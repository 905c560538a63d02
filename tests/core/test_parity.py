"""Figures and verdicts, against values worked out by hand and against the definitions."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deploykit.errors import UsageError
from deploykit.parity import (
    MAX_SQNR_DB,
    SMALLEST_SCALE,
    OutputParity,
    Tolerance,
    compare,
    default_tolerance,
    parse_tolerance,
    worst,
)

EXACT = Tolerance(atol=0, rtol=0)


def one(reference: Any, actual: Any, tolerance: Tolerance = EXACT) -> OutputParity:
    (found,) = compare({"y": np.asarray(reference)}, {"y": np.asarray(actual)}, tolerance)
    json.dumps(found.to_json(), allow_nan=False)
    return found


def test_figures_by_hand() -> None:
    found = one([3.0, -4.0, 0.0], [3.0, -4.5, 0.002], Tolerance(atol=0.125, rtol=0))
    assert found.ok
    assert found.max_abs_error == pytest.approx(0.5)
    # 0.002 / max(0, 4 / 1000) = 0.5 beats 0.5 / 4
    assert found.max_rel_error == pytest.approx(0.5)
    assert found.cosine == pytest.approx(27 / (5 * math.hypot(3, 4.5, 0.002)))
    assert found.sqnr_db == pytest.approx(10 * math.log10(25 / (0.25 + 4e-6)))
    assert found.elements == 3


def test_identical_is_perfect() -> None:
    found = one([1.0, 2.0], [1.0, 2.0])
    assert (found.ok, found.max_abs_error, found.max_rel_error) == (True, 0, 0)
    assert found.cosine == pytest.approx(1)
    assert found.sqnr_db == MAX_SQNR_DB


def test_the_edge_of_the_tolerance() -> None:
    tolerance = Tolerance(atol=0.25, rtol=0.5)  # of largest 8: 2 + 0.5 |b|
    assert one([8.0, 1.0], [14.0, 3.5], tolerance).ok
    wrong = one([8.0, 1.0], [14.0, 3.5 + 1e-9], tolerance)
    assert not wrong.ok
    assert "1 of 2 elements beyond the tolerance" in wrong.reason
    assert "at [1]: 3.5, expected 1" in wrong.reason


def test_outputs_near_zero_are_judged_as_if_they_reached_the_smallest_scale() -> None:
    tolerance = Tolerance(atol=1e-3, rtol=0)
    within, beyond = 0.9e-3 * SMALLEST_SCALE, 1.1e-3 * SMALLEST_SCALE
    for largest in (0.0, 1e-20, SMALLEST_SCALE / 2):
        assert one([largest, 0.0], [largest, within], tolerance).ok
        assert not one([largest, 0.0], [largest, beyond], tolerance).ok


def test_atol_scales_with_the_output() -> None:
    tolerance = Tolerance(atol=1e-3, rtol=0)
    for scale in (SMALLEST_SCALE, 1.0, 1e20):
        assert one([scale, 0.0], [scale, 0.9e-3 * scale], tolerance).ok
        assert not one([scale, 0.0], [scale, 1.1e-3 * scale], tolerance).ok


def test_all_zero_reference() -> None:
    assert one([0.0, 0.0], [0.0, 0.0]).cosine == 1
    found = one([0.0, 0.0], [0.0, 1e-9], Tolerance(atol=1e-4, rtol=0))
    assert (found.ok, found.cosine, found.sqnr_db) == (True, 0, -MAX_SQNR_DB)
    assert not one([0.0], [1e-3], Tolerance(atol=1e-4, rtol=0)).ok


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("reference", "actual", "ok"),
    [
        ([NAN, 1.0], [NAN, 1.0], True),
        ([INF, -INF, 1.0], [INF, -INF, 1.0], True),
        ([INF, 1.0], [-INF, 1.0], False),
        ([NAN, 1.0], [1.0, NAN], False),
        ([1.0, 2.0], [1.0, INF], False),
        ([INF, 2.0], [1e300, 2.0], False),
        ([NAN], [NAN], True),
    ],
)
def test_nan_and_infinity_must_match_in_place(
    reference: list[float], actual: list[float], ok: bool
) -> None:
    found = one(reference, actual, Tolerance(atol=1, rtol=1))
    assert found.ok is ok
    assert ok or "NaN or infinite in one only; first at [" in found.reason
    assert found.elements == len(reference)


@pytest.mark.parametrize(
    ("reference", "actual", "says"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"shape is [3, 2], expected [2, 3]"),
        (np.zeros(2, np.float32), np.zeros(2), "dtype is float64, expected float32"),
        (np.zeros(2, np.float32), np.array(["", ""]), "expected float32"),
        (np.zeros(2, np.int64), np.zeros(2, np.int32), "dtype is int32, expected int64"),
    ],
)
def test_other_shape_or_dtype(reference: Any, actual: Any, says: str) -> None:
    found = one(reference, actual, Tolerance(atol=1, rtol=1))
    assert not found.ok
    assert says in found.reason
    assert (found.cosine, found.sqnr_db) == (0, -MAX_SQNR_DB)


def test_missing_and_extra_outputs() -> None:
    found = compare({"a": np.ones(1), "b": np.ones(1)}, {"b": np.ones(1), "c": np.ones(1)}, EXACT)
    assert [(item.output, item.ok) for item in found] == [("a", False), ("b", True), ("c", False)]
    assert worst(found).output in "ac"


def test_integers_are_exact_or_within_steps() -> None:
    edge = np.iinfo(np.int64)
    found = one(np.array([edge.max, 5]), np.array([edge.max - 1, 5]), Tolerance(atol=1, rtol=1))
    assert not found.ok  # float64 could not tell them apart
    assert "1 of 2 elements differ; first at [0]" in found.reason
    assert not one(np.array([edge.max]), np.array([edge.min]), Tolerance(atol=1, rtol=1)).ok
    assert one(np.int8(-128), np.int8(-128)).ok
    lenient = Tolerance(atol=0, rtol=0, steps=2)
    assert one(np.array([7], np.uint8), np.array([9], np.uint8), lenient).ok
    assert not one(np.array([7], np.uint8), np.array([10], np.uint8), lenient).ok
    assert not one(np.array([True]), np.array([False]), lenient).ok


def test_strings() -> None:
    assert one(np.array(["a", "b"]), np.array(["a", "b"], object)).ok
    found = one(np.array([["a", "b"]], object), np.array([["a", "c"]]))
    assert not found.ok
    assert "first at [0, 1]: 'c', expected 'b'" in found.reason


def test_complex_parts_and_empty_and_scalar() -> None:
    assert not one(np.array([1 + 1j]), np.array([1 + 2j]), Tolerance(atol=0.1, rtol=0)).ok
    assert one(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)).ok
    assert one(np.float32(2), np.float32(2)).ok
    assert not one(np.float32(2), np.float32(3)).ok


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_short_floats_are_judged_in_float64(dtype: Any) -> None:
    reference = np.full(1000, 60000.0).astype(dtype)
    actual = (reference.astype(np.float64) * 1.01).astype(dtype)  # sums would overflow float16
    found = one(reference, actual, default_tolerance("bf16"))
    assert found.ok
    assert found.sqnr_db == pytest.approx(40, abs=3)


@settings(deadline=None)
@given(
    npst.arrays(
        np.float64, st.integers(1, 9), elements=st.floats(-1e300, 1e300, allow_subnormal=False)
    ),
    st.floats(-1e-3, 1e-3),
)
def test_against_the_definitions(b: np.ndarray, error: float) -> None:
    a = b * (1 + error)
    found = one(b, a, Tolerance(atol=0, rtol=2e-3))
    assert found.ok
    assert found.max_abs_error == pytest.approx(float(np.abs(a - b).max()), rel=1e-9)
    assert found.max_rel_error <= abs(error) * (1 + 1e-9) + 1e-15
    if np.any(b) and abs(error) > 1e-9:
        assert found.cosine == pytest.approx(1)
        assert found.sqnr_db == pytest.approx(-20 * math.log10(abs(error)), abs=0.01)


def test_worst_is_wrong_first_then_lowest_sqnr() -> None:
    good, better = one([1.0], [1.1], Tolerance(atol=1, rtol=1)), one([1.0], [1.0])
    bad = OutputParity(output="bad", ok=False, sqnr_db=200.0)
    assert worst([better, good]) is good
    assert worst([good, bad]) is bad
    with pytest.raises(ValueError, match="empty"):
        worst([])


def test_default_tolerances_widen() -> None:
    fp32, fp16, bf16 = map(default_tolerance, ("fp32", "fp16", "bf16"))
    assert fp32.rtol < fp16.rtol < bf16.rtol
    with pytest.raises(UsageError, match="`int3`"):
        default_tolerance("int3")


def test_parse_tolerance() -> None:
    assert parse_tolerance("1e-3") == Tolerance(atol=1e-3, rtol=1e-3)
    assert parse_tolerance("rtol=0.1, steps=2") == Tolerance(atol=0, rtol=0.1, steps=2)
    tolerance = Tolerance(atol=1e-5, rtol=0.25, steps=1)
    assert parse_tolerance(str(tolerance)) == tolerance


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "nan", "inf", "atol=", "atol=1,atol=2", "tol=1", "steps=1.5"]
)
def test_wrong_tolerance(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_tolerance(text)
    assert "1e-3" in caught.value.hint
