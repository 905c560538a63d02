"""The words of `--input`, `--dynamic` and `--shape`, and the names of dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import DynamicAxis, TensorSpec
from deploykit.tensor_spec import (
    DTYPES,
    is_dtype,
    numpy_dtype,
    parse_dynamic,
    parse_input,
    parse_shape,
    parse_shapes,
)

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1)
AXIS_NAMES = st.from_regex(r"[A-Za-z_][\w +*/.-]*[\w]", fullmatch=True)
SPECS = st.builds(
    TensorSpec,
    name=NAMES,
    dtype=st.sampled_from(DTYPES),
    shape=st.none()
    | st.lists(st.none() | st.integers(0, 2**40) | AXIS_NAMES, max_size=5).map(tuple),
)


@settings(deadline=None)
@given(SPECS)
def test_input_is_the_inverse_of_str(spec: TensorSpec) -> None:
    assert parse_input(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("x:float32[1,3,?,W]", ("x", "float32", (1, 3, None, "W"))),
        (" x : float32[ 1 , ? ] ", ("x", "float32", (1, None))),
        ("serving_default_x:0:int64[2]", ("serving_default_x:0", "int64", (2,))),
        ("a/b[0]:bool[]", ("a/b[0]", "bool", ())),
        ("x:string", ("x", "string", None)),
    ],
)
def test_input(text: str, spec: tuple[str, str, tuple[object, ...] | None]) -> None:
    found = parse_input(text)
    assert (found.name, found.dtype, found.shape) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read the input"),
        ("x", "cannot read the input"),
        ("x[1,3]", "cannot read the input"),
        ("x:float[1]", "did you mean `float32`"),
        ("x:flaot32[1]", "did you mean `float32`"),
        ("x:fp16", "did you mean `float16`"),
        ("x:float32[1,-1]", "a size `-1`"),
        ("x:float32[1,,2]", "a size ``"),
        ("x:float32[1.5]", "a size `1.5`"),
        ("x:float32[" + "9" * 5000 + "]", "a size `999"),
        ("x:float32[1][2]", "unknown dtype|cannot read"),
    ],
)
def test_wrong_input(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_input(text)
    assert caught.value.hint


def test_dynamic() -> None:
    assert parse_dynamic("x:0:0=batch,2=time steps") == (
        DynamicAxis(input="x:0", axis=0, name="batch"),
        DynamicAxis(input="x:0", axis=2, name="time steps"),
    )


@pytest.mark.parametrize("text", ["", "x", "x:", "x:0", "x:0=", "x:-1=a", "x:0=a,0=b", "x:a=b"])
def test_wrong_dynamic(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_dynamic(text)
    assert "x:0=batch" in caught.value.hint


def test_shape() -> None:
    assert parse_shape("x=1x3x224x224") == ("x", (1, 3, 224, 224))
    assert parse_shape("a=b:0=7") == ("a=b:0", (7,))


@pytest.mark.parametrize("text", ["", "x", "x=", "x=1x", "x=1,3", "x=-1", "=1x2", "x=1x?"])
def test_wrong_shape(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shape(text)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_its_own(name: str) -> None:
    array = np.zeros(2, numpy_dtype(name))
    assert [other for other in DTYPES if is_dtype(array.dtype, other)] == [name]


def test_dtypes_of_the_edge() -> None:
    assert is_dtype(np.dtype(object), "string")
    assert not is_dtype(np.dtype(">f4"), "float32")
    with pytest.raises(UnsupportedError):
        numpy_dtype("float8_e4m3fn")


def test_shapes_of_several_buckets() -> None:
    assert parse_shapes([]) == ({},)
    assert parse_shapes(["x=1x3"]) == ({"x": (1, 3)},)
    texts = ["x=1x3", "mask=4", "x=2x3"]
    assert parse_shapes(texts) == ({"x": (1, 3), "mask": (4,)}, {"x": (2, 3), "mask": (4,)})
    with pytest.raises(UsageError, match="`y` has 2 shapes, and another has 3"):
        parse_shapes(["x=1", "x=2", "x=3", "y=1", "y=2"])
