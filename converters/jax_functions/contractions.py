"""Matrix products, convolutions and pooling windows."""

from __future__ import annotations

import math
import string
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.jax_functions.operators import refused

if TYPE_CHECKING:
    from converters.jax_functions.lowering import Emit, Lowering


def _dot(low: Lowering, equation: Any, names: list[str]) -> str:
    """Multiply over contracted axes; the result has batch axes, then those of left and right."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    left_free = [a for a in range(ranks[0]) if a not in (*left_sum, *left_batch)]
    right_free = [a for a in range(ranks[1]) if a not in (*right_sum, *right_batch)]
    left, right = names
    one_sum = len(left_sum) == 1 and len(right_free) == 1
    if one_sum and not left_batch and left_free:
        left = low.transposed(left, [*left_free, *left_sum])
        right = low.transposed(right, [*right_sum, *right_free])
        found = low.build.add("MatMul", left, right)
    elif one_sum and len(left_free) == 1:
        left = low.transposed(left, [*left_batch, *left_free, *left_sum])
        right = low.transposed(right, [*right_batch, *right_sum, *right_free])
        found = low.build.add("MatMul", left, right)
    else:
        letters = iter(string.ascii_lowercase)
        words: list[list[str]] = [[""] * ranks[0], [""] * ranks[1]]
        for a, b in zip((*left_batch, *left_sum), (*right_batch, *right_sum), strict=True):
            words[0][a] = words[1][b] = next(letters)
        for word in words:
            word[:] = [letter or next(letters) for letter in word]
        result = [words[0][a] for a in (*left_batch, *left_free)] + [
            words[1][a] for a in right_free
        ]
        text = f"{''.join(words[0])},{''.join(words[1])}->{''.join(result)}"
        found = low.build.add("Einsum", left, right, equation=text)
    dtype = equation.outvars[0].aval.dtype
    return found if dtype == equation.invars[0].aval.dtype else low.cast(found, dtype)


def _convolve(low: Lowering, equation: Any, names: list[str]) -> str:
    given = equation.params
    numbers = given["dimension_numbers"]
    if given["batch_group_count"] != 1:
        raise refused(equation, "groups of the batch")
    padding = [(int(a), int(b)) for a, b in given["padding"]]
    strides = [int(one) for one in given["window_strides"]]
    apart = [int(one) for one in given["lhs_dilation"]]
    dilations = [int(one) for one in given["rhs_dilation"]]
    groups = int(given["feature_group_count"])
    value = low.transposed(names[0], numbers.lhs_spec)
    kernel = low.transposed(names[1], numbers.rhs_spec)
    if all(one == 1 for one in apart):
        if any(side < 0 for pair in padding for side in pair):
            raise refused(equation, "negative padding")
        found = low.build.add(
            "Conv",
            value,
            kernel,
            strides=strides,
            pads=[a for a, _ in padding] + [b for _, b in padding],
            dilations=dilations,
            group=groups,
        )
    else:
        if groups != 1 or any(one != 1 for one in strides):
            raise refused(equation, "a dilated input and groups or strides")
        sizes = [int(equation.invars[1].aval.shape[a]) for a in numbers.rhs_spec[2:]]
        found = _spread(low, equation, value, kernel, (sizes, padding, apart, dilations))
    back = [numbers.out_spec.index(axis) for axis in range(len(numbers.out_spec))]
    return low.transposed(found, back)


def _spread(low: Lowering, equation: Any, value: str, kernel: str, given: Any) -> str:
    """Convolve an input with gaps, which ConvTranspose does: with the kernel turned round."""
    sizes, padding, apart, dilations = given
    reach = [(size - 1) * step for size, step in zip(sizes, dilations, strict=True)]
    before = [far - a for far, (a, _) in zip(reach, padding, strict=True)]
    after = [far - b for far, (_, b) in zip(reach, padding, strict=True)]
    extra = [max(0, -one) for one in after]
    if min(before) < 0 or any(one >= gap for one, gap in zip(extra, apart, strict=True) if one):
        raise refused(equation, "so much padding of a dilated input")
    vector = low.build.shape_constant
    axes = list(range(2, 2 + len(sizes)))
    minus = vector([-1] * len(axes))
    turned = low.build.add(
        "Slice", kernel, minus, vector([-(2**62)] * len(axes)), vector(axes), minus
    )
    return low.build.add(
        "ConvTranspose",
        value,
        low.transposed(turned, [1, 0, *axes]),
        strides=apart,
        pads=before + [max(0, one) for one in after],
        output_padding=extra if any(extra) else None,
        dilations=dilations,
    )


def _window(kind: str) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        given = equation.params
        window = [int(one) for one in given["window_dimensions"]]
        strides = [int(one) for one in given["window_strides"]]
        padding = [(int(a), int(b)) for a, b in given["padding"]]
        dilation = [int(one) for one in given["window_dilation"]]
        if any(int(one) != 1 for one in given["base_dilation"]):
            raise refused(equation, "a dilated input")
        moving = [
            axis
            for axis in range(len(window))
            if window[axis] > 1 or strides[axis] > 1 or padding[axis] != (0, 0)
        ]
        still = [axis for axis in range(len(window)) if axis not in moving]
        while len(still) > 2 and len(moving) < 3:  # a window of one is a window too
            moving.insert(0, still.pop())
        moving.sort()
        if len(still) > 2 or not 1 <= len(moving) <= 3:
            raise refused(equation, f"a window over {len(moving)} of {len(window)} axes")
        if kind != "max" and any(one != 1 for one in dilation):
            raise refused(equation, "a dilated window")
        order = [*still, *moving]
        value = low.transposed(names[0], order)
        lacking = list(range(2 - len(still)))
        if lacking:
            value = low.build.add("Unsqueeze", value, low.build.shape_constant(lacking))
        found = low.build.add(
            "MaxPool" if kind == "max" else "AveragePool",
            value,
            kernel_shape=[window[a] for a in moving],
            strides=[strides[a] for a in moving],
            pads=[padding[a][0] for a in moving] + [padding[a][1] for a in moving],
            dilations=[dilation[a] for a in moving] if kind == "max" else None,
            count_include_pad=None if kind == "max" else 1,
        )
        if kind == "sum":
            size = low.zero(equation.outvars[0].aval.dtype, math.prod(window))
            found = low.build.add("Mul", found, size)
        if lacking:
            found = low.build.add("Squeeze", found, low.build.shape_constant(lacking))
        return low.transposed(found, [order.index(axis) for axis in range(len(order))])

    return emit


EMIT: dict[str, Emit] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolve,
    "reduce_window_max": _window("max"),
    "reduce_window_sum": _window("sum"),
}
