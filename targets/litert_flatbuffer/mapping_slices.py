"""Operators that take parts of a tensor, or put something around it: Slice, Split, Gather, Pad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer import windows
from deploykit._plugins.targets.litert_flatbuffer.emitting import NeedsSizeError
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.writing import Dim

END = (1 << 31) - 1


def split(graph: Graph, node: Node) -> None:
    """Map Split, into equal parts or parts of given sizes."""
    name = node.input(0)
    order = graph.values.first(name)
    own_axis = graph.axis(node, 0)
    axis = order.index(own_axis)
    x = graph.form(name, order)
    (size,) = graph.sizes(name, [own_axis])
    asked = node.attribute("split", None)
    if asked is None and node.input(1):
        asked = graph.known(node, 1).tolist()
    count = len(node.outputs)
    if asked is None:
        step = -(-size // count)
        asked = [min(step, size - at * step) for at in range(count)]
    if count == 1:
        graph.values.same(node.outputs[0], name)
        return
    outputs = []
    for part, output in zip(asked, node.outputs, strict=True):
        shape = tuple(int(part) if at == axis else own for at, own in enumerate(x.shape))
        name = graph.emit.name(output or node.name)
        outputs.append(Tensor(name, shape, x.dtype, quantization=x.quantization))
    where = graph.emit.constant(axis, "int32")
    if len(set(asked)) == 1:
        graph.emit.write("SPLIT", [where, x], outputs, "SplitOptions", numSplits=count)
    else:
        sizes = graph.emit.constant(asked, "int32")
        graph.emit.write("SPLIT_V", [x, sizes, where], outputs, "SplitVOptions", numSplits=count)
    for output, tensor in zip(node.outputs, outputs, strict=True):
        if output:
            graph.put(output, tensor, order)


def slice_(graph: Graph, node: Node) -> None:
    """Map Slice; places are attributes up to opset 9 and inputs since."""
    name = node.input(0)
    shape = graph.shape(name)
    if "starts" in node.attributes:
        starts, ends = node.attributes["starts"], node.attributes["ends"]
        axes = node.attribute("axes", range(len(starts)))
        steps = [1] * len(starts)
    else:
        if any(graph.constant(node.input(at)) is None for at in (1, 2)):
            _slice_at_run_time(graph, node)
            return
        starts, ends = (graph.known(node, at).reshape(-1).tolist() for at in (1, 2))
        axes = graph.known(node, 3).tolist() if node.input(3) else range(len(starts))
        steps = graph.known(node, 4).tolist() if node.input(4) else [1] * len(starts)
    places: dict[int, tuple[int, int, int]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places[int(axis) % len(shape)] = (int(start), int(end), int(step))
    order = graph.values.first(name)
    made = _cut(graph, graph.form(name, order), {order.index(a): p for a, p in places.items()})
    if made is graph.form(name, order):
        graph.values.same(node.outputs[0], name)
    else:
        graph.put(node.outputs[0], made, order)


def _slice_at_run_time(graph: Graph, node: Node) -> None:
    """Map a Slice whose places the graph computes."""
    emit = graph.emit
    x = graph.own(node.input(0))
    (count,) = graph.sizes(node.input(1), [0])
    axes = graph.known(node, 3).tolist() if node.input(3) else list(range(count))
    axes = [int(axis) % x.rank for axis in axes]
    steps = graph.known(node, 4).tolist() if node.input(4) else [1] * count
    if any(step != 1 for step in steps):
        raise UnsupportedError("its places are computed, and its steps are not 1")
    mask = sum(1 << axis for axis in range(x.rank) if axis not in axes)

    def places(name: str) -> Tensor:
        known = graph.constant(name)
        found = None
        if known is None:
            whole = graph.own(name)
            limit = emit.scalar(END, whole)
            found = emit.cast(emit.binary("MINIMUM", whole, limit), "int32")
        parts = []
        for axis in range(x.rank):
            if axis not in axes:
                parts.append(emit.constant([0], "int32"))
            elif found is None:
                assert known is not None
                place = int(known[axes.index(axis)])
                parts.append(emit.constant([max(min(place, END), -END)], "int32"))
            else:
                parts.append(emit.slice(found, [axes.index(axis)], [1]))
        return parts[0] if len(parts) == 1 else emit.concat(parts, 0)

    out = node.outputs[0]
    shape: list[Dim] = [
        size if axis not in axes else f"{out}.{axis}" for axis, size in enumerate(x.shape)
    ]
    made = emit.add(
        "STRIDED_SLICE",
        [x, places(node.input(1)), places(node.input(2)), emit.constant([1] * x.rank, "int32")],
        shape,
        None,
        "StridedSliceOptions",
        beginMask=mask,
        endMask=mask,
    )
    graph.put(out, made)


def _cut(graph: Graph, x: Tensor, places: dict[int, tuple[int, int, int]]) -> Tensor:
    """Cut `x` along each axis at (start, end, step), as Python does."""
    begin, sizes = [0] * x.rank, [-1] * x.rank
    plain = True
    for axis, (start, end, step) in places.items():
        size = x.shape[axis]
        if isinstance(size, int):
            first, last, step = slice(start, end, step).indices(size)
            if step < 0 and end < -size:
                last = -1
            length = len(range(first, last, step))
            if length == 0:
                raise UnsupportedError("its result is empty")
            begin[axis], sizes[axis] = first, length
            plain &= step == 1
        elif start >= 0 and end >= END and step == 1:
            begin[axis] = start
            plain &= start == 0
        else:
            plain = False
    if plain:
        return graph.emit.slice(x, begin, sizes)
    return _strided(graph, x, places)


def _strided(graph: Graph, x: Tensor, places: dict[int, tuple[int, int, int]]) -> Tensor:
    begin, end, steps, shape = [0] * x.rank, [0] * x.rank, [1] * x.rank, list(x.shape)
    begin_mask = end_mask = 0
    for axis in range(x.rank):
        size = x.shape[axis]
        if axis not in places:
            begin_mask |= 1 << axis
            end_mask |= 1 << axis
            continue
        start, stop, step = places[axis]
        steps[axis] = step
        if isinstance(size, int):
            first, last, _ = slice(start, stop, step).indices(size)
            begin[axis], end[axis] = first, last
            shape[axis] = len(range(first, last, step))
            if last < 0:
                end_mask |= 1 << axis
        else:
            if step < 0 and not (start == -1 and stop < -END):
                raise NeedsSizeError("it cuts an open size backwards")
            begin[axis] = max(min(start, END), -END)
            end[axis] = max(min(stop, END), -END)
            if stop >= END or (step < 0 and stop < -END):
                end_mask |= 1 << axis
            shape[axis] = f"{size}[{start}:{stop}:{step}]"
    where = [graph.emit.constant(each, "int32") for each in (begin, end, steps)]
    return graph.emit.add(
        "STRIDED_SLICE",
        [x, *where],
        shape,
        None,
        "StridedSliceOptions",
        x.quantization,
        beginMask=begin_mask,
        endMask=end_mask,
    )


def gather(graph: Graph, node: Node) -> None:
    """Map Gather; TensorFlow Lite knows no indices from the end."""
    import numpy as np

    name, indices = node.input(0), node.input(1)
    axis = graph.axis(node, 0)
    x = graph.own(name)
    size = x.shape[axis]
    known = graph.constant(indices)
    shape = (*x.shape[:axis], *graph.shape(indices), *x.shape[axis + 1 :])
    if known is not None:
        if isinstance(size, int):
            where = graph.emit.constant(np.where(known < 0, known + size, known), "int32")
        elif (known >= 0).all():
            where = graph.emit.constant(known, "int32")
        else:
            raise NeedsSizeError("its indices count from the end of an open size")
    else:
        (size,) = graph.sizes(name, [axis])
        where = graph.own(indices)
        below = graph.emit.binary("LESS", where, graph.emit.scalar(0, where), "bool")
        turned = graph.emit.binary("ADD", where, graph.emit.scalar(size, where))
        where = graph.emit.select(below, turned, where)
    made = graph.emit.add(
        "GATHER", [x, where], shape, None, "GatherOptions", x.quantization, axis=axis
    )
    graph.put(node.outputs[0], made)


def gather_nd(graph: Graph, node: Node) -> None:
    """Map GatherND."""
    if node.attribute("batch_dims", 0):
        raise UnsupportedError("batch_dims is not 0")
    x, where = graph.own(node.input(0)), graph.own(node.input(1))
    known = graph.constant(node.input(1))
    (depth,) = graph.sizes(node.input(1), [where.rank - 1])
    if known is not None:
        import numpy as np

        sizes = np.array(graph.sizes(node.input(0), range(depth)))
        where = graph.emit.constant(np.where(known < 0, known + sizes, known), "int32")
    shape = (*where.shape[:-1], *x.shape[depth:])
    graph.put(
        node.outputs[0], graph.emit.add("GATHER_ND", [x, where], shape, None, "GatherNdOptions")
    )


def gather_elements(graph: Graph, node: Node) -> None:
    """Map GatherElements: every element's place is written out, one axis of it from the indices."""
    import numpy as np

    emit = graph.emit
    name, indices = node.input(0), node.input(1)
    axis = graph.axis(node, 0)
    x, where = graph.own(name), graph.own(indices)
    shape = graph.sizes(indices, range(where.rank))
    (size,) = graph.sizes(name, [axis])
    below = emit.binary("LESS", where, emit.scalar(0, where), "bool")
    turned = emit.binary("ADD", where, emit.scalar(size, where))
    where = emit.cast(emit.select(below, turned, where), "int32")
    column = emit.reshape(where, (*shape, 1))
    grid = np.indices(shape, dtype=np.int32)
    parts = [
        column if at == axis else emit.constant(grid[at][..., None]) for at in range(where.rank)
    ]
    places = parts[0] if len(parts) == 1 else emit.concat(parts, where.rank)
    made = emit.add("GATHER_ND", [x, places], shape, None, "GatherNdOptions")
    graph.put(node.outputs[0], made)


