"""MXNet operators that make or stretch arrays, by definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def _filled(node: Node, _ins: list[Array]) -> Any:
    import numpy as np

    value = {"_zeros": 0.0, "_ones": 1.0}.get(node.op, node.value("value", 0.0))
    # a size of zero is inferred from what the array meets; one broadcasts to it
    return np.full([max(size, 1) for size in node.value("shape", (1,))], value)


def _arange(node: Node, _ins: list[Array]) -> Any:
    import numpy as np

    start, stop, step = (
        node.value(*one) for one in (("start", 0.0), ("stop", None), ("step", 1.0))
    )
    steps = np.arange(0, start, step) if stop is None else np.arange(start, stop, step)
    return steps.astype(np.float64).repeat(node.value("repeat", 1))


def _arange_like(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    axis = node.value("axis", None)
    shape = ins[0].shape if axis is None else (ins[0].shape[axis],)
    count = np.arange(np.prod(shape)).reshape(shape)
    return node.value("start", 0.0) + node.value("step", 1.0) * count


def _broadcast_axis(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    shape = list(ins[0].shape)
    for axis, size in zip(node.value("axis", ()), node.value("size", ()), strict=True):
        shape[axis] = size
    return np.broadcast_to(ins[0], shape)


def _broadcast_like(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    shape = list(ins[0].shape)
    ours = node.value("lhs_axes", ()) or range(len(shape))
    theirs = node.value("rhs_axes", ()) or range(len(shape))
    for a, b in zip(ours, theirs, strict=True):
        shape[a] = ins[1].shape[b]
    return np.broadcast_to(ins[0], shape)


def _slice_like(node: Node, ins: list[Array]) -> Any:
    axes = {axis % ins[0].ndim for axis in node.value("axes", ())} or set(range(ins[0].ndim))
    sizes = enumerate(ins[0].shape)
    return ins[0][tuple(slice(ins[1].shape[at] if at in axes else size) for at, size in sizes)]


def _repeat(node: Node, ins: list[Array]) -> Any:
    return ins[0].repeat(node.value("repeats", 1), axis=node.value("axis", None))


def _flip(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    return np.flip(ins[0], node.value("axis", ()))


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(("_zeros", "_ones", "_full"), _filled),
    "_arange": _arange,
    "zeros_like": lambda _node, ins: ins[0] * 0.0,
    "ones_like": lambda _node, ins: ins[0] * 0.0 + 1.0,
    "_contrib_arange_like": _arange_like,
    **dict.fromkeys(("broadcast_axis", "broadcast_axes"), _broadcast_axis),
    "broadcast_like": _broadcast_like,
    "slice_like": _slice_like,
    "reshape_like": lambda _node, ins: ins[0].reshape(ins[1].shape),
    "repeat": _repeat,
    **dict.fromkeys(("reverse", "flip"), _flip),
}
