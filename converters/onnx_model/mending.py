"""Repairs that change no value: what old exporters left in files and stricter readers stumble over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# since IR version 4 an initializer need not be an input
INITIALIZERS_APART = 4

LARGEST_DENSE = 1 << 26
"""Elements of a sparse constant that is still written out."""


def mend(model: onnx.ModelProto) -> list[str]:
    """Apply every repair to `model` in place and return what was done, a line each."""
    repairs: tuple[tuple[Callable[[onnx.ModelProto], int], str], ...] = (
        (_sparse_constants, "{} sparse constants written out"),
        (_initializers_as_inputs, "{} initializers removed from the inputs"),
        (_unused_initializers, "{} unused initializers removed"),
        (_negative_sizes, "{} sizes of -1 or 0 in inputs and outputs made dynamic axes"),
        (_unsorted_nodes, "{} nodes moved behind those whose results they need"),
        (_node_names, "{} nodes without a name of their own named"),
        (_stale_outputs, "{} outputs given the shape that follows from the graph"),
        (_stale_shapes, "{} recorded shapes of inner values dropped, to be inferred anew"),
    )
    done = []
    for repair, line in repairs:
        count = repair(model)
        if count:
            done.append(line.format(count))
    return done


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and every graph within its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from graphs(inner)


def _sparse_constants(model: onnx.ModelProto) -> int:
    """Write sparse constants out: neither shape inference nor most runtimes know them."""
    count = 0
    for graph in graphs(model.graph):
        kept = []
        for sparse in graph.sparse_initializer:
            dense = _dense(sparse)
            if dense is None:
                kept.append(sparse)
                continue
            graph.initializer.append(dense)
            count += 1
        del graph.sparse_initializer[:]
        graph.sparse_initializer.extend(kept)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type != "Constant" or attribute.name != "sparse_value":
                    continue
                if (dense := _dense(attribute.sparse_tensor)) is not None:
                    attribute.Clear()
                    attribute.name, attribute.type = "value", attribute.TENSOR
                    attribute.t.CopyFrom(dense)
                    count += 1
    return count


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto | None:
    """Return the tensor itself; None where it would be large, lies elsewhere or is no valid one."""
    import math

    import numpy as np
    from onnx import numpy_helper

    parts = (sparse.values, sparse.indices)
    if any(part.data_location == part.EXTERNAL for part in parts):
        return None
    if any(size < 0 for size in sparse.dims) or math.prod(sparse.dims) > LARGEST_DENSE:
        return None
    try:
        values, places = (numpy_helper.to_array(part) for part in parts)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        # indices are positions in the flattened tensor, or a row of coordinates each
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
    except (ValueError, IndexError, TypeError):
        return None  # the checker says what is wrong
    return numpy_helper.from_array(dense, sparse.values.name)


def _initializers_as_inputs(model: onnx.ModelProto) -> int:
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    real = [value for value in graph.input if value.name not in constants]
    removed = len(graph.input) - len(real)
    if removed:
        del graph.input[:]
        graph.input.extend(real)
        model.ir_version = max(model.ir_version, INITIALIZERS_APART)
    return removed


def _unused_initializers(model: onnx.ModelProto) -> int:
    graph = model.graph
    used = {value.name for value in graph.output} | {
        name for inner in graphs(graph) for node in inner.node for name in node.input
    }
    # an inner graph may give an outer value as its result
    used |= {value.name for inner in graphs(graph) for value in inner.output}
    unused = [at for at, tensor in enumerate(graph.initializer) if tensor.name not in used]
    for at in reversed(unused):
        del graph.initializer[at]
    return len(unused)


def _negative_sizes(model: onnx.ModelProto) -> int:
    """Some exporters write the size of a dynamic axis as a number; the leading one is the batch."""
    count = 0
    for value in [*model.graph.input, *model.graph.output]:
        for number, axis in enumerate(value.type.tensor_type.shape.dim):
            if axis.HasField("dim_value") and axis.dim_value <= 0:
                axis.Clear()
                if number == 0:
                    axis.dim_param = "batch"
                count += 1
    return count


def _needs(node: onnx.NodeProto) -> set[str]:
    """Return all values that `node` reads, also from within its graphs."""
    needs = set(node.input)
    for attribute in node.attribute:
        for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            for each in inner.node:
                needs |= _needs(each)
            needs |= {value.name for value in inner.output}
    return needs


def _unsorted_nodes(model: onnx.ModelProto) -> int:
    graph = model.graph
    produced = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    needs = [{produced[name] for name in _needs(node) if name in produced} for node in graph.node]
    if all(before < at for at, own in enumerate(needs) for before in own):
        return 0
    try:
        order = list(TopologicalSorter(dict(enumerate(needs))).static_order())
    except CycleError:
        return 0  # the checker names it
    nodes = [graph.node[at] for at in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return sum(before != at for before, at in enumerate(order))


def _node_names(model: onnx.ModelProto) -> int:
    """Give a name to nodes that have none or one that another has: profiles are read by it."""
    taken = {node.name for graph in graphs(model.graph) for node in graph.node}
    seen: set[str] = set()
    count = 0
    for graph in graphs(model.graph):
        for number, node in enumerate(graph.node):
            if node.name and node.name not in seen:
                seen.add(node.name)
                continue
            stem = node.name or f"{node.op_type}_{number}"
            name, suffix = stem, 0
            while name in taken or name in seen:
                suffix += 1
                name = f"{stem}_{suffix}"
            node.name = name
            seen.add(name)
            count += 1
    return count


def _stale_shapes(model: onnx.ModelProto) -> int:
    """Drop inner shapes that contradict what follows from the graph; agreeing ones are no repair."""
    import onnx

    recorded = {value.name: value for value in model.graph.value_info}
    if not recorded:
        return 0
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except (onnx.shape_inference.InferenceError, ValueError):
        # larger than a message may be, or invalid: then the checker has the last word
        inferred = bare
    found = {value.name: value for value in inferred.graph.value_info}
    stale = sum(
        name in found and _contradict(value, found[name]) for name, value in recorded.items()
    )
    stale += sum(name not in found for name in recorded) if found else 0
    del model.graph.value_info[:]
    return stale


def _stale_outputs(model: onnx.ModelProto) -> int:
    """Correct declared shapes of outputs that contradict the graph, which runtimes only warn about."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    del bare.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except (onnx.shape_inference.InferenceError, ValueError):
        return 0  # larger than a message may be, or invalid: then the checker has the last word
    count = 0
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        ours, theirs = value.type.tensor_type, found.type.tensor_type
        if ours.elem_type == theirs.elem_type and _contradict(value, found):
            ours.shape.CopyFrom(theirs.shape)
            count += 1
    return count


def _contradict(one: onnx.ValueInfoProto, other: onnx.ValueInfoProto) -> bool:
    a, b = one.type.tensor_type, other.type.tensor_type
    if a.elem_type != b.elem_type:
        return True
    if not (a.HasField("shape") and b.HasField("shape")):
        return False
    if len(a.shape.dim) != len(b.shape.dim):
        return True
    return any(
        x.HasField("dim_value") and y.HasField("dim_value") and x.dim_value != y.dim_value
        for x, y in zip(a.shape.dim, b.shape.dim, strict=True)
    )
