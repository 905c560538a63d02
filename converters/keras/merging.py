"""Layers of Keras that join several tensors, in ONNX."""

from __future__ import annotations

from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

ANY = (3, 4)
"""Since this Keras a step counts that counts in any input, and masked values do not take part."""


def _one_rank(context: Context, inputs: list[Value]) -> list[Value]:
    """Return `inputs` with as many axes each: those of a lower rank get axes of 1 after the batch."""
    rank = max(x.rank for x in inputs)
    found = []
    for x in inputs:
        missing = rank - x.rank
        name = x.name
        if missing:
            axes = context.build.shape_constant(range(1, 1 + missing))
            name = context.build.add("Unsqueeze", name, axes)
        found.append(Value(name, (x.shape[0], *[1] * missing, *x.shape[1:]), x.mask, x.dtype))
    return found


def _joined(operator: str) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        inputs = _one_rank(context, inputs)
        shape = tuple(
            next((size for size in sizes if size != 1), 1)
            for sizes in zip(*(x.shape for x in inputs), strict=True)
        )
        masked = any(x.mask for x in inputs) and context.release >= ANY
        if masked and operator in ("Mul", "Max", "Min"):
            return Value(_masked(context, layer, operator, inputs), shape)
        if operator in ("Max", "Min", "Mean", "Sum"):
            return Value(context.build.add(operator, *(x.name for x in inputs)), shape)
        name = inputs[0].name
        for other in inputs[1:]:
            name = context.build.add(operator, name, other.name)
        return Value(name, shape)

    return emit


def _masked(context: Context, layer: Layer, operator: str, inputs: list[Value]) -> str:
    """Join `inputs` of which some have masks, as Keras 3.4 and later do (`multiply.py`, `base_merge.py`).

    A factor that does not count is 1, and of two candidates one that does not count never wins.
    """
    build = context.build
    if any(x.mask and x.rank != 3 for x in inputs):
        raise UnsupportedError(
            f"layer `{layer.name}` joins masked tensors of other than 3 axes",
            operators=(f"{layer.kind}(mask)",),
        )
    masks = [
        build.add("Unsqueeze", x.mask, build.shape_constant([-1])) if x.mask else "" for x in inputs
    ]
    if operator == "Mul":
        one = build.constant(1.0)
        parts = [
            build.add("Where", mask, x.name, one) if mask else x.name
            for x, mask in zip(inputs, masks, strict=True)
        ]
        name = parts[0]
        for part in parts[1:]:
            name = build.add("Mul", name, part)
        if not all(masks):
            return name
        counts = masks[0]
        for mask in masks[1:]:
            counts = build.add("Or", counts, mask)
        return build.add("Where", counts, name, build.constant(0.0))
    name, counts = inputs[0].name, masks[0]
    for x, mask in zip(inputs[1:], masks[1:], strict=True):
        own = build.add("Where", mask, x.name, name) if mask else x.name
        name = build.add("Where", counts, name, own) if counts else name
        counts = build.add("Or", counts, mask) if counts and mask else ""
        name = build.add(operator, name, own)
    return name


def _concatenate(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    axis = int(layer.config.get("axis", -1)) % inputs[0].rank
    mask = _mask_of_parts(context, layer, axis, inputs)
    name = context.build.add("Concat", *(x.name for x in inputs), axis=axis)
    sizes = [x.shape[axis] for x in inputs]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    shape = inputs[0].shape
    return Value(name, (*shape[:axis], total, *shape[axis + 1 :]), mask)


def _mask_of_parts(context: Context, layer: Layer, axis: int, inputs: list[Value]) -> str:
    """Return the mask of a Concatenate (`compute_mask` in `concatenate.py`), empty where none.

    Along time the masks follow each other; along features a step counts that counts in all parts,
    since Keras 3.4 in any of them.
    """
    build = context.build
    if not any(x.mask for x in inputs):
        return ""
    if any(x.rank != 3 for x in inputs) or axis == 0:
        raise UnsupportedError(
            f"layer `{layer.name}` joins masked tensors of other than 3 axes",
            operators=("Concatenate(mask)",),
        )
    if axis == 1:
        masks = []
        for x in inputs:
            steps = build.add("Shape", x.name, start=0, end=2)
            every = build.add("Expand", build.constant(True), steps)
            masks.append(x.mask or every)
        return build.add("Concat", *masks, axis=1)
    is_any = context.release >= ANY
    masks = [x.mask for x in inputs if x.mask]
    if is_any and len(masks) < len(inputs):
        return ""  # a part without a mask counts everywhere
    joined = masks[0]
    for other in masks[1:]:
        joined = build.add("Or" if is_any else "And", joined, other)
    return joined


def _dot(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    """Sum products along an axis of each; all other axes of both remain, but for the batch."""
    build, config = context.build, layer.config
    axes = config.get("axes", config.get("dot_axes", -1))
    pair = [axes, axes] if isinstance(axes, int) else [int(one) for one in axes]
    names, rests = [], []
    for x, axis, letters in zip(inputs, pair, ("bcdef", "bghij"), strict=True):
        at = axis % x.rank
        if at == 0 or x.rank > len(letters):
            raise UnsupportedError(
                f"layer `{layer.name}` sums along the axis {axis} of {x.rank}", operators=("Dot",)
            )
        name = x.name
        if config.get("normalize"):
            square = build.add("Mul", name, name)
            total = build.add("ReduceSum", square, build.shape_constant([at]), keepdims=1)
            length = build.add("Sqrt", build.add("Max", total, build.constant(1e-12)))
            name = build.add("Div", name, length)
        names.append(name)
        own = letters[: x.rank]
        rests.append((own[:at] + "z" + own[at + 1 :], own[1:at] + own[at + 1 :]))
    (left, kept), (right, other) = rests
    name = build.add("Einsum", *names, equation=f"{left},{right}->b{kept}{other}")
    sizes = [
        size
        for x, axis in zip(inputs, pair, strict=True)
        for at, size in enumerate(x.shape)
        if at not in (0, axis % x.rank)
    ]
    if not sizes:
        name, sizes = build.add("Unsqueeze", name, build.shape_constant([1])), [1]
    return Value(name, (inputs[0].shape[0], *sizes))


EMIT: dict[str, Emit] = {
    "Add": _joined("Add"),
    "Subtract": _joined("Sub"),
    "Multiply": _joined("Mul"),
    "Maximum": _joined("Max"),
    "Minimum": _joined("Min"),
    "Average": _joined("Mean"),
    "Concatenate": _concatenate,
    "Dot": _dot,
}
