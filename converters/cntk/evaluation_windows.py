"""Convolution and pooling of CNTK by definition, window by window, in CNTK's order of axes.

A window is placed by its centre, as `ConvolveGeometry` does it: with automatic padding the centres of
the first and the last window are equally far from the edges, else the first window begins at
the padding's edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _each(attributes: Mapping[str, Any], key: str, rank: int, default: int) -> list[int]:
    given = attributes.get(key, ())
    values = [int(one) for one in (given if isinstance(given, tuple) else (given,))]
    while len(values) < rank:
        values.append(values[-1] if values else default)
    return values


def _firsts(
    attributes: Mapping[str, Any], sizes: Sequence[int], kernel: Sequence[int]
) -> list[tuple[list[int], int]]:
    """Return for each axis where its windows begin, and how far apart the taps of one are."""
    rank = len(kernel)
    strides = _each(attributes, "strides", rank, 1)
    dilations = _each(attributes, "dilation", rank, 1)
    auto = _each(attributes, "autoPadding", rank, 0)
    lower, upper = (_each(attributes, key, rank, 0) for key in ("lowerPad", "upperPad"))
    found = []
    for at, size in enumerate(sizes[:rank]):
        reach = (kernel[at] - 1) * dilations[at] + 1
        padded = size + reach - 1 if auto[at] else size + lower[at] + upper[at]
        places = (padded - reach) / strides[at] + 1
        count = math.ceil(places) if attributes.get("ceilOutDim") else math.floor(places)
        centre = (reach - 1) // 2
        span = (count - 1) * strides[at] + 1
        first = (size - span) // 2 if auto[at] else centre - lower[at]
        begin = first - centre
        found.append(([begin + strides[at] * place for place in range(count)], dilations[at]))
    return found


def _tap(
    x: Array, taps: Sequence[tuple[list[int], int]], index: Sequence[int], fill: float
) -> Array:
    """Return the values under tap `index` of every window; `fill` where that is outside."""
    import numpy as np

    for at, ((begins, apart), tap) in enumerate(zip(taps, index, strict=True)):
        places = np.array(begins) + apart * tap
        inside = (places >= 0) & (places < x.shape[2 + at])
        x = x.take(np.where(inside, places, 0), axis=2 + at)
        shape = [1] * x.ndim
        shape[2 + at] = -1
        x = np.where(inside.reshape(shape), x, fill)
    return x


def convolution(attributes: Mapping[str, Any], kernel: Array, x: Array) -> Array:
    """Return the convolution of `x` [batch, step, *space, channels] with `kernel` [*space, channels, maps]."""
    import numpy as np

    rank = x.ndim - 2
    if kernel.ndim == rank:
        kernel = kernel[..., None]
    if attributes.get("transpose"):
        return _transposed(attributes, kernel, x)
    taps = _firsts(attributes, x.shape[2:], kernel.shape[:rank])[:-1]
    groups = max(1, int(attributes.get("groups", 1)))
    per_in, per_out = x.shape[-1] // groups, kernel.shape[-1] // groups
    parts = []
    for group in range(groups):
        own = x[..., group * per_in : (group + 1) * per_in]
        theirs = kernel[..., group * per_out : (group + 1) * per_out]
        total: Any = 0.0
        for index in itertools.product(*(range(n) for n in kernel.shape[: rank - 1])):
            total = total + _tap(own, taps, index, 0.0) @ theirs[index]
        parts.append(total)
    return np.concatenate(parts, axis=-1)


def _transposed(attributes: Mapping[str, Any], kernel: Array, x: Array) -> Array:
    """Return what the adjoint of a convolution makes: each place adds its window to the output."""
    import numpy as np

    rank = x.ndim - 2
    space = kernel.shape[: rank - 1]
    strides = _each(attributes, "strides", rank, 1)
    dilations = _each(attributes, "dilation", rank, 1)
    auto = _each(attributes, "autoPadding", rank, 0)
    lower, upper = (_each(attributes, key, rank, 0) for key in ("lowerPad", "upperPad"))
    wanted = attributes.get("outputShape") or ()
    sizes = []
    for at, n in enumerate(space):
        reach = (n - 1) * dilations[at] + 1
        plain = (x.shape[2 + at] - 1) * strides[at]
        made = plain + 1 if auto[at] else plain + reach - lower[at] - upper[at]
        sizes.append(wanted[at] if len(wanted) > at and wanted[at] > 0 else made)
    # a convolution over the output has its windows where the input has its places
    taps = _firsts(attributes, sizes, space)
    groups = max(1, int(attributes.get("groups", 1)))
    per_in = x.shape[-1] // groups
    result = np.zeros((*x.shape[:2], *sizes, kernel.shape[-2] * groups))
    per_out = kernel.shape[-2]
    for group in range(groups):
        own = x[..., group * per_in : (group + 1) * per_in]
        maps = slice(group * per_out, (group + 1) * per_out)
        for place in itertools.product(*(range(n) for n in x.shape[2 : 1 + rank])):
            for index in itertools.product(*(range(n) for n in space)):
                target = tuple(
                    taps[at][0][p] + taps[at][1] * i
                    for at, (p, i) in enumerate(zip(place, index, strict=True))
                )
                if all(0 <= t < n for t, n in zip(target, sizes, strict=True)):
                    weight = kernel[index][:, group * per_in : (group + 1) * per_in]
                    at_place: Any = (slice(None), slice(None), *place)
                    at_target: Any = (slice(None), slice(None), *target, maps)
                    result[at_target] += own[at_place] @ weight.T
    return result


def pooling(attributes: Mapping[str, Any], x: Array) -> Array:
    """Return the largest or the mean of each window of `x` [batch, step, *space]; padding does not count."""
    import numpy as np

    kernel = tuple(attributes["poolingWindowShape"])
    largest = attributes["poolingType"] == 0
    if kernel == (-2,):
        axes = tuple(range(2, x.ndim - 1))
        return np.asarray((x.max if largest else x.mean)(axis=axes, keepdims=True))
    taps = _firsts(attributes, x.shape[2:], kernel)
    every = np.stack(
        [_tap(x, taps, index, np.nan) for index in itertools.product(*(range(n) for n in kernel))]
    )
    if largest:
        return np.asarray(np.nanmax(every, axis=0))
    if attributes.get("includePad"):
        return np.asarray(np.nansum(every, axis=0) / len(every))
    return np.asarray(np.nanmean(every, axis=0))
