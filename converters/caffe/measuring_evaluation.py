"""Caffe layers that measure, repeat and resize, by definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.caffe.reading import Layer

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Layer, list[Array]], list[Array]]


def _mean_variance(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, x = layer.settings("mvn_param"), ins[0].astype("float64")
    axes = tuple(range(1 if settings.flag("across_channels", False) else 2, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    if not settings.flag("normalize_variance", True):
        return [centred]
    return [centred / (x.std(axis=axes, keepdims=True) + settings.real("eps", 1e-9))]


def _arg_max(layer: Layer, ins: list[Array]) -> list[Array]:
    axis = layer.settings("argmax_param").integer("axis", 1)
    return [ins[0].argmax(axis=axis, keepdims=True).astype("float64")]


def _tile(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings = layer.settings("tile_param")
    parts = [ins[0]] * settings.integer("tiles", 1)
    return [np.concatenate(parts, axis=settings.integer("axis", 1))]


def _threshold(layer: Layer, ins: list[Array]) -> list[Array]:
    limit = layer.settings("threshold_param").real("threshold", 0.0)
    return [(ins[0] > limit).astype("float64")]


def _reduction(layer: Layer, ins: list[Array]) -> list[Array]:
    settings, x = layer.settings("reduction_param"), ins[0].astype("float64")
    first, kind = settings.integer("axis", 0) % x.ndim, settings.word("operation", "SUM")
    rows = x.reshape(*x.shape[:first], -1)
    rows = {"ASUM": abs(rows), "2": abs(rows), "SUMSQ": rows**2, "3": rows**2}.get(kind, rows)
    found = rows.mean(axis=-1) if kind in ("MEAN", "4") else rows.sum(axis=-1)
    return [found * settings.real("coeff", 1.0)]


def _interpolated(layer: Layer, ins: list[Array]) -> list[Array]:
    import numpy as np

    settings, x = layer.settings("interp_param"), ins[0].astype(np.float64)
    shrink, zoom = settings.integer("shrink_factor", 1), settings.integer("zoom_factor", 1)
    for axis, key in ((2, "height"), (3, "width")):
        size = x.shape[axis]
        between = (size - 1) // shrink * zoom
        count = settings.integer(key, 0) or between + 1
        places = np.linspace(0, size - 1, count)
        low = np.floor(places).astype(int).clip(0, size - 1)
        share = (places - low).reshape([-1 if at == axis else 1 for at in range(4)])
        high = (low + 1).clip(0, size - 1)
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return [x]


COMPUTE: dict[str, Compute] = {
    "MVN": _mean_variance,
    "ArgMax": _arg_max,
    "Tile": _tile,
    "Threshold": _threshold,
    "Reduction": _reduction,
    "Interp": _interpolated,
}
