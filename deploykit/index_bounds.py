"""Which whole numbers an ONNX model's inputs may hold, read from its graph.

A random integer fed to an embedding is out of range more often than not. So each graph input is
followed forward, through nodes that only move or cast values, to the nodes that use it as an index
(`Gather` and its relatives) or as a size (`Reshape`, the sequence lengths of an `LSTM`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError

if TYPE_CHECKING:
    import onnx

# nodes whose output holds values of these inputs (by position) and nothing else
_MOVES = {
    **dict.fromkeys(("Cast", "CastLike", "Identity", "Unsqueeze", "Squeeze", "Reshape"), (0,)),
    **dict.fromkeys(("Transpose", "Flatten", "Expand", "Tile", "Slice", "Split"), (0,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), (0,)),
    **dict.fromkeys(("Floor", "Round", "Ceil", "ReverseSequence", "SequenceAt"), (0,)),
    "Where": (1, 2),
}
_MOVES_ALL = ("Concat", "Max", "Min", "SequenceConstruct")

# index input, and the input that it indexes
_INDEXES = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), (1, 0)),
    **dict.fromkeys(("ScatterElements", "ScatterND", "Scatter"), (1, 0)),
}

# inputs that are sizes, positions or lengths: 1 is right for them where anything is
_SIZES = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "TopK", "ReverseSequence", "OneHot"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (4,)),
    **dict.fromkeys(("Range", "Resize", "Slice"), (1, 2, 3, 4)),
    **dict.fromkeys(("ConstantOfShape", "Loop"), (0,)),
}
_CONSERVATIVE = (1, 1)
_LARGEST_CONSTANT = 1_000_000
"""Elements of a constant that is read to learn an offset; larger ones are tables, not offsets."""


@dataclass(frozen=True)
class _Trace:
    """A value that is `input` plus something between `low` and `high`."""

    input: str
    low: int = 0
    high: int = 0


def index_bounds(model: str | Path) -> dict[str, tuple[int, int]]:
    """Return the smallest and largest value of each input of the ONNX file `model` that is an index.

    Inputs that index nothing are left out. An index into a table of unknown size gets (0, 0), a
    size or a sequence length (1, 1). Weights in external files are not read.

    Raises SourceError where the file is no ONNX model.
    """
    import onnx

    try:
        loaded = onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no base of its own
        raise SourceError(f"cannot read `{model}` as ONNX: {error}") from error
    if loaded.functions:
        from onnx.inliner import inline_local_functions

        loaded = inline_local_functions(loaded)
    walk = _Walk(loaded)
    constants = {tensor.name for tensor in loaded.graph.initializer}
    traces = {
        value.name: {_Trace(value.name)}
        for value in loaded.graph.input
        if value.name not in constants
    }
    walk.graph(loaded.graph, traces, {})
    return {
        value.name: walk.found[value.name]
        for value in loaded.graph.input
        if value.name in walk.found
    }


class _Walk:
    """One pass over a graph and its subgraphs in their order, which ONNX requires to be topological."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.found: dict[str, tuple[int, int]] = {}
        self._model = model
        self._inferred: dict[str, tuple[int | None, ...]] | None = None

    def graph(
        self,
        graph: onnx.GraphProto,
        traces: dict[str, set[_Trace]],
        constants: Mapping[str, onnx.TensorProto],
    ) -> dict[str, set[_Trace]]:
        """Visit the nodes; return the traces of every value, those of outer graphs included."""
        constants = {**constants, **{tensor.name: tensor for tensor in graph.initializer}}
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        constants[node.output[0]] = attribute.t
                continue
            self._uses(node, traces, constants)
            carried = self._carried(node, traces, constants)
            if carried:
                for output in node.output:
                    traces[output] = carried
            self._subgraphs(node, traces, constants)
        return traces

    def _uses(
        self,
        node: onnx.NodeProto,
        traces: Mapping[str, set[_Trace]],
        constants: Mapping[str, onnx.TensorProto],
    ) -> None:
        """Note the bounds that this node puts on its inputs."""
        if node.op_type in _INDEXES:
            index, table = _INDEXES[node.op_type]
            if len(node.input) > index and node.input[index] in traces:
                size = self._table_size(node, node.input[table], constants)
                self._bound(traces[node.input[index]], 0, (size or 1) - 1)
        if node.op_type == "OneHot" and node.input[0] in traces:
            depth = _values(constants.get(node.input[1]))
            if depth is not None:
                self._bound(traces[node.input[0]], 0, depth[1] - 1)
        for position in _SIZES.get(node.op_type, ()):
            if len(node.input) > position and node.input[position] in traces:
                self._bound(traces[node.input[position]], *_CONSERVATIVE)

    def _bound(self, traces: Iterable[_Trace], low: int, high: int) -> None:
        """Keep each traced input where the value it becomes stays within `low` … `high`."""
        for trace in traces:
            least, most = self.found.get(trace.input, (0, high - trace.high))
            least = max(least, low - trace.low)
            self.found[trace.input] = (least, max(least, min(most, high - trace.high)))

    def _carried(
        self,
        node: onnx.NodeProto,
        traces: Mapping[str, set[_Trace]],
        constants: Mapping[str, onnx.TensorProto],
    ) -> set[_Trace]:
        """Return what the node's outputs hold of the inputs."""
        if node.op_type in ("Add", "Sub"):
            return _shifted(node, traces, constants)
        positions: Iterable[int] = (
            range(len(node.input)) if node.op_type in _MOVES_ALL else _MOVES.get(node.op_type, ())
        )
        return {
            trace
            for position in positions
            if position < len(node.input)
            for trace in traces.get(node.input[position], ())
        }

    def _subgraphs(
        self,
        node: onnx.NodeProto,
        traces: Mapping[str, set[_Trace]],
        constants: Mapping[str, onnx.TensorProto],
    ) -> None:
        """Visit the bodies of `If`, `Loop` and `Scan`, which also see the values outside them."""
        for attribute in node.attribute:
            for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                inner = dict(traces)
                # Loop hands its inputs from the third on to its body (after the counter and the
                # condition), Scan all of them, slice by slice
                first = 2 if node.op_type == "Loop" else 0
                for outside, inside in zip(node.input[first:], body.input[first:], strict=False):
                    inner[inside.name] = set(traces.get(outside, ()))
                self.graph(body, inner, constants)

    def _table_size(
        self, node: onnx.NodeProto, table: str, constants: Mapping[str, onnx.TensorProto]
    ) -> int | None:
        """Return the size of the axes that the node indexes (the smallest of them), if known."""
        shape: tuple[int | None, ...]
        if table in constants:
            shape = tuple(constants[table].dims)
        else:
            shape = self._shapes().get(table, ())
        if node.op_type in ("GatherND", "ScatterND"):
            known = [size for size in shape if size is not None]
            return min(known) if known and len(known) == len(shape) else None
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        return shape[axis] if -len(shape) <= axis < len(shape) else None

    def _shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Return the shapes that ONNX infers, for tables that are no constants themselves."""
        if self._inferred is None:
            import onnx

            try:
                graph = onnx.shape_inference.infer_shapes(self._model).graph
            except (onnx.shape_inference.InferenceError, ValueError):
                # too large for one message, or not typed: what the file itself says must do
                graph = self._model.graph
            self._inferred = {
                value.name: tuple(
                    dim.dim_value if dim.HasField("dim_value") else None
                    for dim in value.type.tensor_type.shape.dim
                )
                for value in [*graph.input, *graph.value_info, *graph.output]
            }
        return self._inferred


def _shifted(
    node: onnx.NodeProto,
    traces: Mapping[str, set[_Trace]],
    constants: Mapping[str, onnx.TensorProto],
) -> set[_Trace]:
    """Return the traces through `input ± constant`: field offsets of a recommender's ids, mostly."""
    value, offset = node.input
    if value not in traces and node.op_type == "Add":
        value, offset = offset, value
    shift = _values(constants.get(offset))
    if value not in traces or shift is None:
        return set()
    low, high = shift if node.op_type == "Add" else (-shift[1], -shift[0])
    return {_Trace(trace.input, trace.low + low, trace.high + high) for trace in traces[value]}


def _values(tensor: Any) -> tuple[int, int] | None:
    """Return the smallest and largest value of a small integer constant, else None."""
    import math

    from onnx import TensorProto, numpy_helper

    if (
        tensor is None
        or tensor.data_location == TensorProto.EXTERNAL
        or not 0 < math.prod(tensor.dims) <= _LARGEST_CONSTANT
    ):
        return None
    values = numpy_helper.to_array(tensor)
    if values.dtype.kind not in "iuf":
        return None
    return int(values.min()), int(values.max())
