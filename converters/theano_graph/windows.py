"""Convolution and pooling: Theano's borders, turned kernels and windows into ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph import performing
from deploykit._plugins.converters.theano_graph.emission import described, operator_name, rank

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from converters.theano_graph.emission import Emission

FURTHEST = 2**63 - 1
IN_FLOAT32 = "convolution and pooling of float64 are computed in float32, for want of a kernel"


def convolve(emission: Emission, node: Any) -> list[str]:
    """Emit `AbstractConv`: a true convolution where `filter_flip`, else a cross-correlation."""
    op, (x, kernel) = node.op, node.inputs
    _refuse_unshared(node)
    weights, size = _kernel(emission, node, kernel, op.filter_flip, op.convdim)
    pads = performing.pads_of(op, size)
    made = emission.build.add(
        "Conv",
        _in_float32(emission, x),
        weights,
        kernel_shape=list(size),
        pads=[before for before, _ in pads] + [after for _, after in pads],
        strides=[int(s) for s in op.subsample],
        dilations=[int(d) for d in op.filter_dilation],
        group=int(op.num_groups),
    )
    return [_back(emission, made, node)]


def convolve_classic(emission: Emission, node: Any) -> list[str]:
    """Emit `ConvOp`, the convolution of early Theano, always with a turned kernel."""
    op, (x, kernel) = node.op, node.inputs
    if op.out_mode not in ("valid", "full"):
        raise UnsupportedError(
            f"the border `{op.out_mode}` of {described(node)}", operators=("ConvOp",)
        )
    weights, size = _kernel(emission, node, kernel, True, 2)
    pads = [k - 1 if op.out_mode == "full" else 0 for k in size]
    made = emission.build.add(
        "Conv",
        _in_float32(emission, x),
        weights,
        kernel_shape=list(size),
        pads=pads * 2,
        strides=[int(op.dx), int(op.dy)],
    )
    return [_back(emission, made, node)]


def convolve_back(emission: Emission, node: Any) -> list[str]:
    """Emit the gradient of a convolution by its image: a transposed convolution."""
    op, (kernel, x, shape) = node.op, node.inputs
    _refuse_unshared(node)
    build, dims = emission.build, int(op.convdim)
    weights, size = _kernel(emission, node, kernel, op.filter_flip, dims)
    pads = performing.pads_of(op, size)
    strides = [int(s) for s in op.subsample]
    whole = build.add(
        "ConvTranspose",
        _in_float32(emission, x),
        weights,
        kernel_shape=list(size),
        strides=strides,
        dilations=[int(d) for d in op.filter_dilation],
        group=int(op.num_groups),
    )
    if any(s > 1 for s in strides):
        # a stride may leave rows at the end of the image unread; they get nothing
        ends = [0] * (dims + 2) + [0, 0] + [s - 1 for s in strides]
        whole = build.add("Pad", whole, build.shape_constant(ends), emission.scalar(0, "float32"))
    begins = [before for before, _ in pads]
    known = emission.known(shape)
    if known is not None:
        ends_at = build.shape_constant(
            [b + int(n) for b, n in zip(begins, known.reshape(-1), strict=True)]
        )
    else:
        ends_at = build.add("Add", emission.as_type(shape, "int64"), build.shape_constant(begins))
    axes = build.shape_constant(list(range(2, dims + 2)))
    made = build.add("Slice", whole, build.shape_constant(begins), ends_at, axes)
    return [_back(emission, made, node)]


def pool(emission: Emission, node: Any) -> list[str]:
    """Emit `Pool`: the largest, the sum, or the average with or without the border.

    Where the border is not ignored, windows that reach over the end count what is inside.
    """
    op, x = node.op, node.inputs[0]
    build, dims = emission.build, int(op.ndim)
    size, strides, pad = (
        emission.integers(one, node, what)
        for one, what in zip(
            node.inputs[1:], ("the window", "the stride", "the padding"), strict=True
        )
    )
    after = list(pad)
    if not op.ignore_border:
        # so much more lets the last window begin where Theano's does
        after = [w - 1 if s >= w else s - 1 for w, s in zip(size, strides, strict=True)]
    value, lead = _in_float32(emission, x), rank(x) - dims
    shape = ""
    if lead != 2:
        # ONNX pools images of a batch and channels
        shape = build.add("Shape", value)
        space = build.add("Slice", shape, *(build.shape_constant([at]) for at in (lead, FURTHEST)))
        ones = build.shape_constant([-1, 1])
        value = build.add("Reshape", value, build.add("Concat", ones, space, axis=0))
    common = {"kernel_shape": size, "strides": strides, "pads": [*pad, *after]}
    if op.mode == "max":
        value = build.add("MaxPool", value, **common)
    elif op.mode == "average_exc_pad" or (op.mode == "average_inc_pad" and not op.ignore_border):
        value = build.add("AveragePool", value, **common)
    else:
        value = build.add("AveragePool", value, count_include_pad=1, **common)
        if op.mode == "sum":
            area = 1
            for one in size:
                area *= one
            value = build.add("Mul", value, emission.scalar(area, "float32"))
    if shape:
        front = build.add("Slice", shape, build.shape_constant([0]), build.shape_constant([lead]))
        back = build.add(
            "Slice",
            build.add("Shape", value),
            *(build.shape_constant([at]) for at in (2, FURTHEST)),
        )
        value = build.add("Reshape", value, build.add("Concat", front, back, axis=0))
    return [_back(emission, value, node)]


def _kernel(
    emission: Emission, node: Any, kernel: Any, turn: bool, dims: int
) -> tuple[str, tuple[int, ...]]:
    """Return the kernel as ONNX takes it, and its size; a known one is turned here."""
    import numpy as np

    known = emission.known(kernel)
    if known is not None:
        space = tuple(range(known.ndim - dims, known.ndim))
        turned = np.ascontiguousarray(np.flip(known, space)) if turn else known
        name = emission.build.constant(turned.astype(np.float32), str(kernel.name or ""))
        return name, tuple(int(n) for n in known.shape[-dims:])
    sizes = getattr(node.op, "kshp", None) or kernel.type.shape
    if any(n is None for n in sizes[-dims:]):
        raise UnsupportedError(
            f"the size of the kernel of {described(node)} depends on an input",
            operators=(operator_name(node),),
            hint="give `filter_shape` to the convolution",
        )
    name = _in_float32(emission, kernel)
    if turn:
        axes = list(range(rank(kernel) - dims, rank(kernel)))
        name = emission.build.add(
            "Slice",
            name,
            emission.build.shape_constant([-1] * dims),
            emission.build.shape_constant([-FURTHEST] * dims),
            emission.build.shape_constant(axes),
            emission.build.shape_constant([-1] * dims),
        )
    return name, tuple(int(n) for n in sizes[-dims:])


def _refuse_unshared(node: Any) -> None:
    if getattr(node.op, "unshared", False):
        raise UnsupportedError(
            f"{described(node)} has another kernel for each place (unshared), which ONNX has not",
            operators=(operator_name(node),),
            hint="write it as a product of patches",
        )


def _in_float32(emission: Emission, variable: Any) -> str:
    if variable.type.dtype == "float64":
        emission.notes[IN_FLOAT32] = None
    return emission.as_type(variable, "float32")


def _back(emission: Emission, name: str, node: Any) -> str:
    return emission.cast(name, "float32", node.outputs[0].type.dtype)


RULES = {
    "AbstractConv": convolve,
    "ConvOp": convolve_classic,
    "AbstractConv_gradInputs": convolve_back,
    "Pool": pool,
}
