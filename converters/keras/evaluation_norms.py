"""Keras' normalisations by definition, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.reading import Layer

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Compute, Evaluator

    Array = np.ndarray[Any, Any]


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
    axis = layer.config.get("axis", -1)
    axes = tuple(one % x.ndim for one in (axis if isinstance(axis, list) else [axis]))
    shape = [size if at in axes else 1 for at, size in enumerate(x.shape)]
    spread = np.sqrt(x.var(axis=axes, keepdims=True) + layer.config.get("epsilon", 1e-3))
    gamma = np.reshape(layer.weights["gamma"], shape) if "gamma" in layer.weights else 1.0
    if layer.config.get("rms_scaling"):
        return np.asarray(x / spread * gamma)
    beta = np.reshape(layer.weights["beta"], shape) if "beta" in layer.weights else 0.0
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / spread * gamma + beta)


def _root_mean_square(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0].astype(np.float64)
    axis = layer.config.get("axis", -1)
    axes = tuple(axis) if isinstance(axis, list) else (axis,)
    mean = np.mean(x * x, axis=axes, keepdims=True)
    scale = layer.weights["scale"]
    # Keras multiplies by the scale as it is, so the axes are the last ones
    return np.asarray(x / np.sqrt(mean + layer.config.get("epsilon", 1e-6)) * scale)


def _groups_normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    axis, groups = layer.config.get("axis", -1), layer.config.get("groups", 32)
    x = np.moveaxis(inputs[0].astype(np.float64), axis, -1)
    groups = x.shape[-1] if groups == -1 else groups
    found = np.empty_like(x)
    size = x.shape[-1] // groups
    for start in range(0, x.shape[-1], size):
        part = x[..., start : start + size]
        inner = tuple(range(1, x.ndim))
        spread = np.sqrt(part.var(axis=inner, keepdims=True) + layer.config.get("epsilon", 1e-3))
        found[..., start : start + size] = (part - part.mean(axis=inner, keepdims=True)) / spread
    found = found * layer.weights.get("gamma", 1.0) + layer.weights.get("beta", 0.0)
    return np.moveaxis(found, -1, axis)


def _units_normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0].astype(np.float64)
    axis = layer.config.get("axis", -1)
    length = np.linalg.norm(x, axis=axis, keepdims=True) if isinstance(axis, int) else None
    if length is None:
        length = np.sqrt(np.sum(x**2, axis=tuple(axis), keepdims=True))
    return np.asarray(x / np.maximum(length, 1e-6))


def _scaled(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0] * layer.weights["gamma"]


def _normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x, axis = inputs[0], layer.config.get("axis", -1)
    kept = (
        [] if axis is None else [a % x.ndim for a in (axis if isinstance(axis, list) else [axis])]
    )
    mean, variance = (
        np.asarray(layer.weights.get(name, layer.config.get(name)), np.float64)
        for name in ("mean", "variance")
    )
    shape = [size if at in kept else 1 for at, size in enumerate(x.shape)]
    inner = [x.shape[at] for at in sorted(kept)]
    mean, variance = (np.broadcast_to(one, inner).reshape(shape) for one in (mean, variance))
    spread = np.maximum(np.sqrt(variance), 1e-7)
    return np.asarray(x * spread + mean if layer.config.get("invert") else (x - mean) / spread)


def _rescaled(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    scale, offset = layer.config.get("scale", 1.0), layer.config.get("offset", 0.0)
    return np.asarray(inputs[0] * np.asarray(scale) + np.asarray(offset))


COMPUTE: dict[str, Compute] = {
    "BatchNormalization": _batch_normalised,
    "LayerNormalization": _layer_normalised,
    "RMSNormalization": _root_mean_square,
    "GroupNormalization": _groups_normalised,
    "UnitNormalization": _units_normalised,
    "LayerScale": _scaled,
    "Normalization": _normalised,
    "Rescaling": _rescaled,
}
