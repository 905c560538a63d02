"""MXNet operators that choose, sort and measure, by definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def _place(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    axis = 1 if node.op == "argmax_channel" else node.value("axis", None)
    function = np.argmin if node.op == "argmin" else np.argmax
    found = np.asarray(function(ins[0], axis=axis, keepdims=node.value("keepdims", False)))
    return found.reshape(found.shape or (1,)).astype(np.float64)


def _norm(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x = np.abs(ins[0].astype(np.float64))
    kind, axes = node.value("ord", 2), node.value("axis", ()) or tuple(range(x.ndim))
    total = (x**kind).sum(axis=axes, keepdims=node.value("keepdims", False))
    return np.asarray(total ** (1 / kind)).reshape(np.shape(total) or (1,))


def _top(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x, axis = ins[0].astype(np.float64), node.value("axis", -1)
    if node.attrs.get("axis") == "None":
        x, axis = x.reshape(-1), 0
    up = node.value("is_ascend", node.op != "topk")
    order = np.argsort(x if up else -x, axis=axis, kind="stable")
    count = node.value("k", 1) if node.op == "topk" else 0
    if count > 0:
        order = np.take(order, np.arange(count), axis=axis)
    values = np.take_along_axis(x, order, axis=axis)
    kind = {"sort": "value", "argsort": "indices"}.get(node.op) or node.value("ret_typ", "indices")
    if kind == "both":
        return [values, order]
    return values if kind == "value" else order


def _pick(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    x, axis = ins[0], node.value("axis", -1)
    places = ins[1].astype(np.int64).clip(0, x.shape[axis] - 1)
    if places.ndim < x.ndim:
        places = np.expand_dims(places, axis)
    found = np.take_along_axis(x, places, axis=axis)
    found = found if node.value("keepdims", False) else found.squeeze(axis)
    return found.reshape(found.shape or (1,))


def _one_hot(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    depth = node.value("depth", 1)
    found = np.full((*ins[0].shape, depth), node.value("off_value", 0.0))
    for place, number in np.ndenumerate(ins[0].astype(np.int64)):
        if 0 <= number < depth:
            found[(*place, number)] = node.value("on_value", 1.0)
    return found


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(("argmax", "argmax_channel", "argmin"), _place),
    "norm": _norm,
    **dict.fromkeys(("topk", "sort", "argsort"), _top),
    "pick": _pick,
    "one_hot": _one_hot,
    "gather_nd": lambda _node, ins: ins[0][tuple(ins[1].astype("int64"))],
}
