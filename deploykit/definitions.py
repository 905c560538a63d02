"""Operators computed by their definition in numpy: the reference of converters whose framework is dead.

Written from the frameworks' documents and independent of the ONNX operators that the converters
emit, so that a wrong mapping shows as a difference. Everything is computed in float64; layouts are
N, C, then space. This file also runs inside plugin environments: numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Array:
    """Return every window of `x` [N, C, *space] as a view [N, C, *places, *kernel]; no padding."""
    import numpy as np

    rank = len(kernel)
    axes = tuple(range(2, 2 + rank))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=axes)
    places = tuple(slice(None, None, s) for s in strides)
    inner = tuple(slice(None, None, d) for d in dilations)
    return view[(slice(None), slice(None), *places, *inner)]


def pad(x: Array, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """Return `x` [N, C, *space] with `pads` (before, after) of each axis of space filled with `value`."""
    import numpy as np

    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def convolution(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Array:
    """Return the cross-correlation of `x` [N, C, *space] with `kernel` [M, C/groups, *kernel]."""
    import numpy as np

    rank = x.ndim - 2
    view = windows(
        pad(x.astype(np.float64), pads), kernel.shape[2:], strides, dilations or [1] * rank
    )
    inputs = np.split(view, groups, axis=1)
    kernels = np.split(kernel.astype(np.float64), groups, axis=0)
    own = [1, *range(2 + rank, 2 + 2 * rank)]
    theirs = list(range(1, 2 + rank))
    parts = [
        np.moveaxis(np.tensordot(one, weight, axes=(own, theirs)), -1, 1)
        for one, weight in zip(inputs, kernels, strict=True)
    ]
    result = np.concatenate(parts, axis=1)
    return result if bias is None else result + bias.reshape(1, -1, *[1] * rank)


def transposed_convolution(
    x: Array,
    kernel: Array,
    bias: Array | None = None,
    *,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    extra: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> Array:
    """Return the transpose of `convolution`: `kernel` is [C, M/groups, *kernel].

    `extra` adds places at the end of each axis before `pads` are cut off.
    """
    import numpy as np

    rank = x.ndim - 2
    size = kernel.shape[2:]
    dilations = dilations or [1] * rank
    extra = extra or [0] * rank
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(x.shape[2:], strides, size, dilations, extra, strict=True)
    ]
    per = kernel.shape[1]
    result = np.zeros((x.shape[0], per * groups, *full))
    inputs = np.split(x.astype(np.float64), groups, axis=1)
    kernels = np.split(kernel.astype(np.float64), groups, axis=0)
    for number, (one, weight) in enumerate(zip(inputs, kernels, strict=True)):
        for index, at in enumerate(itertools.product(*(range(k) for k in size))):
            tap = weight.reshape(*weight.shape[:2], -1)[..., index]
            share = np.moveaxis(np.tensordot(one, tap, axes=(1, 0)), -1, 1)
            place = tuple(
                slice(a * d, a * d + (n - 1) * s + 1, s)
                for a, d, n, s in zip(at, dilations, x.shape[2:], strides, strict=True)
            )
            result[(slice(None), slice(number * per, (number + 1) * per), *place)] += share
    cut = tuple(slice(a, n - b) for (a, b), n in zip(pads, full, strict=True))
    result = result[(slice(None), slice(None), *cut)]
    return result if bias is None else result + bias.reshape(1, -1, *[1] * rank)


def max_pool(
    x: Array,
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> Array:
    """Return the largest value of each window; padded places never win."""
    import numpy as np

    rank = len(kernel)
    view = windows(pad(x.astype(np.float64), pads, -np.inf), kernel, strides, [1] * rank)
    return np.asarray(view.max(axis=tuple(range(2 + rank, 2 + 2 * rank))))


def average_pool(
    x: Array,
    kernel: Sequence[int],
    *,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    counted: Sequence[tuple[int, int]] | None = None,
) -> Array:
    """Return the mean of each window over the places that count.

    Those are the places of `x` itself, and of its padding the first `counted` (before, after) on
    each axis: none by default, all of them where `counted` equals `pads`.
    """
    import numpy as np

    rank = len(kernel)
    counted = counted or [(0, 0)] * rank
    axes = tuple(range(2 + rank, 2 + 2 * rank))
    share = pad(np.ones((1, 1, *x.shape[2:])), counted, 1.0)
    rest = [(p[0] - c[0], p[1] - c[1]) for p, c in zip(pads, counted, strict=True)]
    weights = windows(pad(share, rest), kernel, strides, [1] * rank).sum(axis=axes)
    total = windows(pad(x.astype(np.float64), pads), kernel, strides, [1] * rank).sum(axis=axes)
    return np.asarray(total / weights)


def batch_normalisation(
    x: Array,
    scale: Array | None,
    shift: Array | None,
    mean: Array,
    variance: Array,
    *,
    epsilon: float,
    axis: int = 1,
) -> Array:
    """Return `scale * (x - mean) / sqrt(variance + epsilon) + shift` along `axis`."""
    import numpy as np

    shape = [1] * x.ndim
    shape[axis] = -1
    result = (x.astype(np.float64) - mean.reshape(shape)) / np.sqrt(
        variance.astype(np.float64).reshape(shape) + epsilon
    )
    result = result if scale is None else result * scale.reshape(shape)
    return result if shift is None else result + shift.reshape(shape)


def local_response_normalisation(
    x: Array, *, size: int, alpha: float, beta: float, bias: float
) -> Array:
    """Return x / (bias + alpha / size * sum of squares of `size` neighbouring channels) ** beta."""
    import numpy as np

    square = np.pad(
        x.astype(np.float64) ** 2, [(0, 0), (size // 2, size // 2)] + [(0, 0)] * (x.ndim - 2)
    )
    total = sum(square[:, at : at + x.shape[1]] for at in range(size))
    return np.asarray(x / (bias + alpha / size * total) ** beta)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow."""
    import numpy as np

    return np.asarray(0.5 * (np.tanh(0.5 * x.astype(np.float64)) + 1))


def softmax(x: Array, axis: int = -1) -> Array:
    """Return exp(x) over its sum along `axis`."""
    import numpy as np

    shifted = np.exp(x.astype(np.float64) - x.max(axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


def recurrent(
    steps: Array,
    state: tuple[Array, ...],
    step: Callable[[Array, tuple[Array, ...]], tuple[Array, ...]],
    *,
    reverse: bool = False,
) -> tuple[Array, tuple[Array, ...]]:
    """Run `step(x_t, state) -> state` over `steps` [T, ...]; the first part of a state is its output.

    Returns the outputs [T, ...] in the order of time, and the last state.
    """
    import numpy as np

    outputs = []
    for x in steps[::-1] if reverse else steps:
        state = step(x, state)
        outputs.append(state[0])
    return np.stack(outputs[::-1] if reverse else outputs), state