def pad(graph: Graph, node: Node) -> None:
    """Map Pad: constants, mirrored edges, and repeated or wrapped ones by index."""
    import numpy as np

    name = node.input(0)
    rank = graph.rank(name)
    mode = node.attribute("mode", "constant")
    found = node.attribute("pads", None)
    found = graph.known(node, 1).tolist() if found is None else list(found)
    axes = [int(a) % rank for a in graph.known(node, 3)] if node.input(3) else list(range(rank))
    pads = [(0, 0)] * rank
    for at, axis in enumerate(axes):
        pads[axis] = (int(found[at]), int(found[at + len(axes)]))
    value = node.attribute("value", 0.0)
    if node.input(2):
        value = graph.known(node, 2).item()
    order = graph.values.first(name)
    x = graph.form(name, order)
    pads = [pads[axis] for axis in order]
    if any(each < 0 for both in pads for each in both):
        cuts = {
            at: (max(-before, 0), END if after >= 0 else after, 1)
            for at, (before, after) in enumerate(pads)
            if before < 0 or after < 0
        }
        x = _cut(graph, x, cuts)
        pads = [(max(before, 0), max(after, 0)) for before, after in pads]
    if not any(sum(both) for both in pads):
        made = x
    elif mode == "constant":
        made = windows.pad(graph.emit, x, pads, value=value)
    elif mode == "reflect" and x.rank <= 5 and x.dtype in ("float32", "int32", "int64"):
        shape = tuple(
            size + sum(both)
            if isinstance(size, int)
            else (size if not sum(both) else f"{size}+{sum(both)}")
            for size, both in zip(x.shape, pads, strict=True)
        )
        where = graph.emit.constant(pads, "int32")
        made = graph.emit.add("MIRROR_PAD", [x, where], shape, None, "MirrorPadOptions", mode=0)
    else:
        made = x
        for at, both in enumerate(pads):
            if sum(both):
                size = x.shape[at]
                if not isinstance(size, int):
                    raise NeedsSizeError("it pads an open size by its own elements")
                kinds = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
                indices = np.pad(np.arange(size), both, mode=kinds[mode])  # type: ignore[call-overload]
                where = graph.emit.constant(indices, "int32")
                shape = (*made.shape[:at], len(indices), *made.shape[at + 1 :])
                made = graph.emit.add(
                    "GATHER", [made, where], shape, None, "GatherOptions", axis=at
                )
    if made is graph.form(name, order):
        graph.values.same(node.outputs[0], name)
    else:
        graph.put(node.outputs[0], made, order)
