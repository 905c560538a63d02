"""What moves, cuts and joins, by numpy's own operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MOST_PLACES = 1 << 28


def bounded(sizes: Sequence[int]) -> list[int]:
    """Return sizes that a file asks for. Raises ValueError where they are no tensor's."""
    import math

    if any(one < 0 for one in sizes) or math.prod(sizes) > MOST_PLACES:
        raise ValueError(f"a tensor of {list(sizes)}")
    return list(sizes)


def _reshape(call: Call) -> Any:
    if call.has(1):
        target = call.integers(1)
    elif call.op.options.get("new_shape"):
        target = list(call.option("new_shape"))
        target = [] if target == [0] else target
    else:
        target = list(call.outs[0].shape)
    return call.given(call.real(0).reshape(target))


def _squeeze(call: Call) -> Any:
    import numpy as np

    return call.given(np.squeeze(call.real(0), tuple(call.option("axes")) or None))


def _expand(call: Call) -> Any:
    import numpy as np

    return call.given(np.expand_dims(call.real(0), call.integers(1)[0]))


def _transpose(call: Call) -> Any:
    return call.given(call.real(0).transpose(call.integers(1)))


def _concatenation(call: Call) -> Any:
    import numpy as np

    whole = np.concatenate([call.real(at) for at in range(len(call.ins))], call.option("axis"))
    return call.given(call.activated(whole) if whole.dtype.kind == "f" else whole)


def _pack(call: Call) -> Any:
    import numpy as np

    return call.given(np.stack([call.real(at) for at in range(len(call.ins))], call.option("axis")))


def _unpack(call: Call) -> list[Array]:
    import numpy as np

    axis, x = call.option("axis"), call.real(0)
    return [call.given(np.take(x, at, axis), at) for at in range(len(call.outs))]


def _split(call: Call) -> list[Array]:
    import numpy as np

    if call.op.kind == "SPLIT":
        parts = np.split(call.real(1), len(call.outs), axis=call.integers(0)[0])
    else:
        x, axis, sizes = call.real(0), call.integers(2)[0], call.integers(1)
        rest = x.shape[axis] - sum(one for one in sizes if one >= 0)
        sizes = [rest if one < 0 else one for one in sizes]
        parts = np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis)
    return [call.given(part, at) for at, part in enumerate(parts)]


def _pad(call: Call) -> Any:
    import numpy as np

    amounts = call.stored(1).reshape(-1, 2).tolist()
    bounded([n + sum(pair) for n, pair in zip(call.stored(0).shape, amounts, strict=True)])
    if call.op.kind == "MIRROR_PAD":
        mode = "symmetric" if call.option("mode") else "reflect"
        return call.given(np.pad(call.real(0), amounts, mode=mode))  # type: ignore[call-overload]
    value = call.real(2).reshape(-1)[0] if call.has(2) else 0
    return call.given(np.pad(call.real(0), amounts, constant_values=value))


def _slice(call: Call) -> Any:
    places = tuple(
        slice(begin, None if size == -1 else begin + size)
        for begin, size in zip(call.integers(1), call.integers(2), strict=True)
    )
    return call.given(call.real(0)[places])


def _strided(call: Call) -> Any:
    """STRIDED_SLICE as Python's own indexing, which the operator was made for."""
    index: list[Any] = []
    for n, (begin, end, step) in enumerate(
        zip(call.integers(1), call.integers(2), call.integers(3), strict=True)
    ):

        def masked(name: str, bit: int = n) -> bool:
            return bool(call.option(f"{name}_mask") >> bit & 1)

        if call.option("offset"):
            end += begin
        if masked("ellipsis"):
            index.append(Ellipsis)
        elif masked("new_axis"):
            index.append(None)
        elif masked("shrink"):
            index.append(0 if masked("begin") else begin)
        else:
            start = None if masked("begin") else begin
            index.append(slice(start, None if masked("end") else end, step))
    return call.given(call.real(0)[tuple(index)])


