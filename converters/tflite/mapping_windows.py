"""Convolutions, pools and matrix products of TensorFlow Lite as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite import hybrid
from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.reading import Operator, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SAME = 0


def edges(
    op: Operator, size: Sequence[int], kernel: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return ONNX pads: before each axis, then after. SAME puts the odd one after."""
    if op.options["padding"] != SAME:
        return [0] * 2 * len(kernel)
    steps = strides(op, len(kernel))
    before, after = [], []
    for n, k, s, d in zip(size, kernel, steps, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before + after


def places(op: Operator, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return how many places a window has along each axis."""
    dilations = [op.options.get(f"dilation_{axis}", 1) for axis in "dhw"[-len(kernel) :]]
    found = []
    for n, k, s, d in zip(size, kernel, strides(op, len(kernel)), dilations, strict=True):
        found.append(
            -(-n // s) if op.options["padding"] == SAME else (n - (k - 1) * d - 1) // s + 1
        )
    if min(found) < 1:
        raise ValueError(f"a window of {list(kernel)} on {list(size)}")
    return found


def strides(op: Operator, rank: int = 2) -> list[int]:
    """Return the strides. Raises ValueError where one is none."""
    found = [op.options[f"stride_{axis}"] for axis in ("dhw" if rank == 3 else "hw")]
    if min(found) < 1:
        raise ValueError(f"strides of {found}")
    return found


def _dilations(op: Operator, rank: int = 2) -> list[int]:
    return [op.options[f"dilation_{axis}"] for axis in ("dhw" if rank == 3 else "hw")]


def _pictures(m: Emitter, x: Value) -> int | None:
    if x.rank != 4:
        raise m.refuse(f"its input has {x.rank} axes")
    if x.batch not in (None, 0):
        raise m.fixed("has the batch on another axis than the first")
    found: int | None = x.batch
    return found


def weights(m: Emitter, value: Value, order: Sequence[int], *, whole: bool) -> str:
    """Return the real weights with their axes in `order`; `whole` where activations are integers."""
    import numpy as np

    name, about = f"{value.tensor.name}/turned", value.tensor.quantization
    found: str
    if value.constant is None:
        found = m.add("Transpose", m.real(value), perm=list(order))
    elif not value.tensor.quantized or about is None:
        turned = np.ascontiguousarray(value.constant.transpose(order))
        found = m.build.constant(turned.astype(np.float32), name)
    else:
        stored = m.build.constant(np.ascontiguousarray(value.constant.transpose(order)), name)
        axis = list(order).index(about.axis) if about.per_channel else 0
        zero = about.zero_point.astype(value.tensor.dtype)
        if not whole:
            found = m.unfused(stored, value.tensor, axis, len(order))
        else:
            found = m.add(
                "DequantizeLinear",
                stored,
                m.build.constant(about.scale if about.per_channel else about.scale[0]),
                m.build.constant(zero if about.per_channel else zero[0]),
                axis=axis if about.per_channel else None,
            )
    return found


def bias(
    m: Emitter, ins: Sequence[Value | None], x: Value, w: Value, at: int = 2
) -> tuple[str, ...]:
    """Return the bias, where there is one: integers count in steps of the product `x` times `w`."""
    import numpy as np

    value = ins[at] if len(ins) > at else None
    if value is None:
        return ()
    about, theirs = x.tensor.quantization, w.tensor.quantization
    if not x.tensor.quantized or about is None or theirs is None:
        return (m.real(value),)
    scale = (about.scale[0] * theirs.scale.astype(np.float64)).astype(np.float32)
    if value.constant is None:
        raise m.refuse("its bias is computed")
    if value.tensor.dtype == "int64":
        return (m.number((value.constant * scale.astype(np.float64)).astype(np.float32)),)
    many = len(scale) > 1
    return (
        m.add(
            "DequantizeLinear",
            m.build.constant(value.constant, value.tensor.name),
            m.build.constant(scale if many else scale[0]),
            m.build.constant(np.zeros_like(scale if many else scale[0], np.int32)),
            axis=0 if many else None,
        ),
    )


def convolution(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """CONV_2D: weights [out, height, width, in / groups]."""
    x, w = ins[0], ins[1]
    _pictures(m, x)
    per_group = w.shape[3]
    if not per_group or x.shape[3] % per_group:
        raise ValueError(f"{x.shape[3]} channels in groups of {per_group}")
    groups = x.shape[3] // per_group
    data = m.real(x, first=True)
    if hybrid.is_hybrid(x, w):
        many = w.tensor.quantization.per_channel or groups > 1
        data = hybrid.rounded(m, data, [1, 2, 3], asymmetric=many)
    return _correlated(m, op, ins, outs[0], data, [0, 3, 1, 2], groups)


def depthwise(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """DEPTHWISE_CONV_2D: weights [1, height, width, channels * multiplier]."""
    x, w = ins[0], ins[1]
    _pictures(m, x)
    groups = x.shape[3]
    if not groups or w.shape[3] % groups:
        raise ValueError(f"{w.shape[3]} kernels for {groups} channels")
    data = m.real(x, first=True)
    if hybrid.is_hybrid(x, w):
        data = hybrid.rounded(m, data, [1, 2, 3], asymmetric=True)
    return _correlated(m, op, ins, outs[0], data, [3, 0, 1, 2], groups)


def _correlated(
    m: Emitter,
    op: Operator,
    ins: list[Any],
    out: Tensor,
    data: str,
    order: list[int],
    groups: int,
) -> list[Value]:
    """Append Conv and activation; `order` brings the axes of the weights into ONNX's."""
    x, w = ins[0], ins[1]
    kernel = list(w.shape[1:3])
    name = m.add(
        "Conv",
        data,
        weights(m, w, order, whole=x.tensor.quantized),
        *bias(m, ins, x, w),
        kernel_shape=kernel,
        strides=strides(op),
        dilations=_dilations(op),
        pads=edges(op, x.shape[1:3], kernel, _dilations(op)),
        group=groups,
    )
    name = m.activated(name, op.options["activation"], out)
    shape = (x.shape[0], *places(op, x.shape[1:3], kernel), w.shape[order[0]])
    return [m.made(out, name, batch=_pictures(m, x), shape=shape, first=True)]


def transposed(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """TRANSPOSE_CONV(output shape, weights [out, height, width, in], x, bias)."""
    size, w, x = ins[:3]
    batch = _pictures(m, x)
    if size.constant is None or len(size.constant) != 4:
        raise m.refuse("the size of its output is computed")
    if hybrid.is_hybrid(x, w):
        raise m.refuse("float activations meet quantised weights")
    kernel = list(w.shape[1:3])
    steps = strides(op)
    out = [int(one) for one in size.constant[1:3]]
    pads = edges(op, out, kernel, [1, 1]) if op.options["padding"] == SAME else [0, 0, 0, 0]
    extra = [
        o - ((n - 1) * s + k - b - a)
        for o, n, s, k, b, a in zip(
            out, x.shape[1:3], steps, kernel, pads[:2], pads[2:], strict=True
        )
    ]
    if any(not e >= 0 for e in extra):
        raise m.refuse(f"its output of {out} does not follow from its input")
    if any(e >= s for e, s in zip(extra, steps, strict=True)):
        raise m.refuse(f"its output of {out} is larger than its input reaches")
    name = m.add(
        "ConvTranspose",
        m.real(x, first=True),
        weights(m, w, [3, 0, 1, 2], whole=x.tensor.quantized),
        *bias(m, ins, x, w, 3),
        kernel_shape=kernel,
        strides=steps,
        pads=pads,
        output_padding=extra,
    )
    name = m.activated(name, op.options.get("activation", "NONE"), outs[0])
    shape = (x.shape[0], *out, w.shape[0])
    return [m.made(outs[0], name, batch=batch, shape=shape, first=True)]


def volume(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """CONV_3D: x [batch, depth, height, width, in], weights [depth, height, width, in, out]."""
    x, w = ins[0], ins[1]
    if x.rank != 5 or w.shape[3] != x.shape[4] or x.tensor.quantized or w.tensor.quantized:
        raise m.refuse("it is quantised or in groups")
    if x.batch not in (None, 0):
        raise m.fixed("has the batch on another axis than the first")
    kernel = list(w.shape[:3])
    name = m.add(
        "Conv",
        m.add("Transpose", m.real(x), perm=[0, 4, 1, 2, 3]),
        weights(m, w, [4, 3, 0, 1, 2], whole=x.tensor.quantized),
        *bias(m, ins, x, w),
        kernel_shape=kernel,
        strides=strides(op, 3),
        dilations=_dilations(op, 3),
        pads=edges(op, x.shape[1:4], kernel, _dilations(op, 3)),
    )
    name = m.activated(name, op.options["activation"], outs[0])
    name = m.add("Transpose", name, perm=[0, 2, 3, 4, 1])
    shape = (x.shape[0], *places(op, x.shape[1:4], kernel), w.shape[4])
    return [m.made(outs[0], name, batch=x.batch, shape=shape)]


def pooling(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """AVERAGE_POOL_2D (over what the window covers), MAX_POOL_2D and L2_POOL_2D."""
    (x,) = ins
    batch = _pictures(m, x)
    kernel = [op.options["filter_h"], op.options["filter_w"]]
    if min(kernel) < 1:
        raise ValueError(f"a window of {kernel}")
    pads = edges(op, x.shape[1:3], kernel, [1, 1])
    data = m.real(x, first=True)
    if op.kind == "L2_POOL_2D":
        data = m.add("Mul", data, data)
    whole = kernel == list(x.shape[1:3]) and not any(pads)
    if op.kind == "MAX_POOL_2D":
        name = m.add("MaxPool", data, kernel_shape=kernel, strides=strides(op), pads=pads)
    elif whole:
        name = m.add("GlobalAveragePool", data)
    else:
        name = m.add("AveragePool", data, kernel_shape=kernel, strides=strides(op), pads=pads)
    if op.kind == "L2_POOL_2D":
        name = m.add("Sqrt", name)
    name = m.activated(name, op.options["activation"], outs[0])
    shape = (x.shape[0], *places(op, x.shape[1:3], kernel), x.shape[3])
    return [m.made(outs[0], name, batch=batch, shape=shape, first=True)]


def dense(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """FULLY_CONNECTED: rows of the last axis of the weights, [out, in]."""
    x, w = ins[0], ins[1]
    if op.options["weights_format"] != 0:
        raise m.refuse("its weights are shuffled for one processor")
    units, depth = w.shape
    if not depth or math.prod(x.shape) % depth:
        raise ValueError(f"{x.shape} against weights of {w.shape}")
    data, batch, shape = "", x.batch, x.shape
    if x.rank != 2 or x.shape[-1] != depth:
        keep = op.options["keep_num_dims"] and x.shape[-1] == depth
        shape = x.shape if keep else (math.prod(x.shape) // depth, depth)
        if not keep:  # the integers are reshaped: what is made real must meet the product
            whole = x.tensor.quantized
            data, batch = m.reshaped(m.stored(x) if whole else m.real(x), x, shape)
            data = m.dequantized(data, x.tensor) if whole else data
    data = data or m.real(x)
    if batch is not None and batch == len(shape) - 1:
        raise m.fixed("sums along the batch")
    if hybrid.is_hybrid(x, w):
        asymmetric = bool(op.options["asymmetric"])
        data = hybrid.rounded(m, data, [len(shape) - 1], asymmetric=asymmetric)
    if len(shape) == 2:  # one node that runtimes know in integers too
        name = m.add(
            "Gemm",
            data,
            weights(m, w, [0, 1], whole=x.tensor.quantized),
            *bias(m, ins, x, w),
            transB=1,
        )
    else:
        name = m.add("MatMul", data, weights(m, w, [1, 0], whole=x.tensor.quantized))
        for one in bias(m, ins, x, w):
            name = m.add("Add", name, one)
    name = m.activated(name, op.options["activation"], outs[0])
    return [m.made(outs[0], name, batch=batch, shape=(*shape[:-1], units))]


def products(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """BATCH_MATMUL, either side turned first where asked."""
    import numpy as np

    x, y = ins
    rank = max(x.rank, y.rank)
    batch = m.together([x, y], rank) if _inner_is_fixed(x, y) else None
    left = m.real(x)
    turn = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    if op.options["turn_x"]:
        left = m.add("Transpose", left, perm=turn)
    if hybrid.is_hybrid(x, y):
        asymmetric = bool(op.options["asymmetric"])
        left = hybrid.rounded(m, left, [x.rank - 1], asymmetric=asymmetric)
    right = m.real(y) if x.tensor.quantized else m.weight(y)
    if op.options["turn_y"]:
        right = m.add("Transpose", right, perm=[*range(y.rank - 2), y.rank - 1, y.rank - 2])
    if batch is None and x.batch is not None and y.batch is None and y.rank == 2:
        if x.batch == x.rank - (2 if op.options["turn_x"] else 1):
            raise m.fixed("sums along the batch")
        batch = x.batch
        if x.batch >= x.rank - 2:
            batch = rank - 2
    elif batch is None and (x.batch is not None or y.batch is not None):
        raise m.fixed("multiplies across the batch")
    outer = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    rows = x.shape[-1] if op.options["turn_x"] else x.shape[-2]
    columns = y.shape[-2] if op.options["turn_y"] else y.shape[-1]
    name = m.add("MatMul", left, right)
    return [m.made(outs[0], name, batch=batch, shape=(*outer, rows, columns))]


def _inner_is_fixed(x: Value, y: Value) -> bool:
    return all(one.batch is None or one.batch < one.rank - 2 for one in (x, y))


def resize(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """RESIZE_BILINEAR and RESIZE_NEAREST_NEIGHBOR to constant sizes."""
    x, size = ins
    batch = _pictures(m, x)
    if size.constant is None:
        raise m.refuse("its size is computed")
    corners, middle = op.options["align_corners"], op.options["half_pixel"]
    new = [int(one) for one in size.constant]
    if min(new) < 1:
        raise ValueError(f"a size of {new}")
    linear = op.kind == "RESIZE_BILINEAR"
    where = "align_corners" if corners else "half_pixel" if middle else "asymmetric"
    # half_pixel gives (i + 0.5) * scale - 0.5: rounded half up it is TensorFlow's floor of the sum
    nearest = "round_prefer_ceil" if corners or middle else "floor"
    data = m.real(x, first=True)
    inner = m.sizes([x.shape[3], *new])
    outer = m.add("Slice", m.add("Shape", data), m.sizes([0]), m.sizes([1]))
    name = m.add(
        "Resize",
        data,
        "",
        "",
        m.add("Concat", outer, inner, axis=0),
        mode="linear" if linear else "nearest",
        coordinate_transformation_mode=where,
        nearest_mode=None if linear else nearest,
    )
    shape = (x.shape[0], *new, x.shape[3])
    return [m.made(outs[0], name, batch=batch, shape=shape, first=True)]
