"""MXNet operators as ONNX nodes: a table where one stands for one, small functions for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from deploykit._plugins.converters.mxnet import (
    activations,
    arrays,
    attention,
    choosing,
    creation,
    elementwise,
    recurrent,
    resizing,
    shaping,
    spatial,
)
from deploykit._plugins.converters.mxnet.dtypes import typed
from deploykit._plugins.converters.mxnet.emission import Emit, Value, as_line, broadcast
from deploykit._plugins.converters.mxnet.network import (
    Network,
    data_inputs,
    output_name,
)
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError, UsageError
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension, TensorSpec

UNARY = {
    **dict.fromkeys(
        (
            "BlockGrad",
            "stop_gradient",
            "identity",
            "_copy",
            "MakeLoss",
            "make_loss",
            "IdentityAttachKLSparseReg",
        ),
        "Identity",
    ),
    **dict.fromkeys(("LinearRegressionOutput", "MAERegressionOutput", "SVMOutput"), "Identity"),
    "LogisticRegressionOutput": "Sigmoid",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "tanh": "Tanh",
    "softsign": "Softsign",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "negative": "Neg",
    "floor": "Floor",
    "ceil": "Ceil",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "reciprocal": "Reciprocal",
    "sign": "Sign",
}

BINARY = {
    **dict.fromkeys(("elemwise_add", "_plus", "_Plus", "broadcast_add", "broadcast_plus"), "Add"),
    **dict.fromkeys(
        ("elemwise_sub", "_minus", "_Minus", "broadcast_sub", "broadcast_minus"), "Sub"
    ),
    **dict.fromkeys(("elemwise_mul", "_mul", "_Mul", "broadcast_mul"), "Mul"),
    **dict.fromkeys(("elemwise_div", "_div", "_Div", "broadcast_div"), "Div"),
    **dict.fromkeys(("_maximum", "broadcast_maximum"), "Max"),
    **dict.fromkeys(("_minimum", "broadcast_minimum"), "Min"),
    **dict.fromkeys(("_power", "broadcast_power"), "Pow"),
}

SCALAR = {
    "plus": ("Add", False),
    "minus": ("Sub", False),
    "rminus": ("Sub", True),
    "mul": ("Mul", False),
    "div": ("Div", False),
    "rdiv": ("Div", True),
    "power": ("Pow", False),
    "rpower": ("Pow", True),
    "maximum": ("Max", False),
    "minimum": ("Min", False),
}
"""Of `_NAME_scalar`: the operator, and whether the number is its left operand."""

REDUCTIONS = {
    "sum": "ReduceSum",
    "sum_axis": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "max_axis": "ReduceMax",
    "min": "ReduceMin",
    "min_axis": "ReduceMin",
    "prod": "ReduceProd",
}


def emit(build: GraphBuilder, model: Network, inputs: list[TensorSpec]) -> list[TensorSpec]:
    """Append the whole network, declare inputs and outputs, and return the outputs' specs."""
    values: dict[tuple[int, int], Value] = {}
    specs = {spec.name: spec for spec in inputs}
    for number, node in enumerate(model.symbol.nodes):
        if node.op != "null":
            continue
        if node.name in specs:
            spec = specs[node.name]
            sizes = tuple(s if isinstance(s, int) else None for s in spec.shape or ())
            name = build.input(spec.name, spec.dtype, spec.shape or ())
            values[number, 0] = Value(name, sizes, spec.dtype)
    weights: dict[int, Value] = {}

    def value(ref: tuple[int, int]) -> Value:
        if ref in values:
            return values[ref]
        number, _ = ref
        if number not in weights:
            array = model.weights[model.symbol.nodes[number].name]
            weights[number] = Value(
                build.constant(array, model.symbol.nodes[number].name),
                array.shape,
                str(array.dtype),
                array,
            )
        return weights[number]

    counts: dict[int, int] = {}
    emits = operators()
    for number, node in model.walk():
        _refuse_unmade(model, data_inputs(node), counts)
        given = [value(ref) for ref in data_inputs(node)]
        given += _unlisted(build, model, node, len(given))
        with build.layer(node.name):
            found = typed(node, given, emits[node.op](build, node, given))
        counts[number] = len(found)
        values |= {(number, at): one for at, one in enumerate(found)}
    outputs = []
    batch = inputs[0].shape[0] if inputs[0].shape else None
    _refuse_unmade(model, model.symbol.heads, counts)
    for head in model.symbol.heads:
        name = output_name(model.symbol, head, counts.get(head[0], 1))
        one = value(head)
        shape: tuple[Dimension, ...] = tuple(
            batch if at == 0 and size is None else size for at, size in enumerate(one.shape)
        )
        build.output(name, one.name, one.dtype, shape)
        outputs.append(TensorSpec(name=name, dtype=one.dtype, shape=shape))
    return outputs


def _refuse_unmade(
    model: Network, wanted: Iterable[tuple[int, int]], counts: Mapping[int, int]
) -> None:
    """Refuse a second output (the mask of a dropout, a batch's statistics) that nothing makes."""
    for number, at in wanted:
        if at >= counts.get(number, at + 1):
            node = model.symbol.nodes[number]
            raise UnsupportedError(
                f"output {at} of node `{node.name}` ({node.op}), which only training needs",
                operators=(f"{node.op}({at})",),
                hint="leave it out: `sym[0]`, and export it again",
            )


