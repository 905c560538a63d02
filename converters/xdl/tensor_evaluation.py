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
from deploykit._plugins.converters.xdl.tensor_arrangement import ARRANGEMENT, axes

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

    def run(_node: TensorNode, ins: list[Array]) -> Any:
        import numpy as np

        found = np.asarray(getattr(np, name)(*ins))
        kind = ins[0].dtype
        return found if found.dtype.kind == "b" else found.astype(kind)

    return run


def _reduction(name: str) -> Compute:
    def run(node: TensorNode, ins: list[Array]) -> Any:
        import numpy as np

        keep = node.flag("keep_dims") or node.flag("keepdims")
        return getattr(np, name)(ins[0], axis=axes(ins[1]), keepdims=keep).astype(ins[0].dtype)

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
    found: Array = np.matmul(first, second)
    return found


def _bias(node: TensorNode, ins: list[Array]) -> Array:
    import numpy as np

    x, bias = ins
    if node.word("data_format", "NHWC") == "NCHW":
        bias = bias.reshape(1, -1, *[1] * (x.ndim - 2))
    found: Array = np.add(x, bias)
    return found


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
        "Selu": lambda: (
            1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
        ),
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


ELEMENTWISE = (
    *("Relu", "Relu6", "LeakyRelu", "Sigmoid", "Softplus", "Softsign", "Elu", "Selu", "Neg"),
    *("Rsqrt", "Inv", "Reciprocal", "LogicalNot", "ZerosLike", "OnesLike", "Round", "Tanh", "Exp"),
    *(
        "Log",
        "Sqrt",
        "Abs",
        "Floor",
        "Ceil",
        "Square",
        "Sign",
        "Log1p",
        "Expm1",
        "Sin",
        "Cos",
        "Erf",
    ),
)


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
    "Cast": lambda node, ins: _cast(ins[0], node.dtype("DstT")),
    "Softmax": lambda _node, ins: define.softmax(ins[0]),
    "LogSoftmax": lambda _node, ins: _log_softmax(ins[0]),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), _fused_norm),
    **ARRANGEMENT,
    "ClipByValue": lambda _node, ins: ins[0].clip(ins[1], ins[2]),
}


def _log_softmax(x: Array) -> Array:
    import numpy as np

    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
