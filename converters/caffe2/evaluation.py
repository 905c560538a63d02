"""A Caffe2 net computed operator by operator by definition, in numpy and float64.

Written from Caffe2's operator catalogue, apart from the mapping to ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.caffe2.reading import Operator, fill

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Operator, list[Array]], Any]


def evaluate(
    operators: Sequence[Operator], blobs: dict[str, Array], outputs: Sequence[str]
) -> list[Array]:
    """Run `operators` in their order on `blobs`, which they overwrite, and return `outputs`."""
    for op in operators:
        made = fill(op)
        if made is None:
            made = COMPUTE[op.kind](op, [blobs[name] for name in op.inputs])
        several = made if isinstance(made, list) else [made]
        blobs.update(zip(op.outputs, several, strict=False))
    return [blobs[name] for name in outputs]


def _two(op: Operator, name: str, default: int) -> list[int]:
    listed: list[int] = op.integers(f"{name}s")
    if listed:
        return listed
    single = op.integer(name, default)
    return [op.integer(f"{name}_h", single), op.integer(f"{name}_w", single)]


def _edges(op: Operator) -> list[tuple[int, int]]:
    listed = op.integers("pads")
    if len(listed) == 2:
        listed *= 2
    single = op.integer("pad", 0)
    top, left, bottom, right = listed or [op.integer(f"pad_{side}", single) for side in "tlbr"]
    return [(top, bottom), (left, right)]


def _first(compute: Compute) -> Compute:
    """Turn NHWC to NCHW before, and back after."""

    def turned(op: Operator, ins: list[Array]) -> Any:
        import numpy as np

        if op.word("order", "NCHW") != "NHWC":
            return compute(op, ins)
        return np.moveaxis(compute(op, [np.moveaxis(ins[0], -1, 1), *ins[1:]]), 1, -1)

    return turned


@_first
def _convolution(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    weight = np.moveaxis(ins[1], -1, 1) if op.word("order", "NCHW") == "NHWC" else ins[1]
    return define.convolution(
        ins[0],
        weight,
        ins[2] if len(ins) > 2 else None,
        strides=_two(op, "stride", 1),
        pads=_ruled(op, ins[0].shape[2:]),
        dilations=_two(op, "dilation", 1),
        groups=op.integer("group", 1),
    )


def _ruled(op: Operator, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return what is added before and after each axis, by the net's rule where it has one."""
    rule = op.integer("legacy_pad", 0)
    if rule == 0:
        return _edges(op)
    found = []
    for size, k, s, d in zip(
        sizes, _two(op, "kernel", 1), _two(op, "stride", 1), _two(op, "dilation", 1), strict=True
    ):
        reach = d * (k - 1) + 1
        if rule == 1:
            found.append((0, 0))
        elif rule == 2:
            needed = ((size + s - 1) // s - 1) * s + reach - size
            found.append((needed // 2, needed - needed // 2))
        else:
            found.append((0, -(size - k) % s))
    return found


def _transposed(op: Operator, ins: list[Array]) -> Array:
    return define.transposed_convolution(
        ins[0],
        ins[1],
        ins[2] if len(ins) > 2 else None,
        strides=_two(op, "stride", 1),
        pads=_edges(op),
        extra=_two(op, "adj", 0),
        groups=op.integer("group", 1),
    )


@_first
def _pooling(op: Operator, ins: list[Array]) -> Array:
    x = ins[0].astype("float64")
    largest = op.kind == "MaxPool"
    if op.integer("global_pooling", 0):
        found: Array = (x.max if largest else x.mean)(axis=(2, 3), keepdims=True)
        return found
    kernel, strides = _two(op, "kernel", 1), _two(op, "stride", 1)
    edges = _ruled(op, x.shape[2:])
    if largest:
        return define.max_pool(x, kernel, strides=strides, pads=edges)
    counted = edges if op.integer("count_include_pad", 0) else None
    return define.average_pool(x, kernel, strides=strides, pads=edges, counted=counted)


def _dense(op: Operator, ins: list[Array]) -> Array:
    weight = ins[1] if op.kind == "FCTransposed" else ins[1].T
    found: Array = ins[0].reshape(len(ins[0]), -1).astype("float64") @ weight + ins[2]
    return found


@_first
def _spatial_bn(op: Operator, ins: list[Array]) -> Array:
    return define.batch_normalisation(*ins[:5], epsilon=op.real("epsilon", 1e-5))


@_first
def _instance_norm(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0].astype(np.float64)
    middle = x.mean(axis=(2, 3), keepdims=True)
    spread = np.sqrt(x.var(axis=(2, 3), keepdims=True) + op.real("epsilon", 1e-5))
    scale, shift = (one.reshape(1, -1, 1, 1) for one in ins[1:3])
    return np.asarray((x - middle) / spread * scale + shift)


@_first
def _lrn(op: Operator, ins: list[Array]) -> Array:
    return define.local_response_normalisation(
        ins[0],
        size=op.integer("size", 1),
        alpha=op.real("alpha", 0.0),
        beta=op.real("beta", 0.0),
        bias=op.real("bias", 1.0),
    )


@_first
def _prelu(_op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    return np.where(ins[0] > 0, ins[0], ins[1].reshape(1, -1, 1, 1) * ins[0])


def _elementwise(op: Operator, ins: list[Array]) -> Any:
    import numpy as np

    x = ins[0].astype(np.float64)
    functions: dict[str, Callable[[], Any]] = {
        "Relu": lambda: np.maximum(x, 0),
        "Sigmoid": lambda: define.sigmoid(x),
        "Tanh": lambda: np.tanh(x),
        "Softplus": lambda: np.logaddexp(0, x),
        "Softsign": lambda: x / (1 + np.abs(x)),
        "Exp": lambda: np.exp(x),
        "Log": lambda: np.log(x),
        "Sqrt": lambda: np.sqrt(x),
        "Abs": lambda: np.abs(x),
        "Negative": lambda: -x,
        "Floor": lambda: np.floor(x),
        "Ceil": lambda: np.ceil(x),
        "LeakyRelu": lambda: np.where(x > 0, x, op.real("alpha", 0.01) * x),
        "Elu": lambda: np.where(x > 0, x, op.real("alpha", 1.0) * np.expm1(np.minimum(x, 0))),
        "Clip": lambda: np.clip(x, op.real("min", -np.inf), op.real("max", np.inf)),
    }
    return functions[op.kind]()


def _binary(op: Operator, ins: list[Array]) -> Any:
    import numpy as np

    a, b = ins[0].astype(np.float64), ins[1]
    axis = op.integer("axis", -1)
    if op.integer("broadcast", 0) and axis >= 0:
        b = b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))
    name = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Pow": "power"}
    return getattr(np, name[op.kind])(a, b)


def _concat(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    default = 3 if op.word("order", "NCHW") == "NHWC" else 1
    return np.concatenate(ins, axis=op.integer("axis", default))


def _split(op: Operator, ins: list[Array]) -> list[Array]:
    import numpy as np

    default = 3 if op.word("order", "NCHW") == "NHWC" else 1
    parts = list(ins[1]) if len(ins) > 1 else op.integers("split")
    places = np.cumsum(parts)[:-1] if len(parts) else len(op.outputs)
    return list(np.split(ins[0], places, axis=op.integer("axis", default)))


def _reshape(op: Operator, ins: list[Array]) -> Array:
    wanted = list(ins[1]) if len(ins) > 1 else op.integers("shape")
    return ins[0].reshape([ins[0].shape[at] if n == 0 else n for at, n in enumerate(wanted)])


def _transpose(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    if op.kind == "NHWC2NCHW":
        return np.moveaxis(ins[0], -1, 1)
    if op.kind == "NCHW2NHWC":
        return np.moveaxis(ins[0], 1, -1)
    return ins[0].transpose(op.integers("axes") or None)


def _softmax(op: Operator, ins: list[Array]) -> Array:
    import math

    x, axis = ins[0], op.integer("axis", 1)
    rows = math.prod(x.shape[:axis]) if axis >= 0 else math.prod(x.shape[:-1])
    return define.softmax(x.reshape(rows, -1)).reshape(x.shape)


def _squeeze(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    dims = tuple(op.integers("dims"))
    return ins[0].squeeze(dims) if op.kind == "Squeeze" else np.expand_dims(ins[0], dims)


def _pad_image(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    space = _edges(op)
    edges = (
        [(0, 0), *space, (0, 0)] if op.word("order", "NCHW") == "NHWC" else [(0, 0), (0, 0), *space]
    )
    mode = op.word("mode", "constant")
    if mode == "constant":
        return np.pad(ins[0], edges, constant_values=op.real("value", 0.0))
    if mode == "reflect" and any(max(e) >= n for e, n in zip(edges, ins[0].shape, strict=True)):
        # numpy would reflect several times, Caffe2 reads outside of the picture
        raise ValueError(f"a picture of {ins[0].shape} is too small to be reflected by {edges}")
    return np.pad(ins[0], edges, mode=mode)


@_first
def _resize(op: Operator, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0]
    for axis, name in ((2, "height_scale"), (3, "width_scale")):
        scale = op.real(name, 1.0)
        places = np.arange(int(x.shape[axis] * scale)) / scale
        x = np.take(x, np.minimum(places.astype(int), x.shape[axis] - 1), axis=axis)
    return x


COMPUTE: dict[str, Compute] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pooling),
    **dict.fromkeys(("FC", "FCTransposed"), _dense),
    "SpatialBN": _spatial_bn,
    "InstanceNorm": _instance_norm,
    "LRN": _lrn,
    "PRelu": _prelu,
    **dict.fromkeys(
        ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Exp", "Log"), _elementwise
    ),
    **dict.fromkeys(("Sqrt", "Abs", "Negative", "Floor", "Ceil", "LeakyRelu", "Elu"), _elementwise),
    "Clip": _elementwise,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow"), _binary),
    **dict.fromkeys(("Copy", "Dropout", "StopGradient", "Alias"), lambda _op, ins: ins[0]),
    **dict.fromkeys(("EnsureCPUOutput", "Identity"), lambda _op, ins: ins[0]),
    "Sum": lambda _op, ins: sum(ins),
    "Concat": _concat,
    "Split": _split,
    "Reshape": _reshape,
    **dict.fromkeys(("Transpose", "NHWC2NCHW", "NCHW2NHWC"), _transpose),
    "Softmax": _softmax,
    "Flatten": lambda op, ins: ins[0].reshape(*ins[0].shape[: op.integer("axis", 1)], -1),
    **dict.fromkeys(("Squeeze", "ExpandDims"), _squeeze),
    "PadImage": _pad_image,
    "ResizeNearest": _resize,
}
