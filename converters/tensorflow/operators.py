"""Operators that tf2onnx 1.17 lacks or writes wrongly: handlers that take the place of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

RESIZES = {
    "ResizeBilinear": "linear",
    "ResizeNearestNeighbor": "nearest",
    "ResizeBicubic": "cubic",
    "ResizeArea": "area",
}


SCATTER_ADDS = 16
"""The opset since which ONNX's ScatterND can add up what has the same index."""


def handlers(opset: int) -> dict[str, tuple[Callable[..., None], list[str]]]:
    """Return the handlers in the form that `process_tf_graph` takes: by operator, with no arguments."""
    found = {
        "Log1p": _log1p,
        "Expm1": _expm1,
        "Erfc": _erfc,
        "Xlogy": _xlogy,
        "Xdivy": _xdivy,
        **dict.fromkeys(RESIZES, _resize),
    }
    if opset >= SCATTER_ADDS:
        found |= {"ScatterNd": _scatter, "TensorScatterAdd": _scatter_add}
    return {operator: (_adapted(handler), []) for operator, handler in found.items()}


def _adapted(handler: Callable[[Any, Any], None]) -> Callable[..., None]:
    def handle(ctx: Any, node: Any, _name: str, _arguments: Any) -> None:
        handler(ctx, node)

    return handle


def _number(ctx: Any, tensor: str, value: float) -> str:
    """Return a scalar constant of the dtype of `tensor`."""
    import numpy as np
    import onnx
    from tf2onnx import utils

    dtype = onnx.helper.tensor_dtype_to_np_dtype(ctx.get_dtype(tensor))
    name: str = ctx.make_const(utils.make_name("number"), np.array(value, dtype)).output[0]
    return name


def _replace(ctx: Any, node: Any, operator: str, inputs: list[str], **attributes: Any) -> None:
    shapes, dtypes = node.output_shapes, node.output_dtypes
    ctx.remove_node(node.name)
    ctx.make_node(
        operator,
        inputs,
        attr=attributes,
        name=node.name,
        outputs=node.output,
        shapes=shapes,
        dtypes=dtypes,
    )


def _log1p(ctx: Any, node: Any) -> None:
    """log(1 + x)."""
    one = _number(ctx, node.input[0], 1)
    _replace(ctx, node, "Log", ctx.make_node("Add", [node.input[0], one]).output)


def _expm1(ctx: Any, node: Any) -> None:
    """exp(x) - 1."""
    one = _number(ctx, node.input[0], 1)
    power = ctx.make_node("Exp", [node.input[0]]).output[0]
    _replace(ctx, node, "Sub", [power, one])


def _erfc(ctx: Any, node: Any) -> None:
    """1 - erf(x)."""
    one = _number(ctx, node.input[0], 1)
    _replace(ctx, node, "Sub", [one, ctx.make_node("Erf", [node.input[0]]).output[0]])


def _xlogy(ctx: Any, node: Any) -> None:
    """x log(y), 0 where x is 0."""
    product = ctx.make_node(
        "Mul", [node.input[0], ctx.make_node("Log", [node.input[1]]).output[0]]
    ).output[0]
    _zero_where_zero(ctx, node, product)


def _xdivy(ctx: Any, node: Any) -> None:
    """x / y, 0 where x is 0."""
    _zero_where_zero(ctx, node, ctx.make_node("Div", list(node.input)).output[0])


def _zero_where_zero(ctx: Any, node: Any, value: str) -> None:
    zero = _number(ctx, node.input[0], 0)
    is_zero = ctx.make_node("Equal", [node.input[0], zero]).output[0]
    _replace(ctx, node, "Where", [is_zero, zero, value])


def _scatter(ctx: Any, node: Any) -> None:
    """Zeros of a given shape with rows added: the same index twice adds both (tf2onnx keeps one)."""
    import onnx

    indices, rows, shape = node.input
    shape = ctx.make_node("Cast", [shape], attr={"to": onnx.TensorProto.INT64}).output[0]
    base = ctx.make_node("Expand", [_number(ctx, rows, 0), shape]).output[0]
    _added(ctx, node, base, indices, rows)


def _scatter_add(ctx: Any, node: Any) -> None:
    _added(ctx, node, *node.input)


def _added(ctx: Any, node: Any, base: str, indices: str, rows: str) -> None:
    import onnx

    places = ctx.make_node("Cast", [indices], attr={"to": onnx.TensorProto.INT64}).output[0]
    _replace(ctx, node, "ScatterND", [base, places, rows], reduction="add")


# ---- sizes of images


