"""Keras' layers that prepare inputs, and products by an equation, by definition in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.evaluation_space import space_last
from deploykit._plugins.converters.keras.reading import Layer

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Compute, Evaluator

    Array = np.ndarray[Any, Any]


def interpolation(size: int, wanted: int, how: str) -> Array:
    """Return the matrix [wanted, size] that takes one axis to another size, as TensorFlow does.

    Places have half-pixel centres; the cubic is that of Keys with a = -0.5, and its taps beyond the
    edge leave their share to the others.
    """
    import numpy as np

    found = np.zeros((wanted, size))
    for row in range(wanted):
        at = (row + 0.5) * size / wanted - 0.5
        if how == "nearest":
            found[row, min(int(np.floor(at + 0.5)), size - 1)] = 1
        elif how == "bilinear":
            low = int(np.floor(at))
            for tap, share in ((low, 1 - (at - low)), (low + 1, at - low)):
                found[row, min(max(tap, 0), size - 1)] += share
        else:
            low = int(np.floor(at))
            at = low + round((at - low) * 1024) / 1024  # a table of so many steps
            for tap in range(low - 1, low + 3):
                if 0 <= tap < size:
                    found[row, tap] = _keys(abs(at - tap))
            found[row] /= found[row].sum()
    return found


def _keys(t: float) -> float:
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2


def resized(x: Array, axes: tuple[int, int], sizes: tuple[int, int], how: str) -> Array:
    """Return `x` with `axes` of other `sizes`."""
    import numpy as np

    x = x.astype(np.float64)
    for axis, wanted in zip(axes, sizes, strict=True):
        matrix = interpolation(x.shape[axis], wanted, how)
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def _resizing(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    config = layer.config
    axes = (2, 3) if space_last(layer) else (1, 2)
    sizes = (config["height"], config["width"])
    return resized(inputs[0], axes, sizes, config.get("interpolation", "bilinear").lower())


def _cropped(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    x, height, width = inputs[0], layer.config["height"], layer.config["width"]
    first = 2 if space_last(layer) else 1
    top, left = (x.shape[first] - height) // 2, (x.shape[first + 1] - width) // 2
    window = (slice(top, top + height), slice(left, left + width))
    return x[(slice(None),) * first + window]


def _encoded(layer: Layer, x: Array, count: int) -> Array:
    import numpy as np

    mode = layer.config.get("output_mode", "multi_hot")
    rows = np.eye(count)[x.astype(int)]
    if mode == "one_hot":
        return rows[:, 0] if x.ndim == 2 and x.shape[1] == 1 else rows
    if x.ndim == 1:
        return rows
    return rows.sum(axis=1) if mode == "count" else np.minimum(rows.sum(axis=1), 1)


def _category(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    return _encoded(layer, inputs[0], layer.config["num_tokens"])


def _discretised(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    bounds = np.asarray(layer.config["bin_boundaries"], np.float32)
    found = np.searchsorted(bounds, inputs[0], side="right")
    if layer.config.get("output_mode", "int") == "int":
        return found
    return _encoded(layer, found, len(bounds) + 1)


def _by_equation(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    found = np.einsum(
        layer.config["equation"].replace(" ", ""),
        inputs[0].astype(np.float64),
        layer.weights["kernel"].astype(np.float64),
    )
    found = found + layer.weights.get("bias", 0.0)
    return evaluator.activation(layer, found, layer.config.get("activation"))


COMPUTE: dict[str, Compute] = {
    "Resizing": _resizing,
    "CenterCrop": _cropped,
    "CategoryEncoding": _category,
    "Discretization": _discretised,
    "EinsumDense": _by_equation,
}
