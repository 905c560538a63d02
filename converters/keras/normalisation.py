"""Normalising layers of Keras in ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def axes_of(layer: Layer, x: Value) -> list[int]:
    """Return the axes that `layer` names, counted from 0 and in their order in the tensor."""
    axis = layer.config.get("axis", -1)
    return sorted(int(one) % x.rank for one in (axis if isinstance(axis, list) else [axis]))


def _along(values: Array, rank: int, axis: int) -> Array:
    """Return `values` of one axis so that they broadcast over tensors of `rank`."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _batch_normalisation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    import numpy as np

    build, x = context.build, inputs[0]
    config, weights = layer.config, layer.weights
    if config.get("mode", 0) == 1:
        raise UnsupportedError(
            f"layer `{layer.name}` normalises each sample (mode 1)",
            operators=("BatchNormalization",),
        )
    axis = config.get("axis", -1)
    axis = int(axis[0] if isinstance(axis, list) else axis) % x.rank
    if config.get("mode", 0) == 2:
        axis = x.rank - 1
    # in float64, so that folding the four costs no accuracy
    scale = 1 / np.sqrt(weights["variance"].astype(np.float64) + float(config.get("epsilon", 1e-3)))
    scale = scale * weights["gamma"] if "gamma" in weights else scale
    shift = -weights["mean"].astype(np.float64) * scale
    shift = shift + weights["beta"] if "beta" in weights else shift
    dtype = weights["mean"].dtype
    factor = build.constant(_along(scale, x.rank, axis).astype(dtype))
    term = build.constant(_along(shift, x.rank, axis).astype(dtype))
    return Value(build.add("Add", build.add("Mul", x.name, factor), term), x.shape)


def _over(values: Array, x: Value, axes: list[int]) -> Array:
    """Return `values`, which lie along `axes`, so that they broadcast over `x`."""
    sizes = iter(values.shape)
    return values.reshape([next(sizes) if axis in axes else 1 for axis in range(x.rank)])


def _layer_normalisation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    import numpy as np

    build, x = context.build, inputs[0]
    axes = axes_of(layer, x)
    epsilon = float(layer.config.get("epsilon", 1e-3))
    gamma, beta = layer.weights.get("gamma"), layer.weights.get("beta")
    if axes == [x.rank - 1] and not layer.config.get("rms_scaling"):
        size = next(iter(layer.weights.values())).shape if layer.weights else (x.shape[-1],)
        scale = np.ones(size, np.float32) if gamma is None else gamma
        shift = np.zeros(size, np.float32) if beta is None else beta
        more = {"axis": -1, "epsilon": epsilon}
        name = build.add(
            "LayerNormalization", x.name, build.constant(scale), build.constant(shift), **more
        )
        return Value(name, x.shape)
    mean = build.add("ReduceMean", x.name, axes=axes, keepdims=1)
    centred = build.add("Sub", x.name, mean)
    variance = build.add("ReduceMean", build.add("Mul", centred, centred), axes=axes, keepdims=1)
    deviation = build.add("Sqrt", build.add("Add", variance, build.constant(epsilon)))
    if layer.config.get("rms_scaling"):
        # the variance scales, and neither the mean nor `beta` takes part
        name, beta = build.add("Div", x.name, deviation), None
    else:
        name = build.add("Div", centred, deviation)
    if gamma is not None:
        name = build.add("Mul", name, build.constant(_over(gamma, x, axes)))
    if beta is not None:
        name = build.add("Add", name, build.constant(_over(beta, x, axes)))
    return Value(name, x.shape)


