"""Convolution and pooling of CNTK as ONNX nodes: how a window is padded and how far it goes.

The formulas are those of `Source/Math/ConvolveGeometry.h` of CNTK 2.7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from deploykit._plugins.converters.cntk.emission import Emission, Value, listed, whole_number
from deploykit._plugins.converters.cntk.graph import FREE, Node, Shape

from deploykit.errors import UnsupportedError

UNKNOWN_SHAPE = -2
"""What stands in `poolingWindowShape` for a window over the whole picture."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window along one axis."""

    kernel: int
    stride: int
    dilation: int
    auto: bool
    lower: int
    upper: int

    @property
    def reach(self) -> int:
        return (self.kernel - 1) * self.dilation + 1

    def places(self, size: int, *, ceil: bool = False) -> int:
        """Return how many places the window takes along an axis of `size`."""
        if size == FREE:
            return size
        room = size - 1 if self.auto else size + self.lower + self.upper - self.reach
        if room < 0:
            raise ValueError(f"a window of {self.reach} is larger than an axis of {size}")
        return (math.ceil(room / self.stride) if ceil else room // self.stride) + 1

    def pads(self, size: int, *, ceil: bool = False) -> tuple[int, int]:
        """Return the padding before and after; negative where the window skips places.

        With automatic padding the centres of the first and the last window are equally far from
        the edges, the last one further where that is not possible.
        """
        if not self.auto:
            if not ceil or size == FREE:
                return self.lower, self.upper
            used = (self.places(size, ceil=True) - 1) * self.stride + self.reach
            return self.lower, max(self.upper, used - size - self.lower)
        if size == FREE:
            if self.stride != 1:
                raise UnsupportedError(
                    "the padding of a strided window depends on a size that is known only at run time",
                    operators=("Convolution(autoPadding, free size)",),
                    hint="fix the sizes of the inputs: `--input 'NAME:float32[batch,...]'`",
                )
            extra = 0
        else:
            extra = size - 1 - (self.places(size, ceil=ceil) - 1) * self.stride
        half = (self.reach - 1) // 2
        lower = half - extra // 2
        return lower, self.reach - 1 - half - (extra - extra // 2)


def spread(values: list[int], rank: int, default: int) -> list[int]:
    """Return a value for each of `rank` axes: the last is repeated (`FixVectorShape` of CNTK)."""
    found = values or [default]
    return (found + found[-1:] * rank)[:rank]


def windows(node: Node, kernel: Shape) -> list[Window]:
    """Return the windows of a convolution or pooling, one for each axis of `kernel`."""
    rank = len(kernel)
    strides = spread(listed(node, "strides", int), rank, 1)
    dilations = spread(listed(node, "dilation", int), rank, 1)
    auto = spread([int(one) for one in listed(node, "autoPadding", bool)], rank, 0)
    lower = spread(listed(node, "lowerPad", int), rank, 0)
    upper = spread(listed(node, "upperPad", int), rank, 0)
    found = []
    for at, size in enumerate(kernel):
        if size < 1 or strides[at] < 1 or dilations[at] < 1 or lower[at] < 0 or upper[at] < 0:
            raise ValueError(f"its window is {kernel} with strides {strides}")
        found.append(
            Window(
                kernel=size,
                stride=strides[at],
                dilation=dilations[at],
                auto=bool(auto[at]),
                lower=lower[at],
                upper=upper[at],
            )
        )
    return found


def convolution(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit a Convolution: inputs are the kernel and the data."""
    kernel, data = ins
    if not all(listed(node, "sharing", bool)):
        raise UnsupportedError(
            f"convolution `{node.name or node.uid}` shares no weights between places",
            operators=("Convolution(sharing=false)",),
        )
    rank = len(data.shape)
    if kernel.dynamic or rank < 2 or len(kernel.shape) not in (rank, rank + 1):
        raise UnsupportedError(
            f"convolution `{node.name or node.uid}` has a kernel of shape {kernel.shape} "
            f"for data of shape {data.shape}",
            operators=("Convolution(kernel shape)",),
        )
    if node.attributes.get("transpose"):
        return _transposed(to, node, kernel, data)
    groups = max(1, whole_number(node, "groups", 1))
    channels = data.shape[-1]
    maps = kernel.shape[rank] if len(kernel.shape) > rank else 1
    along = windows(node, kernel.shape[:rank])
    last = along[-1]
    single = groups > 1 or (last.places(channels) == 1 and last.pads(channels)[0] == 0)
    if last.kernel * groups != channels or not single:
        raise UnsupportedError(
            f"convolution `{node.name or node.uid}` moves along its channels: "
            f"a kernel of shape {kernel.shape} for data of shape {data.shape}",
            operators=("Convolution(along channels)",),
        )
    weight = kernel.name
    if len(kernel.shape) == rank:
        weight = to.add("Unsqueeze", weight, to.sizes(0))
    flat, back = to.folded(data)
    space = along[:-1]
    flat, pads = _cut(to, flat, data.shape, space)
    name = to.add(
        "Conv",
        flat,
        weight,
        kernel_shape=[one.kernel for one in space[::-1]],
        strides=[one.stride for one in space[::-1]],
        dilations=[one.dilation for one in space[::-1]],
        pads=pads,
        group=groups,
    )
    sizes = [one.places(size) for one, size in zip(space, data.shape, strict=False)]
    return replace(data, name=back(name), shape=(*sizes, maps), constant=None, positional=False)


def _cut(to: Emission, name: str, shape: Shape, along: list[Window]) -> tuple[str, list[int]]:
    """Slice off what windows skip at the edges (negative padding); return ONNX's pads."""
    edges = [one.pads(size) for one, size in zip(along, shape, strict=False)]
    cuts = [(2 + len(along) - 1 - at, -min(a, 0), -min(b, 0)) for at, (a, b) in enumerate(edges)]
    if needed := [cut for cut in cuts if cut[1] or cut[2]]:
        name = to.add(
            "Slice",
            name,
            to.sizes(*(start for _, start, _ in needed)),
            to.sizes(*(-end or 2**31 for _, _, end in needed)),
            to.sizes(*(axis for axis, _, _ in needed)),
        )
    return name, [max(a, 0) for a, _ in edges[::-1]] + [max(b, 0) for _, b in edges[::-1]]


def _transposed(to: Emission, node: Node, kernel: Value, data: Value) -> Value:
    rank = len(data.shape)
    groups = max(1, whole_number(node, "groups", 1))
    if len(kernel.shape) != rank + 1 or kernel.shape[rank] != data.shape[-1] or FREE in data.shape:
        raise UnsupportedError(
            f"transposed convolution `{node.name or node.uid}` has a kernel of shape "
            f"{kernel.shape} for data of shape {data.shape}",
            operators=("Convolution(transpose)",),
        )
    space = windows(node, kernel.shape[:rank])[:-1]
    wanted = listed(node, "outputShape", int)
    before, after, extra, skipped, sizes = [], [], [], [], []
    for at, one in enumerate(space):
        size = data.shape[at]
        full = (size - 1) * one.stride + one.reach
        if len(wanted) > at and wanted[at] > 0:
            made = wanted[at]
        elif one.auto:
            made = (size - 1) * one.stride + 1
        else:
            made = full - one.lower - one.upper
        lower, _ = one.pads(made)
        rest = full - made - lower
        if one.places(made) != size:
            raise UnsupportedError(
                f"transposed convolution `{node.name or node.uid}` makes {made} of {size}",
                operators=("Convolution(transpose)",),
            )
        before.append(max(lower, 0))
        skipped.append(max(-lower, 0))
        after.append(max(rest, 0))
        extra.append(max(-rest, 0))
        sizes.append(made)
    flat, back = to.folded(data)
    name = to.add(
        "ConvTranspose",
        flat,
        kernel.name,
        kernel_shape=[one.kernel for one in space[::-1]],
        strides=[one.stride for one in space[::-1]],
        dilations=[one.dilation for one in space[::-1]],
        pads=before[::-1] + after[::-1],
        output_padding=extra[::-1],
        group=groups,
    )
    if any(skipped):  # the first window begins beyond the edge
        none = [0] * (2 + len(space))
        name = to.add("Pad", name, to.sizes(0, 0, *skipped[::-1], *none), to.real(0.0))
    maps = kernel.shape[rank - 1] * groups
    return replace(data, name=back(name), shape=(*sizes, maps), constant=None, positional=False)


def pooling(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit a Pooling of the maximum or the mean."""
    (data,) = ins
    largest = whole_number(node, "poolingType") == 0
    kernel = tuple(listed(node, "poolingWindowShape", int))
    whole = kernel == (UNKNOWN_SHAPE,)
    if whole:
        kernel = (1,) * (len(data.shape) - 1)
    along = windows(node, kernel)
    while not whole and along and len(along) == len(data.shape) and _trivial(along[-1]):
        along.pop()
    channels = data.shape[len(along) :]
    if not 0 < len(along) <= 3 or len(along) > len(data.shape):
        raise UnsupportedError(
            f"pooling `{node.name or node.uid}` has a window of {len(along)} axes",
            operators=("Pooling(axes)",),
        )
    ceil = bool(node.attributes.get("ceilOutDim", False))
    picture = data
    if len(channels) != 1:  # several axes that are not pooled are one, none is one of size 1
        joined = math.prod(channels) if FREE not in channels else FREE
        picture = replace(data, name="", shape=(*data.shape[: len(along)], joined))
        picture = replace(picture, name=to.reshape(data, picture.shape))
    flat, back = to.folded(picture)
    if whole:
        sizes = [1] * len(along)
        name = to.add("GlobalMaxPool" if largest else "GlobalAveragePool", flat)
    else:
        sizes = [w.places(n, ceil=ceil) for w, n in zip(along, data.shape, strict=False)]
        name = _pooled(to, node, flat, data.shape, along, largest, ceil)
    made = replace(picture, name=back(name), shape=(*sizes, *picture.shape[-1:]))
    shape = (*sizes, *channels)
    name = to.reshape(made, shape) if len(channels) != 1 else made.name
    return replace(data, name=name, shape=shape, constant=None, positional=False)


def _trivial(window: Window) -> bool:
    return window.kernel == 1 and window.stride == 1


def _pooled(
    to: Emission,
    node: Node,
    flat: str,
    shape: Shape,
    along: list[Window],
    largest: bool,
    ceil: bool,
) -> str:
    edges = [one.pads(size, ceil=ceil) for one, size in zip(along, shape, strict=False)]
    if any(a < 0 or b < 0 for a, b in edges):
        cuts = [(max(-a, 0), max(-b, 0)) for a, b in edges]
        axes = [2 + len(along) - 1 - at for at in range(len(along))]
        flat = to.add(
            "Slice",
            flat,
            to.sizes(*(a for a, _ in cuts)),
            to.sizes(*(-b or 2**31 for _, b in cuts)),
            to.sizes(*axes),
        )
    pads = [(max(a, 0), max(b, 0)) for a, b in edges]
    shown: dict[str, Any] = {
        "kernel_shape": [one.kernel for one in along[::-1]],
        "strides": [one.stride for one in along[::-1]],
    }
    if any(a >= w.kernel or b >= w.kernel for (a, b), w in zip(pads, along, strict=True)):
        raise UnsupportedError(
            f"pooling `{node.name or node.uid}` has windows of padding only",
            operators=("Pooling(padding)",),
        )
    flattened = [a for a, _ in pads[::-1]] + [b for _, b in pads[::-1]]
    free = ceil and any(size == FREE for size in shape[: len(along)])
    if free:
        shown["ceil_mode"] = 1
    if not largest:
        shown["count_include_pad"] = int(bool(node.attributes.get("includePad", False)))
    operator = "MaxPool" if largest else "AveragePool"
    name: str = to.add(operator, flat, pads=flattened, **shown)
    return name
