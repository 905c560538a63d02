"""Keras layers that compute element by element, look up, or change shapes, in ONNX."""

from __future__ import annotations

import math
import re
import string
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import preprocessing
from deploykit._plugins.converters.keras.convolutions import is_first, spread
from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _dense(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    kernel = layer.weights["kernel"]
    name = build.add("MatMul", x.name, build.constant(kernel))
    if "bias" in layer.weights:
        name = build.add("Add", name, build.constant(layer.weights["bias"]))
    return context.activated(layer, Value(name, (*x.shape[:-1], kernel.shape[1])))


def _by_equation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    """Emit an EinsumDense; the axes that `...` stands for follow from the rank of the input."""
    build, x, kernel = context.build, inputs[0], layer.weights["kernel"]
    equation = str(layer.config["equation"]).replace(" ", "")
    terms = re.fullmatch(r"((?:[a-zA-Z]|\.\.\.)+),([a-zA-Z]+)->((?:[a-zA-Z]|\.\.\.)+)", equation)
    if terms is None:
        raise UnsupportedError(
            f"layer `{layer.name}` has the equation `{equation}`", operators=("EinsumDense",)
        )
    left, right, out = terms.groups()
    free = iter(letter for letter in string.ascii_letters if letter not in equation)
    more = "".join(next(free) for _ in range(x.rank - len(left.replace("...", ""))))
    left, out = left.replace("...", more), out.replace("...", more)
    sizes = dict(zip(left, x.shape, strict=True)) | dict(zip(right, kernel.shape, strict=True))
    name = build.add("Einsum", x.name, build.constant(kernel), equation=f"{left},{right}->{out}")
    if "bias" in layer.weights:
        name = build.add("Add", name, build.constant(layer.weights["bias"]))
    return context.activated(layer, Value(name, tuple(sizes[letter] for letter in out)))


def _activation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    return context.activated(layer, inputs[0])


def _flatten(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    name = x.name
    # since Keras 2.2 the layer knows its layout, and gives the order of channels last
    if is_first(layer) and x.rank > 2:
        name = build.add("Transpose", name, perm=[0, *range(2, x.rank), 1])
    inner = x.shape[1:]
    total = None if None in inner else math.prod(size for size in inner if size is not None)
    return Value(build.add("Flatten", name, axis=1), (x.shape[0], total))


def _reshape(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    x = inputs[0]
    target = [int(size) for size in layer.config["target_shape"]]
    inner = x.shape[1:]
    sizes: list[int | None] = [None if size == -1 else size for size in target]
    if -1 in target and None not in inner:
        total = math.prod(size for size in inner if size is not None)
        known = math.prod(size for size in target if size != -1)
        sizes = [total // max(known, 1) if size is None else size for size in sizes]
    # a zero keeps the batch; the unknown one, if any, is among the rest
    name = context.build.add("Reshape", x.name, context.build.shape_constant([0, *target]))
    return Value(name, (x.shape[0], *sizes))


def _permute(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    x = inputs[0]
    order = [0, *(int(axis) for axis in layer.config["dims"])]
    name = context.build.add("Transpose", x.name, perm=order)
    return Value(name, tuple(x.shape[axis] for axis in order))


def _repeat(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    count = int(layer.config["n"])
    name = build.add("Unsqueeze", x.name, build.shape_constant([1]))
    name = build.add("Tile", name, build.shape_constant([1, count, 1]))
    return Value(name, (x.shape[0], count, x.shape[1]))


def _pairs(value: Any, rank: int) -> list[tuple[int, int]]:
    """Return the padding or cropping of each axis: one number, one for each, or a pair for each."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, int):
        return [(value, value)] * rank
    if rank == 1 and len(value) == 2 and isinstance(value[0], int):
        return [(int(value[0]), int(value[1]))]
    if rank == 2 and len(value) == 4:  # Keras 1: top, bottom, left, right
        return [(int(value[0]), int(value[1])), (int(value[2]), int(value[3]))]
    return [
        (int(one), int(one)) if isinstance(one, int) else (int(one[0]), int(one[1]))
        for one in value
    ]


def _space(layer: Layer, x: Value) -> range:
    return range(2, x.rank) if is_first(layer) else range(1, x.rank - 1)


def _zero_padding(rank: int) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        x = inputs[0]
        before, after, shape = [0] * x.rank, [0] * x.rank, list(x.shape)
        space = range(1, 2) if rank == 1 else _space(layer, x)
        for axis, (a, b) in zip(space, _pairs(layer.config["padding"], rank), strict=True):
            before[axis], after[axis] = a, b
            size = shape[axis]
            shape[axis] = None if size is None else size + a + b
        pads = context.build.shape_constant([*before, *after])
        return Value(context.build.add("Pad", x.name, pads), tuple(shape))

    return emit


def _cropping(rank: int) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        build, x = context.build, inputs[0]
        shape = list(x.shape)
        space = range(1, 2) if rank == 1 else _space(layer, x)
        pairs = _pairs(layer.config["cropping"], rank)
        for axis, (a, b) in zip(space, pairs, strict=True):
            size = shape[axis]
            shape[axis] = None if size is None else size - a - b
        starts = build.shape_constant([a for a, _ in pairs])
        ends = build.shape_constant([-b if b else 2**31 - 1 for _, b in pairs])
        name = build.add("Slice", x.name, starts, ends, build.shape_constant(list(space)))
        return Value(name, tuple(shape))

    return emit


def _upsampling(rank: int) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        build, x = context.build, inputs[0]
        how = layer.config.get("interpolation", "nearest")
        space = range(1, 2) if rank == 1 else _space(layer, x)
        sizes = spread(layer.config.get("size", 2), rank)
        if how not in ("nearest", "bilinear", "bicubic") or (
            how != "nearest" and context.version < 2
        ):
            raise UnsupportedError(
                f"layer `{layer.name}` interpolates in a way called `{how}`",
                operators=(layer.kind,),
            )
        scales, shape = [1.0] * x.rank, list(x.shape)
        for axis, factor in zip(space, sizes, strict=True):
            scales[axis] = float(factor)
            size = shape[axis]
            shape[axis] = None if size is None else size * factor
        if how == "bicubic":
            known = [shape[axis] or 0 for axis in space]
            return preprocessing.resized(context, x, (space[0], space[1]), known, how)
        nearest = how == "nearest"
        name = build.add(
            "Resize",
            x.name,
            "",
            build.constant(scales, dtype="float32"),
            mode="nearest" if nearest else "linear",
            coordinate_transformation_mode="asymmetric" if nearest else "half_pixel",
            nearest_mode="floor" if nearest else None,
        )
        return Value(name, tuple(shape))

    return emit


def _embedding(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    table = layer.weights["table"]
    index = build.add("Cast", x.name, to=6)  # int32, as all backends cast
    name = build.add("Gather", build.constant(table), index, axis=0)
    mask = ""
    if layer.config.get("mask_zero"):
        mask = build.add("Not", build.add("Equal", index, build.constant(0, dtype="int32")))
    return Value(name, (*x.shape, table.shape[1]), mask)


def _leaky(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    slope = layer.config.get("alpha", layer.config.get("negative_slope", 0.3))
    return Value(
        context.build.add("LeakyRelu", inputs[0].name, alpha=float(slope)), inputs[0].shape
    )


def _elu(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    alpha = float(layer.config.get("alpha", 1.0))
    return Value(context.build.add("Elu", inputs[0].name, alpha=alpha), inputs[0].shape)


def _thresholded(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    theta = float(layer.config.get("theta", 1.0))
    return Value(context.build.add("ThresholdedRelu", inputs[0].name, alpha=theta), inputs[0].shape)


def _prelu(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    slope = context.build.constant(layer.weights["alpha"])
    return Value(context.build.add("PRelu", inputs[0].name, slope), inputs[0].shape)


def _relu(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x, config = context.build, inputs[0], layer.config
    slope = float(config.get("negative_slope") or 0)
    largest, threshold = config.get("max_value"), float(config.get("threshold") or 0)
    if threshold:
        bound = build.constant(threshold)
        below = build.add("Mul", build.add("Sub", x.name, bound), build.constant(slope))
        above = build.add("GreaterOrEqual", x.name, bound)
        name = build.add("Where", above, x.name, below)
    else:
        name = build.add("LeakyRelu", x.name, alpha=slope) if slope else build.add("Relu", x.name)
    if largest is not None:
        name = build.add("Min", name, build.constant(float(largest)))
    return Value(name, x.shape)


def _softmax(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x, axis = context.build, inputs[0], layer.config.get("axis", -1)
    axes = [int(one) for one in (axis if isinstance(axis, list) else [axis])]
    if len(axes) == 1:
        return Value(build.add("Softmax", x.name, axis=axes[0]), x.shape)
    largest = build.add("ReduceMax", x.name, axes=axes, keepdims=1)
    powers = build.add("Exp", build.add("Sub", x.name, largest))
    total = build.add("ReduceSum", powers, build.shape_constant(axes), keepdims=1)
    return Value(build.add("Div", powers, total), x.shape)


EMIT: dict[str, Emit] = {
    "Dense": _dense,
    "TimeDistributedDense": _dense,
    "EinsumDense": _by_equation,
    "Activation": _activation,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat,
    **{f"ZeroPadding{rank}D": _zero_padding(rank) for rank in (1, 2, 3)},
    **{f"Cropping{rank}D": _cropping(rank) for rank in (1, 2, 3)},
    **{f"UpSampling{rank}D": _upsampling(rank) for rank in (1, 2, 3)},
    "Embedding": _embedding,
    "LeakyReLU": _leaky,
    "ELU": _elu,
    "ThresholdedReLU": _thresholded,
    "PReLU": _prelu,
    "ReLU": _relu,
    "Softmax": _softmax,
}
