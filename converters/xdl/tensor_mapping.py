"""TensorFlow operators as ONNX nodes: tables where one stands for one, small functions for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploykit._plugins.converters.xdl.graph_def import Ref, TensorGraph, TensorNode, constant
from deploykit._plugins.converters.xdl.tensor_evaluation import DEAD, compute, output_of
from deploykit._plugins.converters.xdl.tensor_shaping import SHAPING
from deploykit._plugins.converters.xdl.tensor_values import (
    Emit,
    Value,
    broadcast,
    known,
    onnx_dtype,
    ranked,
    unsupported,
)

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

FOLDED = 1 << 16
"""Elements of whole numbers (sizes, axes) up to which a node is computed at once."""

UNARY = {
    **{op: op for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Elu", "Selu")},
    **{op: op for op in ("Exp", "Log", "Sqrt", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign")},
    **{op: op for op in ("Sin", "Cos", "Erf")},
    **dict.fromkeys(("Inv", "Reciprocal"), "Reciprocal"),
    "LogicalNot": "Not",
}
SAME = (
    *("Identity", "StopGradient", "PreventGradient", "Snapshot", "CheckNumerics"),
    *("PlaceholderWithDefault", "ReadVariableOp"),
)
BINARY = {
    "Add": "Add",
    "AddV2": "Add",
    "Sub": "Sub",
    "Mul": "Mul",
    "Maximum": "Max",
    "Minimum": "Min",
    "Pow": "Pow",
}
COMPARISONS = {
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "Equal": "Equal",
    "LogicalAnd": "And",
    "LogicalOr": "Or",
}
REDUCTIONS = {op: f"Reduce{op}" for op in ("Sum", "Mean", "Max", "Min", "Prod")}


def emit(
    build: GraphBuilder, graph: TensorGraph, given: Mapping[Ref, Value], wanted: Sequence[Ref]
) -> list[Value]:
    """Append what `wanted` needs of `graph`, given the values of inputs and variables.

    Raises UnsupportedError where an operator has no ONNX form, or a branch cannot be decided.
    """
    values: dict[Ref, Any] = dict(given)
    for node in graph.walk(list(wanted), given):
        ins = [output_of(values, ref) for ref in node.inputs]
        with build.layer(node.name):
            for at, one in enumerate(_emit_node(build, node, ins)):
                values[node.name, at] = one
    return [_alive(output_of(values, ref), ref) for ref in wanted]


def refuse(graph: TensorGraph, given: Mapping[Ref, Any], wanted: Sequence[Ref]) -> None:
    """Raise UnsupportedError that names every operator without a mapping and a node that has it."""
    wrong: dict[str, str] = {}
    for node in graph.walk(list(wanted), given):
        if node.op not in OPERATORS and node.op not in ("Const", "Switch", "Merge"):
            wrong.setdefault(node.op, node.name)
    if wrong:
        named = ", ".join(f"{op} (node `{name}`)" for op, name in wrong.items())
        raise UnsupportedError(
            f"no ONNX form for the TensorFlow operators {named}"[:600],
            operators=tuple(wrong),
            hint="cut the graph before them: `--set outputs=NAME:0`",
        )


def _alive(value: Any, ref: Ref) -> Value:
    if not isinstance(value, Value):
        raise UnsupportedError(f"`{ref[0]}:{ref[1]}` lies in a branch that is never taken")
    return value


def _emit_node(build: GraphBuilder, node: TensorNode, ins: list[Any]) -> list[Any]:
    if node.op == "Const":
        array = constant(node)
        return [Value(build.constant(array, node.name), array.dtype.name, array.shape, array)]
    if node.op == "Merge":
        alive = [at for at, one in enumerate(ins) if one is not DEAD]
        if len(alive) != 1:
            raise unsupported(node, "joins branches that depend on more than one condition")
        index = build.constant(alive[0], dtype="int32")
        return [ins[alive[0]], Value(index, "int32", ())]
    if any(one is DEAD for one in ins):
        return [DEAD]
    if node.op == "Switch":
        if ins[1].constant is None:
            raise unsupported(node, "branches on what is computed")
        return [DEAD, ins[0]] if bool(ins[1].constant) else [ins[0], DEAD]
    folded = _folded(build, node, ins)
    if folded is not None:
        return [folded]
    found = OPERATORS[node.op](build, node, ins)
    # the exporter inferred more than we do
    return [
        Value(
            one.name,
            one.dtype,
            one.shape if node.shape(at) is None else node.shape(at),
            one.constant,
        )
        for at, one in enumerate(found)
    ]


def _folded(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> Value | None:
    """Compute a node of whole numbers that are all known: axes and orders that ONNX wants fixed."""
    if not ins or node.op in SAME or any(one.constant is None or one.is_float for one in ins):
        return None
    if sum(one.constant.size for one in ins if one.constant is not None) > FOLDED:
        return None
    constants = [one.constant for one in ins if one.constant is not None]
    # what makes more than it is given: sizes in a damaged file may be anything
    grows = node.op in ("Fill", "Range", "Tile", "OneHot")
    if grows and any(abs(int(one)) > FOLDED for value in constants for one in value.reshape(-1)):
        return None
    found = compute(node, constants)
    if isinstance(found, list) or found.dtype.kind == "f" or found.size > FOLDED:
        return None
    return Value(build.constant(found, node.name), found.dtype.name, found.shape, found)


def _same(_build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    return ins[:1]


def _unary(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
        return [Value(build.add(operator, ins[0].name), ins[0].dtype, ins[0].shape)]

    return emit_one


def _number(build: GraphBuilder, value: float, like: Value) -> str:
    return build.constant(value, dtype=like.dtype)


def _composed(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    if node.op == "Rsqrt":
        name = build.add("Reciprocal", build.add("Sqrt", x.name))
    elif node.op == "Square":
        name = build.add("Mul", x.name, x.name)
    elif node.op == "Relu6":
        name = build.add("Clip", x.name, _number(build, 0, x), _number(build, 6, x))
    elif node.op == "LeakyRelu":
        name = build.add("LeakyRelu", x.name, alpha=node.real("alpha", 0.2))
    elif node.op == "Log1p":
        name = build.add("Log", build.add("Add", x.name, _number(build, 1, x)))
    elif node.op == "Expm1":
        name = build.add("Sub", build.add("Exp", x.name), _number(build, 1, x))
    elif node.op in ("ZerosLike", "OnesLike"):
        number = _number(build, int(node.op == "OnesLike"), x)
        name = build.add("Expand", number, build.add("Shape", x.name))
    elif node.op == "LogSoftmax":
        name = build.add("LogSoftmax", x.name, axis=-1)
    else:
        name = build.add("Softmax", x.name, axis=-1)
    return [Value(name, x.dtype, x.shape)]


def _binary(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
        name = build.add(operator, *(one.name for one in ins))
        return [Value(name, ins[0].dtype, broadcast([one.shape for one in ins]))]

    return emit_one


def _comparison(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
        name = build.add(operator, *(one.name for one in ins))
        return [Value(name, "bool", broadcast([one.shape for one in ins]))]

    return emit_one


def _differs(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    name = build.add("Not", build.add("Equal", *(one.name for one in ins)))
    return [Value(name, "bool", broadcast([one.shape for one in ins]))]


def _division(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    a, b = ins
    shape = broadcast([a.shape, b.shape])
    if node.op == "DivNoNan":
        zero = build.add("Equal", b.name, _number(build, 0, b))
        safe = build.add("Where", zero, _number(build, 1, b), b.name)
        quotient = build.add("Div", a.name, safe)
        return [Value(build.add("Where", zero, _number(build, 0, b), quotient), a.dtype, shape)]
    if node.op in ("RealDiv", "Div"):
        return [Value(build.add("Div", a.name, b.name), a.dtype, shape)]
    if a.is_float:
        floor = build.add("Floor", build.add("Div", a.name, b.name))
        if node.op == "FloorMod":
            floor = build.add("Sub", a.name, build.add("Mul", floor, b.name))
        return [Value(floor, a.dtype, shape)]
    modulo = build.add("Mod", a.name, b.name)  # has the sign of the divisor, as Python's
    if node.op == "FloorMod":
        return [Value(modulo, a.dtype, shape)]
    return [Value(build.add("Div", build.add("Sub", a.name, modulo), b.name), a.dtype, shape)]


def _squared(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    gap = build.add("Sub", ins[0].name, ins[1].name)
    shape = broadcast([one.shape for one in ins])
    return [Value(build.add("Mul", gap, gap), ins[0].dtype, shape)]


def _bias(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x, bias = ins
    name = bias.name
    if node.word("data_format", "NHWC") == "NCHW":
        sizes = build.shape_constant([-1, *[1] * (ranked(node, x) - 2)])
        name = build.add("Reshape", name, sizes)
    return [Value(build.add("Add", x.name, name), x.dtype, x.shape)]


def _reduction(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = known(node, ins[1], "axes")
    keep = int(node.flag("keep_dims") or node.flag("keepdims"))
    shape = None
    if x.shape is not None:
        dropped = {axis % max(len(x.shape), 1) for axis in axes}
        shape = tuple(
            1 if at in dropped else size
            for at, size in enumerate(x.shape)
            if keep or at not in dropped
        )
    if not axes:
        return [x]
    if node.op in ("All", "Any"):
        number = build.add("Cast", x.name, to=onnx_dtype("int32"))
        operator = "ReduceMin" if node.op == "All" else "ReduceMax"
        number = build.add(operator, number, axes=axes, keepdims=keep)
        return [Value(build.add("Cast", number, to=onnx_dtype("bool")), "bool", shape)]
    if node.op == "Sum":
        name = build.add("ReduceSum", x.name, build.shape_constant(axes), keepdims=keep)
    else:
        name = build.add(REDUCTIONS[node.op], x.name, axes=axes, keepdims=keep)
    return [Value(name, x.dtype, shape)]


def _arg(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    axis = known(node, ins[1], "axis")[0] if len(ins) > 1 else 0
    dtype = node.dtype("output_type", "int64")
    name = build.add(node.op, ins[0].name, axis=axis, keepdims=0)
    return [
        Value(name if dtype == "int64" else build.add("Cast", name, to=onnx_dtype(dtype)), dtype)
    ]


def _matmul(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    keys = ("transpose_a", "transpose_b") if node.op == "MatMul" else ("adj_x", "adj_y")
    names = []
    for one, key in zip(ins, keys, strict=True):
        name = one.name
        if node.flag(key):
            rank = 2 if node.op == "MatMul" else ranked(node, one)
            name = build.add("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])
        names.append(name)
    ranks = [one.rank for one in ins]
    top = None if None in ranks else max(one for one in ranks if one is not None)
    shape = None if top is None else (None,) * top
    return [Value(build.add("MatMul", *names), ins[0].dtype, shape)]


def _add_all(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Sum", *(one.name for one in ins)), ins[0].dtype, ins[0].shape)]


def _fused_norm(build: GraphBuilder, node: TensorNode, ins: list[Value]) -> list[Value]:
    x, scale, offset, mean, variance = ins
    first = node.word("data_format", "NHWC") == "NCHW"
    axes, sizes = ([0, 2, 3], [1, -1, 1, 1]) if first else ([0, 1, 2], [1, 1, 1, -1])

    def wide(value: Value) -> str:
        return build.add("Reshape", value.name, build.shape_constant(sizes))

    if node.attrs.get("is_training", True):
        middle = build.add("ReduceMean", x.name, axes=axes, keepdims=1)
        gap = build.add("Sub", x.name, middle)
        spread = build.add("ReduceMean", build.add("Mul", gap, gap), axes=axes, keepdims=1)
    else:
        middle, spread = wide(mean), wide(variance)
        gap = build.add("Sub", x.name, middle)
    epsilon = _number(build, node.real("epsilon", 1e-4), x)
    root = build.add("Sqrt", build.add("Add", spread, epsilon))
    scaled = build.add("Mul", build.add("Div", gap, root), wide(scale))
    flat = build.shape_constant([-1])
    return [
        Value(build.add("Add", scaled, wide(offset)), x.dtype, x.shape),
        Value(build.add("Reshape", middle, flat), mean.dtype),
        Value(build.add("Reshape", spread, flat), variance.dtype),
    ]


def _clip(build: GraphBuilder, _node: TensorNode, ins: list[Value]) -> list[Value]:
    low = build.add("Max", ins[0].name, ins[1].name)
    return [Value(build.add("Min", low, ins[2].name), ins[0].dtype, ins[0].shape)]


OPERATORS: dict[str, Emit] = {
    **dict.fromkeys(SAME, _same),
    **{op: _unary(name) for op, name in UNARY.items()},
    **dict.fromkeys(("Rsqrt", "Square", "Relu6", "LeakyRelu", "Log1p", "Expm1"), _composed),
    **dict.fromkeys(("ZerosLike", "OnesLike", "Softmax", "LogSoftmax"), _composed),
    **{op: _binary(name) for op, name in BINARY.items()},
    **{op: _comparison(name) for op, name in COMPARISONS.items()},
    "NotEqual": _differs,
    **dict.fromkeys(("RealDiv", "Div", "DivNoNan", "FloorDiv", "FloorMod"), _division),
    "SquaredDifference": _squared,
    "AddN": _add_all,
    "BiasAdd": _bias,
    **dict.fromkeys((*REDUCTIONS, "All", "Any"), _reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2"), _matmul),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), _fused_norm),
    "ClipByValue": _clip,
    **SHAPING,
}
