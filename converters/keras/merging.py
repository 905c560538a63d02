"""Layers of Keras that join several tensors, in ONNX."""

from __future__ import annotations

from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError


def _joined(operator: str) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        ranks = {x.rank for x in inputs}
        if len(ranks) != 1:
            raise UnsupportedError(
                f"layer `{layer.name}` joins tensors of ranks {sorted(ranks)}",
                operators=(layer.kind,),
            )
        shape = tuple(
            next((size for size in sizes if size != 1), 1)
            for sizes in zip(*(x.shape for x in inputs), strict=True)
        )
        if operator in ("Max", "Min", "Mean", "Sum"):
            return Value(context.build.add(operator, *(x.name for x in inputs)), shape)
        name = inputs[0].name
        for other in inputs[1:]:
            name = context.build.add(operator, name, other.name)
        return Value(name, shape)

    return emit


def _concatenate(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    axis = int(layer.config.get("axis", -1)) % inputs[0].rank
    name = context.build.add("Concat", *(x.name for x in inputs), axis=axis)
    sizes = [x.shape[axis] for x in inputs]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    shape = inputs[0].shape
    return Value(name, (*shape[:axis], total, *shape[axis + 1 :]))


def _dot(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    axes = layer.config.get("axes", layer.config.get("dot_axes", -1))
    a, b = inputs
    pair = [axes, axes] if isinstance(axes, int) else [int(one) for one in axes]
    first, second = pair[0] % a.rank, pair[1] % b.rank
    if a.rank != 2 or b.rank != 2 or first != 1 or second != 1 or layer.config.get("normalize"):
        raise UnsupportedError(
            f"layer `{layer.name}`: a Dot other than of two vectors is not supported",
            operators=("Dot",),
        )
    product = context.build.add("Mul", a.name, b.name)
    axis = context.build.shape_constant([1])
    return Value(context.build.add("ReduceSum", product, axis, keepdims=1), (a.shape[0], 1))


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
