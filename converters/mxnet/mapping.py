"""MXNet operators as ONNX nodes: a table where one stands for one, small functions for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping

from deploykit._plugins.converters.mxnet import arrays, attention, spatial
from deploykit._plugins.converters.mxnet.emission import Emit, Sizes, Value, broadcast
from deploykit._plugins.converters.mxnet.network import (
    Network,
    data_inputs,
    needed,
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

SAME_SHAPE = (
    *UNARY,
    "Dropout",
    "BatchNorm",
    "BatchNorm_v1",
    "Activation",
    "LeakyReLU",
    "InstanceNorm",
    "LRN",
)
SAME_SHAPE += ("SoftmaxActivation", "softmax", "clip", "Cast", "L2Normalization")


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
            values[number, 0] = Value(build.input(spec.name, spec.dtype, spec.shape or ()), sizes)
    weights: dict[int, Value] = {}

    def value(ref: tuple[int, int]) -> Value:
        if ref in values:
            return values[ref]
        number, _ = ref
        if number not in weights:
            array = model.weights[model.symbol.nodes[number].name]
            weights[number] = Value(
                build.constant(array, model.symbol.nodes[number].name), array.shape
            )
        return weights[number]

    counts: dict[int, int] = {}
    emits = operators()
    for number, node in model.walk():
        given = [value(ref) for ref in data_inputs(node)]
        given += _unlisted(build, model, node, len(given))
        with build.layer(node.name):
            found = emits[node.op](build, node, given)
        counts[number] = len(found)
        values |= {(number, at): one for at, one in enumerate(found)}
    outputs = []
    batch = inputs[0].shape[0] if inputs[0].shape else None
    for head in model.symbol.heads:
        name = output_name(model.symbol, head, counts.get(head[0], 1))
        one = value(head)
        shape: tuple[Dimension, ...] = tuple(
            batch if at == 0 and size is None else size for at, size in enumerate(one.shape)
        )
        build.output(name, one.name, "float32", shape)
        outputs.append(TensorSpec(name=name, dtype="float32", shape=shape))
    return outputs


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


# ---- the shapes of inputs


def input_shapes(model: Network, given: Mapping[str, TensorSpec]) -> dict[str, Sizes]:
    """Return the shape of each input: the user's, the symbol's, or what the weights decide.

    Raises UsageError where not even the number of axes can be told, or `--input` names none.
    """
    unknown = [name for name in given if name not in model.inputs]
    if unknown:
        raise UsageError(
            f"the model has no input `{unknown[0]}`", hint=f"its inputs: {', '.join(model.inputs)}"
        )
    found: dict[str, Sizes] = {}
    for number, node in enumerate(model.symbol.nodes):
        if node.op != "null" or node.name not in model.inputs:
            continue
        spec = given.get(node.name)
        declared = node.value("__shape__", None)
        if spec is not None and spec.shape is not None:
            found[node.name] = tuple(s if isinstance(s, int) else None for s in spec.shape)
        elif isinstance(declared, (tuple, list)) and declared:
            found[node.name] = (None, *(int(size) if size else None for size in declared[1:]))
        else:
            found[node.name] = _decided(model, number)
    return found


def _decided(model: Network, number: int) -> Sizes:
    """Return what the weights say of the shape of the variable `number`."""
    nodes = model.symbol.nodes
    same, channels = {number}, None
    used = needed(model.symbol)
    for at, node in enumerate(nodes):
        if at not in used or node.op == "null" or not node.inputs or node.inputs[0][0] not in same:
            continue
        names = [nodes[one].name for one, _ in node.inputs]
        if node.op in SAME_SHAPE or node.op.endswith("_scalar"):
            same.add(at)
            if node.op in ("BatchNorm", "BatchNorm_v1") and node.value("axis", 1) == 1:
                channels = len(model.weights[names[1]])
        elif node.op in ("Convolution", "Deconvolution", "Convolution_v1"):
            weight = model.weights[names[1]]
            groups = node.value("num_group", 1)
            depth = weight.shape[0] if node.op == "Deconvolution" else weight.shape[1] * groups
            return (None, depth, *[None] * (weight.ndim - 2))
        elif node.op == "FullyConnected" and (
            channels is None or channels == model.weights[names[1]].shape[1]
        ):
            return (None, model.weights[names[1]].shape[1])
    name = nodes[number].name
    raise UsageError(
        f"neither symbol nor weights say the shape of the input `{name}`",
        hint=f"give it: `--input '{name}:float32[batch,...]'`",
    )


# ---- operators


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
        number = build.constant(node.value("scalar", 1.0))
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


ACTIVATIONS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softrelu": "Softplus",
    "softsign": "Softsign",
}


def _activation(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    kind = node.value("act_type", "relu")
    if kind not in ACTIVATIONS:
        raise UnsupportedError(f"node `{node.name}` has the activation {kind}", operators=(kind,))
    return [Value(build.add(ACTIVATIONS[kind], ins[0].name), ins[0].shape)]


def _leaky(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    kind, x = node.value("act_type", "leaky"), ins[0]
    slope = node.value("slope", 0.25)
    if kind == "prelu":
        shape = [-1, *[1] * (x.rank - 2)]
        alpha = build.add("Reshape", ins[1].name, build.shape_constant(shape))
        name = build.add("PRelu", x.name, alpha)
    elif kind == "leaky":
        name = build.add("LeakyRelu", x.name, alpha=slope)
    elif kind == "elu":
        name = build.add("Elu", x.name, alpha=slope)
    elif kind == "selu":
        name = build.add("Selu", x.name)
    elif kind == "gelu":
        inner = build.add("Erf", build.add("Mul", x.name, build.constant(math.sqrt(0.5))))
        half = build.add("Mul", x.name, build.constant(0.5))
        name = build.add("Mul", half, build.add("Add", inner, build.constant(1.0)))
    elif kind == "rrelu":  # at inference the mean of its bounds
        bounds = node.value("lower_bound", 0.125) + node.value("upper_bound", 0.334)
        name = build.add("LeakyRelu", x.name, alpha=bounds / 2)
    else:
        raise UnsupportedError(f"node `{node.name}` has the activation {kind}", operators=(kind,))
    return [Value(name, x.shape)]


def _softmax_head(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    if node.value("multi_output", False):
        return [Value(build.add("Softmax", x.name, axis=1), x.shape)]
    if node.value("preserve_shape", False) or x.rank == 2:
        return [Value(build.add("Softmax", x.name, axis=-1), x.shape)]
    return [_flat_softmax(build, x)]


def _flat_softmax(build: GraphBuilder, x: Value) -> Value:
    """Over everything but the batch."""
    flat = build.add("Softmax", build.add("Flatten", x.name, axis=1), axis=-1)
    shape = build.add("Shape", x.name)
    return Value(build.add("Reshape", flat, shape), x.shape)


def _softmax_activation(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    if node.value("mode", "instance") == "channel":
        return [Value(build.add("Softmax", ins[0].name, axis=1), ins[0].shape)]
    return [_flat_softmax(build, ins[0])]


def _softmax(operator: str) -> Emit:
    def emit_one(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
        x = ins[0].name
        if len(ins) > 1:
            raise UnsupportedError(
                f"node `{node.name}` is a softmax over parts of given length",
                operators=(f"{node.op}(use_length)",),
            )
        temperature = node.value("temperature", 1.0)
        if temperature != 1.0:
            x = build.add("Div", x, build.constant(temperature))
        return [Value(build.add(operator, x, axis=node.value("axis", -1)), ins[0].shape)]

    return emit_one


def _concat(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    axis = node.value("dim", 1) % ins[0].rank
    name = build.add("Concat", *(one.name for one in ins), axis=axis)
    sizes = [one.shape[axis] for one in ins]
    total = None if None in sizes else sum(one for one in sizes if one is not None)
    shape = ins[0].shape
    return [Value(name, (*shape[:axis], total, *shape[axis + 1 :]))]


def _split(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, count = ins[0], node.value("num_outputs", 1)
    axis = node.value("axis", 1) % x.rank
    size = x.shape[axis]
    if size is None or size % count:
        raise UsageError(
            f"node `{node.name}` splits an axis of {size or 'unknown'} size by {count}"
        )
    parts = build.shape_constant([size // count] * count)
    names = build.add_many("Split", x.name, parts, count=count, axis=axis)
    shape = (*x.shape[:axis], size // count, *x.shape[axis + 1 :])
    if node.value("squeeze_axis", False):
        names = tuple(build.add("Squeeze", one, build.shape_constant([axis])) for one in names)
        shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [Value(one, shape) for one in names]


def _flatten(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    inner = x.shape[1:]
    width = None if None in inner else math.prod(one for one in inner if one is not None)
    return [Value(build.add("Flatten", x.name, axis=1), (x.shape[0], width))]


def _reshape(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """MXNet's codes: 0 copies, -1 infers, -2 copies all the rest, -3 merges two, -4 splits one."""
    x, target = ins[0], list(node.value("shape", ()))
    if node.value("reverse", False) or not target:
        raise UnsupportedError(f"node `{node.name}` reshapes from behind", operators=("Reshape",))
    sizes: list[int] = []
    shape: list[int | None] = []
    at = index = 0
    while index < len(target):
        code = target[index]
        index += 1
        if code > 0 or code == -1:
            sizes.append(code)
            shape.append(code if code > 0 else None)
            at += 1
            continue
        if code == -4:
            pair = list(target[index : index + 2])
            index += 2
            known = x.shape[at]
            if -1 in pair and known is not None:
                pair[pair.index(-1)] = known // max(pair[1 - pair.index(-1)], 1)
            sizes += pair
            shape += [one if one > 0 else None for one in pair]
            at += 1
            continue
        stop = at + {0: 1, -2: x.rank - at, -3: 2}.get(code, 0)
        part = x.shape[at:stop]
        at = stop
        parts = [part] if code == -3 else [(one,) for one in part]
        for piece in parts:
            size = None if None in piece else math.prod(one for one in piece if one is not None)
            # ONNX's zero copies the size at the same place, which is all that is needed for a batch
            first = not sizes and code != -3
            sizes.append(size if size is not None else (0 if first else -1))
            shape.append(size)
    if sizes.count(-1) > 1:
        raise UsageError(
            f"node `{node.name}` reshapes to sizes that are not fixed",
            hint="give the sizes of the inputs: `--input 'NAME:float32[...]'`",
        )
    if shape.count(None) == 1 and None not in x.shape:
        total = math.prod(one for one in x.shape if one is not None)
        rest = math.prod(one for one in shape if one is not None)
        shape = [total // max(rest, 1) if one is None else one for one in shape]
    return [Value(build.add("Reshape", x.name, build.shape_constant(sizes)), tuple(shape))]


def _transpose(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = [axis % x.rank for axis in node.value("axes", ())] or list(range(x.rank))[::-1]
    name = build.add("Transpose", x.name, perm=axes)
    return [Value(name, tuple(x.shape[axis] for axis in axes))]


def _swap(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = list(range(x.rank))
    a, b = node.value("dim1", 0) % x.rank, node.value("dim2", 0) % x.rank
    axes[a], axes[b] = axes[b], axes[a]
    name = build.add("Transpose", x.name, perm=axes)
    return [Value(name, tuple(x.shape[axis] for axis in axes))]


def _expand(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axis = node.value("axis", 0) % (x.rank + 1)
    name = build.add("Unsqueeze", x.name, build.shape_constant([axis]))
    return [Value(name, (*x.shape[:axis], 1, *x.shape[axis:]))]


def _squeeze(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axes = sorted(axis % x.rank for axis in node.value("axis", ()))
    axes = axes or [at for at, size in enumerate(x.shape) if size == 1]
    name = build.add("Squeeze", x.name, build.shape_constant(axes))
    return [Value(name, tuple(size for at, size in enumerate(x.shape) if at not in axes))]


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
        return [Value(name, shape)]

    return emit_one


def _slice_axis(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    axis = node.value("axis", 0) % x.rank
    begin, end = node.value("begin", 0), node.value("end", None)
    limits = (
        build.shape_constant([one]) for one in (begin, 2**31 - 1 if end is None else end, axis)
    )
    size = x.shape[axis]
    length = None if size is None else len(range(size)[begin:end])
    return [
        Value(build.add("Slice", x.name, *limits), (*x.shape[:axis], length, *x.shape[axis + 1 :]))
    ]


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
    name = build.add("Gather", ins[1].name, index, axis=0)
    return [Value(name, (*ins[0].shape, ins[1].shape[1]))]


def _sum_all(build: GraphBuilder, _node: Node, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Sum", *(one.name for one in ins)), ins[0].shape)]


def operators() -> dict[str, Emit]:
    """Return the function of every operator that can be converted."""
    return _OPERATORS


_OPERATORS: dict[str, Emit] = {
    **spatial.EMIT,
    **arrays.EMIT,
    **attention.OPERATORS,
    **{op: _unary(name) for op, name in UNARY.items()},
    **{op: _binary(name) for op, name in BINARY.items()},
    **{f"_{op}_scalar": _scalar(*how) for op, how in SCALAR.items()},
    **{f"_{op.capitalize()}Scalar": _scalar(*how) for op, how in SCALAR.items()},
    **{op: _reduction(name) for op, name in REDUCTIONS.items()},
    "FullyConnected": _fully_connected,
    "Activation": _activation,
    "LeakyReLU": _leaky,
    **dict.fromkeys(("SoftmaxOutput", "Softmax"), _softmax_head),
    "SoftmaxActivation": _softmax_activation,
    "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    **dict.fromkeys(("Concat", "concat"), _concat),
    **dict.fromkeys(("SliceChannel", "split"), _split),
    **dict.fromkeys(("Flatten", "flatten"), _flatten),
    **dict.fromkeys(("Reshape", "reshape"), _reshape),
    "transpose": _transpose,
    **dict.fromkeys(("SwapAxis", "swapaxes"), _swap),
    "expand_dims": _expand,
    "squeeze": _squeeze,
    "slice_axis": _slice_axis,
    "clip": _clip,
    "Dropout": _dropout,
    "Embedding": _embedding,
    **dict.fromkeys(("add_n", "ElementWiseSum", "_sum"), _sum_all),
}
