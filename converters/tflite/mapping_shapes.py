"""What moves, cuts and joins tensors, as ONNX nodes. Sizes that the batch has are never baked in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deploykit._plugins.converters.tflite.emitting import FIRST, Emitter, Value
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit, plain
from deploykit._plugins.converters.tflite.reading import Operator, Tensor


def known(m: Emitter, value: Value | None, what: str) -> list[int]:
    """Return integers that the file has or that follow from it. Raises UnsupportedError else."""
    if value is None or value.constant is None:
        raise m.refuse(f"{what} is computed")
    if value.doubled is not None and (value.doubled != value.constant).any():
        raise m.fixed(f"takes {what} from the batch")
    return [int(one) for one in value.constant.reshape(-1)]


def _reshape(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x, out = ins[0], outs[0]
    target = list(out.shape)
    size = ins[1] if len(ins) > 1 else None
    if size is not None and size.constant is not None:
        target = [int(one) for one in size.constant.reshape(-1)]
    elif size is None and op.options.get("new_shape"):
        target = list(op.options["new_shape"])
        target = [] if target == [0] else target  # how old files write a scalar
    elif size is not None:
        raise m.refuse("its shape is computed")
    if target.count(-1) == 1:
        rest = math.prod(one for one in target if one != -1)
        target[target.index(-1)] = math.prod(x.shape) // max(rest, 1)
    if math.prod(target) != math.prod(x.shape):
        raise ValueError(f"{list(x.shape)} into {target}")
    name, batch = m.reshaped(m.movable(x, out), x, target)
    return [m.moved(x, out, name, batch=batch, shape=target)]


def _as_shape(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SQUEEZE and EXPAND_DIMS: a reshape to what the file says comes out."""
    x = ins[0]
    if op.kind == "SQUEEZE":
        axes = [axis % x.rank for axis in op.options["axes"]]
        drop = axes or [at for at, n in enumerate(x.shape) if n == 1]
        if any(x.shape[at] != 1 for at in drop):
            raise ValueError(f"squeezes {drop} of {list(x.shape)}")
        target = [n for at, n in enumerate(x.shape) if at not in drop]
    else:
        (axis,) = known(m, ins[1], "the axis")
        at = axis % (x.rank + 1)
        target = [*x.shape[:at], 1, *x.shape[at:]]
    name, batch = m.reshaped(m.movable(x, outs[0]), x, target)
    return [m.moved(x, outs[0], name, batch=batch, shape=target)]


