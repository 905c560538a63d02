"""Convolutions, transposed convolutions and pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node
from deploykit._plugins.targets.litert_flatbuffer.values import channels_last
from deploykit._plugins.targets.litert_flatbuffer.windows import (
    SAME,
    VALID,
    Window,
    in_two_axes,
    narrowed,
    padded,
    widened,
    window_of,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Emitter
    from deploykit._plugins.targets.litert_flatbuffer.writing import Quantization, Tensor

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Integers:
    """How a convolution of stored numbers is written.

    `stored` gives weight and bias for the weight as TensorFlow Lite orders it and its axis of output
    channels; `output` is how the result is stored, `activation` what is applied to it.
    """

    stored: Callable[[Array, int], tuple[Tensor, Tensor]]
    output: Quantization
    activation: int


LARGEST_DENSE = 1 << 24
"""Elements of the dense weight that a grouped transposed convolution may be written out to."""
LOWEST = -3.4028234663852886e38


def taken(graph: Graph, name: str) -> Tensor:
    """Return a value with channels last and two spatial axes."""
    x = graph.form(name, channels_last(graph.rank(name)))
    return widened(graph.emit, x) if x.rank == 3 else x


def given(graph: Graph, node: Node, made: Tensor, rank: int) -> None:
    """Put the result of a node, made with two spatial axes."""
    made = narrowed(graph.emit, made) if rank == 3 else made
    graph.put(node.outputs[0], made, channels_last(rank))


def conv(graph: Graph, node: Node, integers: Integers | None = None) -> None:
    """Map Conv: depthwise where each group has one channel; grouped and plain ones are CONV_2D."""
    import numpy as np

    name = node.input(0)
    rank = graph.rank(name)
    weight_shape = graph.sizes(node.input(1), range(graph.rank(node.input(1))))
    groups = int(node.attribute("group", 1))
    window = window_of(graph, node, tuple(weight_shape[2:]))
    if rank == 5 and integers is None:
        _conv_of_three_axes(graph, node, window, groups)
        return
    x = taken(graph, name)
    window = in_two_axes(window)
    channels = weight_shape[1] * groups
    depthwise = groups == channels and groups > 1
    known = graph.constant(node.input(1))
    if known is not None:
        array = known.reshape(*known.shape[:2], 1, known.shape[2]) if rank == 3 else known
        array = array.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    elif rank != 4 or depthwise:
        raise UnsupportedError(f"its weight `{node.input(1)}` must be a constant")
    if integers is not None and known is not None:
        weight, bias = integers.stored(array, 3 if depthwise else 0)
    else:
        own = graph.emit.constant(array) if known is not None else None
        weight = graph.form(node.input(1), (0, 2, 3, 1)) if own is None else own
        bias = (
            graph.own(node.input(2))
            if node.input(2)
            else graph.emit.constant(np.zeros(weight_shape[0], np.float32))
        )
    padding = window.padding(x.shape[1:3])
    shape = (x.shape[0], *window.outputs(x.shape[1:3]), weight_shape[0])
    if padding is None:
        x, padding = padded(graph.emit, x, window), VALID
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
    }
    output = None
    if integers is not None:
        output, options["fusedActivationFunction"] = integers.output, integers.activation
    if depthwise:
        table = "DepthwiseConv2DOptions"
        options["depthMultiplier"] = weight_shape[0] // groups
        made = graph.emit.add(
            "DEPTHWISE_CONV_2D", [x, weight, bias], shape, None, table, output, **options
        )
    else:
        table = "Conv2DOptions"
        made = graph.emit.add("CONV_2D", [x, weight, bias], shape, None, table, output, **options)
    given(graph, node, made, rank)


def _conv_of_three_axes(graph: Graph, node: Node, window: Window, groups: int) -> None:
    import numpy as np

    if groups != 1:
        raise UnsupportedError("grouped windows of 3 axes")
    weight = graph.known(node, 1)
    x = graph.form(node.input(0), channels_last(5))
    shape = (x.shape[0], *window.outputs(x.shape[1:4]), weight.shape[0])
    if any(window.begin) or any(window.end):
        x = padded(graph.emit, x, window)
    bias = graph.known(node, 2) if node.input(2) else np.zeros(weight.shape[0], np.float32)
    options: dict[str, Any] = {}
    for axis, stride, dilation in zip("DHW", window.strides, window.dilations, strict=True):
        options[f"stride{axis}"] = stride
        options[f"dilation{axis}Factor"] = dilation
    inputs = [
        x,
        graph.emit.constant(weight.transpose(2, 3, 4, 1, 0)),
        graph.emit.constant(bias),
    ]
    made = graph.emit.add("CONV_3D", inputs, shape, None, "Conv3DOptions", padding=VALID, **options)
    graph.put(node.outputs[0], made, channels_last(5))


def conv_transpose(graph: Graph, node: Node) -> None:
    """Map ConvTranspose: the whole result, of which padding cuts the edges off."""
    import numpy as np

    name = node.input(0)
    rank = graph.rank(name)
    weight = graph.known(node, 1)
    if rank not in (3, 4):
        raise UnsupportedError(f"windows of {rank - 2} axes")
    groups = int(node.attribute("group", 1))
    weight = _dilated(_dense(weight, groups), node.attribute("dilations", [1] * (rank - 2)))
    kernel = weight.shape[2:]
    strides = list(node.attribute("strides", [1] * (rank - 2)))
    sizes = graph.sizes(name, range(2, rank))
    begin, outputs = _transposed_place(node, sizes, kernel, strides)
    if rank == 3:
        weight = weight[:, :, None, :]
        kernel, strides, sizes = (1, *kernel), [1, *strides], [1, *sizes]
        begin, outputs = [0, *begin], [1, *outputs]
    x = taken(graph, name)
    filters = weight.shape[1]
    inputs = [graph.emit.constant(weight.transpose(1, 2, 3, 0)), x]
    inputs.append(
        graph.own(node.input(2))
        if node.input(2)
        else graph.emit.constant(np.zeros(filters, np.float32))
    )
    if _is_same(sizes, kernel, strides, begin, outputs):
        padding, whole = SAME, outputs
    else:
        # cropped at the end, or longer by zeros (and the bias), as the output's size says
        padding = VALID
        whole = [
            max((n - 1) * s + k, b + o)
            for n, s, k, b, o in zip(sizes, strides, kernel, begin, outputs, strict=True)
        ]
    made = graph.emit.add(
        "TRANSPOSE_CONV",
        [graph.size_tensor((x.shape[0], *whole, filters)), *inputs],
        (x.shape[0], *whole, filters),
        "float32",
        "TransposeConvOptions",
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
    )
    cropped = graph.emit.slice(made, [0, *begin, 0], [-1, *outputs, filters])
    given(graph, node, cropped if padding == VALID else made, rank)


def _dense(weight: Array, groups: int) -> Array:
    """Return a grouped weight [in, out / groups, ...] as one of one group, zeros elsewhere."""
    import numpy as np

    if groups == 1:
        return weight
    ins, outs = weight.shape[0] // groups, weight.shape[1]
    if weight.size * groups > LARGEST_DENSE:
        raise UnsupportedError(f"{groups} groups of a weight of {weight.size} elements")
    dense = np.zeros((weight.shape[0], outs * groups, *weight.shape[2:]), weight.dtype)
    for at in range(groups):
        rows = slice(at * ins, (at + 1) * ins)
        dense[rows, at * outs : (at + 1) * outs] = weight[rows]
    return dense


def _dilated(weight: Array, dilations: list[int]) -> Array:
    """Return the weight with zeros in the holes of the window."""
    import numpy as np

    if all(each == 1 for each in dilations):
        return weight
    sizes = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weight
    return wide


def _transposed_place(
    node: Node, sizes: list[int], kernel: tuple[int, ...], strides: list[int]
) -> tuple[list[int], list[int]]:
    """Return where the output begins in the whole result, and its sizes.

    https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    rank = len(sizes)
    extra = list(node.attribute("output_padding", [0] * rank))
    pads = list(node.attribute("pads", [0] * 2 * rank))
    asked = list(node.attribute("output_shape", []))[-rank:]
    automatic = node.attribute("auto_pad", "NOTSET")
    begin, outputs = [], []
    for at, size in enumerate(sizes):
        whole = (size - 1) * strides[at] + kernel[at] + extra[at]
        if asked or automatic in ("SAME_UPPER", "SAME_LOWER"):
            out = asked[at] if asked else size * strides[at]
            if out > whole:
                raise UnsupportedError(f"its output is larger than what the window reaches: {out}")
            cut = whole - out
            # the odd element goes to the beginning, except for SAME_UPPER
            first = cut // 2 if automatic == "SAME_UPPER" else cut - cut // 2
        elif automatic == "VALID":
            first, out = 0, whole
        else:
            first, out = pads[at], whole - pads[at] - pads[at + rank]
        begin.append(first)
        outputs.append(out)
    if any(each < 0 for each in begin):
        raise UnsupportedError("negative padding")
    return begin, outputs


