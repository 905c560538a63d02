"""MXNet operators that change shapes as ONNX nodes."""

from __future__ import annotations

import math

from deploykit._plugins.converters.mxnet.emission import Emit, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError, UsageError
from deploykit.graph_building import GraphBuilder


def _concat(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    axis = node.value("dim", 1) % ins[0].rank
    name = build.add("Concat", *(one.name for one in ins), axis=axis)
    sizes = [one.shape[axis] for one in ins]
    total = None if None in sizes else sum(one for one in sizes if one is not None)
    shape = ins[0].shape
    return [Value(name, (*shape[:axis], total, *shape[axis + 1 :]))]


def _split(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, count = ins[0], node.value("num_outputs", 1)
    axis = node.value("axis", 1) % x.rank
    size = x.shape[axis]
    if size is None or size % count:
        raise UsageError(
            f"node `{node.name}` splits an axis of {size or 'unknown'} size by {count}"
        )
    parts = build.shape_constant([size // count] * count)
    names = build.add_many("Split", x.name, parts, count=count, axis=axis)
    shape = (*x.shape[:axis], size // count, *x.shape[axis + 1 :])
    if node.value("squeeze_axis", False):
        names = tuple(build.add("Squeeze", one, build.shape_constant([axis])) for one in names)
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [Value(one, shape) for one in names]


def _split_at(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """`_split_v2`: equal sections, or parts that begin at `indices`, the first of them zero."""
    x, count = ins[0], node.value("sections", 0)
    axis = node.value("axis", 1) % x.rank
    size = x.shape[axis]
    if size is None or (count and size % count):
        raise UnsupportedError(
            f"node `{node.name}` splits an axis of {size or 'unknown'} size",
            operators=("_split_v2",),
        )
    starts = (
        [size // count * at for at in range(count)] if count else list(node.value("indices", ()))
    )
    ends = [*starts[1:], size]
    parts = [b - a for a, b in zip(starts, ends, strict=True)]
    names = build.add_many(
        "Split", x.name, build.shape_constant(parts), count=len(parts), axis=axis
    )
    is_squeezed = node.value("squeeze_axis", False)
    if is_squeezed:
        names = tuple(build.add("Squeeze", one, build.shape_constant([axis])) for one in names)
    return [
        Value(name, (*x.shape[:axis], *(() if is_squeezed else (part,)), *x.shape[axis + 1 :]))
        for name, part in zip(names, parts, strict=True)
    ]


def _flatten(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    inner = x.shape[1:]
    width = None if None in inner else math.prod(one for one in inner if one is not None)
    return [Value(build.add("Flatten", x.name, axis=1), (x.shape[0], width))]


def _reshape(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """MXNet's codes: 0 copies, -1 infers, -2 copies all the rest, -3 merges two, -4 splits one."""
    x, target = ins[0], list(node.value("shape", ()))
    if not target:
        return _old_reshape(build, node, x)
    if ins[0].array is not None and target == [-1]:
        flat = ins[0].array.reshape(-1)
        return [Value(build.constant(flat), flat.shape, ins[0].dtype, flat)]
    from_behind = node.value("reverse", False)
    if from_behind:
        if -4 in target:
            raise UnsupportedError(
                f"node `{node.name}` splits an axis from behind", operators=("Reshape(reverse)",)
            )
        x, target = Value(x.name, x.shape[::-1]), target[::-1]
    sizes: list[int] = []
    shape: list[int | None] = []
    at = index = 0
    while index < len(target):
        code = target[index]
        index += 1
        if code > 0 or code == -1:
            sizes.append(code)
            shape.append(code if code > 0 else None)
            at += 1
            continue
        if code == -4:
            pair = list(target[index : index + 2])
            index += 2
            known = x.shape[at]
            if -1 in pair and known is not None:
                pair[pair.index(-1)] = known // max(pair[1 - pair.index(-1)], 1)
            sizes += pair
            shape += [one if one > 0 else None for one in pair]
            at += 1
            continue
        stop = at + {0: 1, -2: x.rank - at, -3: 2}.get(code, 0)
        part = x.shape[at:stop]
        at = stop
        parts = [part] if code == -3 else [(one,) for one in part]
        for piece in parts:
            size = None if None in piece else math.prod(one for one in piece if one is not None)
            # ONNX's zero copies the size at the same place, which is all that is needed for a batch
            first = not sizes and code != -3 and not from_behind
            sizes.append(size if size is not None else (0 if first else -1))
            shape.append(size)
    if sizes.count(-1) > 1:
        raise UsageError(
            f"node `{node.name}` reshapes to sizes that are not fixed",
            hint="give the sizes of the inputs: `--input 'NAME:float32[...]'`",
        )
    if shape.count(None) == 1 and None not in x.shape:
        total = math.prod(one for one in x.shape if one is not None)
        rest = math.prod(one for one in shape if one is not None)
        shape = [total // max(rest, 1) if one is None else one for one in shape]
    if from_behind:
        sizes, shape = sizes[::-1], shape[::-1]
    return [Value(build.add("Reshape", x.name, build.shape_constant(sizes)), tuple(shape))]


def _old_reshape(build: GraphBuilder, node: Node, x: Value) -> list[Value]:
    """Before 0.9 a zero was the size to infer, and `keep_highest` kept the batch."""
    target = list(node.value("target_shape", ()))
    if not target:
        raise UnsupportedError(f"node `{node.name}` has no shape", operators=("Reshape",))
    sizes = [size or -1 for size in target]
    if node.value("keep_highest", False):
        sizes[0] = 0
    known = [size for size in x.shape if size is not None]
    shape: list[int | None] = [size if size > 0 else None for size in sizes]
    if sizes[0] == 0:
        shape[0] = x.shape[0]
    if len(known) == x.rank and shape.count(None) == 1:
        rest = math.prod(size for size in shape if size is not None)
        shape[shape.index(None)] = math.prod(known) // max(rest, 1)
    return [Value(build.add("Reshape", x.name, build.shape_constant(sizes)), tuple(shape))]


def _transpose(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = [axis % x.rank for axis in node.value("axes", ())] or list(range(x.rank))[::-1]
    name = build.add("Transpose", x.name, perm=axes)
    return [Value(name, tuple(x.shape[axis] for axis in axes))]


def _swap(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = list(range(x.rank))
    a, b = node.value("dim1", 0) % x.rank, node.value("dim2", 0) % x.rank
    axes[a], axes[b] = axes[b], axes[a]
    name = build.add("Transpose", x.name, perm=axes)
    return [Value(name, tuple(x.shape[axis] for axis in axes))]


def _expand(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axis = node.value("axis", 0) % (x.rank + 1)
    name = build.add("Unsqueeze", x.name, build.shape_constant([axis]))
    return [Value(name, (*x.shape[:axis], 1, *x.shape[axis:]))]


def _squeeze(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = sorted(axis % x.rank for axis in node.value("axis", ()))
    axes = axes or [at for at, size in enumerate(x.shape) if size == 1]
    name = build.add("Squeeze", x.name, build.shape_constant(axes))
    return [Value(name, tuple(size for at, size in enumerate(x.shape) if at not in axes))]


def _slice_axis(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axis = node.value("axis", 0) % x.rank
    begin, end = node.value("begin", 0), node.value("end", None)
    limits = (
        build.shape_constant([one]) for one in (begin, 2**31 - 1 if end is None else end, axis)
    )
    size = x.shape[axis]
    length = None if size is None else len(range(size)[begin:end])
    return [
        Value(build.add("Slice", x.name, *limits), (*x.shape[:axis], length, *x.shape[axis + 1 :]))
    ]


EMIT: dict[str, Emit] = {
    **dict.fromkeys(("Concat", "concat"), _concat),
    **dict.fromkeys(("SliceChannel", "split"), _split),
    **dict.fromkeys(("Flatten", "flatten"), _flatten),
    **dict.fromkeys(("Reshape", "reshape"), _reshape),
    "_split_v2": _split_at,
    "transpose": _transpose,
    **dict.fromkeys(("SwapAxis", "swapaxes"), _swap),
    "expand_dims": _expand,
    "squeeze": _squeeze,
    "slice_axis": _slice_axis,
}
