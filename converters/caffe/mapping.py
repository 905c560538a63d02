"""Caffe layers as ONNX nodes."""

from __future__ import annotations

import math
from typing import Any

from deploykit._plugins.converters.caffe import measuring
from deploykit._plugins.converters.caffe.emission import Emit, Value
from deploykit._plugins.converters.caffe.reading import CaffeNet, Layer, Settings

from deploykit.errors import SourceError, UnsupportedError
from deploykit.graph_building import GraphBuilder

UNARY = {
    "AbsVal": "Abs",
    "Sigmoid": "Sigmoid",
    "TanH": "Tanh",
    "BNLL": "Softplus",
}
"""Layers that are one operator without settings."""


def emit(build: GraphBuilder, net: CaffeNet, inputs: dict[str, Value]) -> dict[str, Value]:
    """Append every layer and return the blobs by name as they are at the end."""
    blobs = dict(inputs)
    for layer in net.layers:
        missing = [name for name in layer.bottoms if name not in blobs]
        if missing:
            raise SourceError(f"layer `{layer.name}` reads `{missing[0]}`, which no layer makes")
        with build.layer(layer.name):
            found = EMIT[layer.kind](build, layer, [blobs[name] for name in layer.bottoms])
        blobs.update(zip(layer.tops, found, strict=False))
    return blobs


def refuse(net: CaffeNet) -> None:
    """Raise UnsupportedError that names every layer without a mapping."""
    wrong = [layer for layer in net.layers if layer.kind not in EMIT]
    if wrong:
        named = ", ".join(f"{layer.kind} (layer `{layer.name}`)" for layer in wrong)
        raise UnsupportedError(
            f"no ONNX form for the Caffe layers {named}",
            operators=tuple(dict.fromkeys(layer.kind for layer in wrong)),
            hint="remove them from the prototxt where they stand at the end, and compute them outside",
        )


def bakes_batch(net: CaffeNet) -> bool:
    """Whether a layer has the size of the batch in its settings."""
    for layer in net.layers:
        if layer.kind == "Reshape":
            settings = layer.settings("reshape_param")
            shape = _sub(settings, "shape").integers("dim")
            if settings.integer("axis", 0) == 0 and shape and shape[0] != 0:
                return True
    return False


def _sub(settings: Settings, name: str) -> Settings:
    from deploykit.formats.protobuf_text import messages

    found = messages(settings.message, name)
    return Settings(settings.layer, found[0] if found else {})


def _weight(layer: Layer, number: int) -> Any:
    if number >= len(layer.blobs):
        raise SourceError(
            f"the caffemodel has no weights for layer `{layer.name}` ({layer.kind})",
            hint="prototxt and caffemodel belong to different networks",
        )
    return layer.blobs[number]


def spatial(settings: Settings, name: str, short: str, default: int, rank: int = 2) -> list[int]:
    """Return a size of a window: `kernel_size` once or for each axis, or `kernel_h` and `kernel_w`."""
    tall, wide = settings.integers(f"{short}_h"), settings.integers(f"{short}_w")
    if tall and wide:
        return [tall[0], wide[0]]
    found = settings.integers(name)
    return (found * rank)[:rank] if len(found) == 1 else found or [default] * rank


def _unary(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, _layer: Layer, ins: list[Value]) -> list[Value]:
        return [Value(build.add(operator, ins[0].name), ins[0].shape)]

    return emit_one


