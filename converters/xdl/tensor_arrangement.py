"""TensorFlow operators that move, cut, join and look up, computed by definition in numpy.

Written from TensorFlow's operator documentation, apart from the mapping to ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl.graph_def import TensorNode

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[TensorNode, list[Array]], Any]


def axes(value: Array) -> tuple[int, ...]:
    """Return the whole numbers that a tensor holds."""
    return tuple(int(one) for one in value.reshape(-1))


def _reshape(_node: TensorNode, ins: list[Array]) -> Array:
    return ins[0].reshape(axes(ins[1]))


def _concat(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    parts, axis = (ins[1:], ins[0]) if node.op == "Concat" else (ins[:-1], ins[-1])
    return np.concatenate(parts, axis=int(axis))


def _split(node: TensorNode, ins: list[Array]) -> list[Array]:
    import numpy as np

    if node.op == "Split":
        return list(np.split(ins[1], node.integer("num_split", 1), axis=int(ins[0])))
    x, sizes, axis = ins
    parts = list(axes(sizes))
    if -1 in parts:
        parts[parts.index(-1)] = x.shape[int(axis)] - sum(one for one in parts if one >= 0)
    return list(np.split(x, np.cumsum(parts)[:-1], axis=int(axis)))


def _pack(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    return np.stack(ins, axis=node.integer("axis", 0))


def _unpack(node: TensorNode, ins: list[Array]) -> list[Array]:
    import numpy as np

    return list(np.moveaxis(ins[0], node.integer("axis", 0), 0))


def _slice(_node: TensorNode, ins: list[Array]) -> Array:
    x, begin, size = ins
    return x[
        tuple(
            slice(b, None if s < 0 else b + s) for b, s in zip(axes(begin), axes(size), strict=True)
        )
    ]


def _strided(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    x, *limits = ins
    index: list[Any] = []
    for at, (begin, end, stride) in enumerate(zip(*map(axes, limits), strict=True)):
        bit = 1 << at
        if node.integer("ellipsis_mask", 0) & bit:
            index.append(Ellipsis)
        elif node.integer("new_axis_mask", 0) & bit:
            index.append(np.newaxis)
        elif node.integer("shrink_axis_mask", 0) & bit:
            index.append(begin)
        else:
            index.append(
                slice(
                    None if node.integer("begin_mask", 0) & bit else begin,
                    None if node.integer("end_mask", 0) & bit else end,
                    stride,
                )
            )
    return np.asarray(x[tuple(index)])


def _select(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    condition, x, y = ins
    if node.op == "Select":
        if x.shape != y.shape:
            raise ValueError(f"`{node.name}` selects from {x.shape} and {y.shape}")
        if condition.ndim == 1 and x.ndim > 1 and len(condition) == len(x):
            condition = condition.reshape(-1, *[1] * (x.ndim - 1))
        elif condition.ndim and condition.shape != x.shape:
            raise ValueError(f"`{node.name}` selects by {condition.shape} from {x.shape}")
    return np.where(condition, x, y)


def _gather(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    axis = int(ins[2]) if len(ins) > 2 else 0
    if ins[1].size and not 0 <= ins[1].min() <= ins[1].max() < ins[0].shape[axis]:
        raise ValueError(f"`{node.name}` gathers a row that is not there")
    return np.take(ins[0], ins[1], axis=axis)


def _one_hot(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    indices, depth, on, off = ins
    hot = indices[..., None] == np.arange(int(depth))
    axis = node.integer("axis", -1)
    return np.moveaxis(np.where(hot, on, off), -1, axis if axis >= 0 else -1)


def _squeeze(node: TensorNode, ins: list[Array]) -> Array:
    dims = node.attrs.get("squeeze_dims") or node.attrs.get("axis")
    return ins[0].squeeze(tuple(dims) if isinstance(dims, list) and dims else None)


def _expand(ins: list[Array]) -> Array:
    import numpy as np

    return np.expand_dims(ins[0], int(ins[1].reshape(-1)[0]))


def _tile(ins: list[Array]) -> Array:
    import numpy as np

    return np.tile(ins[0], axes(ins[1]))


def _shape_of(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    value = {"Shape": ins[0].shape, "Size": ins[0].size, "Rank": ins[0].ndim}[node.op]
    return np.asarray(value, node.dtype("out_type", "int32"))


def _fill(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    shape = axes(ins[0])
    if any(one < 0 for one in shape) or np.prod(shape, dtype=np.float64) > 1 << 28:
        raise ValueError(f"a fill of shape {shape}")
    return np.full(shape, ins[1])


def _range(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    start, stop, step = (one.item() for one in ins)
    if step == 0 or abs((stop - start) / step) > 1 << 28:
        raise ValueError(f"a range of {start} to {stop} by {step}")
    return np.arange(start, stop, step, dtype=ins[0].dtype)


def _pad(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    value = float(ins[2]) if len(ins) > 2 else 0.0
    return np.pad(ins[0], [tuple(one) for one in ins[1]], constant_values=value)


ARRANGEMENT: dict[str, Compute] = {
    "Reshape": _reshape,
    **dict.fromkeys(("ConcatV2", "Concat"), _concat),
    **dict.fromkeys(("Split", "SplitV"), _split),
    "Pack": _pack,
    "Unpack": _unpack,
    "Slice": _slice,
    "StridedSlice": _strided,
    "Transpose": lambda _node, ins: ins[0].transpose(axes(ins[1])),
    "Tile": lambda _node, ins: _tile(ins),
    "ExpandDims": lambda _node, ins: _expand(ins),
    "Squeeze": _squeeze,
    **dict.fromkeys(("Shape", "Size", "Rank"), _shape_of),
    "Fill": _fill,
    "Range": _range,
    **dict.fromkeys(("Select", "SelectV2"), _select),
    **dict.fromkeys(("Gather", "GatherV2", "ResourceGather"), _gather),
    "OneHot": _one_hot,
    **dict.fromkeys(("Pad", "PadV2"), _pad),
}
