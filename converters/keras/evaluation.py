"""A Keras model computed layer by layer by definition, in numpy and float64, as its own backend does.

Written from the documentation of the layers and the backends' sources, apart from the mapping to
ONNX: what the two have in common is the reading of the file and the rule of padding in
`backends.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import activations, backends, operation_values
from deploykit._plugins.converters.keras.reading import (
    KerasModel,
    Layer,
    Network,
    Ref,
    zeroes_masked,
)

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Masked = tuple[Array, Array | None]
    Compute = Callable[["Evaluator", Layer, list[Array]], Array]


def evaluate(model: KerasModel, feed: dict[str, Array]) -> dict[str, Array]:
    """Return the outputs of `model`, by the names that the converter gives them."""
    from deploykit._plugins.converters.keras.plugin import output_names

    evaluator = Evaluator(
        model.backend or "tensorflow", model.version, bool(zeroes_masked(model.written))
    )
    values = evaluator.network(
        model.network, [(feed[name], None) for name, _, _ in model.network.inputs]
    )
    return {name: value for name, (value, _) in zip(output_names(model), values, strict=True)}


class Evaluator:
    """Computes networks; a layer's value is made when something asks for it."""

    def __init__(self, backend: str, version: int, zeroes_masked: bool) -> None:
        self.backend = backend
        self.version = version
        self.zeroes_masked = zeroes_masked
        self.mask: Array | None = None
        """Which steps of the layer at work count; it leaves here the mask of what it gives."""
        self.states: tuple[Array, ...] = ()
        """What the layer at work gives besides its output."""

    def network(self, network: Network, inputs: list[Masked]) -> list[Masked]:
        """Return the outputs of `network`, each with its mask."""
        layers = {layer.name: layer for layer in network.layers}
        values: dict[Ref, Masked] = dict(zip(network.inputs, inputs, strict=True))

        def value(ref: Ref) -> Masked:
            waiting = [ref]
            while waiting:
                name, node, _ = wanted = waiting[-1]
                if wanted in values:
                    waiting.pop()
                    continue
                layer = layers[name]
                mask = layer.masks[node] if node < len(layer.masks) else None
                needed = [*layer.calls[node], *([mask] if mask is not None else [])]
                missing = [one for one in needed if one not in values]
                if missing:
                    waiting += missing
                    continue
                given = [values[one] for one in layer.calls[node]]
                if mask is not None:
                    given = [(x, values[mask][0]) for x, _ in given]
                found: list[Masked]
                if layer.kind == "operation":
                    called = layer.config["calls"][node]
                    operation = layer.config["operation"]
                    inputs = [x for x, _ in given]
                    found = [(operation_values.compute(operation, called, inputs), None)]
                elif layer.inner is not None and layer.kind != "TimeDistributed":
                    found = self.network(layer.inner, given)
                else:
                    found = [self._layer(layer, given), *((one, None) for one in self.states)]
                values.update({(name, node, at): one for at, one in enumerate(found)})
            return values[ref]

        return [value(ref) for ref in network.outputs]

    def _layer(self, layer: Layer, given: list[Masked]) -> Masked:
        import numpy as np

        masks = [mask for _, mask in given if mask is not None]
        self.mask = np.logical_and.reduce(masks) if masks else None
        self.states = ()
        found = COMPUTE[layer.kind](self, layer, [x for x, _ in given])
        if layer.kind not in MASK_MAKERS and layer.kind not in MASK_KEEPERS:
            keeps = layer.kind in RECURRENT and found.ndim == 3
            self.mask = self.mask if keeps else None
        return found, self.mask

    def activation(self, layer: Layer, x: Array, value: Any) -> Array:
        """Return `x` through the activation that a configuration names."""
        name = activations.name_of(value, layer.name, self.version)
        found: Array = activations.compute(name, x)
        return found


def _numbers(value: Any, rank: int) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * rank


def _space_last(layer: Layer) -> bool:
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
    strides = _numbers(config.get("strides") or (kernel if pooling else 1), rank)
    dilations = [1] * rank if pooling else _numbers(config.get("dilation_rate", 1), rank)
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
        if not _space_last(layer):
            x = np.moveaxis(x, -1, 1)
        found = compute(evaluator, layer, [x])
        return found if _space_last(layer) else np.moveaxis(found, 1, -1)

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
    strides = _numbers(config.get("strides", 1), rank)
    dilations = _numbers(config.get("dilation_rate", 1), rank)
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
            pad = reach // 2 if config["padding"] == "same" else 0
            length = (size - 1) * stride + reach - 2 * pad + _numbers(extra, rank)[axis]
            cut.append(slice(pad, pad + length))
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
        size = _numbers(layer.config.get("pool_size", 2), x.ndim - 2)
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
        axes = tuple(range(2, x.ndim)) if _space_last(layer) else tuple(range(1, x.ndim - 1))
        reduced = getattr(x, function)(axis=axes, keepdims=bool(layer.config.get("keepdims")))
        return np.asarray(reduced)

    return compute


