"""MXNet operators that attention layers and recommenders use, by definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def _take(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    return np.take(
        ins[0], ins[1].astype(np.int64), axis=node.value("axis", 0), mode=node.value("mode", "clip")
    )


def _broadcast_to(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    sizes = [
        wanted or own for wanted, own in zip(node.value("shape", ()), ins[0].shape, strict=True)
    ]
    return np.broadcast_to(ins[0], sizes)


def _products(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    if (node.op == "dot" and ins[1].ndim == 1) or ins[0].ndim != ins[1].ndim:
        found = np.tensordot(ins[0].astype(np.float64), ins[1], axes=1)
        return found.reshape(found.shape or (1,))
    first, second = (
        np.swapaxes(one, -1, -2) if node.value(key, False) else one
        for one, key in zip(ins, ("transpose_a", "transpose_b"), strict=True)
    )
    return np.asarray(np.einsum("...ij,...jk->...ik", first.astype(np.float64), second))


def _compare(name: str) -> Compute:
    def compute(node: Node, ins: list[Array]) -> Any:
        import numpy as np

        other = node.value("scalar", 0.0) if node.op.endswith("_scalar") else ins[1]
        return getattr(np, name)(ins[0], other).astype(np.float64)

    return compute


def _where(_node: Node, ins: list[Array]) -> Array:
    import numpy as np

    condition, x, y = ins
    if condition.ndim == 1 and x.ndim > 1:
        return np.stack([x[at] if one else y[at] for at, one in enumerate(condition)])
    return np.where(condition != 0, x, y)


NAMES = {
    "greater": "greater",
    "greater_equal": "greater_equal",
    "lesser": "less",
    "lesser_equal": "less_equal",
    "equal": "equal",
    "not_equal": "not_equal",
}

COMPUTE: dict[str, Compute] = {
    "take": _take,
    "broadcast_to": _broadcast_to,
    **dict.fromkeys(("batch_dot", "dot"), _products),
    "where": _where,
    **{
        f"{prefix}{name}{suffix}": _compare(function)
        for name, function in NAMES.items()
        for prefix, suffix in (("broadcast_", ""), ("_", "_scalar"), ("_", ""))
    },
}
