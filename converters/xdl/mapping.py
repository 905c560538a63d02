"""Lookups and pooling as ONNX nodes: ids to rows, rows to one vector for each row of the batch."""

from __future__ import annotations

from collections.abc import Mapping

from deploykit._plugins.converters.xdl.sparse import Pooled
from deploykit._plugins.converters.xdl.tables import Table

from deploykit.graph_building import GraphBuilder


def is_contiguous(table: Table) -> bool:
    """Whether the ids are numbers in a row, so that a subtraction gives the row."""
    if table.is_pair or not len(table.keys):
        return False
    return int(table.keys[-1]) - int(table.keys[0]) + 1 == len(table.keys)


def look_up(build: GraphBuilder, table: Table, ids: list[str]) -> list[str]:
    """Append the lookup of each list of `ids` ([n] int64, or [n, 2]) and return their vectors [n, width].

    An id that the table lacks gives zeros, as a row does that XDL has not trained.
    """
    if not len(table.keys):
        return [_zeros(build, table, one) for one in ids]
    keys = build.constant(table.keys, f"{table.name}/ids")
    rows = build.constant(table.rows, f"{table.name}/rows")
    if len(ids) == 1 or is_contiguous(table):
        return [_found(build, table, keys, rows, one) for one in ids]
    # one search for all features that share the table
    sizes = build.add("Concat", *(_count(build, one) for one in ids), axis=0)
    every = build.add("Concat", *ids, axis=0)
    vectors = _found(build, table, keys, rows, every)
    return list(build.add_many("Split", vectors, sizes, count=len(ids), axis=0))


def _count(build: GraphBuilder, ids: str) -> str:
    """Return the length of the first axis, as a list of one number."""
    return build.add("Slice", build.add("Shape", ids), *map(build.shape_constant, ([0], [1])))


def _zeros(build: GraphBuilder, table: Table, ids: str) -> str:
    width = build.shape_constant([table.width])
    shape = build.add("Concat", _count(build, ids), width, axis=0)
    return build.add("Expand", build.constant(0.0, dtype="float32"), shape)


def is_wide(table: Table) -> bool:
    """Whether ids need more than 32 bits."""
    return bool(len(table.keys)) and max(-int(table.keys.min()), int(table.keys.max())) >= 1 << 31


def _found(build: GraphBuilder, table: Table, keys: str, rows: str, ids: str) -> str:
    place, found = _place(build, table, keys, ids)
    nothing = build.constant(0.0, dtype="float32")
    column = build.shape_constant([1])
    if is_wide(table):
        exact = _is_exact(build, _halves(build, table, ids)[0])
        found = build.add("And", found, exact)
        broken = build.constant(float("nan"), dtype="float32")
        nothing = build.add("Where", build.add("Unsqueeze", exact, column), nothing, broken)
    vectors = build.add("Gather", rows, place, axis=0)
    return build.add("Where", build.add("Unsqueeze", found, column), vectors, nothing)


def _is_exact(build: GraphBuilder, ids: str) -> str:
    """Return, for each id, whether whole numbers keep their 64 bits.

    Some runtimes (OpenVINO) compute int64 in int32 and would take one id for another. There this is
    false, so that the vectors are no numbers, and it is seen. What is compared depends on the ids,
    that no compiler works it out beforehand.
    """
    zero = build.constant(0, dtype="int64")
    none = build.add("Max", build.add("Min", ids, zero), zero)
    sums = build.add("Add", none, build.constant(1 << 40, dtype="int64"))
    return build.add("Greater", sums, build.constant(1 << 33, dtype="int64"))


def _place(build: GraphBuilder, table: Table, keys: str, ids: str) -> tuple[str, str]:
    """Return the row of each id, and whether it is there (else the row is any)."""
    count = len(table.keys)
    zero = build.constant(0, dtype="int64")
    if is_contiguous(table):
        gap = build.add("Sub", ids, build.constant(int(table.keys[0]), dtype="int64"))
        last = build.constant(count - 1, dtype="int64")
        found = build.add(
            "And", build.add("GreaterOrEqual", gap, zero), build.add("LessOrEqual", gap, last)
        )
        return build.add("Where", found, gap, zero), found
    last = build.constant(count - 1, dtype="int64")
    halves = _halves(build, table, ids)
    columns = (
        [build.constant(table.keys[:, at], f"{table.name}/ids{at}") for at in (0, 1)]
        if (table.is_pair)
        else [keys]
    )
    place = build.add("Expand", zero, build.add("Shape", halves[0]))
    step = 1 << max((count - 1).bit_length() - 1, 0)
    while step and count > 1:
        # the largest place whose key is not beyond the id, bit by bit
        further = build.add("Add", place, build.constant(step, dtype="int64"))
        further = build.add("Min", further, last)
        here = [build.add("Gather", column, further, axis=0) for column in columns]
        place = build.add("Where", _not_beyond(build, here, halves), further, place)
        step >>= 1
    same = [
        build.add("Equal", build.add("Gather", column, place, axis=0), half)
        for column, half in zip(columns, halves, strict=True)
    ]
    return place, same[0] if len(same) == 1 else build.add("And", *same)


