"""Layouts and windows of the target litert, without LiteRT: what must hold for all of them."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import UnsupportedError

PARTS = "deploykit._plugins.targets.litert_flatbuffer"
emitting: Any = importlib.import_module(f"{PARTS}.emitting")
values: Any = importlib.import_module(f"{PARTS}.values")
windows: Any = importlib.import_module(f"{PARTS}.windows")
writing: Any = importlib.import_module(f"{PARTS}.writing")

orders = st.integers(1, 5).flatmap(lambda rank: st.permutations(range(rank)).map(tuple))
sizes = st.lists(st.integers(1, 3), max_size=5)


def a_value(shape: tuple[int, ...]) -> Any:
    """Return values that hold `x`, of an input of this shape."""
    made = values.Values(emitting.Emitter(), {"x": shape}, {"x": "float32"})
    made.put("x", writing.Tensor("x", shape, "float32"))
    return made


@given(st.data(), orders)
def test_a_transposition_and_its_inverse_write_nothing(data: st.DataObject, order: Any) -> None:
    made = a_value(tuple(range(2, 2 + len(order))))
    made.same("y", "x", order)
    made.same("z", "y", values.inverse(order))
    assert made.own("z") is made.own("x")
    assert made.emit.operators == []
    # any other form is one transposition away, and written once
    other = tuple(data.draw(st.permutations(range(len(order)))))
    first = made.form("y", other)
    count = len(made.emit.operators)
    assert count <= 1
    assert made.form("y", other) is first
    assert len(made.emit.operators) == count
    shape = made.shape("y")
    assert first.shape == tuple(shape[axis] for axis in other)


@given(st.data(), orders)
def test_constants_are_permuted_as_numpy_does(data: st.DataObject, order: Any) -> None:
    array = np.arange(np.prod(range(2, 2 + len(order)))).reshape(range(2, 2 + len(order)))
    made = values.Values(emitting.Emitter(), {}, {})
    made.constants["x"] = array
    made.same("y", "x", order)
    other = tuple(data.draw(st.permutations(range(len(order)))))
    np.testing.assert_array_equal(
        made.form("y", other).data, array.transpose(order).transpose(other)
    )


@given(sizes, sizes)
def test_shapes_broadcast_as_numpys_do(a: list[int], b: list[int]) -> None:
    try:
        wanted = np.broadcast_shapes(tuple(a), tuple(b))
    except ValueError:
        with pytest.raises(UnsupportedError):
            emitting.broadcast(tuple(a), tuple(b))
        return
    assert emitting.broadcast(tuple(a), tuple(b)) == wanted


def test_open_sizes_broadcast_to_what_is_known() -> None:
    assert emitting.broadcast(("n", 1), (1, "m")) == ("n", "m")
    assert emitting.broadcast(("n", 3), (3,)) == ("n", 3)


def taps(size: int, window: Any, padding: int | None) -> list[list[int]]:
    """Return which elements each output reads; by TensorFlow Lite's rule, or ONNX's where None."""
    kernel, stride, dilation = window.kernel[0], window.strides[0], window.dilations[0]
    extent = (kernel - 1) * dilation + 1
    if padding is None:
        count, before = (
            (size + window.begin[0] + window.end[0] - extent) // stride + 1,
            window.begin[0],
        )
    elif padding == windows.SAME:
        count = -(-size // stride)
        before = max((count - 1) * stride + extent - size, 0) // 2
    else:
        count, before = (size - extent) // stride + 1, 0
    return [
        [p for k in range(kernel) if 0 <= (p := at * stride - before + k * dilation) < size]
        for at in range(count)
    ]


def test_padding_is_only_named_where_it_reads_the_same_elements() -> None:
    named = 0
    for kernel, stride, dilation, begin, end, size in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1, 2), (0, 1, 2), range(5, 14)
    ):
        window = windows.Window((kernel,), (stride,), (dilation,), (begin,), (end,))
        if (kernel - 1) * dilation + 1 > size + begin + end:
            continue
        padding = window.padding((size,))
        if padding is None:
            continue
        named += 1
        assert taps(size, window, padding) == taps(size, window, None), (window, size)
        # one that is open is only named where that holds for every size
        if (general := window.padding(("n",))) is not None:
            assert taps(size, window, general) == taps(size, window, None), (window, size)
    assert named > 200
