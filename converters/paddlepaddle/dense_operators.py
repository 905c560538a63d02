"""Paddle 1's operators that leave sequences alone, as ONNX nodes: rows go in, rows come out.

Only for programs with sequences; others are exported by paddle2onnx. Source:
`paddle/fluid/operators/*.cc` of Paddle 1.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit._plugins.converters.paddlepaddle.sequence_operators import Emit, Slots, refused
from deploykit._plugins.converters.paddlepaddle.sequences import Value

from deploykit.graph_building import GraphBuilder

UNARY = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "floor": "Floor",
    "ceil": "Ceil",
    "assign": "Identity",
}

BINARY = {
    "elementwise_add": "Add",
    "elementwise_sub": "Sub",
    "elementwise_mul": "Mul",
    "elementwise_div": "Div",
    "elementwise_max": "Max",
    "elementwise_min": "Min",
    "elementwise_pow": "Pow",
}

REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_mean": "ReduceMean",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
}

DTYPES = {0: 9, 1: 5, 2: 6, 3: 7, 4: 10, 5: 1, 6: 11}
"""Paddle's number of a dtype to ONNX's."""

NAMES = {9: "bool", 5: "int16", 6: "int32", 7: "int64", 10: "float16", 1: "float32", 11: "float64"}


def _unary(operator: str) -> Emit:
    def emit(build: GraphBuilder, ins: Slots, _: Mapping[str, Any]) -> dict[str, Value]:
        x = ins["X"][0]
        return {"Out": x.on(build.add(operator, x.name))}

    return emit


def _binary(operator: str) -> Emit:
    def emit(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
        x, y = ins["X"][0], ins["Y"][0]
        if y.rank > x.rank:
            raise refused("with a larger second input", f"elementwise {operator}")
        axis = int(attributes.get("axis", -1))
        axis = x.rank - y.rank if axis == -1 else axis
        name = y.name
        if behind := x.rank - y.rank - axis:
            if behind < 0:
                raise refused(f"along axis {axis}", f"elementwise {operator}")
            # Paddle lays the second input beside the axes from `axis` on, ONNX beside the last ones
            axes = list(range(y.rank, y.rank + behind))
            name = build.add("Unsqueeze", name, build.shape_constant(axes))
        return {"Out": x.on(build.add(operator, x.name, name), lengths=x.lengths or y.lengths)}

    return emit


def _mul(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x, y = ins["X"][0], ins["Y"][0]
    columns = int(attributes.get("x_num_col_dims", 1))
    if y.rank != 2 or int(attributes.get("y_num_col_dims", 1)) != 1:
        raise refused("of a weight that is no matrix", "mul")
    if columns == x.rank - 1:
        name = x.name
    elif columns == 1:
        name = build.add("Flatten", x.name, axis=1)
    else:
        raise refused(f"of {x.rank} axes after {columns}", "mul")
    return {"Out": x.on(build.add("MatMul", name, y.name), rank=columns + 1)}


def _matmul(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x, y = ins["X"][0], ins["Y"][0]
    names = []
    for value, keys in ((x, ("transpose_X", "trans_x")), (y, ("transpose_Y", "trans_y"))):
        name = value.name
        if any(attributes.get(key) for key in keys):
            if value.rank < 2:
                raise refused("of a transposed vector", "matmul")
            order = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
            name = build.add("Transpose", name, perm=order)
        names.append(name)
    if min(x.rank, y.rank) < 2:
        raise refused("of a vector", "matmul")
    found = build.add("MatMul", *names)
    alpha = float(attributes.get("alpha", 1.0))
    if alpha != 1.0:
        found = build.add("Mul", found, build.constant(alpha, dtype=x.dtype))
    return {"Out": x.on(found, rank=max(x.rank, y.rank))}


def _softmax(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    return {"Out": x.on(build.add("Softmax", x.name, axis=int(attributes.get("axis", -1))))}


def _concat(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    values = ins["X"]
    axis = int(attributes.get("axis", 0))
    if axis % max(values[0].rank, 1) == 0 and any(one.lengths for one in values):
        raise refused("of sequences one behind the other", "concat")
    kept = next((one.lengths for one in values if one.lengths), "")
    return {
        "Out": values[0].on(
            build.add("Concat", *(one.name for one in values), axis=axis), lengths=kept
        )
    }


def _scale(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    if ins.get("ScaleTensor"):
        raise refused("by a tensor", "scale")
    factor = build.constant(float(attributes.get("scale", 1.0)), dtype=x.dtype)
    shift = build.constant(float(attributes.get("bias", 0.0)), dtype=x.dtype)
    if attributes.get("bias_after_scale", True):
        return {"Out": x.on(build.add("Add", build.add("Mul", x.name, factor), shift))}
    return {"Out": x.on(build.add("Mul", build.add("Add", x.name, shift), factor))}


def _sum(build: GraphBuilder, ins: Slots, _: Mapping[str, Any]) -> dict[str, Value]:
    values = ins["X"]
    kept = next((one.lengths for one in values if one.lengths), "")
    return {"Out": values[0].on(build.add("Sum", *(one.name for one in values)), lengths=kept)}


def _square(build: GraphBuilder, ins: Slots, _: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    return {"Out": x.on(build.add("Mul", x.name, x.name))}


def _dropout(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    if attributes.get("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        return {"Out": x}
    kept = build.constant(1.0 - float(attributes.get("dropout_prob", 0.5)), dtype=x.dtype)
    return {"Out": x.on(build.add("Mul", x.name, kept))}


def _cast(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    kind = DTYPES.get(int(attributes["out_dtype"]))
    if kind is None:
        raise refused(f"to the dtype {attributes['out_dtype']}", "cast")
    return {"Out": x.on(build.add("Cast", x.name, to=kind), dtype=NAMES[kind])}


def _lookup(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    """Look ids [..., 1] up in a table; version 2 of the operator takes them without the last axis."""
    table, ids = ins["W"][0], ins["Ids"][0]
    name, rank = ids.name, ids.rank
    if attributes["version"] == 1:
        name, rank = build.add("Squeeze", name, build.shape_constant([-1])), rank - 1
    found = build.add("Gather", table.name, name, axis=0)
    padding = int(attributes.get("padding_idx", -1))
    if padding != -1 and table.constant is not None:
        padding %= table.constant.shape[0]
        is_real = build.add("Equal", name, build.constant(padding, dtype=ids.dtype))
        is_real = build.add("Unsqueeze", build.add("Not", is_real), build.shape_constant([-1]))
        found = build.add("Where", is_real, found, build.constant(0.0, dtype=table.dtype))
    return {"Out": ids.on(found, rank=rank + 1, dtype=table.dtype)}


def _reduce(operator: str) -> Emit:
    def emit(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
        x = ins["X"][0]
        axes = [int(one) % x.rank for one in attributes.get("dim", [0])]
        if attributes.get("reduce_all"):
            axes = list(range(x.rank))
        keep = int(bool(attributes.get("keep_dim", False)))
        if operator == "ReduceSum":
            name = build.add(operator, x.name, build.shape_constant(axes), keepdims=keep)
        else:
            name = build.add(operator, x.name, axes=axes, keepdims=keep)
        rank = x.rank if keep else max(x.rank - len(axes), 1)
        if rank != x.rank - (0 if keep else len(axes)):
            name = build.add("Reshape", name, build.shape_constant([1]))
        return {"Out": x.on(name, rank=rank, lengths="" if 0 in axes else x.lengths)}

    return emit


def _reshape(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    if ins.get("Shape") or ins.get("ShapeTensor"):
        raise refused("to a computed shape", "reshape")
    sizes = [int(one) for one in attributes["shape"]]
    return {"Out": x.on(build.add("Reshape", x.name, build.shape_constant(sizes)), rank=len(sizes))}


def _transpose(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    order = [int(one) for one in attributes["axis"]]
    kept = x.lengths if order[0] == 0 else ""
    return {"Out": x.on(build.add("Transpose", x.name, perm=order), lengths=kept)}


def _axes_changed(operator: str, sign: int) -> Emit:
    def emit(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
        x = ins["X"][0]
        axes = [int(one) for one in attributes.get("axes", [])]
        if not axes:
            raise refused("of all axes of size 1", operator.lower())
        name = build.add(operator, x.name, build.shape_constant(axes))
        return {"Out": x.on(name, rank=x.rank + sign * len(axes))}

    return emit


def _normalised(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    found = build.add(
        "BatchNormalization",
        *(ins[slot][0].name for slot in ("X", "Scale", "Bias", "Mean", "Variance")),
        epsilon=float(attributes.get("epsilon", 1e-5)),
    )
    return {"Y": x.on(found)}


def _cosine(build: GraphBuilder, ins: Slots, _: Mapping[str, Any]) -> dict[str, Value]:
    x, y = ins["X"][0], ins["Y"][0]
    if x.rank != 2 or y.rank != 2:
        raise refused("of more than rows", "cos_sim")
    axis = build.shape_constant([1])
    product = build.add("ReduceSum", build.add("Mul", x.name, y.name), axis, keepdims=1)
    lengths = [build.add("ReduceL2", one.name, axes=[1], keepdims=1) for one in (x, y)]
    return {"Out": x.on(build.add("Div", product, build.add("Mul", *lengths)))}


def _best(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    if ins.get("K"):
        raise refused("of a computed number", "top_k")
    values, indices = build.add_many(
        "TopK", x.name, build.shape_constant([int(attributes["k"])]), count=2, axis=-1
    )
    return {"Out": x.on(values), "Indices": x.on(indices, dtype="int64")}


def _filled(build: GraphBuilder, _ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    import numpy as np

    kind = DTYPES.get(int(attributes.get("dtype", 5)))
    sizes = [int(one) for one in attributes.get("shape", [1])]
    if kind is None or min(sizes, default=1) < 0 or np.prod(sizes, dtype=float) > 1 << 20:
        raise refused(f"of shape {sizes}", "fill_constant")
    array = np.full(sizes, float(attributes.get("value", 0.0)), NAMES[kind])
    return {"Out": Value(build.constant(array), len(sizes), NAMES[kind], constant=array)}


def _clip(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    bounds = [build.constant(float(attributes[key]), dtype=x.dtype) for key in ("min", "max")]
    return {"Out": x.on(build.add("Clip", x.name, *bounds))}


def _versioned(emit: Emit, version: int) -> Emit:
    return lambda build, ins, attributes: emit(build, ins, {**attributes, "version": version})


EMIT: dict[str, Emit] = {
    **{kind: _unary(operator) for kind, operator in UNARY.items()},
    **{kind: _binary(operator) for kind, operator in BINARY.items()},
    **{kind: _reduce(operator) for kind, operator in REDUCTIONS.items()},
    **dict.fromkeys(("mul",), _mul),
    **dict.fromkeys(("matmul", "matmul_v2"), _matmul),
    **dict.fromkeys(("reshape", "reshape2"), _reshape),
    **dict.fromkeys(("transpose", "transpose2"), _transpose),
    **dict.fromkeys(("unsqueeze", "unsqueeze2"), _axes_changed("Unsqueeze", 1)),
    **dict.fromkeys(("squeeze", "squeeze2"), _axes_changed("Squeeze", -1)),
    "batch_norm": _normalised,
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "cos_sim": _cosine,
    "dropout": _dropout,
    "fill_constant": _filled,
    "lookup_table": _versioned(_lookup, 1),
    "lookup_table_v2": _versioned(_lookup, 2),
    "scale": _scale,
    "softmax": _softmax,
    "square": _square,
    "sum": _sum,
    "top_k": _best,
}
