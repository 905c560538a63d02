"""Operators that move, join and repeat what is in a tensor, or tell its sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer.emitting import NeedsSizeError
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.values import channels_last

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Shape

END = (1 << 31) - 1


def reshape(graph: Graph, node: Node) -> None:
    """Map Reshape, Flatten, Squeeze and Unsqueeze: the sizes of the result are known by inference."""
    name, out = node.input(0), node.outputs[0]
    x = graph.own(name)
    try:
        shape = graph.shape(out)
        graph.put(out, graph.reshaped(x, shape))
    except NeedsSizeError:
        if node.operator != "Reshape" or graph.constant(node.input(1)) is not None:
            raise
        # the sizes are computed by the graph itself
        asked = graph.emit.cast(graph.own(node.input(1)), "int32")
        rank = graph.sizes(node.input(1), [0])[0]
        names: Shape = tuple(f"{out}.{at}" for at in range(rank))
        graph.put(out, graph.emit.reshape(x, names, asked))


def transpose(graph: Graph, node: Node) -> None:
    """Map Transpose: nothing moves, the value is only known by another permutation."""
    rank = graph.rank(node.input(0))
    order = tuple(node.attribute("perm", range(rank - 1, -1, -1)))
    graph.values.same(node.outputs[0], node.input(0), order)


def concat(graph: Graph, node: Node) -> None:
    """Map Concat, in the form that most of its inputs are in."""
    names = [name for name in node.inputs if 0 not in graph.shape(name)]
    if not names:
        raise UnsupportedError("all its inputs are empty")
    rank = graph.rank(names[0])
    order = graph.values.common(names, rank)
    axis = order.index(graph.axis(node, 1))
    parts = [graph.form(name, order) for name in names]
    if len(parts) == 1:
        graph.values.same(node.outputs[0], names[0])
        return
    graph.put(node.outputs[0], graph.emit.concat(parts, axis), order)


def expand(graph: Graph, node: Node) -> None:
    """Map Expand."""
    x = graph.own(node.input(0))
    shape = _asked(graph, node, 1)
    if x.shape == shape:
        graph.values.same(node.outputs[0], node.input(0))
        return
    if x.rank == 0:
        x = graph.emit.reshape(x, (1,))
    try:
        sizes = graph.size_tensor(shape)
    except NeedsSizeError:
        own = graph.emit.add("SHAPE", [x], [x.rank], "int32", "ShapeOptions", outType=2)
        asked = graph.emit.cast(graph.own(node.input(1)), "int32")
        sizes = graph.emit.add("BROADCAST_ARGS", [own, asked], [len(shape)], "int32")
    made = graph.emit.add("BROADCAST_TO", [x, sizes], shape, None, "BroadcastToOptions")
    graph.put(node.outputs[0], made)


def tile(graph: Graph, node: Node) -> None:
    """Map Tile."""
    x = graph.own(node.input(0))
    repeats = graph.known(node, 1).reshape(-1).tolist()
    shape = [
        size * count if isinstance(size, int) else (size if count == 1 else f"{size}*{count}")
        for size, count in zip(x.shape, repeats, strict=True)
    ]
    where = graph.emit.constant(repeats, "int32")
    graph.put(node.outputs[0], graph.emit.add("TILE", [x, where], shape, None, "TileOptions"))


def shape_of(graph: Graph, node: Node) -> None:
    """Map Shape; `start` and `end` cut it."""
    import numpy as np

    shape = graph.shape(node.input(0))
    end = node.attribute("end", None)
    sizes = shape[node.attribute("start", 0) : len(shape) if end is None else end]
    if all(isinstance(size, int) for size in sizes):
        graph.values.constants[node.outputs[0]] = np.array(sizes, np.int64)
        return
    order = graph.values.first(node.input(0))
    x = graph.form(node.input(0), order)
    whole = graph.emit.add("SHAPE", [x], [x.rank], "int64", "ShapeOptions", outType=4)
    wanted = [order.index(at) for at in range(len(shape))][
        node.attribute("start", 0) : len(shape) if end is None else end
    ]
    if wanted != list(range(len(shape))):
        where = graph.emit.constant(wanted, "int32")
        whole = graph.emit.add(
            "GATHER", [whole, where], [len(wanted)], None, "GatherOptions", axis=0
        )
    graph.put(node.outputs[0], whole)


def size_of(graph: Graph, node: Node) -> None:
    """Map Size, the number of elements."""
    import math

    import numpy as np

    count = math.prod(graph.sizes(node.input(0), range(graph.rank(node.input(0)))))
    graph.values.constants[node.outputs[0]] = np.array(count, np.int64)


def constant_of_shape(graph: Graph, node: Node) -> None:
    """Map ConstantOfShape where its sizes are open."""
    value = node.attribute("value", None)
    filled = graph.emit.constant(0.0, "float32")
    if value is not None:
        filled = graph.emit.constant(value.reshape(()))
    shape = _asked(graph, node, 0)
    try:
        sizes = graph.size_tensor(shape)
    except NeedsSizeError:
        sizes = graph.emit.cast(graph.own(node.input(0)), "int32")
    made = graph.emit.add("FILL", [sizes, filled], shape, filled.dtype, "FillOptions")
    graph.put(node.outputs[0], made)


def _asked(graph: Graph, node: Node, at: int) -> Shape:
    """Return the sizes of a result; open ones of its own where inference knows the rank alone."""
    out = node.outputs[0]
    try:
        return graph.shape(out)
    except NeedsSizeError:
        rank = graph.sizes(node.input(at), [0])[0]
        return tuple(f"{out}.{axis}" for axis in range(rank))


def range_(graph: Graph, node: Node) -> None:
    """Map Range where its end is open."""
    ends = [graph.own(name) for name in node.inputs]
    shape = (f"{node.outputs[0]}.0",)
    graph.put(node.outputs[0], graph.emit.add("RANGE", ends, shape, ends[0].dtype, "RangeOptions"))


def one_hot(graph: Graph, node: Node) -> None:
    """Map OneHot."""
    depth = int(graph.known(node, 1).reshape(-1)[0])
    off, on = graph.known(node, 2).tolist()
    where = graph.own(node.input(0))
    if where.dtype not in ("int32", "int64"):
        where = graph.emit.cast(where, "int64")
    below = graph.emit.binary("LESS", where, graph.emit.scalar(0, where), "bool")
    turned = graph.emit.binary("ADD", where, graph.emit.scalar(depth, where))
    where = graph.emit.select(below, turned, where)
    axis = int(node.attribute("axis", -1)) % (where.rank + 1)
    dtype = graph.dtype(node.outputs[0])
    shape = (*where.shape[:axis], depth, *where.shape[axis:])
    inputs = [
        where,
        graph.emit.constant(depth, "int32"),
        graph.emit.constant(on, dtype),
        graph.emit.constant(off, dtype),
    ]
    made = graph.emit.add("ONE_HOT", inputs, shape, dtype, "OneHotOptions", axis=axis)
    graph.put(node.outputs[0], made)


def depth_to_space(graph: Graph, node: Node) -> None:
    """Map DepthToSpace; TensorFlow Lite's order of channels is ONNX's mode DCR."""
    import numpy as np

    name = node.input(0)
    block = int(node.attribute("blocksize", 1))
    x = graph.form(name, channels_last(4))
    (channels,) = graph.sizes(name, [1])
    kept = channels // block**2
    if node.attribute("mode", "DCR") == "CRD":
        # from (channel, row, column) to (row, column, channel)
        order = np.arange(channels).reshape(kept, block * block).T.reshape(-1)
        where = graph.emit.constant(order, "int32")
        x = graph.emit.add("GATHER", [x, where], x.shape, None, "GatherOptions", axis=3)
    shape = (x.shape[0], *(_scaled(size, block) for size in x.shape[1:3]), kept)
    made = graph.emit.add(
        "DEPTH_TO_SPACE", [x], shape, None, "DepthToSpaceOptions", blockSize=block
    )
    graph.put(node.outputs[0], made, channels_last(4))


def _scaled(size: int | str, factor: int) -> int | str:
    return size * factor if isinstance(size, int) else f"{size}*{factor}"


def space_to_depth(graph: Graph, node: Node) -> None:
    """Map SpaceToDepth."""
    if node.attribute("mode", "DCR") != "DCR":
        raise UnsupportedError("its mode is not DCR")
    block = int(node.attribute("blocksize", 1))
    x = graph.form(node.input(0), channels_last(4))
    height, width = graph.sizes(node.input(0), [2, 3])
    (channels,) = graph.sizes(node.input(0), [1])
    shape = (x.shape[0], height // block, width // block, channels * block**2)
    made = graph.emit.add(
        "SPACE_TO_DEPTH", [x], shape, None, "SpaceToDepthOptions", blockSize=block
    )
    graph.put(node.outputs[0], made, channels_last(4))


def trilu(graph: Graph, node: Node) -> None:
    """Map Trilu: elements beyond the diagonal become zero."""
    import numpy as np

    name = node.input(0)
    x = graph.own(name)
    sizes = graph.sizes(name, [x.rank - 2, x.rank - 1])
    k = int(graph.known(node, 1).item()) if node.input(1) else 0
    ones = np.ones(sizes, bool)
    keep = np.triu(ones, k) if node.attribute("upper", 1) else np.tril(ones, k)
    zero = graph.emit.scalar(0, x)
    graph.put(node.outputs[0], graph.emit.select(graph.emit.constant(keep), x, zero))


def non_zero(graph: Graph, node: Node) -> None:
    """Map NonZero: as many columns as there are elements that are not zero."""
    x = graph.own(node.input(0))
    if x.dtype != "bool":
        x = graph.emit.binary("NOT_EQUAL", x, graph.emit.scalar(0, x), "bool")
    rows = graph.shape(node.outputs[0])[1]
    where = graph.emit.add("WHERE", [x], (rows, x.rank), "int64", "WhereOptions")
    order = graph.emit.constant([1, 0], "int32")
    made = graph.emit.add("TRANSPOSE", [where, order], (x.rank, rows), None, "TransposeOptions")
    graph.put(node.outputs[0], made)
