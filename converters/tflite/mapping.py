"""A graph of TensorFlow Lite as an ONNX graph: operators by table, sizes folded, the batch followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite import (
    evaluation,
    mapping_blocks,
    mapping_detection,
    mapping_elementwise,
    mapping_recurrent,
    mapping_reductions,
    mapping_shapes,
    mapping_windows,
)
from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit
from deploykit._plugins.converters.tflite.reading import Graph, Operator, Tensor

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

EMIT: dict[str, Emit] = {
    "CONV_2D": mapping_windows.convolution,
    "DEPTHWISE_CONV_2D": mapping_windows.depthwise,
    "TRANSPOSE_CONV": mapping_windows.transposed,
    "CONV_3D": mapping_windows.volume,
    "AVERAGE_POOL_2D": mapping_windows.pooling,
    "MAX_POOL_2D": mapping_windows.pooling,
    "L2_POOL_2D": mapping_windows.pooling,
    "FULLY_CONNECTED": mapping_windows.dense,
    "BATCH_MATMUL": mapping_windows.products,
    "RESIZE_BILINEAR": mapping_windows.resize,
    "RESIZE_NEAREST_NEIGHBOR": mapping_windows.resize,
    **mapping_elementwise.EMIT,
    **mapping_shapes.EMIT,
    **mapping_blocks.EMIT,
    **mapping_reductions.EMIT,
    **mapping_recurrent.EMIT,
    **mapping_detection.EMIT,
}
SMALL = 1 << 16
"""Elements of a constant that is computed while converting; larger ones are left to the graph."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """The outputs' specs, the axis of each that grows with the batch, and what the user must know."""

    outputs: tuple[TensorSpec, ...]
    batches: tuple[int | None, ...]
    notes: tuple[str, ...]


def emit(
    build: GraphBuilder,
    graph: Graph,
    inputs: Mapping[int, TensorSpec],
    names: tuple[str, ...],
    batched: frozenset[int],
) -> Mapped:
    """Add `graph` to `build`, the tensors `batched` among its inputs with a batch that grows.

    Raises UnsupportedError for an operator without ONNX form, FixedBatchError where the batch
    cannot grow, ValueError where the parts of the graph do not fit together.
    """
    import numpy as np

    refuse(graph)
    m = Emitter(build)
    values: dict[int, Value] = {}
    for at, spec in inputs.items():
        name = build.input(spec.name, spec.dtype, spec.shape or ())
        batch = 0 if at in batched else None
        tensor = graph.tensors[at]
        values[at] = Value(tensor=tensor, shape=tensor.shape, batch=batch, stored=name)
    for op in graph.operators:
        m.op = op
        ins = [None if at < 0 else _value(graph.tensors[at], values) for at in op.inputs]
        outs = [graph.tensors[at] for at in op.outputs]
        folded = _folded(op, ins, outs)
        if folded is None:
            with build.layer(op.label):
                folded = EMIT[op.kind](m, op, ins, outs)
        values.update(zip(op.outputs, folded, strict=False))
    m.op = None
    specs, batches = [], []
    for at, name in zip(graph.outputs, names, strict=True):
        value = _value(graph.tensors[at], values)
        if value.doubled is not None and np.shape(value.doubled) != value.shape:
            raise m.fixed(f"the output `{name}` has nothing but the size of the batch")
        shape: list[Dimension] = list(value.shape)
        if value.batch is not None:
            if value.shape[value.batch] != 1:
                raise m.fixed(f"the output `{name}` has the batch on an axis of its own")
            shape[value.batch] = "batch"
        build.output(name, m.stored(value), value.tensor.dtype)
        specs.append(TensorSpec(name=name, dtype=value.tensor.dtype, shape=tuple(shape)))
        batches.append(value.batch)
    return Mapped(outputs=tuple(specs), batches=tuple(batches), notes=tuple(m.notes))


def refuse(graph: Graph) -> None:
    """Raise UnsupportedError where an operator has no ONNX form."""
    wrong = [op for op in graph.operators if op.kind not in EMIT]
    if wrong:
        kinds = tuple(dict.fromkeys(op.kind for op in wrong))
        named = ", ".join(
            f"{kind} (makes `{next(op.label for op in wrong if op.kind == kind)}`)"
            for kind in kinds[:10]
        )
        raise UnsupportedError(
            f"no ONNX form for the TensorFlow Lite operators {named}",
            operators=kinds,
            hint="convert the model that it was made from, or cut the graph before them",
        )


def _value(tensor: Tensor, values: dict[int, Value]) -> Value:
    if tensor.index not in values:
        values[tensor.index] = Value(tensor=tensor, shape=tensor.shape, constant=tensor.constant)
    return values[tensor.index]


def _folded(op: Operator, ins: list[Value | None], outs: list[Tensor]) -> list[Value] | None:
    """Return the results where they follow from the file, for a batch of one and of two."""
    import numpy as np

    given = [one for one in ins if one is not None]
    if not given or any(one.constant is None for one in given):
        return None
    if op.kind in mapping_recurrent.EMIT or op.kind not in evaluation.COMPUTE:
        return None
    unpacks = op.kind in ("DEQUANTIZE", "DENSIFY") and not outs[0].quantized
    if not unpacks and sum(one.constant.size for one in given if one.constant is not None) > SMALL:
        return None
    once = evaluation.compute(
        op,
        [None if one is None else one.constant for one in ins],
        [None if one is None else one.tensor for one in ins],
        outs,
    )
    twice: list[Any] = [None] * len(once)
    if any(one.doubled is not None for one in given):
        twice = evaluation.compute(
            op,
            [None if v is None else v.constant if v.doubled is None else v.doubled for v in ins],
            [None if v is None else v.tensor for v in ins],
            outs,
        )
    return [
        Value(
            tensor=out,
            shape=np.shape(value),
            constant=np.asarray(value, out.dtype),
            doubled=None if other is None else np.asarray(other, out.dtype),
        )
        for out, value, other in zip(outs, once, twice, strict=True)
    ]
