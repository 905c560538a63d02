"""Caffe2 operators as ONNX nodes. Blob names are reused in Caffe2, so each writing makes a new value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.caffe2.reading import Operator

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A blob: its name in the graph; what it holds where that is known; its rank where that is."""

    name: str
    constant: Array | None = None
    rank: int | None = None


Emit = Callable[[GraphBuilder, Operator, list[Value]], list[Value]]

UNARY = {
    "Relu": "Relu",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Softplus": "Softplus",
    "Softsign": "Softsign",
    "Exp": "Exp",
    "Log": "Log",
    "Sqrt": "Sqrt",
    "Abs": "Abs",
    "Negative": "Neg",
    "Floor": "Floor",
    "Ceil": "Ceil",
}

IDENTITY = ("Copy", "Dropout", "StopGradient", "Alias", "EnsureCPUOutput", "Identity")

BINARY = {"Add": "Add", "Sub": "Sub", "Mul": "Mul", "Div": "Div", "Pow": "Pow"}


def _unary(operator: str) -> Emit:
    def emit(build: GraphBuilder, _op: Operator, ins: list[Value]) -> list[Value]:
        return [Value(build.add(operator, ins[0].name), rank=ins[0].rank)]

    return emit


def _same(_build: GraphBuilder, _op: Operator, ins: list[Value]) -> list[Value]:
    return [ins[0]]


