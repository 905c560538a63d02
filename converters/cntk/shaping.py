"""CNTK's operators that move values about as ONNX nodes: joins, cuts, other shapes, lookups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from deploykit._plugins.converters.cntk.emission import (
    Emission,
    Value,
    broadcast,
    listed,
    static_axis,
    whole_number,
)
from deploykit._plugins.converters.cntk.graph import FREE, INFERRED, Axis, Node, Shape

from deploykit.errors import UnsupportedError


def _splice(to: Emission, node: Node, ins: list[Value]) -> Value:
    rank = max(len(one.shape) for one in ins)
    axis = node.attributes.get("axis")
    if isinstance(axis, Axis) and axis.index is not None and axis.index >= rank:
        rank = axis.index + 1
    at = static_axis(axis, rank)
    padded = [(*one.shape, *[1] * (rank - len(one.shape))) for one in ins]
    around = broadcast([(*shape[:at], 1, *shape[at + 1 :]) for shape in padded])
    # along the axis itself their sizes may differ
    alike = [
        replace(one, shape=(*one.shape[:at], 1, *one.shape[at + 1 :])[: len(one.shape)])
        for one in ins
    ]
    names, whole = to.aligned(alike, rank=rank)
    like = max(ins, key=lambda one: one.dynamic)
    parts = []
    for one, name, shape in zip(ins, names, padded, strict=True):
        value = replace(whole if one.dynamic else one, name=name, shape=shape)
        if not one.dynamic:
            value = replace(one, name=to.reshape(one, shape), shape=shape)
        wanted = replace(whole, shape=(*around[:at], shape[at], *around[at + 1 :]))
        lacks = (one.batch, one.sequence) != (whole.batch, whole.sequence)
        if lacks or value.shape != wanted.shape:
            source = replace(value, batch=False, sequence="") if not one.dynamic else value
            source = replace(source, batch=one.batch, sequence=one.sequence)
            source = replace(source, name=to.reshape(one, shape))
            value = to.expanded(source, wanted, like)
        parts.append(value)
    sizes = [shape[at] for shape in padded]
    joined = FREE if FREE in sizes else sum(sizes)
    shape = (*around[:at], joined, *around[at + 1 :])
    result = replace(whole, shape=shape)
    return replace(
        result, name=to.add("Concat", *(one.name for one in parts), axis=result.place(at))
    )


def _slice(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    axes = listed(node, "axisVec", Axis) or listed(node, "axis", Axis)
    begins = listed(node, "beginIndexVec", int) or listed(node, "beginIndex", int)
    ends = listed(node, "endIndexVec", int) or listed(node, "endIndex", int)
    strides = listed(node, "sliceStridesVec", int) or listed(node, "sliceStrides", int)
    strides = strides or [1] * len(axes)
    if not axes or not len(axes) == len(begins) == len(ends) == len(strides):
        raise ValueError(f"it slices {len(axes)} axes from {begins} to {ends}")
    shape = list(x.shape)
    places = []
    for number, (axis, begin, end, stride) in enumerate(
        zip(axes, begins, ends, strides, strict=True)
    ):
        at = static_axis(axis, len(shape))
        places.append(x.place(at))
        if stride < 1:
            raise UnsupportedError(
                f"`{node.name or node.uid}` slices by steps of {stride}",
                operators=("Slice(stride)",),
            )
        if end == 0:
            ends[number] = 2**31
        if shape[at] != FREE:
            shape[at] = len(range(*slice(begin, end or None, stride).indices(shape[at])))
            if not shape[at]:
                raise ValueError(f"nothing is left between {begin} and {end}")
    name = to.add(
        "Slice",
        x.name,
        to.sizes(*begins),
        to.sizes(*ends),
        to.sizes(*places),
        to.sizes(*strides),
    )
    return replace(x, name=name, shape=tuple(shape), constant=None)


def _reshape(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    rank = len(x.shape)
    begin, end = (
        _edge(node, key, rank, default) for key, default in (("beginAxis", 0), ("endAxis", rank))
    )
    shape = reshaped(x.shape, listed(node, "newShape", int), begin, end)
    return replace(x, name=to.reshape(x, shape), shape=shape, constant=None)


def _edge(node: Node, key: str, rank: int, default: int) -> int:
    axis = node.attributes.get(key)
    if not isinstance(axis, Axis):
        return default
    index: int | None = axis.index
    if index is None or not -rank <= index <= rank:
        # CNTK's mark for "behind the last axis"
        return rank
    return index + rank if index < 0 else index


def reshaped(shape: Shape, new: list[int], begin: int, end: int) -> Shape:
    """Return `shape` with its axes from `begin` to `end` replaced by `new`, one size inferred."""
    if begin > end:
        raise ValueError(f"it replaces the axes from {begin} to {end}")
    middle = shape[begin:end]
    sizes = [size for size in new if size != INFERRED]
    if len(new) - len(sizes) > 1:
        raise ValueError(f"its shape {tuple(new)} has several sizes to be inferred")
    inferred = FREE
    if FREE not in middle and FREE not in sizes:
        known, total = math.prod(sizes), math.prod(middle)
        if len(sizes) < len(new):
            if not known or total % known:
                raise ValueError(f"{middle} cannot have the shape {tuple(new)}")
            inferred = total // known
        elif known != total:
            raise ValueError(f"{middle} cannot have the shape {tuple(new)}")
    made = tuple(inferred if size == INFERRED else size for size in new)
    return (*shape[:begin], *made, *shape[end:])


def _transpose(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    given = listed(node, "axisVec", Axis)
    if given:
        rank = max(len(x.shape), len(given))
        order = [static_axis(axis, rank) for axis in given]
        if sorted(order) != list(range(rank)):
            raise ValueError(f"it orders {rank} axes as {order}")
    else:
        pair = [node.attributes.get(key) for key in ("axis1", "axis2")]
        indices = [one.index for one in pair if isinstance(one, Axis) and one.index is not None]
        rank = max(len(x.shape), *(index + 1 for index in indices), 0)
        a, b = (static_axis(one, rank) for one in pair)
        order = list(range(rank))
        order[a], order[b] = b, a
    shape = (*x.shape, *[1] * (rank - len(x.shape)))
    wide = replace(x, name=to.reshape(x, shape), shape=shape)
    turned = [wide.dynamic + rank - 1 - order[rank - 1 - at] for at in range(rank)]
    name = to.add("Transpose", wide.name, perm=[*range(wide.dynamic), *turned])
    return replace(wide, name=name, shape=tuple(shape[at] for at in order), constant=None)


def _one_hot(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    size = whole_number(node, "numClass")
    at = static_axis(node.attributes.get("onehotAxis"), len(x.shape) + 1)
    if size < 1:
        raise ValueError(f"it has {size} classes")
    index = to.add("Cast", x.name, to=7)
    # an index outside of the classes is none of them; ONNX counts negative ones from the end
    last = to.build.constant(size, dtype="int64")
    index = to.add("Where", to.add("Less", index, to.build.constant(0, dtype="int64")), last, index)
    index = to.add("Min", index, last)
    shape = (*x.shape[:at], size, *x.shape[at:])
    made = replace(x, shape=shape, constant=None)
    depth = to.build.constant([size], dtype="int64")
    name = to.add("OneHot", index, depth, to.real([0.0, 1.0]), axis=made.place(at))
    return replace(made, name=name, index=index if at == 0 else "")


def _gather(to: Emission, node: Node, ins: list[Value]) -> Value:
    index, table = ins
    if table.dynamic or not table.shape:
        raise UnsupportedError(
            f"`{node.name or node.uid}` looks things up in a table that the network computes",
            operators=("Gather(dynamic reference)",),
        )
    at = node.attributes.get("axis")
    place = static_axis(at, len(table.shape)) if isinstance(at, Axis) else len(table.shape) - 1
    if place != len(table.shape) - 1:
        raise UnsupportedError(
            f"`{node.name or node.uid}` looks things up along axis {place}",
            operators=("Gather(axis)",),
        )
    name = to.add("Gather", table.name, to.add("Cast", index.name, to=7), axis=0)
    return replace(index, name=name, shape=(*table.shape[:-1], *index.shape), constant=None)


def _top_k(to: Emission, node: Node, ins: list[Value]) -> list[Value]:
    (x,) = ins
    count = whole_number(node, "numItems")
    if not x.shape:
        raise ValueError("it takes the largest of a single number")
    values, places = to.build.add_many("TopK", x.name, to.sizes(count), count=2, axis=-1)
    made = replace(x, shape=(count, *x.shape[1:]), constant=None, positional=False)
    return [replace(made, name=values), replace(made, name=to.cast(places))]


def _pad(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    head, foot = listed(node, "paddingHead", int), listed(node, "paddingFoot", int)
    mode = whole_number(node, "paddingMode", 0)
    if mode not in (0, 1) or len(head) != len(x.shape) or len(foot) != len(x.shape):
        raise UnsupportedError(
            f"`{node.name or node.uid}` pads {len(head)} axes by mode {mode}",
            operators=("Pad(symmetric)" if mode == 2 else "Pad",),
        )
    none = [0] * x.dynamic
    pads = to.sizes(*none, *head[::-1], *none, *foot[::-1])
    if mode:
        name = to.add("Pad", x.name, pads, mode="reflect")
    else:
        value = to.real(float(node.attributes.get("paddingConstantValue", 0.0)))
        name = to.add("Pad", x.name, pads, value, mode="constant")
    sizes = zip(x.shape, head, foot, strict=True)
    shape = tuple(FREE if size == FREE else size + a + b for size, a, b in sizes)
    return replace(x, name=name, shape=shape, constant=None)


def _crop(to: Emission, node: Node, ins: list[Value]) -> Value:
    x, like = ins[:2]
    offset = listed(node, "offset", int)
    sizes = like.shape[:2]
    if len(offset) != 2 or len(sizes) != 2 or FREE in (*x.shape[:2], *sizes):
        raise UnsupportedError(
            f"`{node.name or node.uid}` crops by what its inputs were made by",
            operators=("Crop(automatic offset)",),
            hint="give the offsets to `crop_manual`",
        )
    if any(o < 0 or o + s > n for o, s, n in zip(offset, sizes, x.shape, strict=False)):
        raise ValueError(f"it crops {sizes} at {offset} from {x.shape}")
    ends = [o + s for o, s in zip(offset, sizes, strict=True)]
    axes = to.sizes(x.place(0), x.place(1))
    name = to.add("Slice", x.name, to.sizes(*offset), to.sizes(*ends), axes)
    return replace(x, name=name, shape=(*sizes, *x.shape[2:]), constant=None)


def _squeeze(to: Emission, node: Node, ins: list[Value]) -> Value:
    (x,) = ins
    axes = listed(node, "axisVec", Axis) or listed(node, "axis", Axis)
    rank = len(x.shape)
    gone = (
        {static_axis(axis, rank) for axis in axes}
        if axes
        else {at for at, size in enumerate(x.shape) if size == 1}
    )
    if any(x.shape[at] != 1 for at in gone):
        raise ValueError(f"it squeezes axes {sorted(gone)} of {x.shape}")
    shape = tuple(size for at, size in enumerate(x.shape) if at not in gone)
    if not gone:
        return x
    name = to.add("Squeeze", x.name, to.sizes(*(x.place(at) for at in sorted(gone))))
    return replace(x, name=name, shape=shape, constant=None)


EMIT: dict[str, Callable[[Emission, Node, list[Value]], Any]] = {
    "Splice": _splice,
    "Slice": _slice,
    "Reshape": _reshape,
    "TransposeAxes": _transpose,
    "OneHot": _one_hot,
    "Gather": _gather,
    "TopK": _top_k,
    "Pad": _pad,
    "Crop": _crop,
    "Squeeze": _squeeze,
}
