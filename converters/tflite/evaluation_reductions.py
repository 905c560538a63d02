"""What sums up, searches, counts and fills, by numpy's own operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute
from deploykit._plugins.converters.tflite.evaluation_shapes import MOST_PLACES, bounded

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _reduced(call: Call) -> Any:
    import numpy as np

    names = {
        "MEAN": "mean",
        "SUM": "sum",
        "REDUCE_MAX": "max",
        "REDUCE_MIN": "min",
        "REDUCE_PROD": "prod",
        "REDUCE_ANY": "any",
        "REDUCE_ALL": "all",
    }
    x = call.real(0)
    axes = tuple({axis % max(x.ndim, 1) for axis in call.integers(1)}) if x.ndim else ()
    found = getattr(np, names[call.op.kind])(x, axis=axes, keepdims=bool(call.option("keep_dims")))
    return call.given(found if x.dtype.kind == "f" else np.asarray(found).astype(x.dtype))


def _extreme_at(call: Call) -> Any:
    import numpy as np

    find = np.argmax if call.op.kind == "ARG_MAX" else np.argmin
    return np.asarray(find(call.stored(0), axis=call.integers(1)[0]), call.outs[0].dtype)


def _largest(call: Call) -> list[Array]:
    import numpy as np

    x = call.real(0)
    order = np.argsort(-x, axis=-1, kind="stable")[..., : call.integers(1)[0]]
    return [call.given(np.take_along_axis(x, order, axis=-1)), order.astype(call.outs[1].dtype)]


def _one_hot(call: Call) -> Any:
    import numpy as np

    at, (depth,) = call.stored(0), call.integers(1)
    bounded([*at.shape, depth])
    axis = call.option("axis") % (at.ndim + 1)
    hot = np.expand_dims(at, axis) == np.arange(depth).reshape([-1] + [1] * (at.ndim - axis))
    return call.given(np.where(hot, call.real(2), call.real(3)))


def _running_sum(call: Call) -> Any:
    import numpy as np

    x, (axis,) = call.real(0), call.integers(1)
    x = np.flip(x, axis) if call.option("reverse") else x
    total = np.cumsum(x, axis=axis, dtype=x.dtype)
    total = total - x if call.option("exclusive") else total
    return call.given(np.flip(total, axis) if call.option("reverse") else total)


def _shape(call: Call) -> Any:
    import numpy as np

    return np.asarray(call.stored(0).shape, call.outs[0].dtype)


def _rank(call: Call) -> Any:
    import numpy as np

    return np.asarray(call.stored(0).ndim, call.outs[0].dtype)


def _zeros(call: Call) -> Any:
    import numpy as np

    return np.zeros(call.stored(0).shape, call.outs[0].dtype)


def _filled(call: Call) -> Any:
    import numpy as np

    return np.full(bounded(call.integers(0)), call.stored(1).reshape(-1)[0])


def _scattered(call: Call) -> Any:
    import numpy as np

    places, updates = call.stored(0), call.real(1)
    whole = np.zeros(bounded(call.integers(2)), updates.dtype)
    np.add.at(whole, tuple(np.moveaxis(places, -1, 0)), updates)
    return call.given(whole)


def _sparse(call: Call) -> Any:
    import numpy as np

    size = bounded(call.integers(1))
    whole = np.full(size, call.real(3).reshape(-1)[0])
    whole[tuple(call.stored(0).reshape(-1, len(size)).T)] = call.real(2)
    return call.given(whole)


def _range(call: Call) -> Any:
    import numpy as np

    start, end, step = (call.stored(at).reshape(-1)[0] for at in range(3))
    if step == 0 or (end - start) / step > MOST_PLACES:
        raise ValueError(f"a range from {start} to {end} by {step}")
    return np.arange(start, end, step, dtype=call.outs[0].dtype)


def _where(call: Call) -> Any:
    import numpy as np

    return np.argwhere(call.stored(0)).astype(call.outs[0].dtype)


def _diagonal(call: Call) -> Any:
    import numpy as np

    x = call.real(0)
    return call.given(x[..., None] * np.eye(x.shape[-1], dtype=x.dtype))


def _suppressed(call: Call) -> list[Array]:
    """NON_MAX_SUPPRESSION_V4 and V5 without softening: the best box, then what overlaps less."""
    import numpy as np

    boxes, scores = call.real(0), call.real(1)
    most, overlap, least = (float(call.real(at).reshape(-1)[0]) for at in (2, 3, 4))
    if call.has(5) and float(call.real(5).reshape(-1)[0]):
        raise ValueError("softened scores")
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    area = (high - low).prod(axis=1)
    kept: list[int] = []
    for at in np.argsort(-scores, kind="stable"):
        if scores[at] <= least or len(kept) >= most:
            break
        shared = np.clip(np.minimum(high[at], high[kept]) - np.maximum(low[at], low[kept]), 0, None)
        inner = shared.prod(axis=1)
        union = area[at] + area[kept] - inner
        if not (inner > overlap * union).any():
            kept.append(int(at))
    padded = np.zeros(int(most), np.int32)
    padded[: len(kept)] = kept
    values = np.zeros(int(most))
    values[: len(kept)] = scores[kept]
    number = np.asarray(len(kept), np.int32)
    if call.op.kind == "NON_MAX_SUPPRESSION_V4":
        return [padded, number]
    return [padded, call.given(values, 1), number]


COMPUTE: dict[str, Compute] = {
    "MEAN": _reduced,
    "SUM": _reduced,
    "REDUCE_MAX": _reduced,
    "REDUCE_MIN": _reduced,
    "REDUCE_PROD": _reduced,
    "REDUCE_ANY": _reduced,
    "REDUCE_ALL": _reduced,
    "ARG_MAX": _extreme_at,
    "ARG_MIN": _extreme_at,
    "TOPK_V2": _largest,
    "ONE_HOT": _one_hot,
    "CUMSUM": _running_sum,
    "SHAPE": _shape,
    "RANK": _rank,
    "ZEROS_LIKE": _zeros,
    "FILL": _filled,
    "SCATTER_ND": _scattered,
    "SPARSE_TO_DENSE": _sparse,
    "RANGE": _range,
    "WHERE": _where,
    "MATRIX_DIAG": _diagonal,
    "NON_MAX_SUPPRESSION_V4": _suppressed,
    "NON_MAX_SUPPRESSION_V5": _suppressed,
}
