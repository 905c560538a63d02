"""TensorFlow operators that move, cut, join and look up, as ONNX nodes."""

from __future__ import annotations

from deploykit._plugins.converters.xdl.graph_def import Shape, TensorNode
from deploykit._plugins.converters.xdl.tensor_values import (
    Emit,
    Value,
    as_int64,
    broadcast,
    known,
    onnx_dtype,
    ranked,
    unsupported,
)

from deploykit.graph_building import GraphBuilder

END = (1 << 63) - 1


def _reshape(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    x, target = ins
    shape: Shape | None = None
    if target.constant is not None:
        shape = tuple(int(n) if n >= 0 else None for n in target.constant.reshape(-1))
    elif target.shape and target.shape[0] is not None:
        shape = (None,) * target.shape[0]
    # a size of zero is zero in TensorFlow, not a copy
    name = build.add("Reshape", x.name, as_int64(build, target), allowzero=1)
    return [Value(name, x.dtype, shape)]


def _concat(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    parts, axis = (ins[1:], ins[0]) if node.op == "Concat" else (ins[:-1], ins[-1])
    (at,) = known(node, axis, "axis")
    name = build.add("Concat", *(one.name for one in parts), axis=at)
    rank = next((one.rank for one in parts if one.rank is not None), None)
    return [Value(name, parts[0].dtype, None if rank is None else (None,) * rank)]


def _split(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    if node.op == "Split":
        axis, x = ins
        (at,) = known(node, axis, "axis")
        count = node.integer("num_split", 1)
        size = None if x.shape is None else x.shape[at]
        if size is None:
            raise unsupported(node, "splits an axis whose size is unknown")
        if count < 1 or size % count:
            raise unsupported(node, f"splits an axis of {size} into {count}")
        sizes = [size // count] * count
    else:
        x, parts, axis = ins
        (at,) = known(node, axis, "axis")
        sizes = known(node, parts, "sizes")
        if -1 in sizes:
            size = None if x.shape is None else x.shape[at]
            if size is None:
                raise unsupported(node, "splits an axis whose size is unknown")
            sizes[sizes.index(-1)] = size - sum(one for one in sizes if one >= 0)
    names = build.add_many("Split", x.name, build.shape_constant(sizes), count=len(sizes), axis=at)
    shapes: list[Shape | None] = [None] * len(sizes)
    if x.shape is not None:
        place = at % len(x.shape)
        shapes = [(*x.shape[:place], one, *x.shape[place + 1 :]) for one in sizes]
    return [Value(one, x.dtype, shape) for one, shape in zip(names, shapes, strict=True)]


def _pack(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    axis = node.integer("axis", 0)
    axes = build.shape_constant([axis])
    name = build.add("Concat", *(build.add("Unsqueeze", one.name, axes) for one in ins), axis=axis)
    rank = ins[0].rank
    shape = (len(ins),) if rank == 0 else None if rank is None else (None,) * (rank + 1)
    return [Value(name, ins[0].dtype, shape)]


def _unpack(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    axis, count = node.integer("axis", 0), node.integer("num", 0)
    if not 1 <= count <= 4096:
        raise unsupported(node, f"takes apart {count} slices")
    places = [build.constant(at, dtype="int64") for at in range(count)]
    rank = ins[0].rank
    shape = None if rank is None else (None,) * (rank - 1)
    return [
        Value(build.add("Gather", ins[0].name, at, axis=axis), ins[0].dtype, shape) for at in places
    ]


def _slice(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x, begin, size = ins
    start = as_int64(build, begin)
    if size.constant is not None and begin.constant is not None:
        pairs = zip(known(node, begin, "begin"), known(node, size, "size"), strict=True)
        stop = build.shape_constant([END if s < 0 else b + s for b, s in pairs])
    else:
        length = as_int64(build, size)
        rest = build.add("Less", length, build.constant(0, dtype="int64"))
        stop = build.add(
            "Where", rest, build.constant(END, dtype="int64"), build.add("Add", start, length)
        )
    shape = None if x.shape is None else (None,) * len(x.shape)
    return [Value(build.add("Slice", x.name, start, stop), x.dtype, shape)]


def _strided(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x, begin, end, stride = ins
    masks = {
        key: node.integer(f"{key}_mask", 0)
        for key in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    steps = known(node, stride, "strides")
    if not any(masks.values()) and (begin.constant is None or end.constant is None):
        axes = build.shape_constant(range(len(steps)))
        limits = (as_int64(build, begin), as_int64(build, end), axes, build.shape_constant(steps))
        return [
            Value(build.add("Slice", x.name, *limits), x.dtype, x.shape and (None,) * len(x.shape))
        ]
    starts = known(node, begin, "begin") if begin.constant is not None else [None] * len(steps)
    stops = known(node, end, "end") if end.constant is not None else [None] * len(steps)
    if (
        begin.constant is None
        and masks["begin"] | masks["new_axis"] | masks["ellipsis"] != (1 << len(steps)) - 1
    ):
        raise unsupported(node, "computes where it begins")
    cuts: list[tuple[int, int, int, int]] = []
    shrunk, added = [], []
    axis = place = 0
    for at, step in enumerate(steps):
        bit = 1 << at
        if masks["ellipsis"] & bit:
            rest = sum(not masks["new_axis"] & 1 << one for one in range(at + 1, len(steps)))
            skipped = ranked(node, x) - rest - axis
            axis, place = axis + skipped, place + skipped
            continue
        if masks["new_axis"] & bit:
            added.append(place)
            place += 1
            continue
        first, last = starts[at], stops[at]
        if masks["shrink_axis"] & bit:
            if first is None:
                raise unsupported(node, "computes the place that it takes")
            cuts.append((axis, first, END if first == -1 else first + 1, 1))
            shrunk.append(axis)
            axis += 1
            continue
        if masks["begin"] & bit:
            first = 0 if step > 0 else END
        if masks["end"] & bit:
            last = END if step > 0 else -END
        if first is None or last is None:
            raise unsupported(node, "computes where it ends")
        cuts.append((axis, first, last, step))
        axis, place = axis + 1, place + 1
    name = x.name
    needed = [cut for cut in cuts if cut[1:] != (0, END, 1)]
    if needed:
        axes, firsts, lasts, strides = (
            build.shape_constant([cut[one] for cut in needed]) for one in range(4)
        )
        name = build.add("Slice", name, firsts, lasts, axes, strides)
    if shrunk:
        name = build.add("Squeeze", name, build.shape_constant(shrunk))
    if added:
        name = build.add("Unsqueeze", name, build.shape_constant(added))
    rank = None if x.rank is None else x.rank - len(shrunk) + len(added)
    return [Value(name, x.dtype, None if rank is None else (None,) * rank)]


def _transpose(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    order = known(node, ins[1], "order of axes")
    shape = None if x.shape is None else tuple(x.shape[at] for at in order)
    return [Value(build.add("Transpose", x.name, perm=order), x.dtype, shape)]


def _tile(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    name = build.add("Tile", x.name, as_int64(build, ins[1]))
    return [Value(name, x.dtype, None if x.shape is None else (None,) * len(x.shape))]


def _expand(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    (axis,) = known(node, ins[1], "axis")
    name = build.add("Unsqueeze", x.name, build.shape_constant([axis]))
    if x.shape is None:
        return [Value(name, x.dtype)]
    at = axis % (len(x.shape) + 1)
    return [Value(name, x.dtype, (*x.shape[:at], 1, *x.shape[at:]))]


def _squeeze(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = node.attrs.get("squeeze_dims") or node.attrs.get("axis")
    if not isinstance(axes, list) or not axes:
        return [Value(build.add("Squeeze", x.name), x.dtype)]
    name = build.add("Squeeze", x.name, build.shape_constant(axes))
    if x.shape is None:
        return [Value(name, x.dtype)]
    dropped = {axis % len(x.shape) for axis in axes}
    return [Value(name, x.dtype, tuple(n for at, n in enumerate(x.shape) if at not in dropped))]


def _measured(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    dtype = node.dtype("out_type", "int32")
    name = build.add("Shape", ins[0].name)
    shape: Shape = (ins[0].rank,)
    if node.op == "Rank":
        name, shape = build.add("Size", name), ()
    elif node.op == "Size":
        name, shape = build.add("Size", ins[0].name), ()
    if dtype != "int64":
        name = build.add("Cast", name, to=onnx_dtype(dtype))
    return [Value(name, dtype, shape)]


def _fill(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    rank = ins[0].shape[0] if ins[0].shape else None
    name = build.add("Expand", ins[1].name, as_int64(build, ins[0]))
    return [Value(name, ins[1].dtype, None if rank is None else (None,) * rank)]


def _range(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Range", *(one.name for one in ins)), ins[0].dtype, (None,))]


def _cast(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    dtype = node.dtype("DstT")
    if dtype == "unknown":
        raise unsupported(node, "casts to a dtype that ONNX lacks")
    return [Value(build.add("Cast", ins[0].name, to=onnx_dtype(dtype)), dtype, ins[0].shape)]


def _select(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    condition, x, y = ins
    name = condition.name
    if node.op == "Select" and condition.rank in (1, None):
        # a vector chooses whole rows
        rank = ranked(node, x)
        ranked(node, condition)
        if rank > 1:
            name = build.add("Reshape", name, build.shape_constant([-1, *[1] * (rank - 1)]))
    shape = x.shape if node.op == "Select" else broadcast([one.shape for one in ins])
    return [Value(build.add("Where", name, x.name, y.name), x.dtype, shape)]


def _gather(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    axis = known(node, ins[2], "axis")[0] if len(ins) > 2 else 0
    if node.integer("batch_dims", 0):
        raise unsupported(node, "gathers within each row of a batch")
    name = build.add("Gather", ins[0].name, ins[1].name, axis=axis)
    ranks = (ins[0].rank, ins[1].rank)
    shape = None if None in ranks else (None,) * (sum(one for one in ranks if one is not None) - 1)
    return [Value(name, ins[0].dtype, shape)]


def _one_hot(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    indices, depth, on, off = ins
    if node.integer("axis", -1) != -1 and node.integer("axis", -1) != indices.rank:
        raise unsupported(node, "puts its classes on an inner axis")
    # compared one by one: ONNX's OneHot counts negative indices from the end
    wide = build.add("Unsqueeze", as_int64(build, indices), build.shape_constant([-1]))
    ends = (build.constant(at, dtype="int64") for at in (0, 1))
    start, step = ends
    classes = build.add("Range", start, as_int64(build, depth), step)
    hot = build.add("Equal", wide, classes)
    rank = indices.rank
    shape = None if rank is None else (None,) * (rank + 1)
    return [Value(build.add("Where", hot, on.name, off.name), on.dtype, shape)]


def _pad(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    edges = known(node, ins[1], "edges")
    value = ins[2].name if len(ins) > 2 else build.constant(0, dtype=x.dtype)
    sizes = build.shape_constant([*edges[0::2], *edges[1::2]])
    shape = None if x.shape is None else (None,) * len(x.shape)
    return [Value(build.add("Pad", x.name, sizes, value), x.dtype, shape)]


SHAPING: dict[str, Emit] = {
    "Reshape": _reshape,
    **dict.fromkeys(("ConcatV2", "Concat"), _concat),
    **dict.fromkeys(("Split", "SplitV"), _split),
    "Pack": _pack,
    "Unpack": _unpack,
    "Slice": _slice,
    "StridedSlice": _strided,
    "Transpose": _transpose,
    "Tile": _tile,
    "ExpandDims": _expand,
    "Squeeze": _squeeze,
    **dict.fromkeys(("Shape", "Size", "Rank"), _measured),
    "Fill": _fill,
    "Range": _range,
    "Cast": _cast,
    **dict.fromkeys(("Select", "SelectV2"), _select),
    **dict.fromkeys(("Gather", "GatherV2", "ResourceGather"), _gather),
    "OneHot": _one_hot,
    **dict.fromkeys(("Pad", "PadV2"), _pad),
}
