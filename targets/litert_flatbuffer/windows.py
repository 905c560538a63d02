"""What convolutions and pools share: the window's geometry, padding, and one axis made two.

TensorFlow Lite's windows have two axes, channels last, and padding `VALID` (none) or `SAME` (the
output is as large as the input, divided by the stride; an odd element of padding goes to the end).
Padding that is neither becomes an operator of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Emitter, Shape
    from deploykit._plugins.targets.litert_flatbuffer.writing import Dim, Tensor

SAME, VALID = 0, 1


@dataclass(frozen=True)
class Window:
    """Sizes along the spatial axes; `begin` and `end` are padding.

    With `same` the padding is what TensorFlow Lite's SAME is, whatever the size.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    same: bool = False

    @property
    def extent(self) -> tuple[int, ...]:
        """What the window spans, its holes included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def outputs(self, sizes: Shape) -> Shape:
        """Return the sizes of the output for those of the input."""
        made: list[Dim] = []
        for at, size in enumerate(sizes):
            if self.same:
                stride = self.strides[at]
                made.append(-(-size // stride) if isinstance(size, int) else f"{size}/{stride}")
            elif isinstance(size, int):
                room = size + self.begin[at] + self.end[at] - self.extent[at]
                made.append(room // self.strides[at] + 1)
            elif self.strides[at] == 1 and self._grown(at) == 0:
                made.append(size)
            else:
                made.append(f"{size}/{self.strides[at]}+{self._grown(at)}")
        return tuple(made)

    def _grown(self, at: int) -> int:
        return self.begin[at] + self.end[at] - self.extent[at] + 1

    def padding(self, sizes: Shape) -> int | None:
        """Return SAME or VALID, or None where the padding is neither."""
        if self.same:
            return SAME
        if not any(self.begin) and not any(self.end):
            return VALID
        for at, size in enumerate(sizes):
            stride, extent = self.strides[at], self.extent[at]
            if isinstance(size, int):
                out = -(-size // stride)
                whole = max((out - 1) * stride + extent - size, 0)
                # padding beyond what the last window reaches is never read
                ends = (size + self.begin[at] + self.end[at] - extent) // stride
                reach = ends * stride + extent
                used = max(reach - size - self.begin[at], 0)
                if (self.begin[at], used) != (whole // 2, whole - whole // 2):
                    return None
                if ends + 1 != out:
                    return None
            elif stride != 1 or self._grown(at) != 0 or self.begin[at] != (extent - 1) // 2:
                return None
        return SAME


def window_of(graph: Graph, node: Node, kernel: tuple[int, ...]) -> Window:
    """Return the window of a convolution or pool, from its attributes."""
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise UnsupportedError(f"windows of {rank} axes")
    strides = tuple(node.attribute("strides", [1] * rank))
    dilations = tuple(node.attribute("dilations", [1] * rank))
    pads = list(node.attribute("pads", [0] * 2 * rank))
    automatic = node.attribute("auto_pad", "NOTSET")
    made = Window(kernel, strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
    if any(pad < 0 for pad in pads):
        raise UnsupportedError("negative padding")
    if automatic == "VALID":
        return Window(kernel, strides, dilations, (0,) * rank, (0,) * rank)
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        return _same(graph, node, made, lower=automatic == "SAME_LOWER")
    if node.attribute("ceil_mode", 0):
        return _ceiled(graph, node, made)
    return made


def _same(graph: Graph, node: Node, window: Window, *, lower: bool) -> Window:
    begin, end = [], []
    shape = graph.shape(node.input(0))[2:]
    if not lower and any(not isinstance(size, int) for size in shape):
        return replace(window, begin=(0,) * len(shape), end=(0,) * len(shape), same=True)
    for size, stride, extent in zip(shape, window.strides, window.extent, strict=True):
        if isinstance(size, int):
            whole = (-(-size // stride) - 1) * stride + extent - size
            if whole < 0 and "Pool" in node.operator:
                raise UnsupportedError(
                    f"{node.attributes['auto_pad']} pads by {whole}: runtimes differ"
                )
            whole = max(whole, 0)
        elif stride == 1:
            whole = extent - 1
        else:
            graph.sizes(node.input(0), range(2, len(shape) + 2))
            raise AssertionError("unreachable")
        less, more = whole // 2, whole - whole // 2
        begin.append(more if lower else less)
        end.append(less if lower else more)
    return Window(window.kernel, window.strides, window.dilations, tuple(begin), tuple(end))


def _ceiled(graph: Graph, node: Node, window: Window) -> Window:
    """Widen the padding at the end so that the last window, reaching beyond, counts too."""
    end = []
    sizes = graph.sizes(node.input(0), range(2, 2 + len(window.kernel)))
    for at, size in enumerate(sizes):
        room = size + window.begin[at] + window.end[at] - window.extent[at]
        out = -(-room // window.strides[at]) + 1
        if (out - 1) * window.strides[at] >= size + window.begin[at]:
            out -= 1  # a window that begins in the padding at the end is left out
        reach = (out - 1) * window.strides[at] + window.extent[at]
        end.append(max(reach - size - window.begin[at], 0))
    return Window(window.kernel, window.strides, window.dilations, window.begin, tuple(end))


def padded(emit: Emitter, x: Tensor, window: Window, *, value: float = 0.0) -> Tensor:
    """Write the padding of the spatial axes of `x`, channels last."""
    pads = [(0, 0), *zip(window.begin, window.end, strict=True), (0, 0)]
    return pad(emit, x, pads, value=value)


def pad(emit: Emitter, x: Tensor, pads: list[tuple[int, int]], *, value: float = 0.0) -> Tensor:
    """Write a PAD; each axis has its padding before and after."""
    shape = tuple(
        size + sum(pads[at])
        if isinstance(size, int)
        else (f"{size}+{sum(pads[at])}" if sum(pads[at]) else size)
        for at, size in enumerate(x.shape)
    )
    where = emit.constant(pads, "int32")
    if value == 0:
        return emit.add("PAD", [x, where], shape, None, "PadOptions", x.quantization)
    filled = emit.constant(value, x.dtype)
    return emit.add("PADV2", [x, where, filled], shape, None, "PadV2Options", x.quantization)


def widened(emit: Emitter, x: Tensor) -> Tensor:
    """Return [N, L, C] as [N, 1, L, C]: one spatial axis made two."""
    if sum(not isinstance(size, int) for size in x.shape) <= 1:
        return emit.reshape(x, (x.shape[0], 1, *x.shape[1:]))
    at = emit.constant(1, "int32")
    shape = (x.shape[0], 1, *x.shape[1:])
    return emit.add("EXPAND_DIMS", [x, at], shape, None, "ExpandDimsOptions", x.quantization)


def narrowed(emit: Emitter, x: Tensor) -> Tensor:
    """Return [N, 1, L, C] as [N, L, C]."""
    shape = (x.shape[0], *x.shape[2:])
    if sum(not isinstance(size, int) for size in shape) <= 1:
        return emit.reshape(x, shape)
    return emit.add("SQUEEZE", [x], shape, None, "SqueezeOptions", x.quantization, squeezeDims=[1])


def in_two_axes(window: Window) -> Window:
    """Return the window of one axis as one of two, the first of size one."""
    if len(window.kernel) != 1:
        return window
    return Window(
        (1, *window.kernel),
        (1, *window.strides),
        (1, *window.dilations),
        (0, *window.begin),
        (0, *window.end),
        window.same,
    )
