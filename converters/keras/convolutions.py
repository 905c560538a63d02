"""Convolutions and pooling of Keras in ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import backends, masking
from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def spread(value: Any, rank: int) -> list[int]:
    """Return a setting of one number or one for each axis as a list."""
    if isinstance(value, (list, tuple)):
        return [int(one) for one in value]
    return [int(value)] * rank


def is_first(layer: Layer) -> bool:
    """Whether the channels come before space."""
    return bool(layer.config.get("data_format") == "channels_first")


def to_first(context: Context, x: Value, first: bool) -> Value:
    """Return `x` with channels before space."""
    if first:
        return x
    order = [0, x.rank - 1, *range(1, x.rank - 1)]
    name = context.build.add("Transpose", x.name, perm=order)
    return Value(name, tuple(x.shape[axis] for axis in order))


def from_first(context: Context, x: Value, first: bool) -> Value:
    """Undo `to_first`."""
    if first:
        return x
    order = [0, *range(2, x.rank), 1]
    name = context.build.add("Transpose", x.name, perm=order)
    return Value(name, tuple(x.shape[axis] for axis in order))


def kernel_first(kernel: Array, backend: str, rank: int) -> Array:
    """Return a kernel [*space, inputs, outputs] as [outputs, inputs, *space], rotated for Theano."""
    import numpy as np

    if backend == "theano":
        kernel = np.flip(kernel, axis=tuple(range(rank)))
    return np.ascontiguousarray(np.moveaxis(kernel, (rank + 1, rank), (0, 1)))


def _window(
    context: Context,
    layer: Layer,
    x: Value,
    kernel: Sequence[int],
    *,
    pooling: bool,
    padding: str | None = None,
    dilations: Sequence[int] | None = None,
) -> tuple[dict[str, Any], tuple[int | None, ...]]:
    """Return ONNX's attributes of a window over `x` (channels first), and the sizes that come out."""
    rank = len(kernel)
    strides = spread(layer.config.get("strides") or (kernel if pooling else 1), rank)
    dilations = list(dilations or [1] * rank)
    padding = padding or str(layer.config.get("padding", "valid"))
    found = backends.pads(
        context.backend,
        padding,
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        sizes=x.shape[2:],
        pooling=pooling,
        layer=layer.name,
    )
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": strides}
    if any(one != 1 for one in dilations):
        attributes["dilations"] = dilations
    sizes: list[int | None] = []
    if found is None:
        attributes["auto_pad"] = "SAME_UPPER"
    elif any(pair != (0, 0) for pair in found):
        attributes["pads"] = [a for a, _ in found] + [b for _, b in found]
    for axis, size in enumerate(x.shape[2:]):
        if size is None:
            sizes.append(None)
        elif found is None:
            sizes.append(-(-size // strides[axis]))
        else:
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            sizes.append((size + sum(found[axis]) - reach) // strides[axis] + 1)
    return attributes, tuple(sizes)


def _convolution(rank: int) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        build, first = context.build, is_first(layer)
        x = to_first(context, inputs[0], first)
        kernel = kernel_first(layer.weights["kernel"], context.backend, rank)
        dilations = spread(layer.config.get("dilation_rate", 1), rank)
        attributes, sizes = _window(
            context, layer, x, kernel.shape[2:], pooling=False, dilations=dilations
        )
        groups = int(layer.config.get("groups", 1))
        bias = build.constant(layer.weights["bias"]) if "bias" in layer.weights else ""
        name = build.add(
            "Conv",
            x.name,
            build.constant(kernel),
            bias,
            group=groups if groups > 1 else None,
            **attributes,
        )
        found = Value(name, (x.shape[0], kernel.shape[0], *sizes))
        return context.activated(layer, from_first(context, found, first))

    return emit


def _depthwise_kernel(kernel: Array, backend: str, rank: int) -> Array:
    """Return [*space, inputs, multiplier] as [inputs * multiplier, 1, *space]."""
    import numpy as np

    if backend == "theano":
        kernel = np.flip(kernel, axis=tuple(range(rank)))
    moved = np.moveaxis(kernel, (rank, rank + 1), (0, 1))
    return np.ascontiguousarray(moved.reshape(-1, 1, *kernel.shape[:rank]))


def _separable(rank: int, *, pointwise: bool) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        build, first = context.build, is_first(layer)
        x = to_first(context, inputs[0], first)
        own = layer.weights.get("depthwise", layer.weights.get("kernel"))
        assert own is not None
        if context.backend == "theano" and own.shape[-1] != 1:
            raise UnsupportedError(
                f"layer `{layer.name}`: Theano orders the channels of a depth multiplier "
                "in a way that depends on its version",
                operators=(layer.kind,),
            )
        kernel = _depthwise_kernel(own, context.backend, rank)
        dilations = spread(layer.config.get("dilation_rate", 1), rank)
        attributes, sizes = _window(
            context, layer, x, kernel.shape[2:], pooling=False, dilations=dilations
        )
        bias = build.constant(layer.weights["bias"]) if "bias" in layer.weights else ""
        name = build.add(
            "Conv",
            x.name,
            build.constant(kernel),
            "" if pointwise else bias,
            group=own.shape[rank],
            **attributes,
        )
        channels = kernel.shape[0]
        if pointwise:
            point = kernel_first(layer.weights["pointwise"], context.backend, rank)
            channels = point.shape[0]
            name = build.add("Conv", name, build.constant(point), bias, kernel_shape=[1] * rank)
        found = Value(name, (x.shape[0], channels, *sizes))
        return context.activated(layer, from_first(context, found, first))

    return emit


def _transposed(rank: int) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        import numpy as np

        build, first = context.build, is_first(layer)
        config = layer.config
        x = to_first(context, inputs[0], first)
        kernel = layer.weights["kernel"]
        if context.backend != "tensorflow" or "output_shape" in config:
            raise UnsupportedError(
                f"layer `{layer.name}`: a transposed convolution of {context.backend} is not supported",
                operators=(layer.kind,),
            )
        strides = spread(config.get("strides", 1), rank)
        dilations = spread(config.get("dilation_rate", 1), rank)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:rank], dilations, strict=True)]
        extra = config.get("output_padding")
        begin, end, sizes = [], [], []
        for axis, (one, stride) in enumerate(zip(reach, strides, strict=True)):
            # `conv_utils.deconv_output_length` of Keras 2: how long, and what is cut off where
            size = x.shape[2 + axis]
            if extra is not None:
                # TensorFlow pads as the convolution back from that length would be padded
                longer = spread(extra, rank)[axis]
                cut = (2 * (one // 2) if config["padding"] == "same" else 0) - longer
                begin.append(max(cut, 0) // 2)
                end.append(cut - max(cut, 0) // 2)
                grown = None if size is None else (size - 1) * stride + one - cut
            elif config["padding"] == "same":
                cut = one - stride
                begin.append(max(cut, 0) // 2)
                end.append(cut - max(cut, 0) // 2)
                grown = None if size is None else size * stride
            else:
                begin.append(0)
                end.append(min(one - stride, 0))
                grown = None if size is None else size * stride + max(one - stride, 0)
            sizes.append(grown)
        weight = np.ascontiguousarray(np.moveaxis(kernel, (rank + 1, rank), (0, 1)))
        name = build.add(
            "ConvTranspose",
            x.name,
            build.constant(weight),
            build.constant(layer.weights["bias"]) if "bias" in layer.weights else "",
            kernel_shape=list(kernel.shape[:rank]),
            strides=strides,
            dilations=dilations if any(one != 1 for one in dilations) else None,
            pads=[*begin, *(max(one, 0) for one in end)],
            output_padding=[max(-one, 0) for one in end],
        )
        found = Value(name, (x.shape[0], weight.shape[1], *sizes))
        return context.activated(layer, from_first(context, found, first))

    return emit


def _pooling(rank: int, operator: str) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        first = is_first(layer)
        x = to_first(context, inputs[0], first)
        kernel = spread(layer.config.get("pool_size", 2), rank)
        attributes, sizes = _window(context, layer, x, kernel, pooling=True)
        name = context.build.add(operator, x.name, **attributes)
        return from_first(context, Value(name, (*x.shape[:2], *sizes)), first)

    return emit


def _global_pooling(operator: str) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        x = inputs[0]
        axes = list(range(2, x.rank)) if is_first(layer) else list(range(1, x.rank - 1))
        keep = bool(layer.config.get("keepdims"))
        if x.mask and operator == "ReduceMean" and not keep:
            return masking.average(context, x)
        name = context.build.add(operator, x.name, axes=axes, keepdims=int(keep))
        if keep:
            shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
        else:
            shape = tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
        return Value(name, shape)

    return emit


EMIT: dict[str, Emit] = {
    **{f"Conv{rank}D": _convolution(rank) for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": _transposed(rank) for rank in (1, 2, 3)},
    **{f"SeparableConv{rank}D": _separable(rank, pointwise=True) for rank in (1, 2)},
    **{f"DepthwiseConv{rank}D": _separable(rank, pointwise=False) for rank in (1, 2)},
    **{f"MaxPooling{rank}D": _pooling(rank, "MaxPool") for rank in (1, 2, 3)},
    **{f"AveragePooling{rank}D": _pooling(rank, "AveragePool") for rank in (1, 2, 3)},
    **{f"GlobalMaxPooling{rank}D": _global_pooling("ReduceMax") for rank in (1, 2, 3)},
    **{f"GlobalAveragePooling{rank}D": _global_pooling("ReduceMean") for rank in (1, 2, 3)},
}
