"""MXNet operators over space as ONNX nodes: convolution, pooling, normalisation, padding."""

from __future__ import annotations

import math
from typing import Any

from deploykit._plugins.converters.mxnet.emission import Emit, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder


def _per_axis(value: tuple[int, ...], rank: int, default: int) -> list[int]:
    return list(value) if value else [default] * rank


def _convolved(size: int | None, kernel: int, stride: int, pad: int, dilate: int) -> int | None:
    return None if size is None else (size + 2 * pad - (kernel - 1) * dilate - 1) // stride + 1


def _layout(node: Node) -> None:
    layout = node.value("layout", "None")
    if layout not in ("None", "NCW", "NCHW", "NCDHW"):
        raise UnsupportedError(
            f"node `{node.name}` has the layout {layout}", operators=(f"{node.op}({layout})",)
        )


def _convolution(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    _layout(node)
    kernel = list(node.value("kernel", (1,)))
    rank = len(kernel)
    strides = _per_axis(node.value("stride", ()), rank, 1)
    pads = _per_axis(node.value("pad", ()), rank, 0)
    dilations = _per_axis(node.value("dilate", ()), rank, 1)
    name = build.add(
        "Conv",
        *(one.name for one in ins),
        kernel_shape=kernel,
        strides=strides,
        pads=pads * 2,
        dilations=dilations,
        group=node.value("num_group", 1),
    )
    sizes = [
        _convolved(size, *rest)
        for size, *rest in zip(ins[0].shape[2:], kernel, strides, pads, dilations, strict=True)
    ]
    return [Value(name, (ins[0].shape[0], node.value("num_filter", 1), *sizes))]


def _deconvolution(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    _layout(node)
    kernel = list(node.value("kernel", (1,)))
    rank = len(kernel)
    strides = _per_axis(node.value("stride", ()), rank, 1)
    pads = _per_axis(node.value("pad", ()), rank, 0)
    dilations = _per_axis(node.value("dilate", ()), rank, 1)
    extra = _per_axis(node.value("adj", ()), rank, 0)
    target = node.value("target_shape", ())
    if any(target):  # padding follows from it, whatever `pad` and `adj` say
        for at, (size, wanted) in enumerate(zip(ins[0].shape[2:], target, strict=True)):
            whole = ((size or 0) - 1) * strides[at] + (kernel[at] - 1) * dilations[at] + 1
            if size is None or whole < wanted:
                raise UnsupportedError(
                    f"node `{node.name}` asks for a target shape of a size that is not fixed",
                    operators=("Deconvolution(target_shape)",),
                    hint="give the sizes of the inputs: `--input 'NAME:float32[...]'`",
                )
            pads[at], extra[at] = (whole - wanted + 1) // 2, (whole - wanted) % 2
    given = ins[:2] if node.value("no_bias", True) else ins
    name = build.add(
        "ConvTranspose",
        *(one.name for one in given),
        kernel_shape=kernel,
        strides=strides,
        pads=pads * 2,
        dilations=dilations,
        output_padding=extra,
        group=node.value("num_group", 1),
    )
    sizes = [
        None if size is None else (size - 1) * s - 2 * p + (k - 1) * d + 1 + e
        for size, k, s, p, d, e in zip(
            ins[0].shape[2:], kernel, strides, pads, dilations, extra, strict=True
        )
    ]
    return [Value(name, (ins[0].shape[0], node.value("num_filter", 1), *sizes))]


def _pooling(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    _layout(node)
    x = ins[0]
    kind = node.value("pool_type", "max")
    if kind == "sum":
        return [_summed(build, node, x)]
    if kind not in ("max", "avg"):
        raise UnsupportedError(
            f"node `{node.name}` pools by {kind}", operators=(f"Pooling({kind})",)
        )
    if node.value("global_pool", False):
        operator = "GlobalMaxPool" if kind == "max" else "GlobalAveragePool"
        return [Value(build.add(operator, x.name), (*x.shape[:2], *[1] * (x.rank - 2)))]
    kernel = list(node.value("kernel", (1,)))
    rank = len(kernel)
    strides = _per_axis(node.value("stride", ()), rank, 1)
    pads = _per_axis(node.value("pad", ()), rank, 0)
    convention = node.value("pooling_convention", "valid")
    if convention not in ("valid", "full"):
        raise UnsupportedError(
            f"node `{node.name}` pools by the convention {convention}",
            operators=(f"Pooling({convention})",),
        )
    sizes: list[int | None] = []
    over: list[int | None] = []
    for size, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        if size is None:
            sizes.append(None)
            over.append(None)
            continue
        rest = size + 2 * p - k
        count = (-(-rest // s) if convention == "full" else rest // s) + 1
        sizes.append(count)
        over.append(max((count - 1) * s + k - size - 2 * p, 0))
    if any(e is not None and p + e >= k for e, p, k in zip(over, pads, kernel, strict=True)):
        raise UnsupportedError(
            f"node `{node.name}` pools windows that lie wholly outside of its input of this size",
            operators=("Pooling(full)",),
        )
    common: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    known = [one for one in over if one is not None]
    if len(known) == rank:
        ends = [p + e for p, e in zip(pads, known, strict=True)]
    else:
        ends, common["ceil_mode"] = pads, int(convention == "full") or None
    if kind == "max":
        name = build.add("MaxPool", x.name, pads=[*pads, *ends], **common)
    elif ends == pads and "ceil_mode" not in common:
        counted = int(node.value("count_include_pad", True))
        name = build.add(
            "AveragePool", x.name, pads=[*pads, *ends], count_include_pad=counted, **common
        )
    else:
        # the padding counts, what the last windows reach beyond it does not
        inner, outer = x.name, [*pads, *ends]
        if node.value("count_include_pad", True) and any(pads):
            edges = [0, 0, *pads, 0, 0, *pads]
            inner = build.add("Pad", x.name, build.shape_constant(edges))
            outer = [0] * rank + [e - p for e, p in zip(ends, pads, strict=True)]
        name = build.add("AveragePool", inner, pads=outer, **common)
    return [Value(name, (*x.shape[:2], *sizes))]


def _summed(build: GraphBuilder, node: Node, x: Value) -> Value:
    if node.value("global_pool", False):
        axes = list(range(2, x.rank))
        name = build.add("ReduceSum", x.name, build.shape_constant(axes), keepdims=1)
        return Value(name, (*x.shape[:2], *[1] * len(axes)))
    kernel = list(node.value("kernel", (1,)))
    strides = _per_axis(node.value("stride", ()), len(kernel), 1)
    pads = _per_axis(node.value("pad", ()), len(kernel), 0)
    is_full = node.value("pooling_convention", "valid") == "full"
    counts, ends = [], []
    for size, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        if size is None:
            raise UnsupportedError(
                f"node `{node.name}` sums over a size that is not fixed",
                operators=("Pooling(sum)",),
            )
        rest = size + 2 * p - k
        counts.append((-(-rest // s) if is_full else rest // s) + 1)
        ends.append(max(p, (counts[-1] - 1) * s + k - size - p))
    edges = [0, 0, *pads, 0, 0, *ends]
    inner = build.add("Pad", x.name, build.shape_constant(edges)) if any(edges) else x.name
    mean = build.add("AveragePool", inner, kernel_shape=kernel, strides=strides)
    name = build.add("Mul", mean, build.constant(float(math.prod(kernel))))
    return Value(name, (*x.shape[:2], *counts))


def _old_pooling(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """Pooling of before 0.9: its padding is zeros, of which the largest may be one."""
    x, kind = ins[0], node.value("pool_type", "max")
    pads = node.value("pad", ())
    if node.value("global_pool", False):
        return _pooling(build, node, ins)
    if kind not in ("max", "avg") or None in x.shape[2:]:
        raise UnsupportedError(
            f"node `{node.name}` pools by {kind}, or over a size that is not fixed",
            operators=(f"Pooling_v1({kind})",),
            hint="give the sizes of the inputs: `--input 'NAME:float32[...]'`",
        )
    inner, kernel = x.name, list(node.value("kernel", (1,)))
    strides, pads = _per_axis(node.value("stride", ()), len(kernel), 1), list(pads)
    pads = pads or [0] * len(kernel)
    if any(pads):
        inner = build.add("Pad", x.name, build.shape_constant([0, 0, *pads, 0, 0, *pads]))
    counts, over = [], []
    for size, k, s, p in zip(x.shape[2:], kernel, strides, pads, strict=True):
        whole = (size or 0) + 2 * p
        count = (whole - k) // s + 1
        if node.value("pooling_convention", "valid") == "full":
            count = min(-(-(whole - k) // s) + 1, (whole - 1) // s + 1)
        counts.append(count)
        over.append(max((count - 1) * s + k - whole, 0))
    common = {"kernel_shape": kernel, "strides": strides, "pads": [0] * len(kernel) + over}
    if kind == "max":
        name = build.add("MaxPool", inner, **common)
    else:
        name = build.add("AveragePool", inner, count_include_pad=1, **common)
    return [Value(name, (*x.shape[:2], *counts))]


def _lrn(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    name = build.add(
        "LRN",
        ins[0].name,
        alpha=node.value("alpha", 1e-4),
        beta=node.value("beta", 0.75),
        bias=node.value("knorm", 2.0),
        size=node.value("nsize", 5),
    )
    return [Value(name, ins[0].shape)]


def _pad(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, width = ins[0], node.value("pad_width", ())
    modes = {"constant": "constant", "edge": "edge", "reflect": "reflect"}
    mode = modes.get(node.value("mode", "constant"), "")
    before, after = list(width[0::2]), list(width[1::2])
    value = build.constant(node.value("constant_value", 0.0)) if mode == "constant" else ""
    name = build.add("Pad", x.name, build.shape_constant([*before, *after]), value, mode=mode)
    shape = tuple(
        None if size is None else size + a + b
        for size, a, b in zip(x.shape, before, after, strict=True)
    )
    return [Value(name, shape)]


def _normalise(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, mode = ins[0], node.value("mode", "instance")
    axes = {"instance": range(1, x.rank), "channel": range(1, 2), "spatial": range(2, x.rank)}[mode]
    square = build.add("Mul", x.name, x.name)
    total = build.add("ReduceSum", square, build.shape_constant(list(axes)), keepdims=1)
    norm = build.add("Sqrt", build.add("Add", total, build.constant(node.value("eps", 1e-10))))
    return [Value(build.add("Div", x.name, norm), x.shape)]


def _instance_norm(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    name = build.add(
        "InstanceNormalization", *(one.name for one in ins), epsilon=node.value("eps", 1e-3)
    )
    return [Value(name, ins[0].shape)]


def _batch_norm(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, gamma, beta, mean, variance = ins
    axis = node.value("axis", 1) % x.rank
    order = [0, axis, *(at for at in range(1, x.rank) if at != axis)]
    inner = x.name if axis == 1 else build.add("Transpose", x.name, perm=order)
    scale = gamma.name
    if node.value("fix_gamma", True):
        scale = build.constant([1.0] * int(gamma.shape[0] or 0), dtype="float32")
    name = build.add(
        "BatchNormalization",
        *(inner, scale, beta.name, mean.name, variance.name),
        epsilon=node.value("eps", 1e-3),
    )
    if axis != 1:
        back = [order.index(at) for at in range(x.rank)]
        name = build.add("Transpose", name, perm=back)
    return [Value(name, x.shape)]


EMIT: dict[str, Emit] = {
    **dict.fromkeys(("Convolution", "Convolution_v1"), _convolution),
    "Deconvolution": _deconvolution,
    **dict.fromkeys(("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm"), _batch_norm),
    "Pooling": _pooling,
    "Pooling_v1": _old_pooling,
    "LRN": _lrn,
    **dict.fromkeys(("Pad", "pad"), _pad),
    "L2Normalization": _normalise,
    "InstanceNorm": _instance_norm,
}
