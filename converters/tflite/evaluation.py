"""A graph of TensorFlow Lite computed operator by operator in numpy: the converter's reference.

Real numbers are computed in float64; integers as TensorFlow Lite's kernels compute them. Written
from its reference kernels, apart from the mapping to ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite import (
    evaluation_detection,
    evaluation_elementwise,
    evaluation_recurrent,
    evaluation_reductions,
    evaluation_shapes,
    evaluation_windows,
)
from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute
from deploykit._plugins.converters.tflite.reading import Graph, Operator, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

COMPUTE: dict[str, Compute] = {
    **evaluation_windows.COMPUTE,
    **evaluation_elementwise.COMPUTE,
    **evaluation_shapes.COMPUTE,
    **evaluation_reductions.COMPUTE,
    **evaluation_recurrent.COMPUTE,
    **evaluation_detection.COMPUTE,
}


def compute(
    op: Operator,
    ins: Sequence[Array | None],
    tensors: Sequence[Tensor | None],
    outs: Sequence[Tensor],
    *,
    once: bool = False,
    shaken: bool = False,
) -> list[Array]:
    """Return the results of one operator as they are stored (real ones in float64)."""
    call = Call(op=op, ins=ins, tensors=tensors, outs=outs, once=once, shaken=shaken)
    found = COMPUTE[op.kind](call)
    return found if isinstance(found, list) else [found]


def evaluate(
    graph: Graph, feed: Mapping[int, Array], *, once: bool = False, shaken: bool = False
) -> dict[int, Array]:
    """Return every tensor that the graph makes of `feed`, by its number.

    `once` rounds integers as TensorFlow Lite's fast kernels do, not as its reference kernels; `shaken`
    changes the last digits of what is rounded at run time.
    """
    values: dict[int, Array] = {
        one.index: one.constant for one in graph.tensors if one.constant is not None
    }
    values.update(feed)
    for op in graph.operators:
        results = compute(
            op,
            [None if at < 0 else values.get(at) for at in op.inputs],
            [None if at < 0 else graph.tensors[at] for at in op.inputs],
            [graph.tensors[at] for at in op.outputs],
            once=once,
            shaken=shaken,
        )
        values.update(zip(op.outputs, results, strict=False))
    return values
