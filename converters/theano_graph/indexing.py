"""Parts of arrays taken, set or added to: numpy's indexing as Theano has it, into ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph.emission import described, rank

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission

FURTHEST = 2**63 - 1


def subtensor(emission: Emission, node: Any) -> list[str]:
    """Emit a `Subtensor`: numbers and slices."""
    x = node.inputs[0]
    return [_taken(emission, node, emission.value(x), rank(x), _entries(node, node.inputs))]


def advanced(emission: Emission, node: Any) -> list[str]:
    """Emit an `AdvancedSubtensor`: arrays of indices or masks among slices."""
    x = node.inputs[0]
    return [_taken(emission, node, emission.value(x), rank(x), list(node.inputs[1:]))]


def advanced_first(emission: Emission, node: Any) -> list[str]:
    """Emit rows by a vector of indices."""
    x, places = node.inputs
    return [
        emission.build.add("Gather", emission.value(x), emission.as_type(places, "int64"), axis=0)
    ]


def set_part(emission: Emission, node: Any) -> list[str]:
    """Emit `set_subtensor` or `inc_subtensor` of any index.

    The places are found by taking the same part of an array that holds each element's number.
    """
    x, y = node.inputs[:2]
    op, build = node.op, emission.build
    kind = type(op).__name__
    if kind == "AdvancedIncSubtensor1":
        entries: list[Any] = [node.inputs[2]]
    elif kind == "AdvancedIncSubtensor":
        entries = list(node.inputs[2:])
    else:
        entries = _entries(node, [x, *node.inputs[2:]])
    dtype = node.outputs[0].type.dtype
    held = "int32" if dtype in ("bool", "int8", "int16", "uint8", "uint16") else dtype
    whole, value = emission.as_type(x, held), emission.as_type(y, held)
    minus_one = build.shape_constant([-1])
    shape = build.add("Shape", whole)
    flat = build.add("Reshape", whole, minus_one)
    zero, one = build.constant(0, dtype="int64"), build.constant(1, dtype="int64")
    numbers = build.add("Range", zero, build.add("Size", whole), one)
    numbers = build.add("Reshape", numbers, shape)
    places = _taken(emission, node, numbers, rank(x), entries)
    value = build.add("Expand", value, build.add("Shape", places))
    places = build.add("Reshape", places, minus_one)
    value = build.add("Reshape", value, minus_one)
    is_set = bool(op.set_instead_of_inc)
    # several values for one place add up, as they do in the source
    made = build.add(
        "ScatterElements", flat, places, value, axis=0, reduction="none" if is_set else "add"
    )
    return [emission.cast(build.add("Reshape", made, shape), held, dtype)]


def _entries(node: Any, inputs: Sequence[Any]) -> list[Any]:
    """Return the index of a basic Subtensor, its variables in their places."""
    from pytensor.tensor.subtensor import get_idx_list

    return list(get_idx_list(inputs, node.op.idx_list))


def _taken(emission: Emission, node: Any, name: str, axes: int, entries: Sequence[Any]) -> str:
    """Return the part of the value `name` (of `axes` axes) that `entries` describe."""
    build = emission.build
    slices: list[tuple[int, Any]] = []
    numbers: list[tuple[int, Any]] = []
    arrays: list[tuple[int, list[str], int]] = []
    axis = 0
    for entry in entries:
        parts = _slice(node, entry)
        if parts is not None:
            if any(part is not None for part in parts):
                slices.append((axis, parts))
        elif _is_new_axis(entry):
            raise UnsupportedError(
                f"a new axis among arrays of indices in {described(node)}",
                operators=(type(node.op).__name__,),
                hint="index first, then dimshuffle",
            )
        elif _dtype(entry) == "bool":
            count = rank(entry)
            found = build.add("NonZero", emission.value(entry))
            rows = [
                build.add("Gather", found, build.constant(row, dtype="int64"), axis=0)
                for row in range(count)
            ]
            arrays.append((axis, rows, 1))
            axis += count
            continue
        elif _rank(entry):
            arrays.append((axis, [emission.as_type(entry, "int64")], _rank(entry)))
        else:
            numbers.append((axis, entry))
        axis += 1
    name = _sliced(emission, name, slices)
    if not arrays:
        for at, entry in reversed(numbers):
            name = build.add("Gather", name, _index(emission, entry), axis=at)
        return name
    # among arrays a number is an array of no axes
    arrays += [(at, [_index(emission, entry)], 0) for at, entry in numbers]
    arrays.sort(key=lambda one: one[0])
    return _gathered(emission, name, axes, arrays)


def _gathered(
    emission: Emission, name: str, axes: int, arrays: Sequence[tuple[int, list[str], int]]
) -> str:
    build = emission.build
    indexed = [at + row for at, rows, _ in arrays for row in range(len(rows))]
    names = [one for _, rows, _ in arrays for one in rows]
    size = max(own for _, _, own in arrays)
    if len(names) == 1:
        return build.add("Gather", name, names[0], axis=indexed[0])
    # all indices of one shape, then one row of coordinates for each element
    total = names[0]
    for one in names[1:]:
        total = build.add("Add", total, one)
    shape = build.add("Shape", total)
    last = build.shape_constant([size])
    columns = [build.add("Unsqueeze", build.add("Expand", one, shape), last) for one in names]
    places = build.add("Concat", *columns, axis=size)
    rest = [axis for axis in range(axes) if axis not in indexed]
    order = [*indexed, *rest]
    if order != sorted(order):
        name = build.add("Transpose", name, perm=order)
    made = build.add("GatherND", name, places)
    # numpy puts the new axes where the indexed ones were, if those were neighbours, else in front
    before = indexed[0] if indexed == list(range(indexed[0], indexed[0] + len(indexed))) else 0
    if before:
        after = list(range(size + before, size + len(rest)))
        perm = [*range(size, size + before), *range(size), *after]
        made = build.add("Transpose", made, perm=perm)
    return made


def _sliced(emission: Emission, name: str, slices: Sequence[tuple[int, Any]]) -> str:
    if not slices:
        return name
    build = emission.build
    begins, ends, steps = [], [], []
    for _, (start, stop, step) in slices:
        by = 1 if step is None else _number(emission, step)
        if by is None:
            raise UnsupportedError(
                "a slice whose step depends on an input",
                operators=("Subtensor",),
                hint="make the step a number",
            )
        steps.append(by)
        begins.append((0 if by > 0 else FURTHEST) if start is None else start)
        ends.append((FURTHEST if by > 0 else -FURTHEST) if stop is None else stop)
    return build.add(
        "Slice",
        name,
        _bounds(emission, begins),
        _bounds(emission, ends),
        build.shape_constant([axis for axis, _ in slices]),
        build.shape_constant(steps),
    )


def _bounds(emission: Emission, values: Sequence[Any]) -> str:
    known = [_number(emission, one) for one in values]
    build = emission.build
    if all(one is not None for one in known):
        return build.shape_constant([one for one in known if one is not None])
    parts = [
        build.shape_constant([number]) if number is not None else emission.as_vector(one)
        for one, number in zip(values, known, strict=True)
    ]
    return build.add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]


def _number(emission: Emission, value: Any) -> int | None:
    if not hasattr(value, "type"):
        return int(value)
    known = emission.known(value)
    return None if known is None else int(known)


def _index(emission: Emission, entry: Any) -> str:
    """Return a single index as an int64 scalar."""
    number = _number(emission, entry)
    if number is not None:
        return emission.build.constant(number, dtype="int64")
    empty = emission.build.constant([], dtype="int64")
    return emission.build.add("Reshape", emission.as_type(entry, "int64"), empty)


def _slice(node: Any, entry: Any) -> tuple[Any, Any, Any] | None:
    """Return start, stop and step where the entry is a slice, in whichever of its forms."""
    if isinstance(entry, slice):
        return entry.start, entry.stop, entry.step
    data = getattr(entry, "data", None)
    if isinstance(data, slice):
        return data.start, data.stop, data.step
    owner = getattr(entry, "owner", None)
    if owner is not None and type(owner.op).__name__ == "MakeSlice":
        start, stop, step = (None if _is_new_axis(one) else one for one in owner.inputs)
        return start, stop, step
    if hasattr(entry, "type") and type(entry.type).__name__ == "SliceType":
        raise UnsupportedError(
            f"a slice of unknown making in {described(node)}", operators=("Subtensor",)
        )
    return None


def _is_new_axis(entry: Any) -> bool:
    return entry is None or type(getattr(entry, "type", None)).__name__ == "NoneTypeT"


def _dtype(entry: Any) -> str:
    return str(getattr(getattr(entry, "type", None), "dtype", "int64"))


def _rank(entry: Any) -> int:
    return rank(entry) if hasattr(entry, "type") else 0


RULES = {
    "Subtensor": subtensor,
    "AdvancedSubtensor": advanced,
    "AdvancedSubtensor1": advanced_first,
    "IncSubtensor": set_part,
    "AdvancedIncSubtensor": set_part,
    "AdvancedIncSubtensor1": set_part,
}