def _is_same(
    sizes: list[int],
    kernel: tuple[int, ...],
    strides: list[int],
    begin: list[int],
    outputs: list[int],
) -> bool:
    """Whether TensorFlow Lite's SAME cuts exactly this off."""
    for n, k, s, b, out in zip(sizes, kernel, strides, begin, outputs, strict=True):
        if -(-out // s) != n or max((n - 1) * s + k - out, 0) // 2 != b or (n - 1) * s + k < out:
            return False
    return True


def max_pool(graph: Graph, node: Node) -> None:
    """Map MaxPool."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise UnsupportedError("its indices are read")
    x, window, rank = _pool(graph, node)
    padding = window.padding(x.shape[1:3])
    shape = (x.shape[0], *window.outputs(x.shape[1:3]), x.shape[3])
    if padding is None:
        x, padding = padded(graph.emit, x, window, value=LOWEST), VALID
    given(graph, node, _pooled(graph.emit, "MAX_POOL_2D", x, window, padding, shape), rank)


def average_pool(graph: Graph, node: Node) -> None:
    """Map AveragePool: an average over all of each window, corrected where it must not count all."""
    import numpy as np

    x, window, rank = _pool(graph, node)
    padding = window.padding(x.shape[1:3])
    shape = (x.shape[0], *window.outputs(x.shape[1:3]), x.shape[3])
    counts_padding = bool(node.attribute("count_include_pad", 0))
    if padding == VALID or (padding == SAME and not counts_padding):
        made = _pooled(graph.emit, "AVERAGE_POOL_2D", x, window, padding, shape)
        given(graph, node, made, rank)
        return
    sizes = graph.sizes(node.input(0), range(2, rank))
    sizes = [1, *sizes] if rank == 3 else sizes
    counted = _counted(node, window, sizes, counts_padding=counts_padding)
    made = padded(graph.emit, x, window)
    made = _pooled(graph.emit, "AVERAGE_POOL_2D", made, window, VALID, shape)
    correction = np.float32(window.kernel[0] * window.kernel[1]) / np.outer(*counted)
    if (correction != 1).any():
        factor = graph.emit.constant(correction[None, :, :, None].astype(np.float32))
        made = graph.emit.binary("MUL", made, factor)
    given(graph, node, made, rank)


def _counted(node: Node, window: Window, sizes: list[int], *, counts_padding: bool) -> list[Array]:
    """Return how many elements each window counts, along each axis."""
    import numpy as np

    rank = len(sizes)
    pads = list(node.attribute("pads", [0] * 2 * rank))
    if len(pads) < 2 * rank:
        pads = [0, pads[0], 0, pads[1]]
    if node.attribute("auto_pad", "NOTSET") != "NOTSET":
        pads = [*window.begin, *window.end]
    found = []
    for at, size in enumerate(sizes):
        first, last = -window.begin[at], size
        starts = np.arange(int(window.outputs(tuple(sizes))[at])) * window.strides[at] + first
        if counts_padding:
            # what only ceil_mode added does not count
            last = size + pads[at + rank]
        else:
            first = 0
        ends = np.minimum(starts + window.kernel[at], last)
        found.append((ends - np.maximum(starts, first)).astype(np.float32))
    return found


def _pool(graph: Graph, node: Node) -> tuple[Tensor, Window, int]:
    name = node.input(0)
    rank = graph.rank(name)
    if rank not in (3, 4):
        raise UnsupportedError(f"windows of {rank - 2} axes")
    window = window_of(graph, node, tuple(node.attribute("kernel_shape", ())))
    if any(each != 1 for each in window.dilations):
        raise UnsupportedError("dilated pools are not among TensorFlow Lite's operators")
    return taken(graph, name), in_two_axes(window), rank


def _pooled(
    emit: Emitter, kind: str, x: Tensor, window: Window, padding: int, shape: Any
) -> Tensor:
    return emit.add(
        kind,
        [x],
        shape,
        None,
        "Pool2DOptions",
        x.quantization,
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
    )


def global_average_pool(graph: Graph, node: Node) -> None:
    """Map GlobalAveragePool."""
    _over_space(graph, node, "MEAN")


def global_max_pool(graph: Graph, node: Node) -> None:
    """Map GlobalMaxPool."""
    _over_space(graph, node, "REDUCE_MAX")


def _over_space(graph: Graph, node: Node, kind: str) -> None:
    name = node.input(0)
    order = graph.values.first(name)
    axes = [at for at, axis in enumerate(order) if axis >= 2]
    made = graph.emit.reduce(kind, graph.form(name, order), axes, keep=True)
    graph.put(node.outputs[0], made, order)