def _same(_build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    return [ins[0]] * len(layer.tops)


def _convolution(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("convolution_param"), ins[0]
    rank = x.rank - 2
    kernel = spatial(settings, "kernel_size", "kernel", 1, rank)
    strides = spatial(settings, "stride", "stride", 1, rank)
    pads = spatial(settings, "pad", "pad", 0, rank)
    dilations = spatial(settings, "dilation", "dilation", 1, rank)
    weight = _weight(layer, 0)
    depthwise = layer.kind in ("ConvolutionDepthwise", "DepthwiseConvolution")
    groups = settings.integer("group", weight.shape[0] if depthwise else 1)
    transposed = layer.kind == "Deconvolution"
    names = [build.constant(weight)]
    if settings.flag("bias_term", True):
        names.append(build.constant(_weight(layer, 1).reshape(-1)))
    name = build.add(
        "ConvTranspose" if transposed else "Conv",
        x.name,
        *names,
        kernel_shape=kernel,
        strides=strides,
        pads=pads * 2,
        dilations=dilations,
        group=groups,
    )
    sizes: list[int | None] = []
    for size, k, s, p, d in zip(x.shape[2:], kernel, strides, pads, dilations, strict=True):
        reach = (k - 1) * d + 1
        if size is None:
            sizes.append(None)
        elif transposed:
            sizes.append((size - 1) * s + reach - 2 * p)
        else:
            sizes.append((size + 2 * p - reach) // s + 1)
    return [Value(name, (x.shape[0], settings.integer("num_output", weight.shape[0]), *sizes))]


def pooled(size: int, kernel: int, stride: int, pad: int, *, floor: bool) -> int:
    """Return the number of windows: rounded up, but none that begins in the padding behind.

    `src/caffe/layers/pooling_layer.cpp`, `Reshape`.
    """
    places = (size + 2 * pad - kernel) / stride
    count = int(math.floor(places) if floor else math.ceil(places)) + 1
    if pad and (count - 1) * stride >= size + pad:
        count -= 1
    return count


def _pooling(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("pooling_param"), ins[0]
    kind = settings.word("pool", "MAX")
    if kind not in ("MAX", "AVE", "0", "1") or len(layer.tops) > 1:
        raise UnsupportedError(
            f"layer `{layer.name}` pools in a way that is not supported ({kind})",
            operators=(f"Pooling({kind})",),
        )
    largest = kind in ("MAX", "0")
    if settings.flag("global_pooling", False):
        name = build.add("GlobalMaxPool" if largest else "GlobalAveragePool", x.name)
        return [Value(name, (*x.shape[:2], 1, 1))]
    kernel = spatial(settings, "kernel_size", "kernel", 1)
    strides = spatial(settings, "stride", "stride", 1)
    pads = spatial(settings, "pad", "pad", 0)
    floor = settings.word("round_mode", "CEIL") in ("FLOOR", "1") or not settings.flag(
        "ceil_mode", True
    )
    common: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    sizes: list[int | None] = []
    ends: list[int] = []
    for size, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        if size is None:
            sizes.append(None)
            continue
        count = pooled(size, k, s, p, floor=floor)
        sizes.append(count)
        ends.append((count - 1) * s + k - size - p)
    if len(ends) < 2:
        ends, common["ceil_mode"] = pads, int(not floor)
    # a row at the end that no window reaches need not be cut off
    ends = [max(one, 0) for one in ends]
    if largest:
        name = build.add("MaxPool", x.name, pads=[*pads, *ends], **common)
        return [Value(name, (*x.shape[:2], *sizes))]
    # the padding counts in the mean, what the last windows reach beyond it does not
    inner, outer = x.name, [*pads, *ends]
    if any(pads):
        inner = build.add("Pad", x.name, build.shape_constant([0, 0, *pads, 0, 0, *pads]))
        outer = [0, 0] + [max(e - p, 0) for e, p in zip(ends, pads, strict=True)]
    return [Value(build.add("AveragePool", inner, pads=outer, **common), (*x.shape[:2], *sizes))]


def _inner_product(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, (x,) = layer.settings("inner_product_param"), measuring.flattened(build, layer, ins)
    axis = settings.integer("axis", 1) % ins[0].rank
    units = settings.integer("num_output", 1)
    weight = _weight(layer, 0)
    weight = (
        weight.reshape(-1, units)
        if settings.flag("transpose", False)
        else weight.reshape(units, -1).T
    )
    name = x.name
    if axis == 1 and x.rank != 2:
        name = build.add("Flatten", name, axis=1)
    name = build.add("MatMul", name, build.constant(weight))
    if settings.flag("bias_term", True):
        name = build.add("Add", name, build.constant(_weight(layer, 1).reshape(-1)))
    return [Value(name, (*x.shape[:axis], units))]


def _relu(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    slope = layer.settings("relu_param").real("negative_slope", 0.0)
    if slope:
        return [Value(build.add("LeakyRelu", ins[0].name, alpha=slope), ins[0].shape)]
    return [Value(build.add("Relu", ins[0].name), ins[0].shape)]


def _relu6(build: GraphBuilder, _layer: Layer, ins: list[Value]) -> list[Value]:
    name = build.add("Clip", ins[0].name, build.constant(0.0), build.constant(6.0))
    return [Value(name, ins[0].shape)]


def _prelu(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    slope = _weight(layer, 0).reshape(-1, *[1] * (ins[0].rank - 2))
    return [Value(build.add("PRelu", ins[0].name, build.constant(slope)), ins[0].shape)]


def _elu(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    alpha = layer.settings("elu_param").real("alpha", 1.0)
    return [Value(build.add("Elu", ins[0].name, alpha=alpha), ins[0].shape)]


def _power(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings = layer.settings("power_param")
    power, scale = settings.real("power", 1.0), settings.real("scale", 1.0)
    name = build.add("Mul", ins[0].name, build.constant(scale))
    name = build.add("Add", name, build.constant(settings.real("shift", 0.0)))
    if power != 1.0:
        name = build.add("Pow", name, build.constant(power))
    return [Value(name, ins[0].shape)]


def _exponential(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    """y = base ** (shift + scale * x), or its inverse in kind; a base of -1 means e."""
    is_log = layer.kind == "Log"
    settings = layer.settings("log_param" if is_log else "exp_param")
    base, scale = settings.real("base", -1.0), settings.real("scale", 1.0)
    name = build.add("Mul", ins[0].name, build.constant(scale))
    name = build.add("Add", name, build.constant(settings.real("shift", 0.0)))
    factor = 1.0 if base == -1.0 else math.log(base)
    if is_log:
        name = build.add("Div", build.add("Log", name), build.constant(factor))
    else:
        name = build.add("Exp", build.add("Mul", name, build.constant(factor)))
    return [Value(name, ins[0].shape)]


def _lrn(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("lrn_param"), ins[0]
    size, alpha = settings.integer("local_size", 5), settings.real("alpha", 1.0)
    beta, bias = settings.real("beta", 0.75), settings.real("k", 1.0)
    if settings.word("norm_region", "ACROSS_CHANNELS") in ("ACROSS_CHANNELS", "0"):
        name = build.add("LRN", x.name, size=size, alpha=alpha, beta=beta, bias=bias)
        return [Value(name, x.shape)]
    square = build.add("Mul", x.name, x.name)
    mean = build.add(
        "AveragePool",
        square,
        kernel_shape=[size, size],
        pads=[(size - 1) // 2] * 4,
        count_include_pad=1,
    )
    inner = build.add("Add", build.add("Mul", mean, build.constant(alpha)), build.constant(1.0))
    return [Value(build.add("Div", x.name, build.add("Pow", inner, build.constant(beta))), x.shape)]


def _batch_norm(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    import numpy as np

    settings, x = layer.settings("batch_norm_param"), ins[0]
    if not settings.flag("use_global_stats", True):
        raise UnsupportedError(
            f"layer `{layer.name}` uses the statistics of its batch", operators=("BatchNorm",)
        )
    factor = float(_weight(layer, 2).reshape(-1)[0])
    factor = 1 / factor if factor else 0.0
    mean, variance = (_weight(layer, at).reshape(-1) * np.float32(factor) for at in (0, 1))
    ones, zeros = np.ones_like(mean), np.zeros_like(mean)
    name = build.add(
        "BatchNormalization",
        x.name,
        *(build.constant(one) for one in (ones, zeros, mean, variance)),
        epsilon=settings.real("eps", 1e-5),
    )
    return [Value(name, x.shape)]


def _scale(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    x = ins[0]
    is_bias = layer.kind == "Bias"
    settings = layer.settings("bias_param" if is_bias else "scale_param")
    axis = settings.integer("axis", 1) % x.rank

    def along(number: int) -> str:
        blob = _weight(layer, number)
        return build.constant(blob.reshape(*blob.shape, *[1] * (x.rank - axis - blob.ndim)))

    operator = "Add" if is_bias else "Mul"
    if len(ins) > 1:
        other = ins[1]
        shape = [0] * other.rank + [1] * (x.rank - axis - other.rank)
        second = build.add("Reshape", other.name, build.shape_constant(shape))
        name, bias_at = build.add(operator, x.name, second), 0
    else:
        name, bias_at = build.add(operator, x.name, along(0)), 1
    if not is_bias and settings.flag("bias_term", False):
        name = build.add("Add", name, along(bias_at))
    return [Value(name, x.shape)]


def _eltwise(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings = layer.settings("eltwise_param")
    kind = settings.word("operation", "SUM")
    names = [one.name for one in ins]
    if kind in ("MAX", "2"):
        return [Value(build.add("Max", *names), ins[0].shape)]
    if kind in ("PROD", "0"):
        name = names[0]
        for other in names[1:]:
            name = build.add("Mul", name, other)
        return [Value(name, ins[0].shape)]
    for at, factor in enumerate(settings.reals("coeff")):
        if factor != 1.0:
            names[at] = build.add("Mul", names[at], build.constant(factor))
    return [Value(build.add("Sum", *names), ins[0].shape)]


def _concat(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings = layer.settings("concat_param")
    axis = settings.integer("axis", settings.integer("concat_dim", 1)) % ins[0].rank
    sizes = [one.shape[axis] for one in ins]
    total = None if None in sizes else sum(one for one in sizes if one is not None)
    shape = ins[0].shape
    name = build.add("Concat", *(one.name for one in ins), axis=axis)
    return [Value(name, (*shape[:axis], total, *shape[axis + 1 :]))]


def _slice(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("slice_param"), ins[0]
    axis = settings.integer("axis", settings.integer("slice_dim", 1)) % x.rank
    size, points, count = x.shape[axis], settings.integers("slice_point"), len(layer.tops)
    if size is None:
        raise UnsupportedError(f"layer `{layer.name}` slices an axis of no fixed size")
    points = points or [size * at // count for at in range(1, count)]
    parts = [b - a for a, b in zip([0, *points], [*points, size], strict=True)]
    names = build.add_many("Split", x.name, build.shape_constant(parts), count=count, axis=axis)
    return [
        Value(name, (*x.shape[:axis], part, *x.shape[axis + 1 :]))
        for name, part in zip(names, parts, strict=True)
    ]


def _flatten(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("flatten_param"), ins[0]
    first, last = settings.integer("axis", 1) % x.rank, settings.integer("end_axis", -1) % x.rank
    inner = x.shape[first : last + 1]
    width = None if None in inner else math.prod(one for one in inner if one is not None)
    sizes = [*([0] * first), -1 if width is None else width, *x.shape[last + 1 :]]
    if None in sizes:
        raise UnsupportedError(f"layer `{layer.name}` flattens in front of a dynamic axis")
    target = build.shape_constant([one for one in sizes if one is not None])
    return [
        Value(build.add("Reshape", x.name, target), (*x.shape[:first], width, *x.shape[last + 1 :]))
    ]


def _reshape(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, x = layer.settings("reshape_param"), ins[0]
    first, count = settings.integer("axis", 0), settings.integer("num_axes", -1)
    first = first % (x.rank + 1)
    end = x.rank if count == -1 else first + count
    wanted = _sub(settings, "shape").integers("dim")
    middle: list[int | None] = [
        x.shape[first + at] if size == 0 else (None if size == -1 else size)
        for at, size in enumerate(wanted)
    ]
    target = [0] * first
    for at, size in enumerate(wanted):
        known = middle[at]
        # a zero copies the axis at its own place
        target.append(size if size == -1 else (0 if size == 0 and known is None else known or 0))
    shape: list[int | None] = [*x.shape[:first], *middle, *x.shape[end:]]
    target += [size if size is not None else -1 for size in x.shape[end:]]
    if target.count(-1) > 1:
        raise UnsupportedError(f"layer `{layer.name}` reshapes to sizes that are not fixed")
    if -1 in wanted and None not in x.shape[1:]:
        at = first + wanted.index(-1)
        rest = [size for place, size in enumerate(shape) if place != at]
        if rest[:1] == [None] and x.shape[0] is None:
            shape[at] = math.prod(one or 1 for one in x.shape[1:]) // math.prod(
                one or 1 for one in rest[1:]
            )
        elif None not in rest and None not in x.shape:
            shape[at] = math.prod(one or 1 for one in x.shape) // math.prod(
                one or 1 for one in rest
            )
    return [Value(build.add("Reshape", x.name, build.shape_constant(target)), tuple(shape))]


def _permute(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    order = layer.settings("permute_param").integers("order")
    order += [axis for axis in range(ins[0].rank) if axis not in order]
    name = build.add("Transpose", ins[0].name, perm=order)
    return [Value(name, tuple(ins[0].shape[axis] for axis in order))]


def _softmax(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    axis = layer.settings("softmax_param").integer("axis", 1)
    return [Value(build.add("Softmax", ins[0].name, axis=axis), ins[0].shape)]


def _crop(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    settings, (x, like) = layer.settings("crop_param"), ins
    axis = settings.integer("axis", 2) % x.rank
    offsets = settings.integers("offset") or [0]
    axes = list(range(axis, x.rank))
    starts = offsets * len(axes) if len(offsets) == 1 else offsets
    sizes = [like.shape[one] for one in axes]
    if None in sizes:
        raise UnsupportedError(f"layer `{layer.name}` crops to a size that is not fixed")
    ends = [start + (size or 0) for start, size in zip(starts, sizes, strict=True)]
    limits = (build.shape_constant(one) for one in (starts, ends, axes))
    return [Value(build.add("Slice", x.name, *limits), (*x.shape[:axis], *sizes))]


def _normalize(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    """SSD's: divided by the length of the vector over channels (or over everything), then scaled."""
    settings, x = layer.settings("norm_param"), ins[0]
    axes = [1, 2, 3] if settings.flag("across_spatial", True) else [1]
    square = build.add("Mul", x.name, x.name)
    total = build.add("ReduceSum", square, build.shape_constant(axes), keepdims=1)
    length = build.add("Sqrt", build.add("Add", total, build.constant(settings.real("eps", 1e-10))))
    scale = _weight(layer, 0).reshape(1, -1, 1, 1)
    name = build.add("Mul", build.add("Div", x.name, length), build.constant(scale))
    return [Value(name, x.shape)]


def _shuffle(build: GraphBuilder, layer: Layer, ins: list[Value]) -> list[Value]:
    groups, x = layer.settings("shuffle_channel_param").integer("group", 1), ins[0]
    _, channels, height, width = x.shape
    if channels is None or height is None or width is None:
        raise UnsupportedError(f"layer `{layer.name}` shuffles a blob of no fixed size")
    split = build.shape_constant([0, groups, channels // groups, height, width])
    name = build.add("Transpose", build.add("Reshape", x.name, split), perm=[0, 2, 1, 3, 4])
    back = build.shape_constant([0, channels, height, width])
    return [Value(build.add("Reshape", name, back), x.shape)]


EMIT: dict[str, Emit] = {
    **measuring.EMIT,
    **{kind: _unary(operator) for kind, operator in UNARY.items()},
    **dict.fromkeys(("Dropout", "Split"), _same),
    **dict.fromkeys(("Convolution", "Deconvolution", "ConvolutionDepthwise"), _convolution),
    "DepthwiseConvolution": _convolution,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "ReLU": _relu,
    "ReLU6": _relu6,
    "PReLU": _prelu,
    "ELU": _elu,
    "Power": _power,
    **dict.fromkeys(("Exp", "Log"), _exponential),
    "LRN": _lrn,
    "BatchNorm": _batch_norm,
    **dict.fromkeys(("Scale", "Bias"), _scale),
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Slice": _slice,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "Softmax": _softmax,
    "Crop": _crop,
    "Normalize": _normalize,
    "ShuffleChannel": _shuffle,
}