def _gather(call: Call) -> Any:
    import numpy as np

    if call.op.kind == "EMBEDDING_LOOKUP":
        return call.given(call.real(1)[call.stored(0)])
    return call.given(np.take(call.real(0), call.stored(1), axis=call.option("axis")))


def _gather_nd(call: Call) -> Any:
    import numpy as np

    return call.given(call.real(0)[tuple(np.moveaxis(call.stored(1), -1, 0))])


def _tile(call: Call) -> Any:
    import numpy as np

    times = call.integers(1)
    bounded([n * k for n, k in zip(call.stored(0).shape, times, strict=True)])
    return call.given(np.tile(call.real(0), times))


def _space_to_depth(call: Call) -> Any:
    x, size = call.real(0), call.option("block")
    n, h, w, c = x.shape
    parts = x.reshape(n, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return call.given(parts.reshape(n, h // size, w // size, size * size * c))


def _depth_to_space(call: Call) -> Any:
    x, size = call.real(0), call.option("block")
    n, h, w, c = x.shape
    parts = x.reshape(n, h, w, size, size, c // size**2).transpose(0, 1, 3, 2, 4, 5)
    return call.given(parts.reshape(n, h * size, w * size, c // size**2))


def _space_to_batch(call: Call) -> Any:
    """Every `block`-th place makes a picture of its own; those come outermost."""
    import itertools

    import numpy as np

    block, amounts = call.integers(1), call.stored(2).reshape(-1, 2).tolist()
    x = call.real(0)
    x = np.pad(x, [(0, 0), *amounts, *[(0, 0)] * (x.ndim - 1 - len(block))])
    parts = [
        x[(slice(None), *(slice(at, None, b) for at, b in zip(place, block, strict=True)))]
        for place in itertools.product(*(range(b) for b in block))
    ]
    return call.given(np.concatenate(parts))


def _batch_to_space(call: Call) -> Any:
    import itertools

    import numpy as np

    x, block = call.real(0), call.integers(1)
    crops = call.stored(2).reshape(-1, 2).tolist()
    places = list(itertools.product(*(range(b) for b in block)))
    parts = np.split(x, len(places))
    space = [n * b for n, b in zip(x.shape[1:], block, strict=False)]
    whole = np.empty((parts[0].shape[0], *space, *x.shape[len(block) + 1 :]), x.dtype)
    for place, part in zip(places, parts, strict=True):
        steps = (slice(at, None, b) for at, b in zip(place, block, strict=True))
        whole[(slice(None), *steps)] = part
    kept = (slice(a, n - b) for (a, b), n in zip(crops, space, strict=True))
    return call.given(whole[(slice(None), *kept)])


def _broadcast(call: Call) -> Any:
    import numpy as np

    return call.given(np.broadcast_to(call.real(0), bounded(call.integers(1))).copy())


def _reverse(call: Call) -> Any:
    import numpy as np

    return call.given(np.flip(call.real(0), call.integers(1)))


def _reversed_rows(call: Call) -> Any:
    import numpy as np

    time, row = call.option("time_axis"), call.option("batch_axis")
    x = np.moveaxis(call.real(0), (row, time), (0, 1)).copy()
    for at, length in enumerate(call.integers(1)):
        x[at, :length] = x[at, :length][::-1].copy()
    return call.given(np.moveaxis(x, (0, 1), (row, time)))


COMPUTE: dict[str, Compute] = {
    "RESHAPE": _reshape,
    "SQUEEZE": _squeeze,
    "EXPAND_DIMS": _expand,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _pad,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided,
    "GATHER": _gather,
    "EMBEDDING_LOOKUP": _gather,
    "GATHER_ND": _gather_nd,
    "TILE": _tile,
    "SPACE_TO_DEPTH": _space_to_depth,
    "DEPTH_TO_SPACE": _depth_to_space,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "BROADCAST_TO": _broadcast,
    "REVERSE_V2": _reverse,
    "REVERSE_SEQUENCE": _reversed_rows,
}