def _resize(ctx: Any, node: Any) -> None:
    """Resize [batch, height, width, channels].

    With known sizes, what ONNX's Resize would round differently is written with the indices or the
    weights that TensorFlow itself gives: the operator is linear, and separable in both axes.
    """
    import onnx

    shape = ctx.get_shape(node.input[0])
    old = [shape[1], shape[2]] if shape and len(shape) == 4 else [-1, -1]
    new = (
        [int(size) for size in node.inputs[1].get_tensor_value()]
        if node.inputs[1].is_const()
        else []
    )
    data = node.input[0]
    if node.type != "ResizeNearestNeighbor" and ctx.get_dtype(data) != onnx.TensorProto.FLOAT:
        data = ctx.make_node("Cast", [data], attr={"to": onnx.TensorProto.FLOAT}).output[0]
    known = bool(new) and min(old) > 0
    if node.type == "ResizeArea" and not known:
        return  # left as it is, and refused by its name: ONNX has no such mode
    if known and node.type in ("ResizeBicubic", "ResizeArea"):
        _weighted(ctx, node, data, old, new)
    elif (
        known
        and node.type == "ResizeNearestNeighbor"
        and any(b % a for a, b in zip(old, new, strict=True))
    ):
        _picked(ctx, node, data, old, new)
    else:
        _plain(ctx, node, data)


def _flags(node: Any) -> dict[str, bool]:
    found = {}
    for flag in ("align_corners", "half_pixel_centers"):
        if flag in node.attr:
            found[flag] = bool(node.attr[flag].i)
    return found


def _own(kind: str, values: Array, size: list[int], flags: dict[str, bool]) -> Array:
    """Return what TensorFlow makes of the images `values`."""
    import tensorflow as tf

    operator = getattr(tf.raw_ops, kind)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        result: Array = session.run(operator(images=tf.constant(values), size=size, **flags))
    return result


def _picked(ctx: Any, node: Any, data: str, old: list[int], new: list[int]) -> None:
    import numpy as np
    from tf2onnx import utils

    flags = _flags(node)
    rows = np.arange(old[0], dtype=np.float32).reshape(1, -1, 1, 1)
    columns = np.arange(old[1], dtype=np.float32).reshape(1, 1, -1, 1)
    row = _own(node.type, rows, [new[0], 1], flags).reshape(-1)
    column = _own(node.type, columns, [1, new[1]], flags).reshape(-1)
    row_index = ctx.make_const(utils.make_name("rows"), row.astype(np.int64)).output[0]
    column_index = ctx.make_const(utils.make_name("columns"), column.astype(np.int64)).output[0]
    tall = ctx.make_node("Gather", [data, row_index], attr={"axis": 1}).output[0]
    _replace(ctx, node, "Gather", [tall, column_index], axis=2)


def _weighted(ctx: Any, node: Any, data: str, old: list[int], new: list[int]) -> None:
    import numpy as np
    from tf2onnx import constants, utils

    flags = _flags(node)
    # one picture of a single bright row (column) each, all but itself dark
    rows = np.eye(old[0], dtype=np.float32).reshape(old[0], old[0], 1, 1)
    columns = np.eye(old[1], dtype=np.float32).reshape(old[1], 1, old[1], 1)
    row = _own(node.type, rows, [new[0], 1], flags).reshape(old[0], new[0]).T
    column = _own(node.type, columns, [1, new[1]], flags).reshape(old[1], new[1])
    left = ctx.make_const(utils.make_name("rows"), np.ascontiguousarray(row)).output[0]
    right = ctx.make_const(utils.make_name("columns"), column).output[0]
    planes = ctx.make_node("Transpose", [data], attr={"perm": constants.NHWC_TO_NCHW}).output[0]
    wide = ctx.make_node("MatMul", [planes, right]).output[0]
    full = ctx.make_node("MatMul", [left, wide]).output[0]
    _replace(ctx, node, "Transpose", [full], perm=constants.NCHW_TO_NHWC)


def _plain(ctx: Any, node: Any, data: str) -> None:
    import numpy as np
    import onnx
    from tf2onnx import constants, utils

    flags = _flags(node)
    planes = ctx.make_node("Transpose", [data], attr={"perm": constants.NHWC_TO_NCHW}).output[0]
    size = ctx.make_node("Cast", [node.input[1]], attr={"to": onnx.TensorProto.INT64}).output[0]
    whole = ctx.make_node("Shape", [planes]).output[0]
    ends = [
        ctx.make_const(utils.make_name("end"), np.array([value], np.int64)).output[0]
        for value in (0, 2)
    ]
    kept = ctx.make_node("Slice", [whole, *ends]).output[0]
    sizes = ctx.make_node("Concat", [kept, size], attr={"axis": 0}).output[0]
    places = "asymmetric"
    if flags.get("align_corners"):
        places = "align_corners"
    elif flags.get("half_pixel_centers"):
        places = "half_pixel"
    attributes: dict[str, Any] = {
        "mode": RESIZES[node.type],
        "coordinate_transformation_mode": places,
        "nearest_mode": "floor" if places == "asymmetric" else "round_prefer_ceil",
    }
    if node.type == "ResizeBicubic":
        half = bool(flags.get("half_pixel_centers"))
        attributes |= {"cubic_coeff_a": -0.5 if half else -0.75, "exclude_outside": int(half)}
    resized = ctx.make_node("Resize", [planes, "", "", sizes], attr=attributes).output[0]
    _replace(ctx, node, "Transpose", [resized], perm=constants.NCHW_TO_NHWC)