def _transpose(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    order = [axis % x.rank for axis in known(m, ins[1], "the order")]
    batch = None if x.batch is None else order.index(x.batch)
    shape = [x.shape[axis] for axis in order]
    if order == FIRST and x.has_first:
        return [m.made(outs[0], plain(m, x, first=True), batch=batch, shape=shape)]
    name = m.add("Transpose", m.movable(x, outs[0]), perm=order)
    return [m.moved(x, outs[0], name, batch=batch, shape=shape)]


def _concatenation(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    rank = ins[0].rank
    axis = op.options["axis"] % max(rank, 1)
    batches = {one.batch for one in ins}
    if len(batches) > 1:
        raise m.fixed("joins what has a batch with what has none")
    (batch,) = batches
    if batch == axis:
        raise m.fixed("joins along the batch")
    first = rank == 4 and all(one.has_first for one in ins)
    names = [plain(m, one, first=first) for one in ins]
    name = m.add("Concat", *names, axis=FIRST.index(axis) if first else axis)
    name = m.activated(name, op.options["activation"], outs[0])
    shape = list(ins[0].shape)
    shape[axis] = sum(one.shape[axis] for one in ins)
    return [m.made(outs[0], name, batch=batch, shape=shape, first=first)]


def _pack(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    axis = op.options["axis"] % (ins[0].rank + 1)
    target = [*ins[0].shape[:axis], len(ins), *ins[0].shape[axis:]]
    if len(ins) == 1:
        name, batch = m.reshaped(plain(m, ins[0]), ins[0], target)
        return [m.made(outs[0], name, batch=batch, shape=target)]
    batches = {one.batch for one in ins}
    if len(batches) > 1:
        raise m.fixed("joins what has a batch with what has none")
    (batch,) = batches
    if batch is not None and batch >= axis:
        batch += 1
    parts = [m.add("Unsqueeze", plain(m, one), m.sizes([axis])) for one in ins]
    return [m.made(outs[0], m.add("Concat", *parts, axis=axis), batch=batch, shape=target)]


def _unpack(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    (x,) = ins
    axis = op.options["axis"] % x.rank
    target = [*x.shape[:axis], *x.shape[axis + 1 :]]
    if len(outs) == 1:
        name, batch = m.reshaped(plain(m, x), x, target)
        return [m.made(outs[0], name, batch=batch, shape=target)]
    batch = m.apart(x, [axis])
    if batch is not None and batch > axis:
        batch -= 1
    parts = m.build.add_many("Split", plain(m, x), count=len(outs), axis=axis)
    return [
        m.made(out, m.add("Squeeze", part, m.sizes([axis])), batch=batch, shape=target)
        for out, part in zip(outs, parts, strict=True)
    ]


def _split(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SPLIT(axis, x) into equal parts, SPLIT_V(x, sizes, axis) into given ones."""
    x = ins[1] if op.kind == "SPLIT" else ins[0]
    (axis,) = known(m, ins[0] if op.kind == "SPLIT" else ins[2], "the axis")
    axis %= x.rank
    parts = [x.shape[axis] // len(outs)] * len(outs)
    if op.kind == "SPLIT_V":
        parts = known(m, ins[1], "the sizes of its parts")
        parts = [x.shape[axis] - sum(parts) - 1 if one == -1 else one for one in parts]
    if len(outs) == 1:
        return [m.made(outs[0], plain(m, x), batch=x.batch, shape=x.shape)]
    if sum(parts) != x.shape[axis] or min(parts) < 0:
        raise ValueError(f"parts of {parts} from {x.shape[axis]}")
    batch = m.apart(x, [axis])
    names = m.build.add_many("Split", plain(m, x), m.sizes(parts), count=len(outs), axis=axis)
    return [
        m.made(out, name, batch=batch, shape=[*x.shape[:axis], size, *x.shape[axis + 1 :]])
        for out, name, size in zip(outs, names, parts, strict=True)
    ]


def _pad(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    amounts = known(m, ins[1], "the padding")
    before, after = amounts[0::2], amounts[1::2]
    if len(before) != x.rank or min(amounts, default=0) < 0:
        raise ValueError(f"pads {amounts} around {x.rank} axes")
    batch = m.apart(x, [at for at in range(x.rank) if before[at] or after[at]])
    shape = [n + b + a for n, b, a in zip(x.shape, before, after, strict=True)]
    first = x.has_first
    if first:
        before, after = ([side[at] for at in FIRST] for side in (before, after))
    data = plain(m, x, first=first)
    pads = m.sizes([*before, *after])
    if op.kind == "MIRROR_PAD":
        name = _mirrored(m, op, data, before, after, pads)
    elif op.kind == "PADV2":
        name = m.add("Pad", data, pads, plain(m, ins[2]))
    else:
        name = m.add("Pad", data, pads)
    return [m.made(outs[0], name, batch=batch, shape=shape, first=first)]


def _mirrored(
    m: Emitter, op: Operator, data: str, before: Sequence[int], after: Sequence[int], pads: str
) -> str:
    if op.options["mode"] == 0:
        found: str = m.add("Pad", data, pads, mode="reflect")
        return found
    # the edge is repeated: ONNX has no such mode before opset 19, so turned slices are joined
    for axis, (low, high) in enumerate(zip(before, after, strict=True)):
        parts = [data]
        if low:
            parts.insert(0, cut_out(m, data, [axis], [low - 1], [-(1 << 62)], [-1]))
        if high:
            parts.append(cut_out(m, data, [axis], [-1], [-high - 1], [-1]))
        if len(parts) > 1:
            data = m.add("Concat", *parts, axis=axis)
    return data


def cut_out(
    m: Emitter,
    data: str,
    axes: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    steps: Sequence[int] | None = None,
) -> str:
    """Return the places from `starts` to `ends` of `axes`."""
    if not axes:
        return data
    more = (m.sizes(steps),) if steps and any(step != 1 for step in steps) else ()
    found: str = m.add("Slice", data, m.sizes(starts), m.sizes(ends), m.sizes(axes), *more)
    return found


def _sliced(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SLICE: begin and size of each axis; -1 reaches to the end."""
    x = ins[0]
    begins, sizes = known(m, ins[1], "where it begins"), [int(n) for n in _content(m, ins[2])]
    if len(begins) != x.rank or len(sizes) != x.rank:
        raise ValueError(f"slices {len(begins)} of {x.rank} axes")
    ends = [
        x.shape[at] if size == -1 else begin + size
        for at, (begin, size) in enumerate(zip(begins, sizes, strict=True))
    ]
    axes = [at for at in range(x.rank) if begins[at] or ends[at] != x.shape[at]]
    batch = m.apart(x, axes)
    shape = [end - begin for begin, end in zip(begins, ends, strict=True)]
    if min(shape, default=0) < 0 or any(e > n for e, n in zip(ends, x.shape, strict=True)):
        raise ValueError(f"a slice of {shape} from {list(x.shape)}")
    name = cut_out(m, plain(m, x), axes, [begins[at] for at in axes], [ends[at] for at in axes])
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _content(m: Emitter, value: Value) -> Any:
    if value.constant is None:
        raise m.refuse("its size is computed")
    return value.constant.reshape(-1)


def _strided(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """STRIDED_SLICE, its masks numbered by the places of its own lists."""
    x, masks = ins[0], op.options
    begins, steps = known(m, ins[1], "where it begins"), known(m, ins[3], "its steps")
    ends = [int(one) for one in _content(m, ins[2])]
    if masks["offset"]:
        ends = [begin + end for begin, end in zip(begins, ends, strict=True)]
    axes: list[int] = []
    cuts: list[tuple[int, int, int]] = []
    target: list[int] = []
    inserted = removed = False
    at = 0
    wide = bin(masks["ellipsis_mask"]).count("1")
    if wide > 1:
        raise ValueError("two ellipses")
    own = sum(
        1
        for n in range(len(begins))
        if not masks["ellipsis_mask"] >> n & 1 and not masks["new_axis_mask"] >> n & 1
    )
    for n in range(len(begins)):
        bit = 1 << n
        if masks["ellipsis_mask"] & bit:
            more = x.rank - own
            target += x.shape[at : at + more]
            at += more
            continue
        if masks["new_axis_mask"] & bit:
            target.append(1)
            inserted = True
            continue
        if at >= x.rank:
            raise ValueError(f"slices more than {x.rank} axes")
        size = x.shape[at]
        places = range(size)[
            slice(
                None if masks["begin_mask"] & bit else begins[n],
                None if masks["end_mask"] & bit else ends[n],
                steps[n],
            )
        ]
        if masks["shrink_mask"] & bit:
            begin = begins[n] + size if begins[n] < 0 else begins[n]
            if masks["begin_mask"] & bit:
                begin = 0
            if not 0 <= begin < size:
                raise ValueError(f"place {begins[n]} of {size}")
            places = range(begin, begin + 1)
            removed = True
        else:
            target.append(len(places))
        if places != range(size):
            stop = places.start + len(places) * places.step
            axes.append(at)
            cuts.append((places.start, stop if stop >= 0 else -(1 << 62), places.step))
        at += 1
    target += x.shape[at:]
    batch = m.apart(x, axes)
    starts, stops, strides = ([cut[part] for cut in cuts] for part in range(3))
    name = cut_out(m, plain(m, x), axes, starts, stops, strides)
    if inserted or removed:
        cut = list(x.shape)
        for axis, (start, stop, step) in zip(axes, cuts, strict=True):
            cut[axis] = len(range(start, max(stop, -1), step))
        part = Value(tensor=x.tensor, shape=tuple(cut), batch=batch)
        name, batch = m.reshaped(name, part, target)
    return [m.made(outs[0], name, batch=batch, shape=target)]


def _gather(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """GATHER, and EMBEDDING_LOOKUP, which has its inputs the other way round."""
    x, at = (ins[1], ins[0]) if op.kind == "EMBEDDING_LOOKUP" else (ins[0], ins[1])
    if op.options.get("batch_dims", 0):
        raise m.refuse("it has batch dimensions")
    axis = op.options.get("axis", 0) % max(x.rank, 1)
    if x.batch is not None and at.batch is not None:
        raise m.fixed("looks a batch up in a batch")
    batch = m.apart(x, [axis])
    if batch is not None and batch > axis:
        batch += at.rank - 1
    elif at.batch is not None:
        batch = at.batch + axis
    name = m.add("Gather", plain(m, x), m.stored(at), axis=axis)
    shape = [*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]]
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _gather_nd(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x, at = ins
    if x.batch is not None or (at.batch is not None and at.batch == at.rank - 1):
        raise m.fixed("gathers from the batch")
    places = m.add("Cast", m.stored(at), to=7)
    name = m.add("GatherND", plain(m, x), places)
    shape = [*at.shape[:-1], *x.shape[at.shape[-1] :]]
    return [m.made(outs[0], name, batch=at.batch, shape=shape)]


def _tile(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    times = known(m, ins[1], "how often it repeats")
    batch = m.apart(x, [at for at, n in enumerate(times) if n != 1])
    shape = [n * k for n, k in zip(x.shape, times, strict=True)]
    name = m.add("Tile", plain(m, x), m.sizes(times))
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _broadcast(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    target = known(m, ins[1], "the shape")
    batch = None
    if x.batch is not None:
        batch = x.batch + len(target) - x.rank
        if target[batch] != x.shape[x.batch]:
            raise m.fixed("repeats along the batch")
        target[batch] = 1
    shape = list(target)
    if batch is not None and x.batch is not None:
        shape[batch] = x.shape[x.batch]
    name = m.add("Expand", plain(m, x), m.sizes(target))
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _reverse(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    axes = [axis % x.rank for axis in known(m, ins[1], "the axes")]
    batch = m.apart(x, axes)
    count = len(axes)
    name = cut_out(m, plain(m, x), axes, [-1] * count, [-(1 << 62)] * count, [-1] * count)
    return [m.made(outs[0], name, batch=batch, shape=x.shape)]


EMIT: dict[str, Emit] = {
    "RESHAPE": _reshape,
    "SQUEEZE": _as_shape,
    "EXPAND_DIMS": _as_shape,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _pad,
    "SLICE": _sliced,
    "STRIDED_SLICE": _strided,
    "GATHER": _gather,
    "EMBEDDING_LOOKUP": _gather,
    "GATHER_ND": _gather_nd,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast,
    "REVERSE_V2": _reverse,
}
