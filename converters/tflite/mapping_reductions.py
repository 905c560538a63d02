"""What sums up, searches, counts and fills, as ONNX nodes."""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit, plain
from deploykit._plugins.converters.tflite.mapping_shapes import known
from deploykit._plugins.converters.tflite.reading import Operator, Tensor

REDUCE = {
    "MEAN": "ReduceMean",
    "SUM": "ReduceSum",
    "REDUCE_MAX": "ReduceMax",
    "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd",
    "REDUCE_ANY": "ReduceMax",
    "REDUCE_ALL": "ReduceMin",
}


def _reduced(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    axes = sorted({axis % max(x.rank, 1) for axis in known(m, ins[1], "the axes")})
    batch = m.apart(x, axes)
    keep = int(bool(op.options["keep_dims"]))
    if batch is not None and not keep:
        batch -= sum(axis < batch for axis in axes)
    shape = [1 if at in axes else n for at, n in enumerate(x.shape) if keep or at not in axes]
    if not axes:
        return [m.made(outs[0], plain(m, x), batch=batch, shape=shape)]
    logical = op.kind in ("REDUCE_ANY", "REDUCE_ALL")
    if op.kind == "MEAN" and keep and axes == [1, 2] and x.rank == 4:
        pooled = m.add("GlobalAveragePool", m.real(x, first=True))
        return [m.made(outs[0], pooled, batch=batch, shape=shape, first=True)]
    data = m.add("Cast", m.stored(x), to=6) if logical else plain(m, x)
    if REDUCE[op.kind] == "ReduceSum":
        name = m.add("ReduceSum", data, m.sizes(axes), keepdims=keep)
    else:
        name = m.add(REDUCE[op.kind], data, axes=axes, keepdims=keep)
    if logical:
        name = m.add("Cast", name, to=9)
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _extreme_at(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    (axis,) = known(m, ins[1], "the axis")
    axis %= x.rank
    batch = m.apart(x, [axis])
    if batch is not None and batch > axis:
        batch -= 1
    kind = "ArgMax" if op.kind == "ARG_MAX" else "ArgMin"
    name = m.add(kind, plain(m, x), axis=axis, keepdims=0)
    shape = [*x.shape[:axis], *x.shape[axis + 1 :]]
    return [m.made(outs[0], _whole_number(m, name, outs[0]), batch=batch, shape=shape)]


def _whole_number(m: Emitter, name: str, tensor: Tensor) -> str:
    """Return the int64 value `name` in the dtype of `tensor`."""
    return name if tensor.dtype == "int64" else m.add("Cast", name, to=6)


def _largest(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    count = known(m, ins[1], "how many it takes")
    batch = m.apart(x, [-1])
    values, places = m.build.add_many("TopK", plain(m, x), m.sizes(count), count=2, axis=-1)
    shape = [*x.shape[:-1], *count]
    return [
        m.made(outs[0], values, batch=batch, shape=shape),
        m.made(outs[1], _whole_number(m, places, outs[1]), batch=batch, shape=shape),
    ]


def _one_hot(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    at, depth, on, off = ins
    axis = op.options["axis"]
    batch = at.batch
    if batch is not None and axis != -1 and axis <= batch:
        batch += 1
    two = [m.add("Reshape", plain(m, one), m.sizes([1])) for one in (off, on)]
    if "int8" in on.tensor.dtype and not on.is_float:
        raise m.refuse(f"its values are {on.tensor.dtype}")
    # TensorFlow gives a row of `off` for a place outside; ONNX counts negative ones from the end
    many = known(m, depth, "its depth")
    size = m.sizes(many)
    places = m.add("Cast", m.stored(at), to=7)
    inside = m.add("GreaterOrEqual", places, m.number(0, "int64"))
    places = m.add("Where", inside, places, m.number(1 << 40, "int64"))
    name = m.add("OneHot", places, size, m.add("Concat", *two, axis=0), axis=axis)
    shape = list(at.shape)
    shape.insert(axis % (at.rank + 1), many[0])
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def _running_sum(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    x = ins[0]
    axis = known(m, ins[1], "the axis")
    name = m.add(
        "CumSum",
        plain(m, x),
        m.number(axis[0], "int64"),
        exclusive=int(bool(op.options["exclusive"])),
        reverse=int(bool(op.options["reverse"])),
    )
    return [m.made(outs[0], name, batch=m.apart(x, axis), shape=x.shape)]


def _shape(_m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SHAPE and RANK: known for a batch of one, and for one of two."""
    import numpy as np

    x, dtype = ins[0], outs[0].dtype
    if op.kind == "RANK":
        return [_held(outs[0], np.asarray(x.rank, dtype), None)]
    twice = list(x.shape)
    if x.batch is not None:
        twice[x.batch] *= 2
    return [_held(outs[0], np.asarray(x.shape, dtype), np.asarray(twice, dtype))]


def _held(tensor: Tensor, content: Any, doubled: Any) -> Value:
    return Value(tensor=tensor, shape=content.shape, constant=content, doubled=doubled)


def _zeros_like(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    import numpy as np

    (x,) = ins
    content = np.zeros(x.shape, outs[0].dtype)
    if x.batch is None and content.size < 1 << 20:
        return [_held(outs[0], content, None)]
    zero = m.number(0, outs[0].dtype)
    name = m.add("Expand", zero, m.add("Shape", m.stored(x)))
    return [Value(tensor=outs[0], shape=x.shape, batch=x.batch, stored=name)]


def _filled(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    size, value = ins
    target = known(m, size, "the shape")
    name = m.add("Expand", m.stored(value), m.sizes(target))
    return [Value(tensor=outs[0], shape=tuple(target), stored=name)]


def _scattered(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SCATTER_ND: updates at the same place add up."""
    at, updates, size = ins
    if at.batch is not None or updates.batch is not None:
        raise m.fixed("scatters the batch")
    target = known(m, size, "the shape")
    dtype = "float32" if updates.is_float else outs[0].dtype
    zeros = m.add("Expand", m.number(0, dtype), m.sizes(target))
    places = m.add("Cast", m.stored(at), to=7)
    name = m.add("ScatterND", zeros, places, plain(m, updates), reduction="add")
    return [m.made(outs[0], name, batch=None, shape=target)]


def _sparse(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SPARSE_TO_DENSE(places, size, values, default)."""
    at, size, values, rest = ins
    if at.batch is not None or values.batch is not None:
        raise m.fixed("scatters the batch")
    target = known(m, size, "the shape")
    start = m.add("Expand", plain(m, rest), m.sizes(target))
    count = at.shape[0] if at.rank else 1
    places = m.add("Reshape", m.stored(at), m.sizes([count, at.shape[1] if at.rank == 2 else 1]))
    data = plain(m, values)
    if values.rank == 0:
        data = m.add("Expand", data, m.sizes([count]))
    name = m.add("ScatterND", start, m.add("Cast", places, to=7), data)
    return [m.made(outs[0], name, batch=None, shape=target)]


def _range(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    for one in ins:
        if one.constant is not None:
            known(m, one, "its bounds")
    name = m.add("Range", *(m.add("Squeeze", m.stored(one)) for one in ins))
    return [m.made(outs[0], name, batch=None, shape=outs[0].shape)]


def _where(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    if ins[0].batch is not None:
        raise m.fixed("numbers the places of the batch")
    name = m.add("Transpose", m.add("NonZero", m.stored(ins[0])), perm=[1, 0])
    return [m.made(outs[0], name, batch=None, shape=outs[0].shape)]


def _suppressed(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """NON_MAX_SUPPRESSION_V4: the boxes kept, padded with zeros to their number, and how many."""
    boxes, scores, most, overlap, least = ins[:5]
    if op.kind == "NON_MAX_SUPPRESSION_V5":
        sigma = ins[5]
        if sigma.constant is None or float(sigma.constant.reshape(-1)[0]) != 0.0:
            raise m.refuse("it lowers scores instead of dropping boxes (soft_nms_sigma)")
    if boxes.batch is not None or scores.batch is not None:
        raise m.fixed("chooses among the boxes of one picture")
    (count,) = known(m, most, "how many it keeps")
    chosen = m.add(
        "NonMaxSuppression",
        m.add("Unsqueeze", m.real(boxes), m.sizes([0])),
        m.add("Unsqueeze", m.real(scores), m.sizes([0, 1])),
        m.sizes([count]),
        m.add("Reshape", m.real(overlap), m.sizes([1])),
        m.add("Reshape", m.real(least), m.sizes([1])),
    )
    places = m.add("Gather", chosen, m.number(2, "int64"), axis=1)
    number = m.add("Shape", places)
    short = m.add("Sub", m.sizes([count]), number)
    padding = m.add("Concat", m.sizes([0]), short, axis=0)
    padded = m.add("Cast", m.add("Pad", places, padding), to=6)
    kept = m.add("Cast", m.add("Squeeze", number), to=6)
    if op.kind == "NON_MAX_SUPPRESSION_V4":
        return [
            m.made(outs[0], padded, batch=None, shape=[count]),
            m.made(outs[1], kept, batch=None, shape=[]),
        ]
    values = m.add("Pad", m.add("Gather", m.real(scores), places), padding)
    return [
        m.made(outs[0], padded, batch=None, shape=[count]),
        m.made(outs[1], values, batch=None, shape=[count]),
        m.made(outs[2], kept, batch=None, shape=[]),
    ]


def _matrix_diagonal(m: Emitter, _op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    import numpy as np

    (x,) = ins
    batch = m.apart(x, [-1])
    eye = m.number(np.eye(x.shape[-1]), "float32" if x.is_float else x.tensor.dtype)
    name = m.add("Mul", m.add("Unsqueeze", plain(m, x), m.sizes([x.rank])), eye)
    return [m.made(outs[0], name, batch=batch, shape=[*x.shape, x.shape[-1]])]


def _reversed_rows(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """REVERSE_SEQUENCE: each member up to its own length."""
    x, lengths = ins
    time, row = op.options["time_axis"] % x.rank, op.options["batch_axis"] % x.rank
    if {time, row} != {0, 1}:
        raise m.refuse(f"its axes are {time} and {row}")
    batch = m.apart(x, [time])
    if (batch is None) != (lengths.batch is None):
        raise m.fixed("has lengths without a batch")
    long = m.add("Cast", m.stored(lengths), to=7)
    name = m.add("ReverseSequence", plain(m, x), long, time_axis=time, batch_axis=row)
    return [m.made(outs[0], name, batch=batch, shape=x.shape)]


EMIT: dict[str, Emit] = {
    **dict.fromkeys(REDUCE, _reduced),
    "ARG_MAX": _extreme_at,
    "ARG_MIN": _extreme_at,
    "TOPK_V2": _largest,
    "ONE_HOT": _one_hot,
    "CUMSUM": _running_sum,
    "SHAPE": _shape,
    "RANK": _shape,
    "ZEROS_LIKE": _zeros_like,
    "FILL": _filled,
    "SCATTER_ND": _scattered,
    "SPARSE_TO_DENSE": _sparse,
    "RANGE": _range,
    "WHERE": _where,
    "NON_MAX_SUPPRESSION_V4": _suppressed,
    "NON_MAX_SUPPRESSION_V5": _suppressed,
    "MATRIX_DIAG": _matrix_diagonal,
    "REVERSE_SEQUENCE": _reversed_rows,
}
