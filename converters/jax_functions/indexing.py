"""Slices, gathers and scatters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.jax_functions.operators import refused

if TYPE_CHECKING:
    from converters.jax_functions.lowering import Emit, Lowering


def _slice(low: Lowering, equation: Any, names: list[str]) -> str:
    given, shape = equation.params, equation.invars[0].aval.shape
    steps = given["strides"] or (1,) * len(shape)
    axes = [
        axis
        for axis in range(len(shape))
        if not (given["start_indices"][axis] == 0 and given["limit_indices"][axis] == shape[axis])
        or steps[axis] != 1
    ]
    if not axes:
        return names[0]
    return low.build.add(
        "Slice",
        names[0],
        low.shape([given["start_indices"][axis] for axis in axes]),
        low.shape([given["limit_indices"][axis] for axis in axes]),
        low.build.shape_constant(axes),
        low.build.shape_constant([int(steps[axis]) for axis in axes]),
    )


def _start(low: Lowering, index: str, most: str) -> str:
    """Return a start as JAX takes it: moved so that the slice lies within the array. Shape [1]."""
    wide = low.reshaped(low.cast(index, "int64"), [1])
    zero = low.build.shape_constant([0])
    return low.build.add("Min", low.build.add("Max", wide, zero), most)


def _dynamic_slice(low: Lowering, equation: Any, names: list[str]) -> str:
    value, *starts = names
    shape, sizes = equation.invars[0].aval.shape, equation.params["slice_sizes"]
    axes = [axis for axis in range(len(shape)) if sizes[axis] != shape[axis]]
    if not axes:
        return value
    begins = [_start(low, starts[a], low.size(shape[a] - sizes[a])) for a in axes]
    begin = low.build.add("Concat", *begins, axis=0)
    end = low.build.add("Add", begin, low.shape([sizes[a] for a in axes]))
    return low.build.add("Slice", value, begin, end, low.build.shape_constant(axes))


def _dynamic_update(low: Lowering, equation: Any, names: list[str]) -> str:
    value, update, *starts = names
    shape, sizes = equation.invars[0].aval.shape, equation.invars[1].aval.shape
    axes = [axis for axis in range(len(shape)) if sizes[axis] != shape[axis]]
    if not axes:
        return update
    if len(axes) > 1:
        raise refused(equation, "an update that is smaller along several axes")
    (axis,) = axes
    vector = low.build.shape_constant
    begin = _start(low, starts[axis], low.size(shape[axis] - sizes[axis]))
    end = low.build.add("Add", begin, low.size(sizes[axis]))
    head = low.build.add("Slice", value, vector([0]), begin, vector([axis]))
    tail = low.build.add("Slice", value, end, low.size(shape[axis]), vector([axis]))
    return low.build.add("Concat", head, update, tail, axis=axis)


def _indices(
    low: Lowering, equation: Any, name: str, targets: list[int], front: list[int]
) -> tuple[str, list[int]]:
    """Return int64 indices with the axes `front` first, and the axes of the others, the last apart.

    Where JAX says so, they are moved into the array; elsewhere one outside is an error in ONNX.
    """
    from jax.lax import GatherScatterMode

    shape = equation.invars[1].aval.shape
    indices = low.cast(name, "int64")
    if equation.params["mode"] == GatherScatterMode.CLIP:
        sizes = equation.invars[0].aval.shape
        most = low.shape([sizes[axis] - 1 for axis in targets])
        zero = low.build.shape_constant([0])
        indices = low.build.add("Min", low.build.add("Max", indices, zero), most)
    others = [axis for axis in range(len(shape) - 1) if axis not in front]
    return low.transposed(indices, [*front, *others, len(shape) - 1]), others


def _one_slice(low: Lowering, equation: Any, names: list[str]) -> str:
    """Gather at a single place: what dynamic_slice becomes where a size is symbolic."""
    given = equation.params
    numbers = given["dimension_numbers"]
    shape, sizes = equation.invars[0].aval.shape, given["slice_sizes"]
    targets = list(numbers.start_index_map)
    if any(sizes[a] != shape[a] for a in range(len(shape)) if a not in targets):
        raise refused(equation, "a slice that is smaller than the array where it has no start")
    most = low.shape([shape[axis] - sizes[axis] for axis in targets])
    wide, zero = low.cast(names[1], "int64"), low.build.shape_constant([0])
    begin = low.build.add("Min", low.build.add("Max", wide, zero), most)
    end = low.build.add("Add", begin, low.shape([sizes[axis] for axis in targets]))
    found = low.build.add("Slice", names[0], begin, end, low.build.shape_constant(targets))
    gone = list(numbers.collapsed_slice_dims)
    return low.build.add("Squeeze", found, low.build.shape_constant(gone)) if gone else found


def _gather(low: Lowering, equation: Any, names: list[str]) -> str:
    given = equation.params
    numbers = given["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    batching = list(getattr(numbers, "operand_batching_dims", ()))
    front = list(getattr(numbers, "start_indices_batching_dims", ()))
    targets = list(numbers.start_index_map)
    collapsed = list(numbers.collapsed_slice_dims)
    rest = [axis for axis in range(len(shape)) if axis not in (*batching, *collapsed)]
    if len(equation.invars[1].aval.shape) == 1:
        return _one_slice(low, equation, names)
    if sorted(targets) != sorted(collapsed) or any(
        given["slice_sizes"][axis] != shape[axis] for axis in rest
    ):
        raise refused(equation, "several slices that start at computed places")
    value = low.transposed(names[0], [*batching, *targets, *rest])
    indices, others = _indices(low, equation, names[1], targets, front)
    if len(targets) == 1 and not batching:
        last = low.build.shape_constant([-1])
        found = low.build.add("Gather", value, low.build.add("Squeeze", indices, last), axis=0)
    else:
        found = low.build.add("GatherND", value, indices, batch_dims=len(batching))
    # now: batch axes of the indices (`front`, then `others`), then what is left of the array
    places = {axis: at for at, axis in enumerate([*front, *others])}
    batch = iter(sorted(places))
    offset = iter(range(len(places), len(places) + len(rest)))
    rank = len(places) + len(rest)
    order = [
        next(offset) if axis in numbers.offset_dims else places[next(batch)] for axis in range(rank)
    ]
    return low.transposed(found, order)


def _scatter(reduction: str | None) -> Emit:
    def emit(low: Lowering, equation: Any, names: list[str]) -> str:
        numbers = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        targets = list(numbers.scatter_dims_to_operand_dims)
        inserted = list(numbers.inserted_window_dims)
        rest = [axis for axis in range(len(shape)) if axis not in inserted]
        update_shape = equation.invars[2].aval.shape
        window = list(numbers.update_window_dims)
        if (
            getattr(numbers, "operand_batching_dims", ())
            or sorted(targets) != sorted(inserted)
            or any(update_shape[at] != shape[axis] for at, axis in zip(window, rest, strict=True))
        ):
            raise refused(equation, "windows that start at computed places")
        order = [*targets, *rest]
        value = low.transposed(names[0], order)
        indices, _ = _indices(low, equation, names[1], targets, [])
        batch = [axis for axis in range(len(update_shape)) if axis not in window]
        updates = low.transposed(names[2], [*batch, *window])
        found = low.build.add("ScatterND", value, indices, updates, reduction=reduction)
        return low.transposed(found, [order.index(axis) for axis in range(len(order))])

    return emit


EMIT: dict[str, Emit] = {
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "gather": _gather,
    "scatter": _scatter(None),
    "scatter-add": _scatter("add"),
    "scatter_add": _scatter("add"),
    "scatter-mul": _scatter("mul"),
    "scatter_mul": _scatter("mul"),
}
