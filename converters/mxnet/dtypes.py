"""Which operators may have integers, and the dtypes of what they give.

Most operators are written for real numbers; on integers MXNet cuts off what is behind the point, so
those that would differ are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploykit._plugins.converters.mxnet.emission import Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import UnsupportedError

INDEX = {
    **dict.fromkeys(("Embedding", "one_hot"), 0),
    **dict.fromkeys(("take", "pick", "batch_take", "gather_nd"), 1),
    **dict.fromkeys(("SequenceMask", "SequenceLast", "SequenceReverse"), 1),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), 1),
    "where": 0,
}
"""Operators with an input of any dtype that only says where: its place."""

CASTS = ("Cast", "cast", "amp_cast", "one_hot")

LIKE = ("zeros_like", "ones_like", "_contrib_arange_like", "shape_array", "size_array")
"""Operators that look only at the shape of their first input."""

EXACT = (
    *("Reshape", "reshape", "Flatten", "flatten", "transpose", "SwapAxis", "swapaxes", "squeeze"),
    *("expand_dims", "slice", "crop", "slice_axis", "slice_like", "Concat", "concat", "stack"),
    *("SliceChannel", "split", "_split_v2", "tile", "repeat", "broadcast_to", "broadcast_axis"),
    *("broadcast_axes", "broadcast_like", "reshape_like", "identity", "_copy", "BlockGrad"),
    *("stop_gradient", "elemwise_add", "elemwise_sub", "elemwise_mul", "broadcast_add"),
    *("broadcast_sub", "broadcast_mul", "_plus", "_minus", "_mul", "broadcast_plus"),
    "broadcast_minus",
)
"""Operators that do the same to integers."""

SCALARS = ("_plus_scalar", "_minus_scalar", "_rminus_scalar", "_mul_scalar")
WRAPPING = ("int32", "int64")
"""Integers whose sums and products wrap in ONNX Runtime as they do in MXNet."""


def typed(node: Node, given: Sequence[Value], found: list[Value]) -> list[Value]:
    """Return `found`, what `node` makes of `given`, with its dtypes.

    Raises UnsupportedError where the operator gives other values for integers, or mixes dtypes.
    """
    if node.op in CASTS or node.op in LIKE:
        return found
    place = INDEX.get(node.op)
    dtypes = {one.dtype for at, one in enumerate(given) if at != place} or {"float32"}
    if dtypes == {"float32"}:
        return found
    (dtype, *others) = sorted(dtypes)
    is_exact = node.op in EXACT or node.op in INDEX
    if node.op in SCALARS:
        is_exact = node.value("scalar", 1.0) == int(node.value("scalar", 1.0))
    if others or not is_exact or dtype not in WRAPPING:
        raise UnsupportedError(
            f"node `{node.name}` computes in {', '.join(sorted(dtypes))}",
            operators=(f"{node.op}({dtype})",),
            hint="only float32 can be computed with: cast the model and its inputs",
        )
    return [replace(one, dtype=dtype, array=None) for one in found]