def _halves(build: GraphBuilder, table: Table, ids: str) -> list[str]:
    if not table.is_pair:
        return [ids]
    return [build.add("Gather", ids, build.constant(at, dtype="int64"), axis=1) for at in (0, 1)]


def _not_beyond(build: GraphBuilder, keys: list[str], ids: list[str]) -> str:
    if len(keys) == 1:
        return build.add("LessOrEqual", keys[0], ids[0])
    lower = build.add("LessOrEqual", keys[1], ids[1])
    tie = build.add("And", build.add("Equal", keys[0], ids[0]), lower)
    return build.add("Or", build.add("Less", keys[0], ids[0]), tie)


def pool(
    build: GraphBuilder, pooled: Pooled, vectors: str, width: int, inputs: Mapping[str, str]
) -> str:
    """Append what `pooled` makes of `vectors` [n, width] for each segment; return [rows, …].

    Ends that lie beyond the ids are cut, a segment that ends before it begins is empty.
    """
    if pooled.index is not None:
        vectors = build.add("Gather", vectors, inputs[pooled.index.name], axis=0)
    zero, first = build.constant(0, dtype="int64"), build.shape_constant([0])
    length = _count(build, vectors)
    count = build.add("Squeeze", length, first)
    wide = build.add("Cast", vectors, to=11)
    if pooled.values is not None:
        # no values at all stand for ones
        given = build.add("Cast", inputs[pooled.values.name], to=11)
        none = build.add("Equal", build.add("Shape", given), first)
        missing = build.add("Where", none, length, first)
        ones = build.add("Expand", build.constant(1.0, dtype="float64"), missing)
        weights = build.add("Concat", given, ones, axis=0)
        wide = build.add("Mul", wide, build.add("Unsqueeze", weights, build.shape_constant([1])))
    # a sequence has its ends in a matrix
    ends = build.add("Reshape", inputs[pooled.segments.name], build.shape_constant([-1]))
    ends = build.add("Cast", ends, to=7)
    ends = build.add("Clip", ends, zero, count)
    begins = build.add("Slice", ends, first, build.shape_constant([-1]))
    begins = build.add("Concat", first, begins, axis=0)
    begins = build.add("Slice", begins, first, build.add("Shape", ends))  # an empty batch has none
    column = build.shape_constant([1])
    ends, begins = (build.add("Unsqueeze", one, column) for one in (ends, begins))
    if pooled.length is not None:
        return _side_by_side(build, pooled, wide, width, begins, ends)
    return _summed(build, pooled, wide, width, begins, ends)


def _summed(
    build: GraphBuilder, pooled: Pooled, vectors: str, width: int, begins: str, ends: str
) -> str:
    """Sums are differences of one running sum in float64: linear in time and memory.

    `begins` and `ends` are [rows, 1].
    """
    zero, column = build.constant(0, dtype="int64"), build.shape_constant([1])
    running = build.add("CumSum", vectors, build.constant(0, dtype="int32"))
    nothing = build.constant([[0.0] * width], dtype="float64")
    running = build.add("Concat", nothing, running, axis=0)
    last, before = (
        build.add("Gather", running, build.add("Squeeze", one, column), axis=0)
        for one in (ends, begins)
    )
    total = build.add("Sub", last, before)
    lengths = build.add("Sub", ends, begins)
    if pooled.average:
        least = build.add("Max", lengths, build.constant(1, dtype="int64"))
        total = build.add("Div", total, build.add("Cast", least, to=11))
    some = build.add("Greater", lengths, zero)
    total = build.add("Where", some, total, build.constant(0.0, dtype="float64"))
    return build.add("Cast", total, to=1)


def _side_by_side(
    build: GraphBuilder, pooled: Pooled, vectors: str, width: int, begins: str, ends: str
) -> str:
    """Lay the rows of each segment one after another, cut or filled to `pooled.length` numbers."""
    length = pooled.length or 0
    count = -(-length // width)
    offsets = build.constant([list(range(count))], dtype="int64")
    if pooled.reverse:
        places = build.add("Sub", build.add("Sub", ends, build.constant(1, dtype="int64")), offsets)
        there = build.add("GreaterOrEqual", places, begins)
    else:
        places = build.add("Add", begins, offsets)
        there = build.add("Less", places, ends)
    # a row of zeros, for what is not there
    rows = build.add("Concat", vectors, build.constant([[0.0] * width], dtype="float64"), axis=0)
    nowhere = build.add("Squeeze", _count(build, vectors), build.shape_constant([0]))
    taken = build.add("Gather", rows, build.add("Where", there, places, nowhere), axis=0)
    flat = build.add("Reshape", taken, build.shape_constant([-1, count * width]))
    limits = (build.shape_constant([one]) for one in (0, length, 1))
    return build.add("Cast", build.add("Slice", flat, *limits), to=1)
