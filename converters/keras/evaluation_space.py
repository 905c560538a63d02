"""Keras' windows over space by definition, in float64: convolutions, pooling, local kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import backends
from deploykit._plugins.converters.keras.reading import Layer

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Compute, Evaluator

    Array = np.ndarray[Any, Any]


def numbers(value: Any, rank: int) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * rank


def space_last(layer: Layer) -> bool:
    return bool(layer.config.get("data_format") == "channels_first")


def _windowed(
    evaluator: Evaluator,
    layer: Layer,
    x: Array,
    kernel: list[int],
    *,
    pooling: bool,
) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Return strides, padding and dilation over `x` [N, C, *space], whose sizes are all known here."""
    rank = x.ndim - 2
    config = layer.config
    strides = numbers(config.get("strides") or (kernel if pooling else 1), rank)
    dilations = [1] * rank if pooling else numbers(config.get("dilation_rate", 1), rank)
    found = backends.pads(
        evaluator.backend,
        config.get("padding", "valid"),
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        sizes=x.shape[2:],
        pooling=pooling,
        layer=layer.name,
    )
    assert found is not None, "every size of an array is known"
    return strides, found, dilations


def _over_space(compute: Compute) -> Compute:
    """Give `compute` its tensor with the channels before space, and turn the result back."""

    def turned(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
        import numpy as np

        x = inputs[0]
        if not space_last(layer):
            x = np.moveaxis(x, -1, 1)
        found = compute(evaluator, layer, [x])
        return found if space_last(layer) else np.moveaxis(found, 1, -1)

    return turned


def _sense(evaluator: Evaluator, kernel: Array, rank: int) -> Array:
    """Return a kernel [*space, ...] such that correlating with it is what the backend does."""
    if evaluator.backend != "theano":
        return kernel
    return kernel[(slice(None, None, -1),) * rank]


@_over_space
def _convolution(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    x, rank = inputs[0], inputs[0].ndim - 2
    kernel = _sense(evaluator, layer.weights["kernel"], rank)
    size = list(kernel.shape[:rank])
    strides, pads, dilations = _windowed(evaluator, layer, x, size, pooling=False)
    found = define.convolution(
        x,
        kernel.transpose(rank + 1, rank, *range(rank)),
        layer.weights.get("bias"),
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=layer.config.get("groups", 1),
    )
    return evaluator.activation(
        layer, found.swapaxes(1, -1), layer.config.get("activation")
    ).swapaxes(1, -1)


@_over_space
def _separable(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x, rank = inputs[0], inputs[0].ndim - 2
    weights = layer.weights
    depthwise = weights["depthwise"] if "depthwise" in weights else weights["kernel"]
    depthwise = _sense(evaluator, depthwise, rank)
    size = list(depthwise.shape[:rank])
    strides, pads, dilations = _windowed(evaluator, layer, x, size, pooling=False)
    # channel c of the input makes the channels c * multiplier .. of the result
    maps = [
        define.convolution(
            x[:, c : c + 1],
            np.moveaxis(depthwise[..., c, m], 0, 0)[None, None],
            strides=strides,
            pads=pads,
            dilations=dilations,
        )
        for c in range(x.shape[1])
        for m in range(depthwise.shape[-1])
    ]
    found = np.concatenate(maps, axis=1)
    if "pointwise" in weights:
        matrix = weights["pointwise"].reshape(weights["pointwise"].shape[-2:])
        found = np.moveaxis(np.tensordot(found, matrix, axes=(1, 0)), -1, 1)
    if "bias" in weights:
        found = found + weights["bias"].reshape(1, -1, *[1] * rank)
    return evaluator.activation(
        layer, found.swapaxes(1, -1), layer.config.get("activation")
    ).swapaxes(1, -1)


@_over_space
def _transposed(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    """Each input place adds a scaled kernel; `same` keeps `size * stride` places, from the middle."""
    x, rank = inputs[0], inputs[0].ndim - 2
    config, kernel = layer.config, layer.weights["kernel"]
    strides = numbers(config.get("strides", 1), rank)
    dilations = numbers(config.get("dilation_rate", 1), rank)
    full = define.transposed_convolution(
        x,
        kernel.transpose(rank + 1, rank, *range(rank)),
        strides=strides,
        pads=[(0, 0)] * rank,
        dilations=dilations,
        extra=[max(s, 1) - 1 for s in strides],
    )
    cut: list[slice] = []
    extra = config.get("output_padding")
    for axis in range(rank):
        reach = (kernel.shape[axis] - 1) * dilations[axis] + 1
        size, stride = x.shape[2 + axis], strides[axis]
        if extra is not None:
            half = reach // 2 if config["padding"] == "same" else 0
            length = (size - 1) * stride + reach - 2 * half + numbers(extra, rank)[axis]
            before = max((size - 1) * stride + reach - length, 0) // 2
            cut.append(slice(before, before + length))
        elif config["padding"] == "same":
            before = max(reach - stride, 0) // 2
            cut.append(slice(before, before + size * stride))
        else:
            cut.append(slice(0, size * stride + max(reach - stride, 0)))
    found = full[(slice(None), slice(None), *cut)]
    if "bias" in layer.weights:
        found = found + layer.weights["bias"].reshape(1, -1, *[1] * rank)
    return evaluator.activation(layer, found.swapaxes(1, -1), config.get("activation")).swapaxes(
        1, -1
    )


def _pooling(mean: bool) -> Compute:
    @_over_space
    def compute(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
        x = inputs[0]
        size = numbers(layer.config.get("pool_size", 2), x.ndim - 2)
        strides, pads, _ = _windowed(evaluator, layer, x, size, pooling=True)
        pool = define.average_pool if mean else define.max_pool
        return pool(x, size, strides=strides, pads=pads)

    return compute


def _global(function: str) -> Compute:
    def compute(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
        import numpy as np

        x = inputs[0].astype(np.float64)
        if evaluator.mask is not None and layer.kind == "GlobalAveragePooling1D":
            rows = zip(x, evaluator.mask, strict=True)
            return np.stack([one[counts].sum(axis=0) / counts.sum() for one, counts in rows])
        axes = tuple(range(2, x.ndim)) if space_last(layer) else tuple(range(1, x.ndim - 1))
        reduced = getattr(x, function)(axis=axes, keepdims=bool(layer.config.get("keepdims")))
        return np.asarray(reduced)

    return compute


def _locally(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    """Each place has a matrix of its own, over what its window holds in the order of the tensor."""
    import numpy as np

    x, config = inputs[0].astype(np.float64), layer.config
    rank = x.ndim - 2
    kernel, strides = (
        numbers(config["kernel_size"], rank),
        numbers(config.get("strides", 1), rank),
    )
    first = space_last(layer)
    view = define.windows(x if first else np.moveaxis(x, -1, 1), kernel, strides, [1] * rank)
    counts = view.shape[2 : 2 + rank]
    inner = list(range(2 + rank, 2 + 2 * rank))
    order = [0, *range(2, 2 + rank), *([1, *inner] if first else [*inner, 1])]
    rows = view.transpose(order).reshape(len(x), -1, layer.weights["kernel"].shape[1])
    found = np.einsum("npk,pku->npu", rows, layer.weights["kernel"])
    found = found.reshape(len(x), *counts, -1) + layer.weights.get("bias", 0.0)
    found = evaluator.activation(layer, found, config.get("activation"))
    return np.moveaxis(found, -1, 1) if first else found


RANKS = (1, 2, 3)
COMPUTE: dict[str, Compute] = {
    **{f"Conv{rank}D": _convolution for rank in RANKS},
    **{f"Conv{rank}DTranspose": _transposed for rank in RANKS},
    **{f"SeparableConv{rank}D": _separable for rank in RANKS},
    **{f"DepthwiseConv{rank}D": _separable for rank in RANKS},
    **{f"MaxPooling{rank}D": _pooling(mean=False) for rank in RANKS},
    **{f"AveragePooling{rank}D": _pooling(mean=True) for rank in RANKS},
    **{f"GlobalMaxPooling{rank}D": _global("max") for rank in RANKS},
    **{f"GlobalAveragePooling{rank}D": _global("mean") for rank in RANKS},
    "LocallyConnected1D": _locally,
    "LocallyConnected2D": _locally,
}