def _unlisted(build: GraphBuilder, model: Network, node: Node, given: int) -> list[Value]:
    """Return the statistics of a BatchNorm that symbols before 0.9 do not list as inputs."""
    if node.op not in ("BatchNorm", "BatchNorm_v1") or given != 3:
        return []
    found = []
    for suffix in ("moving_mean", "moving_var"):
        array = model.weights[f"{node.name}_{suffix}"]
        found.append(Value(build.constant(array, f"{node.name}_{suffix}"), array.shape))
    return found


def refuse(model: Network) -> None:
    """Raise UnsupportedError that names every operator without a mapping and a node that has it."""
    known = operators()
    wrong: dict[str, str] = {}
    for _, node in model.walk():
        if node.op not in known:
            wrong.setdefault(node.op, node.name)
    if wrong:
        named = ", ".join(f"{op} (node `{name}`)" for op, name in wrong.items())
        raise UnsupportedError(
            f"no ONNX form for the MXNet operators {named}",
            operators=tuple(wrong),
            hint="cut the symbol before them (`sym.get_internals()`) and export it again",
        )


def _unary(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
        if operator == "Identity":
            return [ins[0]]
        return [Value(build.add(operator, ins[0].name), ins[0].shape)]

    return emit_one


def _binary(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
        name = build.add(operator, *(one.name for one in ins))
        return [Value(name, broadcast([one.shape for one in ins]))]

    return emit_one


def _scalar(operator: str, left: bool) -> Emit:
    def emit_one(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        number = build.constant(node.value("scalar", 1.0), dtype=ins[0].dtype)
        pair = (number, ins[0].name) if left else (ins[0].name, number)
        return [Value(build.add(operator, *pair), ins[0].shape)]

    return emit_one


def _fully_connected(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    units = ins[1].shape[0]
    flat = x.name
    inner = x.shape[1:]
    if node.value("flatten", True):
        width = None if None in inner else math.prod(one for one in inner if one is not None)
        if width is not None and width != ins[1].shape[1]:
            raise UsageError(
                f"node `{node.name}` takes {ins[1].shape[1]} values, an input of this size gives {width}",
                hint="give the size that the model was trained for: `--input 'NAME:float32[...]'`",
            )
        if len(inner) != 1:
            flat = build.add("Flatten", x.name, axis=1)
        name = build.add("Gemm", flat, *(one.name for one in ins[1:]), transB=1)
        return [Value(name, (x.shape[0], units))]
    weight = build.add("Transpose", ins[1].name, perm=[1, 0])
    name = build.add("MatMul", flat, weight)
    if len(ins) > 2:
        name = build.add("Add", name, ins[2].name)
    return [Value(name, (*x.shape[:-1], units))]


def _reduction(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        x = ins[0]
        axes = [axis % x.rank for axis in node.value("axis", ())] or list(range(x.rank))
        if node.value("exclude", False):
            axes = [axis for axis in range(x.rank) if axis not in axes]
        keep = node.value("keepdims", False)
        if operator == "ReduceSum":
            name = build.add(operator, x.name, build.shape_constant(axes), keepdims=int(keep))
        else:
            name = build.add(operator, x.name, axes=axes, keepdims=int(keep))
        shape = tuple(
            1 if at in axes else size for at, size in enumerate(x.shape) if keep or at not in axes
        )
        return [as_line(build, Value(name, shape))]

    return emit_one


def _dropout(_build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    if node.value("mode", "training") == "always":
        raise UnsupportedError(
            f"node `{node.name}` drops values at inference too", operators=("Dropout(always)",)
        )
    return [ins[0]]


def _clip(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    bounds = (build.constant(node.value(key, 0.0)) for key in ("a_min", "a_max"))
    return [Value(build.add("Clip", ins[0].name, *bounds), ins[0].shape)]


def _embedding(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    index = build.add("Cast", ins[0].name, to=7)  # int64: MXNet feeds indices as floats
    bounds = (build.constant(one, dtype="int64") for one in (0, (ins[1].shape[0] or 1) - 1))
    index = build.add("Clip", index, *bounds)  # what is outside is the first or the last row
    name = build.add("Gather", ins[1].name, index, axis=0)
    return [Value(name, (*ins[0].shape, ins[1].shape[1]))]


def _sum_all(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Sum", *(one.name for one in ins)), ins[0].shape)]


def operators() -> dict[str, Emit]:
    """Return the function of every operator that can be converted."""
    return _OPERATORS


_OPERATORS: dict[str, Emit] = {
    **spatial.EMIT,
    **activations.EMIT,
    **shaping.EMIT,
    **resizing.EMIT,
    **recurrent.EMIT,
    **choosing.EMIT,
    **creation.EMIT,
    **elementwise.EMIT,
    **arrays.EMIT,
    **attention.OPERATORS,
    **{op: _unary(name) for op, name in UNARY.items()},
    **{op: _binary(name) for op, name in BINARY.items()},
    **{f"_{op}_scalar": _scalar(*how) for op, how in SCALAR.items()},
    **{f"_{op.capitalize()}Scalar": _scalar(*how) for op, how in SCALAR.items()},
    **{op: _reduction(name) for op, name in REDUCTIONS.items()},
    "FullyConnected": _fully_connected,
    "clip": _clip,
    "Dropout": _dropout,
    "Embedding": _embedding,
    **dict.fromkeys(("add_n", "ElementWiseSum", "_sum"), _sum_all),
}
