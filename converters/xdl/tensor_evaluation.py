"""TensorFlow operators computed by definition, in numpy and float64.

Written from TensorFlow's operator documentation, apart from the mapping to ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl.graph_def import (
    Ref,
    TensorGraph,
    TensorNode,
    constant,
)

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[TensorNode, list[Array]], Any]

DEAD = object()
"""What comes out of the branch of a `cond` that is not taken."""


def evaluate(graph: TensorGraph, known: Mapping[Ref, Array], wanted: Sequence[Ref]) -> list[Array]:
    """Return the tensors `wanted`, given `known` ones (inputs and variables)."""
    import numpy as np

    values: dict[Ref, Any] = {ref: _wide(np.asarray(value)) for ref, value in known.items()}
    for node in graph.walk(list(wanted), known):
        given = [output_of(values, ref) for ref in node.inputs]
        for at, one in enumerate(_several(compute(node, given))):
            values[node.name, at] = one
    return [output_of(values, ref) for ref in wanted]


def output_of(values: Mapping[Ref, Any], ref: Ref) -> Any:
    """Return an output of a node that was computed; every output of a dead node is dead.

    Raises ValueError where the node has no such output.
    """
    if ref in values:
        return values[ref]
    if values.get((ref[0], 0)) is DEAD:
        return DEAD
    raise ValueError(f"node `{ref[0]}` has no output {ref[1]}")


def compute(node: TensorNode, given: list[Any]) -> Any:
    """Return the output of one node, a list where it has several."""
    if node.op == "Merge":
        (alive,) = [at for at, one in enumerate(given) if one is not DEAD]
        return [given[alive], _int32(alive)]
    if any(one is DEAD for one in given):
        return DEAD
    return COMPUTE[node.op](node, given)


def _several(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _wide(value: Array) -> Array:
    """Compute in float64, whatever the width of a float is."""
    return value.astype("float64") if value.dtype.kind == "f" else value


def _int32(value: Any) -> Array:
    import numpy as np

    return np.asarray(value, np.int32)


def _cast(value: Any, dtype: str) -> Array:
    import numpy as np

    array = np.asarray(value)
    if dtype.startswith("float"):
        return array.astype(np.float64)
    if dtype.startswith(("int", "uint")) and array.dtype.kind == "f":
        array = np.trunc(array)
    return array.astype(dtype)


def _np(name: str) -> Compute:
    def run(_node: TensorNode, ins: list[Array]) -> Any:
        import numpy as np

        return getattr(np, name)(*ins)

    return run


def _shaped(name: str) -> Compute:
    """Like `_np`, for what adds or compares: a dtype of its own is kept."""

    def run(node: TensorNode, ins: list[Array]) -> Any:
        import numpy as np

        found = np.asarray(getattr(np, name)(*ins))
        kind = ins[0].dtype
        return found if found.dtype.kind == "b" else found.astype(kind)

    return run


def _axes(value: Array) -> tuple[int, ...]:
    return tuple(int(one) for one in value.reshape(-1))


def _reduction(name: str) -> Compute:
    def run(node: TensorNode, ins: list[Array]) -> Any:
        import numpy as np

        keep = node.flag("keep_dims") or node.flag("keepdims")
        return getattr(np, name)(ins[0], axis=_axes(ins[1]), keepdims=keep).astype(ins[0].dtype)

    return run


def _matmul(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    batched = node.op != "MatMul"
    first, second = (
        np.swapaxes(one, -1, -2) if node.flag(key) else one
        for one, key in zip(
            ins, ("adj_x", "adj_y") if batched else ("transpose_a", "transpose_b"), strict=True
        )
    )
    if not batched and (first.ndim != 2 or second.ndim != 2):
        raise ValueError(f"`{node.name}` multiplies {first.shape} by {second.shape}")
    return np.matmul(first, second)


def _bias(node: TensorNode, ins: list[Array]) -> Array:
    x, bias = ins
    if node.word("data_format", "NHWC") == "NCHW":
        return x + bias.reshape(1, -1, *[1] * (x.ndim - 2))
    return x + bias


def _reshape(_node: TensorNode, ins: list[Array]) -> Array:
    return ins[0].reshape(_axes(ins[1]))


def _concat(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    parts, axis = (ins[1:], ins[0]) if node.op == "Concat" else (ins[:-1], ins[-1])
    return np.concatenate(parts, axis=int(axis))


def _split(node: TensorNode, ins: list[Array]) -> list[Array]:
    import numpy as np

    if node.op == "Split":
        return list(np.split(ins[1], node.integer("num_split", 1), axis=int(ins[0])))
    x, sizes, axis = ins
    parts = list(_axes(sizes))
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
            slice(b, None if s < 0 else b + s)
            for b, s in zip(_axes(begin), _axes(size), strict=True)
        )
    ]


def _strided(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    x, *limits = ins
    index: list[Any] = []
    for at, (begin, end, stride) in enumerate(zip(*map(_axes, limits), strict=True)):
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


def _fused_norm(node: TensorNode, ins: list[Array]) -> list[Array]:
    import numpy as np

    x, scale, offset, mean, variance = ins
    first = node.word("data_format", "NHWC") == "NCHW"
    axes = (0, 2, 3) if first else (0, 1, 2)
    if node.attrs.get("is_training", True):
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
    shape = (1, -1, 1, 1) if first else (1, 1, 1, -1)
    spread = np.sqrt(variance.reshape(shape) + node.real("epsilon", 1e-4))
    found = (x - mean.reshape(shape)) / spread * scale.reshape(shape) + offset.reshape(shape)
    return [found, mean, variance]


def _arg(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    axis = int(ins[1]) if len(ins) > 1 else 0
    found = np.argmax(ins[0], axis) if node.op == "ArgMax" else np.argmin(ins[0], axis)
    return np.asarray(found).astype(node.dtype("output_type", "int64"))


def _switch(_node: TensorNode, ins: list[Any]) -> list[Any]:
    return [DEAD, ins[0]] if bool(ins[1]) else [ins[0], DEAD]


def _squeeze(node: TensorNode, ins: list[Array]) -> Array:
    dims = node.attrs.get("squeeze_dims") or node.attrs.get("axis")
    return ins[0].squeeze(tuple(dims) if isinstance(dims, list) and dims else None)


def _floor_division(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    return np.floor_divide(ins[0], ins[1]).astype(ins[0].dtype)


def _division(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    if ins[0].dtype.kind == "f":
        return np.asarray(ins[0] / ins[1])
    # whole numbers are divided as C does: towards zero
    return np.trunc(ins[0] / ins[1]).astype(ins[0].dtype)


def _safe_division(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    return np.where(ins[1] == 0, 0.0, ins[0] / np.where(ins[1] == 0, 1.0, ins[1]))


def _pad(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    value = float(ins[2]) if len(ins) > 2 else 0.0
    return np.pad(ins[0], [tuple(one) for one in ins[1]], constant_values=value)


def _elementwise(node: TensorNode, ins: list[Array]) -> Any:
    import numpy as np

    x = ins[0]
    functions: dict[str, Callable[[], Any]] = {
        "Relu": lambda: np.maximum(x, 0),
        "Relu6": lambda: np.clip(x, 0, 6),
        "LeakyRelu": lambda: np.where(x > 0, x, x * node.real("alpha", 0.2)),
        "Sigmoid": lambda: define.sigmoid(x),
        "Softplus": lambda: np.logaddexp(0, x),
        "Softsign": lambda: x / (1 + np.abs(x)),
        "Elu": lambda: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        "Selu": lambda: 1.0507009873554805
        * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
        "Neg": lambda: -x,
        "Rsqrt": lambda: 1 / np.sqrt(x),
        "Inv": lambda: 1 / x,
        "Reciprocal": lambda: 1 / x,
        "LogicalNot": lambda: np.logical_not(x),
        "ZerosLike": lambda: np.zeros_like(x),
        "OnesLike": lambda: np.ones_like(x),
        "Round": lambda: np.rint(x),
        "Erf": lambda: np.vectorize(math.erf, otypes=[float])(x),
    }
    if node.op in functions:
        return functions[node.op]()
    return getattr(np, node.op.lower())(x)


ELEMENTWISE = ("Relu", "Relu6", "LeakyRelu", "Sigmoid", "Softplus", "Softsign", "Elu", "Selu")
ELEMENTWISE += ("Neg", "Rsqrt", "Inv", "Reciprocal", "LogicalNot", "ZerosLike", "OnesLike", "Round")
ELEMENTWISE += ("Tanh", "Exp", "Log", "Sqrt", "Abs", "Floor", "Ceil", "Square", "Sign", "Log1p")
ELEMENTWISE += ("Expm1", "Sin", "Cos", "Erf")


def _fill(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    shape = _axes(ins[0])
    if any(one < 0 for one in shape) or np.prod(shape, dtype=np.float64) > 1 << 28:
        raise ValueError(f"a fill of shape {shape}")
    return np.full(shape, ins[1])


def _range(_node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    start, stop, step = (one.item() for one in ins)
    if step == 0 or abs((stop - start) / step) > 1 << 28:
        raise ValueError(f"a range of {start} to {stop} by {step}")
    return np.arange(start, stop, step, dtype=ins[0].dtype)


def _shape_of(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    value = {"Shape": ins[0].shape, "Size": ins[0].size, "Rank": ins[0].ndim}[node.op]
    return np.asarray(value, node.dtype("out_type", "int32"))


def _same(_node: TensorNode, ins: list[Array]) -> Array:
    return ins[0]


COMPUTE: dict[str, Compute] = {
    "Const": lambda node, _ins: _wide(constant(node)),
    **dict.fromkeys(("Identity", "StopGradient", "PreventGradient", "Snapshot"), _same),
    **dict.fromkeys(("PlaceholderWithDefault", "CheckNumerics", "ReadVariableOp"), _same),
    "Switch": _switch,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **{
        name: _shaped(function)
        for name, function in {
            "Add": "add",
            "AddV2": "add",
            "Sub": "subtract",
            "Mul": "multiply",
            "Maximum": "maximum",
            "Minimum": "minimum",
            "Pow": "power",
            "FloorMod": "mod",
        }.items()
    },
    **{
        name: _np(function)
        for name, function in {
            "Greater": "greater",
            "GreaterEqual": "greater_equal",
            "Less": "less",
            "LessEqual": "less_equal",
            "Equal": "equal",
            "NotEqual": "not_equal",
            "LogicalAnd": "logical_and",
            "LogicalOr": "logical_or",
        }.items()
    },
    **dict.fromkeys(("RealDiv", "Div"), _division),
    "FloorDiv": _floor_division,
    "DivNoNan": _safe_division,
    "SquaredDifference": lambda _node, ins: (ins[0] - ins[1]) ** 2,
    "AddN": lambda _node, ins: sum(ins[1:], ins[0]),
    "BiasAdd": _bias,
    **{
        name: _reduction(function)
        for name, function in {
            "Sum": "sum",
            "Mean": "mean",
            "Max": "max",
            "Min": "min",
            "Prod": "prod",
            "All": "all",
            "Any": "any",
        }.items()
    },
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2"), _matmul),
    "Reshape": _reshape,
    **dict.fromkeys(("ConcatV2", "Concat"), _concat),
    **dict.fromkeys(("Split", "SplitV"), _split),
    "Pack": _pack,
    "Unpack": _unpack,
    "Slice": _slice,
    "StridedSlice": _strided,
    "Transpose": lambda _node, ins: ins[0].transpose(_axes(ins[1])),
    "Tile": lambda _node, ins: _tile(ins),
    "ExpandDims": lambda _node, ins: _expand(ins),
    "Squeeze": _squeeze,
    **dict.fromkeys(("Shape", "Size", "Rank"), _shape_of),
    "Fill": _fill,
    "Range": _range,
    "Cast": lambda node, ins: _cast(ins[0], node.dtype("DstT")),
    **dict.fromkeys(("Select", "SelectV2"), _select),
    **dict.fromkeys(("Gather", "GatherV2", "ResourceGather"), _gather),
    "OneHot": _one_hot,
    "Softmax": lambda _node, ins: define.softmax(ins[0]),
    "LogSoftmax": lambda _node, ins: _log_softmax(ins[0]),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), _fused_norm),
    **dict.fromkeys(("Pad", "PadV2"), _pad),
    "ClipByValue": lambda _node, ins: ins[0].clip(ins[1], ins[2]),
}


def _tile(ins: list[Array]) -> Array:
    import numpy as np

    return np.tile(ins[0], _axes(ins[1]))


def _expand(ins: list[Array]) -> Array:
    import numpy as np

    return np.expand_dims(ins[0], int(ins[1].reshape(-1)[0]))


def _log_softmax(x: Array) -> Array:
    import numpy as np

    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