def _root_mean_square(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    axes = axes_of(layer, x)
    square = build.add("ReduceMean", build.add("Mul", x.name, x.name), axes=axes, keepdims=1)
    epsilon = build.constant(float(layer.config.get("epsilon", 1e-6)))
    name = build.add("Div", x.name, build.add("Sqrt", build.add("Add", square, epsilon)))
    scale = build.constant(_over(layer.weights["scale"], x, axes))
    return Value(build.add("Mul", name, scale), x.shape)


def _group_normalisation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    axis = layer.config.get("axis", -1)
    axis = x.rank - 1 if axis == -1 else axis
    channels = x.shape[axis] if isinstance(axis, int) and 0 < axis < x.rank else None
    if channels is None or (x.mask and context.version < 3):
        raise UnsupportedError(
            f"layer `{layer.name}` normalises groups along the axis {axis}, of unknown size or "
            "with masked steps, which is not supported",
            operators=(layer.kind,),
        )
    groups = int(layer.config.get("groups", 32))
    groups = channels if groups == -1 else groups
    # the channels come first, then one group is one row
    order = [0, axis, *(one for one in range(1, x.rank) if one != axis)]
    turned = build.add("Transpose", x.name, perm=order)
    rows = build.add("Reshape", turned, build.shape_constant([0, groups, -1]))
    mean = build.add("ReduceMean", rows, axes=[2], keepdims=1)
    centred = build.add("Sub", rows, mean)
    variance = build.add("ReduceMean", build.add("Mul", centred, centred), axes=[2], keepdims=1)
    epsilon = build.constant(float(layer.config.get("epsilon", 1e-3)))
    name = build.add("Div", centred, build.add("Sqrt", build.add("Add", variance, epsilon)))
    name = build.add("Reshape", name, build.add("Shape", turned))
    name = build.add("Transpose", name, perm=[order.index(one) for one in range(x.rank)])
    for operator, weight in (("Mul", "gamma"), ("Add", "beta")):
        if weight in layer.weights:
            along = _along(layer.weights[weight], x.rank, axis)
            name = build.add(operator, name, build.constant(along))
    return Value(name, x.shape)


def _unit_normalisation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    axes = build.shape_constant(axes_of(layer, x))
    total = build.add("ReduceSum", build.add("Mul", x.name, x.name), axes, keepdims=1)
    # float32 of 1e-12 (`l2_normalize` of TensorFlow, and Keras 3 after it)
    length = build.add("Sqrt", build.add("Max", total, build.constant(1e-12)))
    return Value(build.add("Div", x.name, length), x.shape)


def _normalisation(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    import numpy as np

    build, x, config = context.build, inputs[0], layer.config
    mean = layer.weights.get("mean", config.get("mean"))
    variance = layer.weights.get("variance", config.get("variance"))
    axes = [] if config.get("axis", -1) is None else axes_of(layer, x)
    sizes = [x.shape[axis] for axis in axes]
    if mean is None or variance is None or None in sizes:
        raise UnsupportedError(
            f"layer `{layer.name}` has no mean and variance, or axes of unknown size",
            operators=("Normalization",),
            hint="call its `adapt` before the model is saved",
        )

    def along(values: Any) -> Array:
        full = np.broadcast_to(np.asarray(values, np.float32), sizes)
        return _over(full, x, axes)

    deviation = build.constant(np.maximum(np.sqrt(along(variance)), np.float32(1e-7)))
    centre = build.constant(along(mean))
    if config.get("invert"):
        return Value(build.add("Add", build.add("Mul", x.name, deviation), centre), x.shape)
    return Value(build.add("Div", build.add("Sub", x.name, centre), deviation), x.shape)


def _rescaling(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    import numpy as np

    build, x = context.build, inputs[0]
    scale = np.asarray(layer.config.get("scale", 1.0), np.float32)
    offset = np.asarray(layer.config.get("offset", 0.0), np.float32)
    name = build.add("Mul", x.name, build.constant(scale))
    return Value(build.add("Add", name, build.constant(offset)), x.shape)


def _layer_scale(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    scale = context.build.constant(layer.weights["gamma"])
    return Value(context.build.add("Mul", inputs[0].name, scale), inputs[0].shape)


EMIT: dict[str, Emit] = {
    "BatchNormalization": _batch_normalisation,
    "LayerNormalization": _layer_normalisation,
    "GroupNormalization": _group_normalisation,
    "RMSNormalization": _root_mean_square,
    "UnitNormalization": _unit_normalisation,
    "Normalization": _normalisation,
    "Rescaling": _rescaling,
    "LayerScale": _layer_scale,
}