def window(op: Operator, rank: int = 2) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return kernel, strides, dilations and pads (befores, then afters) of a window.

    `ConvPoolOpBase` of Caffe2: one number for all (`kernel`, `stride`, `pad`), a list for all axes,
    or one for each side. The padding rules of old nets are not in the pads; see `padding`.
    """

    def sizes(name: str, several: str, sides: tuple[str, ...], default: int) -> list[int]:
        listed: list[int] = op.integers(several)
        if listed:
            return listed
        if all(side in op.args for side in sides):
            return [op.integer(side, default) for side in sides]
        return [op.integer(name, default)] * len(sides)

    kernel = sizes("kernel", "kernels", ("kernel_h", "kernel_w"), 1)
    strides = sizes("stride", "strides", ("stride_h", "stride_w"), 1)
    dilations = sizes("dilation", "dilations", ("dilation_h", "dilation_w"), 1)
    pads = sizes("pad", "pads", ("pad_t", "pad_l", "pad_b", "pad_r"), 0)
    if op.integers("pads") and len(pads) == rank:
        pads = pads * 2
    return kernel, strides, dilations, pads


def padding(op: Operator) -> dict[str, Any]:
    """Return ONNX's padding attributes of a window, by the rule `legacy_pad` where the net has one.

    `LegacyPadding` of `conv_pool_op_base.h`: 0 by the pads, 1 VALID, 2 SAME with the larger half at
    the end, 3 Caffe's (pooling only). Raises UnsupportedError for what has no form in ONNX.
    """
    kernel, strides, dilations, pads = window(op)
    rule = op.integer("legacy_pad", 0)
    if rule in (0, 3):
        return {"pads": pads}
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if rule not in (1, 2) or (
        rule == 2 and any(r < s for r, s in zip(reach, strides, strict=True))
    ):
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` pads by the rule {rule} of old Caffe2",
            operators=(f"{op.kind}(legacy_pad)",),
        )
    if rule == 1:
        return {"auto_pad": "VALID"}
    if all(stride == 1 for stride in strides):
        before = [(one - 1) // 2 for one in reach]
        return {"pads": [*before, *(one - 1 - b for one, b in zip(reach, before, strict=True))]}
    if any(one > 1 for one in dilations):
        raise UnsupportedError(  # ONNX Runtime has no kernel for it
            f"operator `{op.outputs[0]}` has strides, dilation and the padding SAME",
            operators=(f"{op.kind}(legacy_pad)",),
        )
    return {"auto_pad": "SAME_UPPER"}


def _is_last(op: Operator) -> bool:
    return bool(op.word("order", "NCHW") == "NHWC")


def _around(emit: Emit) -> Emit:
    """Let `emit` work on channels first, whatever the order of the operator is."""

    def turned(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
        if not _is_last(op):
            return emit(build, op, ins)
        first = Value(build.add("Transpose", ins[0].name, perm=[0, 3, 1, 2]), rank=4)
        (found,) = emit(build, op, [first, *ins[1:]])
        return [Value(build.add("Transpose", found.name, perm=[0, 2, 3, 1]), rank=4)]

    return turned


@_around
def _convolution(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    kernel, strides, dilations, _ = window(op)
    if op.integer("legacy_pad", 0) == 3:
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` pads a convolution as old Caffe pools",
            operators=("Conv(legacy_pad)",),
        )
    weight = ins[1].name
    if _is_last(op):  # the kernel has the channels last as well
        weight = build.add("Transpose", weight, perm=[0, 3, 1, 2])
    name = build.add(
        "Conv",
        *(ins[0].name, weight, *(one.name for one in ins[2:3])),
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        **padding(op),
        group=op.integer("group", 1),
    )
    return [Value(name, rank=4)]


def _transposed(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    if _is_last(op):
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` transposes a convolution in NHWC", operators=(op.kind,)
        )
    if op.integer("legacy_pad", 0):
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` pads a transposed convolution by a rule of old Caffe2",
            operators=("ConvTranspose(legacy_pad)",),
        )
    kernel, strides, _, pads = window(op)
    extra = op.integers("adjs") or [
        op.integer("adj_h", op.integer("adj", 0)),
        op.integer("adj_w", op.integer("adj", 0)),
    ]
    name = build.add(
        "ConvTranspose",
        *(one.name for one in ins[:3]),
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        output_padding=extra,
        group=op.integer("group", 1),
    )
    return [Value(name, rank=4)]


@_around
def _pooling(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    largest = op.kind == "MaxPool"
    if op.integer("global_pooling", 0):
        return [
            Value(
                build.add("GlobalMaxPool" if largest else "GlobalAveragePool", ins[0].name), rank=4
            )
        ]
    kernel, strides, _, pads = window(op)
    # the old mode 3 rounds the number of windows up, as Caffe did
    ceil = op.integer("legacy_pad", 0) == 3
    if ceil and (not largest or any(pads)):
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` pads as old Caffe did",
            operators=(f"{op.kind}(legacy_pad)",),
        )
    name = build.add(
        "MaxPool" if largest else "AveragePool",
        ins[0].name,
        kernel_shape=kernel,
        strides=strides,
        **padding(op),
        ceil_mode=int(ceil) or None,
        count_include_pad=None if largest else op.integer("count_include_pad", 0),
    )
    return [Value(name, rank=4)]


def _dense(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    if op.integer("axis", 1) != 1 or op.integer("axis_w", 1) != 1:
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` multiplies along other axes", operators=("FC(axis)",)
        )
    flat = build.add("Flatten", ins[0].name, axis=1)
    trans = 1 if op.kind == "FC" else 0
    return [Value(build.add("Gemm", flat, ins[1].name, ins[2].name, transB=trans), rank=2)]


@_around
def _spatial_bn(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    if not op.integer("is_test", 0):
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` uses the statistics of its batch", operators=("SpatialBN",)
        )
    names = (one.name for one in ins[:5])
    return [
        Value(build.add("BatchNormalization", *names, epsilon=op.real("epsilon", 1e-5)), rank=4)
    ]


@_around
def _instance_norm(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    names = (one.name for one in ins[:3])
    name = build.add("InstanceNormalization", *names, epsilon=op.real("epsilon", 1e-5))
    return [Value(name, rank=4)]


@_around
def _lrn(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    name = build.add(
        "LRN",
        ins[0].name,
        size=op.integer("size", 1),
        alpha=op.real("alpha", 0.0),
        beta=op.real("beta", 0.0),
        bias=op.real("bias", 1.0),
    )
    return [Value(name, rank=4)]


@_around
def _prelu(build: GraphBuilder, _op: Operator, ins: list[Value]) -> list[Value]:
    slope = build.add("Reshape", ins[1].name, build.shape_constant([-1, 1, 1]))
    return [Value(build.add("PRelu", ins[0].name, slope), rank=4)]


def _leaky(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    kind = {"LeakyRelu": "LeakyRelu", "Elu": "Elu"}[op.kind]
    alpha = op.real("alpha", 0.01 if op.kind == "LeakyRelu" else 1.0)
    return [Value(build.add(kind, ins[0].name, alpha=alpha), rank=ins[0].rank)]


def _binary(operator: str) -> Emit:
    def emit(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
        a, b = ins
        other = b.name
        axis = op.integer("axis", -1)
        if op.integer("broadcast", 0) and axis >= 0:
            # the old way: b's axes begin at `axis` of a, and what is behind them has size one
            if a.rank is None or b.rank is None:
                raise UnsupportedError(
                    f"operator `{op.outputs[0]}` broadcasts from an axis of a blob of unknown rank",
                    operators=(f"{op.kind}(axis)",),
                )
            behind = a.rank - axis - b.rank
            if behind > 0:
                axes = build.shape_constant(list(range(b.rank, b.rank + behind)))
                other = build.add("Unsqueeze", other, axes)
        return [Value(build.add(operator, a.name, other), rank=a.rank)]

    return emit


def _sum(build: GraphBuilder, _op: Operator, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Sum", *(one.name for one in ins)), rank=ins[0].rank)]


def _concat(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    axis = op.integer("axis", 3 if _is_last(op) else 1)
    if op.integer("add_axis", 0) or len(op.outputs) > 2:
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` stacks", operators=("Concat(add_axis)",)
        )
    return [Value(build.add("Concat", *(one.name for one in ins), axis=axis), rank=ins[0].rank)]


def _split(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    parts = op.integers("split")
    axis = op.integer("axis", 3 if _is_last(op) else 1)
    if len(ins) > 1 and ins[1].constant is not None:
        parts = [int(one) for one in ins[1].constant]
    given = (build.shape_constant(parts),) if parts else ()
    names = build.add_many("Split", ins[0].name, *given, count=len(op.outputs), axis=axis)
    return [Value(name, rank=ins[0].rank) for name in names]


def _reshape(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    shape = op.integers("shape")
    if len(ins) > 1:
        if ins[1].constant is None:
            return [Value(build.add("Reshape", ins[0].name, ins[1].name))]
        shape = [int(one) for one in ins[1].constant]
    return [Value(build.add("Reshape", ins[0].name, build.shape_constant(shape)), rank=len(shape))]


def _transpose(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    fixed = {"NHWC2NCHW": [0, 3, 1, 2], "NCHW2NHWC": [0, 2, 3, 1]}
    axes = fixed.get(op.kind) or op.integers("axes") or None
    return [Value(build.add("Transpose", ins[0].name, perm=axes), rank=ins[0].rank)]


def _softmax(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    """Caffe2 flattens from `axis` on; on the last axis that is the plain one."""
    axis, rank = op.integer("axis", 1), ins[0].rank
    if axis == -1 or rank is None or axis == rank - 1:
        return [Value(build.add("Softmax", ins[0].name, axis=-1), rank=rank)]
    flat = build.add("Softmax", build.add("Flatten", ins[0].name, axis=axis), axis=-1)
    return [Value(build.add("Reshape", flat, build.add("Shape", ins[0].name)), rank=rank)]


def _flatten(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    return [Value(build.add("Flatten", ins[0].name, axis=op.integer("axis", 1)), rank=2)]


def _squeeze(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    dims = op.integers("dims")
    operator = "Squeeze" if op.kind == "Squeeze" else "Unsqueeze"
    change = -len(dims) if op.kind == "Squeeze" else len(dims)
    rank = None if ins[0].rank is None else ins[0].rank + change
    return [Value(build.add(operator, ins[0].name, build.shape_constant(dims)), rank=rank)]


def _pad_image(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    mode = op.word("mode", "constant")
    top, left, bottom, right = (op.integer(f"pad_{s}", op.integer("pad", 0)) for s in "tlbr")
    if mode not in ("constant", "reflect", "edge"):
        raise UnsupportedError(
            f"operator `{op.outputs[0]}` pads by {mode}", operators=("PadImage",)
        )
    pads = [0, 0, top, left, 0, 0, bottom, right]
    if _is_last(op):
        pads = [0, top, left, 0, 0, bottom, right, 0]
    value = build.constant(op.real("value", 0.0)) if mode == "constant" else ""
    return [
        Value(build.add("Pad", ins[0].name, build.shape_constant(pads), value, mode=mode), rank=4)
    ]


@_around
def _resize(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    scales = [1.0, 1.0, op.real("height_scale", 1.0), op.real("width_scale", 1.0)]
    name = build.add(
        "Resize",
        *(ins[0].name, "", build.constant(scales, dtype="float32")),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return [Value(name, rank=4)]


def _clip(build: GraphBuilder, op: Operator, ins: list[Value]) -> list[Value]:
    bounds = (
        build.constant(op.real("min", -math.inf)) if "min" in op.args else "",
        build.constant(op.real("max", math.inf)) if "max" in op.args else "",
    )
    return [Value(build.add("Clip", ins[0].name, *bounds), rank=ins[0].rank)]


EMIT: dict[str, Emit] = {
    **{kind: _unary(operator) for kind, operator in UNARY.items()},
    **dict.fromkeys(IDENTITY, _same),
    **{kind: _binary(operator) for kind, operator in BINARY.items()},
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pooling),
    **dict.fromkeys(("FC", "FCTransposed"), _dense),
    "SpatialBN": _spatial_bn,
    "InstanceNorm": _instance_norm,
    "LRN": _lrn,
    "PRelu": _prelu,
    **dict.fromkeys(("LeakyRelu", "Elu"), _leaky),
    "Sum": _sum,
    "Concat": _concat,
    "Split": _split,
    "Reshape": _reshape,
    **dict.fromkeys(("Transpose", "NHWC2NCHW", "NCHW2NHWC"), _transpose),
    "Softmax": _softmax,
    "Flatten": _flatten,
    **dict.fromkeys(("Squeeze", "ExpandDims"), _squeeze),
    "PadImage": _pad_image,
    "ResizeNearest": _resize,
    "Clip": _clip,
}
