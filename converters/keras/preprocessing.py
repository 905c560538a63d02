"""Layers of Keras that prepare inputs, in ONNX: sizes of pictures, and categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.convolutions import is_first
from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

INTERPOLATIONS: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    "bilinear": {"mode": "linear"},
}
"""What `tf.image.resize` computes, with half-pixel centres."""


def resized(context: Context, x: Value, axes: tuple[int, int], to: list[int], how: str) -> Value:
    """Append a resize of the `axes` of `x`, which has 4, `to` other sizes.

    TensorFlow looks the cubic's shares up in a table of 1024 steps, so that takes matrices.
    """
    build, sizes = context.build, list(x.shape)
    sizes[axes[0]], sizes[axes[1]] = to
    if how == "bicubic":
        name = x.name
        for axis, wanted in zip(axes, to, strict=True):
            size = x.shape[axis]
            if size is None:
                raise UnsupportedError(
                    "a bicubic resize of an unknown size is not supported",
                    operators=("bicubic",),
                    hint="give the sizes of the input with `--input`",
                )
            letters = "bhwc"
            to_letters = letters.replace(letters[axis], "z")
            matrix = build.constant(_cubic(size, wanted))
            equation = f"z{letters[axis]},{letters}->{to_letters}"
            name = build.add("Einsum", matrix, name, equation=equation)
        return Value(name, tuple(sizes))
    target = build.shape_constant([size or 0 for size in sizes[1:]])
    whole = build.add("Concat", build.add("Shape", x.name, start=0, end=1), target, axis=0)
    mode: dict[str, Any] = INTERPOLATIONS[how]
    name = build.add(
        "Resize", x.name, "", "", whole, coordinate_transformation_mode="half_pixel", **mode
    )
    return Value(name, tuple(sizes))


def _cubic(size: int, wanted: int) -> Array:
    """Return the shares [wanted, size] of TensorFlow's bicubic (`resize_bicubic_op.cc`)."""
    import numpy as np

    places = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    first = np.floor(places).astype(int)
    steps = np.rint((places - first) * 1024) / 1024
    distance = np.stack([1 + steps, steps, 1 - steps, 2 - steps], axis=1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    shares = np.where(distance <= 1, near, far)
    taps = first[:, None] + np.arange(-1, 3)
    shares = np.where((taps >= 0) & (taps < size), shares, 0.0)
    found = np.zeros((wanted, size))
    np.add.at(found, (np.arange(wanted)[:, None], taps.clip(0, size - 1)), shares)
    return (found / found.sum(axis=1, keepdims=True)).astype(np.float32)


def _space(layer: Layer) -> tuple[int, int]:
    return (2, 3) if is_first(layer) else (1, 2)


def _resizing(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    x, config = _floating(context, inputs[0]), layer.config
    how = str(config.get("interpolation", "bilinear")).lower()
    more = ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")
    asked = [one for one in more if config.get(one)]
    axes = _space(layer)
    channels = [size for axis, size in enumerate(x.shape) if axis not in (0, *axes)]
    if how not in (*INTERPOLATIONS, "bicubic") or asked or x.rank != 4 or None in channels:
        raise UnsupportedError(
            f"layer `{layer.name}` resizes in a way that is not supported: "
            f"{', '.join([how, *asked])}",
            operators=("Resizing",),
        )
    return resized(context, x, axes, [int(config["height"]), int(config["width"])], how)


def _floating(context: Context, x: Value) -> Value:
    if x.dtype.startswith("float"):
        return x
    return Value(context.build.add("Cast", x.name, to=1), x.shape)


def _center_crop(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, _floating(context, inputs[0])
    axes, starts, ends, shape = _space(layer), [], [], list(x.shape)
    for axis, key in zip(axes, ("height", "width"), strict=True):
        size, wanted = x.shape[axis] if x.rank == 4 else None, int(layer.config[key])
        if size is None or size < wanted:
            raise UnsupportedError(
                f"layer `{layer.name}` crops {wanted} of {size or 'an unknown size'}, for which "
                "Keras resizes; that is not supported",
                operators=("CenterCrop",),
                hint="give the sizes of the input with `--input`",
            )
        starts.append((size - wanted) // 2)
        ends.append((size - wanted) // 2 + wanted)
        shape[axis] = wanted
    lists = (build.shape_constant(part) for part in (starts, ends, list(axes)))
    return Value(build.add("Slice", x.name, *lists), tuple(shape))


def _encoded(context: Context, layer: Layer, x: Value, count: int) -> Value:
    """Return categories `x` as rows of `count`, by the `output_mode` of `layer`."""
    build, config = context.build, layer.config
    mode = config.get("output_mode", "multi_hot")
    if mode not in ("one_hot", "multi_hot", "count") or config.get("sparse") or x.rank > 2:
        raise UnsupportedError(
            f"layer `{layer.name}` encodes {x.rank} axes as `{mode}`", operators=(layer.kind,)
        )
    index = build.add("Cast", x.name, to=7)
    if mode == "one_hot" and x.rank == 2 and x.shape[1] == 1:
        index = build.add("Squeeze", index, build.shape_constant([1]))
        x = Value(index, x.shape[:1])
    wide = build.add("Unsqueeze", index, build.shape_constant([-1]))
    same = build.add("Equal", wide, build.shape_constant(range(count)))
    rows = build.add("Cast", same, to=1)
    if mode == "one_hot" or x.rank == 1:
        return Value(rows, (*x.shape, count))
    if mode == "count":
        found = build.add("ReduceSum", rows, build.shape_constant([1]), keepdims=0)
    else:
        found = build.add("ReduceMax", rows, axes=[1], keepdims=0)
    return Value(found, (x.shape[0], count))


def _category(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    return _encoded(context, layer, inputs[0], int(layer.config["num_tokens"]))


def _discretised(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x, config = context.build, inputs[0], layer.config
    boundaries = config.get("bin_boundaries")
    if not isinstance(boundaries, list) or not boundaries:
        raise UnsupportedError(
            f"layer `{layer.name}` has no boundaries in its configuration",
            operators=("Discretization",),
            hint="call its `adapt` before the model is saved",
        )
    wide = build.add("Unsqueeze", x.name, build.shape_constant([-1]))
    above = build.add("GreaterOrEqual", wide, build.constant(boundaries, dtype="float32"))
    counted = build.add("Cast", above, to=7)
    name = build.add("ReduceSum", counted, build.shape_constant([-1]), keepdims=0)
    dtype = "int32" if context.version >= 3 else "int64"
    found = Value(build.add("Cast", name, to=6 if dtype == "int32" else 7), x.shape, dtype=dtype)
    if config.get("output_mode", "int") == "int":
        return found
    return _encoded(context, layer, found, len(boundaries) + 1)


EMIT: dict[str, Emit] = {
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
    "CategoryEncoding": _category,
    "Discretization": _discretised,
}
