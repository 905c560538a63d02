"""Caffe layers that measure, repeat and resize blobs, as ONNX nodes."""

from __future__ import annotations

import math

from deploykit._plugins.converters.caffe.emission import Emit, Value
from deploykit._plugins.converters.caffe.reading import Layer

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder


def _mean_variance(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    """MVN: without its mean, and divided by the deviation plus eps."""
    settings, x = layer.settings("mvn_param"), ins[0]
    across = settings.flag("across_channels", False)
    axes = list(range(1 if across else 2, x.rank))
    centred = build.add("Sub", x.name, build.add("ReduceMean", x.name, axes=axes, keepdims=1))
    if not settings.flag("normalize_variance", True):
        return [Value(centred, x.shape)]
    square = build.add("Mul", centred, centred)
    deviation = build.add("Sqrt", build.add("ReduceMean", square, axes=axes, keepdims=1))
    deviation = build.add("Add", deviation, build.constant(settings.real("eps", 1e-9)))
    return [Value(build.add("Div", centred, deviation), x.shape)]


def _arg_max(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("argmax_param"), ins[0]
    axis = settings.message.get("axis")
    if axis is None or settings.integer("top_k", 1) != 1 or settings.flag("out_max_val", False):
        raise UnsupportedError(
            f"layer `{layer.name}` gives several places, or the values, or has no axis",
            operators=("ArgMax",),
        )
    place = settings.integer("axis", 1) % x.rank
    name = build.add("Cast", build.add("ArgMax", x.name, axis=place, keepdims=1), to=1)
    return [Value(name, (*x.shape[:place], 1, *x.shape[place + 1 :]))]


def _tile(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("tile_param"), ins[0]
    axis, count = settings.integer("axis", 1) % x.rank, settings.integer("tiles", 1)
    times = build.shape_constant([count if at == axis else 1 for at in range(x.rank)])
    size = x.shape[axis]
    shape = (*x.shape[:axis], None if size is None else size * count, *x.shape[axis + 1 :])
    return [Value(build.add("Tile", x.name, times), shape)]


def _threshold(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    limit = build.constant(layer.settings("threshold_param").real("threshold", 0.0))
    name = build.add("Cast", build.add("Greater", ins[0].name, limit), to=1)
    return [Value(name, ins[0].shape)]


def _reduction(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("reduction_param"), ins[0]
    first, kind = settings.integer("axis", 0) % x.rank, settings.word("operation", "SUM")
    axes = list(range(first, x.rank))
    name = x.name
    if kind in ("ASUM", "2"):
        name = build.add("Abs", name)
    elif kind in ("SUMSQ", "3"):
        name = build.add("Mul", name, name)
    if kind in ("MEAN", "4"):
        name = build.add("ReduceMean", name, axes=axes, keepdims=0)
    else:
        name = build.add("ReduceSum", name, build.shape_constant(axes), keepdims=0)
    name = build.add("Mul", name, build.constant(settings.real("coeff", 1.0)))
    return [Value(name, x.shape[:first])]


def _interpolated(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    """Interp of DeepLab and PSPNet: bilinear, with the corners of both images aligned."""
    settings, x = layer.settings("interp_param"), ins[0]
    space = [size for size in x.shape[2:] if size is not None]
    cut = -(settings.integer("pad_beg", 0) + settings.integer("pad_end", 0))
    zoom, shrink = settings.integer("zoom_factor", 1), settings.integer("shrink_factor", 1)
    sizes = [settings.integer("height", 0), settings.integer("width", 0)]
    if len(ins) > 1 or cut or len(space) != 2:
        raise UnsupportedError(
            f"layer `{layer.name}` resizes to another blob, crops, or has no fixed size",
            operators=("Interp",),
        )
    if not all(sizes):
        sizes = [(size - 1) // shrink + 1 for size in space]
        sizes = [size + (size - 1) * (zoom - 1) for size in sizes]
    bounds = (build.shape_constant([at]) for at in (0, 2))
    front = build.add("Slice", build.add("Shape", x.name), *bounds)
    target = build.add("Concat", front, build.shape_constant(sizes), axis=0)
    name = build.add(
        "Resize",
        *(x.name, "", "", target),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    )
    return [Value(name, (*x.shape[:2], *sizes))]


def flattened(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    """Return x with the axes from `axis` on as one, for InnerProduct."""
    x = ins[0]
    axis = layer.settings("inner_product_param").integer("axis", 1) % x.rank
    if axis in (1, x.rank - 1):
        return [x]
    inner = [size for size in x.shape[axis:] if size is not None]
    if len(inner) != x.rank - axis:
        raise UnsupportedError(
            f"layer `{layer.name}` multiplies axes of no fixed size",
            operators=("InnerProduct(axis)",),
        )
    target = build.shape_constant([*[0] * axis, math.prod(inner)])
    return [Value(build.add("Reshape", x.name, target), (*x.shape[:axis], math.prod(inner)))]


EMIT: dict[str, Emit] = {
    "MVN": _mean_variance,
    "ArgMax": _arg_max,
    "Tile": _tile,
    "Threshold": _threshold,
    "Reduction": _reduction,
    "Interp": _interpolated,
}
