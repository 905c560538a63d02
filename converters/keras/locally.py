"""Layers with a kernel of its own at every place, in ONNX."""

from __future__ import annotations

import itertools
import math

from deploykit._plugins.converters.keras.convolutions import is_first, spread
from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError


def _locally(rank: int) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        build, x, config = context.build, inputs[0], layer.config
        first = is_first(layer)
        space = range(2, x.rank) if first else range(1, x.rank - 1)
        kernel = spread(config["kernel_size"], rank)
        strides = spread(config.get("strides", 1), rank)
        sizes = [x.shape[axis] for axis in space]
        if config.get("padding", "valid") != "valid" or config.get("implementation", 1) != 1:
            raise UnsupportedError(
                f"layer `{layer.name}` pads, or stores its kernel as a whole matrix",
                operators=(layer.kind,),
            )
        if any(size is None for size in sizes):
            raise UnsupportedError(
                f"layer `{layer.name}` needs inputs of one size", operators=(layer.kind,)
            )
        counts = [
            ((size or 0) - k) // s + 1 for size, k, s in zip(sizes, kernel, strides, strict=True)
        ]
        taps = []
        for at in itertools.product(*(range(k) for k in kernel)):
            ends = [a + (n - 1) * s + 1 for a, n, s in zip(at, counts, strides, strict=True)]
            taps.append(
                build.add(
                    "Slice",
                    x.name,
                    *(build.shape_constant(one) for one in (list(at), ends, list(space), strides)),
                )
            )
        channels = x.shape[1 if first else -1]
        weights, places = layer.weights["kernel"], math.prod(counts)
        units = weights.shape[-1]
        # [batch, *places, taps * channels] or, channels first, [batch, channels * taps, *places]
        stacked = [
            build.add("Unsqueeze", tap, build.shape_constant([2 if first else -2])) for tap in taps
        ]
        every = build.add("Concat", *stacked, axis=2 if first else -2)
        rows = math.prod(kernel) * (channels or 0)
        if first:
            every = build.add("Reshape", every, build.shape_constant([0, rows, places]))
            every = build.add("Transpose", every, perm=[2, 0, 1])
        else:
            every = build.add("Reshape", every, build.shape_constant([0, places, rows]))
            every = build.add("Transpose", every, perm=[1, 0, 2])
        found = build.add("MatMul", every, build.constant(weights))  # [places, batch, units]
        found = build.add("Transpose", found, perm=[1, 2, 0] if first else [1, 0, 2])
        shape = [units, *counts] if first else [*counts, units]
        found = build.add("Reshape", found, build.shape_constant([0, *shape]))
        if "bias" in layer.weights:
            bias = layer.weights["bias"]
            if first and bias.ndim > 1:
                bias = bias.transpose(rank, *range(rank))
            found = build.add("Add", found, build.constant(bias))
        return context.activated(layer, Value(found, (x.shape[0], *shape)))

    return emit


EMIT: dict[str, Emit] = {f"LocallyConnected{rank}D": _locally(rank) for rank in (1, 2)}
