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
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + layer.config.get("epsilon", 1e-3))
    found = (x - x.mean(axis=-1, keepdims=True)) / spread
    found = found * layer.weights.get("gamma", 1.0)
    return np.asarray(found + layer.weights.get("beta", 0.0))


def _normalised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    mean = np.asarray(layer.weights.get("mean", layer.config.get("mean")))
    variance = np.asarray(layer.weights.get("variance", layer.config.get("variance")))
    return np.asarray((inputs[0] - mean) / np.maximum(np.sqrt(variance), 1e-7))


def _rescaled(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    scale, offset = layer.config.get("scale", 1.0), layer.config.get("offset", 0.0)
    return np.asarray(inputs[0] * np.asarray(scale) + np.asarray(offset))


COMPUTE: dict[str, Compute] = {
    "BatchNormalization": _batch_normalised,
    "LayerNormalization": _layer_normalised,
    "Normalization": _normalised,
    "Rescaling": _rescaled,
}
