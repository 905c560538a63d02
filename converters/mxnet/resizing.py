"""MXNet operators that crop and resize images, and normalise groups of channels, as ONNX nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.emission import Emit, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _refused(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"node `{node.name}` {what}",
        operators=(node.op,),
        hint="where a size is not fixed, give it: `--input 'NAME:float32[...]'`",
    )


def _space(node: Node, x: Value) -> list[int]:
    found = [size for size in x.shape[2:] if size is not None]
    if len(found) != 2 or x.rank != 4:
        raise _refused(node, "is over an image of no fixed size")
    return found


def _shares(size: int, count: int) -> Array:
    """Return the mean over each of `count` parts of a row of `size` as a matrix [count, size]."""
    import numpy as np

    found = np.zeros((count, size), np.float32)
    for at in range(count):
        first, last = at * size // count, -(-(at + 1) * size // count)
        found[at, first:last] = 1 / (last - first)
    return found


def _adaptive(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    wanted = list(node.value("output_size", ())) or [1]
    wanted = wanted * 2 if len(wanted) == 1 else wanted
    if wanted == [1, 1]:
        return [Value(build.add("GlobalAveragePool", x.name), (*x.shape[:2], 1, 1))]
    rows, columns = (_shares(*pair) for pair in zip(_space(node, x), wanted, strict=True))
    name = build.add("MatMul", build.constant(rows), x.name)
    name = build.add("MatMul", name, build.constant(columns.T))
    return [Value(name, (*x.shape[:2], *wanted))]


def _resized(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, mode = ins[0], node.value("mode", "size")
    sizes = [node.value("height", 1), node.value("width", 1)]
    factors = [node.value(key, None) for key in ("scale_height", "scale_width")]
    if mode == "like" and None not in ins[1].shape[2:]:
        sizes = [size or 0 for size in ins[1].shape[2:]]
    elif mode != "size":
        raise _refused(node, f"resizes by the mode {mode}")
    elif None not in factors:
        sizes = [int(size * f) for size, f in zip(_space(node, x), factors, strict=True)]
    is_aligned = node.value("align_corners", True)
    if is_aligned and 1 in sizes and 1 not in x.shape[2:]:
        # ONNX leaves open where a single aligned pixel lies: MXNet takes the first
        keep = [
            build.shape_constant(one)
            for one in ([0, 0], [1 if n == 1 else 2**31 - 1 for n in sizes], [2, 3])
        ]
        x = Value(build.add("Slice", x.name, *keep), x.shape)
    front = build.add(
        "Slice", build.add("Shape", x.name), *(build.shape_constant([n]) for n in (0, 2))
    )
    target = build.add("Concat", front, build.shape_constant(sizes), axis=0)
    name = build.add(
        "Resize",
        *(x.name, "", "", target),
        mode="linear",
        coordinate_transformation_mode="align_corners" if is_aligned else "half_pixel",
    )
    return [Value(name, (*x.shape[:2], *sizes))]


def _crop(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """`Crop`, an image cut to a size or to that of another one."""
    x = ins[0]
    sizes = list(node.value("h_w", (0, 0)))
    if len(ins) > 1:
        sizes = _space(node, ins[1])
    starts = list(node.value("offset", (0, 0)))
    if node.value("center_crop", False):
        starts = [(whole - part) // 2 for whole, part in zip(_space(node, x), sizes, strict=True)]
    ends = [a + b for a, b in zip(starts, sizes, strict=True)]
    name = build.add(
        "Slice", x.name, *(build.shape_constant(one) for one in (starts, ends, [2, 3]))
    )
    return [Value(name, (*x.shape[:2], *sizes))]


def _group_norm(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, gamma, beta = ins
    groups, channels = node.value("num_groups", 1), x.shape[1]
    if node.value("output_mean_var", False) or channels is None:
        raise _refused(node, "gives its statistics, or is over an unknown number of channels")
    split = build.add("Reshape", x.name, build.shape_constant([0, groups, -1]))
    ones, zeros = (build.constant([one] * groups, dtype="float32") for one in (1.0, 0.0))
    split = build.add("InstanceNormalization", split, ones, zeros, epsilon=node.value("eps", 1e-5))
    name = build.add("Reshape", split, build.add("Shape", x.name))
    for operator, one in (("Mul", gamma), ("Add", beta)):
        along = one.name
        if one.shape[0] not in (channels, 1):  # one number for each group
            index = [at * groups // channels for at in range(channels)]
            along = build.add("Gather", along, build.shape_constant(index))
        along = build.add("Reshape", along, build.shape_constant([-1, *[1] * (x.rank - 2)]))
        name = build.add(operator, name, along)
    return [Value(name, x.shape)]


def _upsampling(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    scale = node.value("scale", 1)
    if node.value("sample_type", "nearest") == "bilinear":
        return [_transposed(build, ins, scale)]
    if len(ins) == 1:
        return [_repeated(build, ins[0], [scale] * (ins[0].rank - 2))]
    target = [size * scale for size in _space(node, ins[0])]
    found = []
    for one in ins:
        sizes = _space(node, one)
        if any(whole % part for whole, part in zip(target, sizes, strict=True)):
            raise _refused(node, "repeats pixels of images that do not fit together")
        found.append(_repeated(build, one, [a // b for a, b in zip(target, sizes, strict=True)]))
    names = [one.name for one in found]
    if node.value("multi_input_mode", "concat") == "sum":
        return [Value(build.add("Sum", *names), found[0].shape)]
    depths = [one.shape[1] for one in found]
    total = None if None in depths else sum(one for one in depths if one is not None)
    return [Value(build.add("Concat", *names, axis=1), (found[0].shape[0], total, *target))]


def _repeated(build: GraphBuilder, x: Value, scales: list[int]) -> Value:
    name = build.add(
        "Resize",
        *(x.name, "", build.constant([1.0, 1.0, *scales], dtype="float32")),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    sizes = (None if n is None else n * s for n, s in zip(x.shape[2:], scales, strict=True))
    return Value(name, (*x.shape[:2], *sizes))


def _transposed(build: GraphBuilder, ins: list[Value], scale: int) -> Value:
    """Bilinear means a transposed convolution of each channel with weights of the model."""
    x, weight = ins
    name = build.add(
        "ConvTranspose",
        *(x.name, weight.name),
        kernel_shape=[2 * scale - scale % 2] * 2,
        strides=[scale] * 2,
        pads=[-(-(scale - 1) // 2)] * 4,
        group=weight.shape[0],
    )
    sizes = (None if size is None else size * scale for size in x.shape[2:])
    return Value(name, (x.shape[0], weight.shape[0], *sizes))


EMIT: dict[str, Emit] = {
    "_contrib_AdaptiveAvgPooling2D": _adaptive,
    "_contrib_BilinearResize2D": _resized,
    "Crop": _crop,
    "GroupNorm": _group_norm,
    "UpSampling": _upsampling,
}