def _dense(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    found = inputs[0].astype(np.float64) @ layer.weights["kernel"]
    if "bias" in layer.weights:
        found = found + layer.weights["bias"]
    return evaluator.activation(layer, found, layer.config.get("activation"))


def _activation(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return evaluator.activation(layer, inputs[0], layer.config.get("activation"))


def _flatten(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0]
    if _space_last(layer) and x.ndim > 2:
        x = np.moveaxis(x, 1, -1)
    return x.reshape(len(x), -1)


def _padded(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0]
    return np.pad(x, _edges(layer, x, "padding"))


def _cropped(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    x = inputs[0]
    return x[
        tuple(
            slice(a, n - b) for (a, b), n in zip(_edges(layer, x, "cropping"), x.shape, strict=True)
        )
    ]


def _edges(layer: Layer, x: Array, setting: str) -> list[tuple[int, int]]:
    """Return what is added or cut before and after each axis of `x`."""
    value, rank = layer.config[setting], int(layer.kind[-2])
    first = 2 if rank > 1 and _space_last(layer) else 1
    if isinstance(value, int):
        value = [value] * rank
    elif rank == 1 and isinstance(value[0], int) and len(value) == 2:
        value = [value]
    elif rank == 2 and len(value) == 4:
        value = [value[:2], value[2:]]
    pairs = [(one, one) if isinstance(one, int) else tuple(one) for one in value]
    edges = [(0, 0)] * x.ndim
    edges[first : first + rank] = pairs
    return edges


def _upsampled(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x, rank = inputs[0], int(layer.kind[-2])
    first = 2 if rank > 1 and _space_last(layer) else 1
    for axis, factor in enumerate(_numbers(layer.config.get("size", 2), rank), first):
        if layer.config.get("interpolation", "nearest") == "nearest":
            x = np.repeat(x, factor, axis=axis)
            continue
        at = np.clip((np.arange(x.shape[axis] * factor) + 0.5) / factor - 0.5, 0, x.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def _batch_normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) else axis
    weights = layer.weights
    return define.batch_normalisation(
        inputs[0],
        weights.get("gamma"),
        weights.get("beta"),
        weights["mean"],
        weights["variance"],
        epsilon=layer.config.get("epsilon", 1e-3),
        axis=-1 if layer.config.get("mode") == 2 else axis,
    )


def _layer_normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0].astype(np.float64)
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + layer.config.get("epsilon", 1e-3))
    found = (x - x.mean(axis=-1, keepdims=True)) / spread
    found = found * layer.weights.get("gamma", 1.0)
    return np.asarray(found + layer.weights.get("beta", 0.0))


def _embedded(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    evaluator.mask = inputs[0].astype(np.int64) != 0 if layer.config.get("mask_zero") else None
    return np.asarray(layer.weights["table"][inputs[0].astype(np.int64)])


def _rectified(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x, config = inputs[0].astype(np.float64), layer.config
    if layer.kind == "ELU":
        return np.where(x > 0, x, config.get("alpha", 1.0) * np.expm1(np.minimum(x, 0)))
    if layer.kind == "ThresholdedReLU":
        return np.where(x > config.get("theta", 1.0), x, 0.0)
    if layer.kind == "PReLU":
        return np.where(x > 0, x, layer.weights["alpha"] * x)
    if layer.kind == "ReLU":
        found = np.where(x > 0, x, (config.get("negative_slope") or 0.0) * x)
        largest = config.get("max_value")
        return found if largest is None else np.minimum(found, largest)
    return np.where(x > 0, x, config.get("alpha", config.get("negative_slope", 0.3)) * x)


def _softmax(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    axis = layer.config.get("axis", -1)
    return define.softmax(inputs[0], axis[0] if isinstance(axis, list) else axis)


def _normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    mean = np.asarray(layer.weights.get("mean", layer.config.get("mean")))
    variance = np.asarray(layer.weights.get("variance", layer.config.get("variance")))
    return np.asarray((inputs[0] - mean) / np.maximum(np.sqrt(variance), 1e-7))


def _rescaled(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    scale, offset = layer.config.get("scale", 1.0), layer.config.get("offset", 0.0)
    return np.asarray(inputs[0] * np.asarray(scale) + np.asarray(offset))


def _merged(function: str) -> Compute:
    def compute(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
        import numpy as np

        if function == "concatenate":
            return np.concatenate(inputs, axis=layer.config.get("axis", -1))
        if function == "dot":
            return np.asarray(np.sum(inputs[0] * inputs[1], axis=1, keepdims=True))
        total = inputs[0].astype(np.float64)
        for one in inputs[1:]:
            total = getattr(np, function)(total, one)
        return total / len(inputs) if layer.kind == "Average" else total

    return compute


def _recurrence(
    evaluator: Evaluator,
    layer: Layer,
    kind: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    x: Array,
    *,
    reverse: bool,
    initial: list[Array] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Return all outputs [batch, time, units] in the order of time, and the last states [batch, units]."""
    import numpy as np

    gate_name = "hard_sigmoid" if evaluator.version < 3 else "sigmoid"
    recurrent = weights["recurrent"].astype(np.float64)
    units = recurrent.shape[0]
    bias = weights.get("bias", np.zeros(recurrent.shape[1])).astype(np.float64)
    inner, outer = (bias[0], bias[1]) if bias.ndim == 2 else (bias, np.zeros_like(bias))
    after = bool(config.get("reset_after", bias.ndim == 2))

    def act(values: Array) -> Array:
        return evaluator.activation(layer, values, config.get("activation", "tanh"))

    def gate(values: Array) -> Array:
        return evaluator.activation(layer, values, config.get("recurrent_activation", gate_name))

    def lstm(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = state
        i, f, g, o = np.split(x_t @ weights["kernel"] + h @ recurrent + inner, 4, axis=-1)
        c = gate(f) * c + gate(i) * act(g)
        return gate(o) * act(c), c

    def gru(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        xz, xr, xh = np.split(x_t @ weights["kernel"] + inner, 3, axis=-1)
        uz, ur, uh = np.split(recurrent, 3, axis=-1)
        bz, br, bh = np.split(outer, 3)
        z, r = gate(xz + h @ uz + bz), gate(xr + h @ ur + br)
        new = act(xh + (r * (h @ uh + bh) if after else (r * h) @ uh))
        return (z * h + (1 - z) * new,)

    def simple(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        return (act(x_t @ weights["kernel"] + state[0] @ recurrent + inner),)

    step = {"LSTM": lstm, "GRU": gru, "SimpleRNN": simple}[kind]
    zero = np.zeros((len(x), units))
    state: tuple[Array, ...] = (zero, zero) if kind == "LSTM" else (zero,)
    state = tuple(initial) if initial else state
    steps = x.astype(np.float64).swapaxes(0, 1)
    if evaluator.mask is None:
        outputs, last = define.recurrent(steps, state, step, reverse=reverse)
        return outputs.swapaxes(0, 1), last
    counts = evaluator.mask.T[:, :, None]
    given = np.zeros_like(steps[..., :1].repeat(units, axis=-1))
    order = range(len(steps))[::-1] if reverse else range(len(steps))
    for t in order:
        new = step(steps[t], state)
        state = tuple(np.where(counts[t], a, b) for a, b in zip(new, state, strict=True))
        zeroed = config.get("zero_output_for_mask") and not counts[t].all()
        given[t] = np.where(counts[t], state[0], 0) if zeroed else state[0]
    return given.swapaxes(0, 1), state


def _recurrent(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    config = layer.config
    back = bool(config.get("go_backwards"))
    outputs, last = _recurrence(
        evaluator,
        layer,
        layer.kind,
        config,
        layer.weights,
        inputs[0],
        reverse=back,
        initial=inputs[1:],
    )
    if config.get("return_state"):
        evaluator.states = last
    if not config.get("return_sequences"):
        return last[0]
    return outputs[:, ::-1] if back else outputs


def _bidirectional(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    config = layer.config["inner_config"]
    if evaluator.zeroes_masked:
        config = {**config, "zero_output_for_mask": True}
    both = []
    for side in ("forward", "backward"):
        own = {
            name.split("_", 1)[1]: value
            for name, value in layer.weights.items()
            if name.startswith(side)
        }
        outputs, last = _recurrence(
            evaluator,
            layer,
            layer.config["inner_kind"],
            config,
            own,
            inputs[0],
            reverse=side == "backward",
        )
        both.append(outputs if config.get("return_sequences") else last[0])
    mode = layer.config.get("merge_mode", "concat")
    if mode == "concat":
        return np.concatenate(both, axis=-1)
    total = both[0] * both[1] if mode == "mul" else both[0] + both[1]
    return total / 2 if mode == "ave" else total


def _distributed(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    """Apply the inner layer or model to every step by itself."""
    import numpy as np

    mask, evaluator.mask = evaluator.mask, None
    steps = []
    for t in range(inputs[0].shape[1]):
        x = inputs[0][:, t]
        if layer.inner is not None:
            ((found, _),) = evaluator.network(layer.inner, [(x, None)])
        else:
            kind, config = layer.config["inner_kind"], layer.config["inner_config"]
            inner = Layer(name=layer.name, kind=kind, config=config, weights=layer.weights)
            found = COMPUTE[kind](evaluator, inner, [x])
        steps.append(found)
    evaluator.mask = mask
    return np.stack(steps, axis=1)


def _masked(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0]
    evaluator.mask = np.any(x != np.float32(layer.config.get("mask_value", 0.0)), axis=-1)
    return np.asarray(x * evaluator.mask[..., None])


def _locally(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    """Each place has a matrix of its own, over what its window holds in the order of the tensor."""
    import numpy as np

    x, config = inputs[0].astype(np.float64), layer.config
    rank = x.ndim - 2
    kernel, strides = (
        _numbers(config["kernel_size"], rank),
        _numbers(config.get("strides", 1), rank),
    )
    first = _space_last(layer)
    view = define.windows(x if first else np.moveaxis(x, -1, 1), kernel, strides, [1] * rank)
    counts = view.shape[2 : 2 + rank]
    inner = list(range(2 + rank, 2 + 2 * rank))
    order = [0, *range(2, 2 + rank), *([1, *inner] if first else [*inner, 1])]
    rows = view.transpose(order).reshape(len(x), -1, layer.weights["kernel"].shape[1])
    found = np.einsum("npk,pku->npu", rows, layer.weights["kernel"])
    found = found.reshape(len(x), *counts, -1) + layer.weights.get("bias", 0.0)
    found = evaluator.activation(layer, found, config.get("activation"))
    return np.moveaxis(found, -1, 1) if first else found


def _reshaped(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0].reshape(len(inputs[0]), *layer.config["target_shape"])


def _permuted(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0].transpose(0, *layer.config["dims"])


def _repeated(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    return np.stack([inputs[0]] * layer.config["n"], axis=1)


def _same(_evaluator: Evaluator, _layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0]


MASK_MAKERS = ("Masking", "Embedding")
RECURRENT = ("LSTM", "GRU", "SimpleRNN", "Bidirectional")
MASK_KEEPERS = (
    *("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
    *("ActivityRegularization", "Activation", "Dense", "TimeDistributedDense", "TimeDistributed"),
    *("BatchNormalization", "LayerNormalization", "LeakyReLU", "ELU", "PReLU", "ReLU"),
    *("ThresholdedReLU", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
)
"""Layers with `supports_masking` in Keras 2.3 that hand on the steps that count."""

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
    **{f"ZeroPadding{rank}D": _padded for rank in RANKS},
    **{f"Cropping{rank}D": _cropped for rank in RANKS},
    **{f"UpSampling{rank}D": _upsampled for rank in RANKS},
    **dict.fromkeys(("ELU", "ThresholdedReLU", "PReLU", "ReLU", "LeakyReLU"), _rectified),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), _recurrent),
    **dict.fromkeys(("Dense", "TimeDistributedDense"), _dense),
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise"),
        _same,
    ),
    **dict.fromkeys(("GaussianDropout", "AlphaDropout", "ActivityRegularization"), _same),
    "Activation": _activation,
    "Flatten": _flatten,
    "Reshape": _reshaped,
    "Permute": _permuted,
    "RepeatVector": _repeated,
    "BatchNormalization": _batch_normalised,
    "LayerNormalization": _layer_normalised,
    "Embedding": _embedded,
    "Softmax": _softmax,
    "Normalization": _normalised,
    "Rescaling": _rescaled,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _distributed,
    "Masking": _masked,
    "LocallyConnected1D": _locally,
    "LocallyConnected2D": _locally,
    "Add": _merged("add"),
    "Average": _merged("add"),
    "Subtract": _merged("subtract"),
    "Multiply": _merged("multiply"),
    "Maximum": _merged("maximum"),
    "Minimum": _merged("minimum"),
    "Concatenate": _merged("concatenate"),
    "Dot": _merged("dot"),
}
