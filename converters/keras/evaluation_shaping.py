"""Keras' layers that work element by element, look up, join or change shapes, by definition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.evaluation_preparing import interpolation
from deploykit._plugins.converters.keras.evaluation_space import numbers, space_last
from deploykit._plugins.converters.keras.reading import Layer

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Compute, Evaluator

    Array = np.ndarray[Any, Any]


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
    if space_last(layer) and x.ndim > 2:
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
    first = 2 if rank > 1 and space_last(layer) else 1
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
    first = 2 if rank > 1 and space_last(layer) else 1
    for axis, factor in enumerate(numbers(layer.config.get("size", 2), rank), first):
        if layer.config.get("interpolation", "nearest") == "bicubic":
            matrix = interpolation(x.shape[axis], factor * x.shape[axis], "bicubic")
            x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
            continue
        if layer.config.get("interpolation", "nearest") == "nearest":
            x = np.repeat(x, factor, axis=axis)
            continue
        at = np.clip((np.arange(x.shape[axis] * factor) + 0.5) / factor - 0.5, 0, x.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


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
        bound, slope = config.get("threshold") or 0.0, config.get("negative_slope") or 0.0
        found = np.where(x >= bound, x, slope * (x - bound))
        largest = config.get("max_value")
        return found if largest is None else np.minimum(found, largest)
    return np.where(x > 0, x, config.get("alpha", config.get("negative_slope", 0.3)) * x)


def _softmax(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    axis = layer.config.get("axis", -1)
    x, axes = inputs[0], tuple(axis) if isinstance(axis, list) else (axis,)
    if len(axes) == 1:
        return define.softmax(x, axes[0])
    powers = np.exp(x.astype(np.float64) - x.max(axis=axes, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axes, keepdims=True))


def _reshaped(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0].reshape(len(inputs[0]), *layer.config["target_shape"])


def _permuted(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0].transpose(0, *layer.config["dims"])


def _repeated(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    return np.stack([inputs[0]] * layer.config["n"], axis=1)


def _same(_evaluator: Evaluator, _layer: Layer, inputs: list[Array]) -> Array:
    return inputs[0]


AUGMENTS = (
    *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast"),
    *("RandomBrightness", "RandomGrayscale", "RandomColorJitter", "RandomHue", "RandomShear"),
    *("RandomSaturation", "RandomSharpness", "RandomPosterization", "RandomErasing"),
    *("RandomGaussianBlur", "RandomInvert", "RandomPerspective", "RandomElasticTransform"),
    "RandomColorDegeneration",
)
RANKS = (1, 2, 3)
COMPUTE: dict[str, Compute] = {
    **{f"ZeroPadding{rank}D": _padded for rank in RANKS},
    **{f"Cropping{rank}D": _cropped for rank in RANKS},
    **{f"UpSampling{rank}D": _upsampled for rank in RANKS},
    **dict.fromkeys(("ELU", "ThresholdedReLU", "PReLU", "ReLU", "LeakyReLU"), _rectified),
    **dict.fromkeys(("Dense", "TimeDistributedDense"), _dense),
    **dict.fromkeys(
        ("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise"),
        _same,
    ),
    **dict.fromkeys(("GaussianDropout", "AlphaDropout", "ActivityRegularization"), _same),
    **dict.fromkeys(("Identity", "StochasticDepth", *AUGMENTS), _same),
    "Activation": _activation,
    "Flatten": _flatten,
    "Reshape": _reshaped,
    "Permute": _permuted,
    "RepeatVector": _repeated,
    "Embedding": _embedded,
    "Softmax": _softmax,
}
