"""What no exporter cleans up behind itself: constants to fold, transposes that cancel, dead and double nodes.

Nothing here changes what the model computes: the core proves the tidied model against the source,
and keeps the other where the proof fails. Quantisation stays as it is written, for targets read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.onnx_model.mending import graphs

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

UNFOLDED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)
"""Operators that give another result at each run, or whose place in the graph carries meaning."""

READABLE = re.compile(r"FLOAT(16)?|DOUBLE|U?INT(8|16|32|64)|BOOL")
"""Types that ONNX Runtime hands over to numpy."""

LARGEST_GROWTH = 1 << 20
"""Bytes that a folded constant may be larger than what it was computed from."""


def tidy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return `model` without needless nodes, and what was done in one line (none where nothing was)."""
    import onnx_ir
    from onnx_ir.passes import common

    before = _count(model)
    folded, merged = fold_constants(model), merge_transposes(model)
    parts = ((folded, "constant"), (merged, "transposes merged"))
    steps: list[Callable[[Any], Any]] = [common.RemoveUnusedNodesPass()]
    if not any(node.op_type in UNFOLDED[3:] for one in graphs(model.graph) for node in one.node):
        steps.insert(0, common.CommonSubexpressionEliminationPass())
    if not (_bodies_give_copies(model) or _outputs_are_copies(model)):
        steps.insert(0, common.IdentityEliminationPass())
    ir = onnx_ir.from_proto(model)
    for step in steps:
        step(ir)
    tidied = onnx_ir.to_proto(ir)
    _part_outputs(tidied)
    after = _count(tidied)
    if after == before:
        return model, []
    what = ", ".join(f"{count} {text}" for count, text in parts if count)
    return tidied, [f"cleaned up: {before} nodes became {after}{f' ({what})' if what else ''}"]


def _part_outputs(model: onnx.ModelProto) -> None:
    """Give each output of a loop's body a value of its own: ONNX Runtime miscomputes shared ones."""
    from onnx import helper

    for inner in graphs(model.graph):
        seen: set[str] = set()
        for number, value in enumerate(inner.output):
            if inner is not model.graph and value.name in seen:
                own = f"{value.name}/output_{number}"
                inner.node.append(helper.make_node("Identity", [value.name], [own], name=own))
                value.name = own
            seen.add(value.name)


def _bodies_give_copies(model: onnx.ModelProto) -> bool:
    """Whether a body gives a copy of an outer value, or of one it gives already.

    Without the copy it could not, and the pass that removes copies does not see it.
    """
    _, *bodies = graphs(model.graph)
    return any(
        node.op_type == "Identity" and node.output[0] in {value.name for value in graph.output}
        for graph in bodies
        for node in graph.node
    )


def _outputs_are_copies(model: onnx.ModelProto) -> bool:
    """Whether two outputs are the same value: without the copy between them one would lose its name."""
    copied = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Identity" and not node.domain
    }
    origins = []
    for value in model.graph.output:
        name = value.name
        while name in copied:
            name = copied[name]
        origins.append(name)
    return len(set(origins)) < len(origins)


def _count(model: onnx.ModelProto) -> int:
    return sum(len(inner.node) for inner in graphs(model.graph))


def fold_constants(model: onnx.ModelProto) -> int:
    """Replace the nodes that depend on constants alone by their results; return how many went.

    ONNX Runtime computes them, unoptimised. A node that makes an output of the graph stays.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        value.name: value.type.tensor_type
        for value in [*inferred.graph.value_info, *graph.input]
        if value.type.HasField("tensor_type")
    }
    bytes_of = {tensor.name: tensor.ByteSize() for tensor in graph.initializer}
    results = {value.name for value in graph.output}
    folded, kept = [], []
    fixed: dict[str, Array] = {}
    for node in graph.node:
        if results & set(node.output):
            kept.append(node)
        elif (shape := _known_shape(node, shapes)) is not None:
            fixed[node.output[0]] = shape
            bytes_of[node.output[0]] = shape.nbytes
        elif _foldable(node, bytes_of, shapes):
            folded.append(node)
            bytes_of |= {name: _size(shapes[name]) for name in node.output if name}
        else:
            kept.append(node)
    if not folded and not fixed:
        return 0
    needed = {name for node in kept for name in node.input}
    needed |= {
        name
        for inner in graphs(graph)
        for node in inner.node
        for name in node.input
        if inner is not graph
    }
    needed |= {value.name for inner in graphs(graph) for value in inner.output}
    wanted = [name for node in folded for name in node.output if name in needed]
    try:
        values = {**fixed, **_compute(model, folded, wanted, fixed)}
    except (
        Exception
    ):  # onnxruntime's classes have no common base; it lacks a kernel: nothing is folded
        return 0
    count = len(graph.node) - len(kept)
    nodes = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in values.items() if name in needed
    )
    return count


def _known_shape(node: onnx.NodeProto, shapes: dict[str, Any]) -> Array | None:
    """Return what a Shape node gives where every size of its input is fixed."""
    import numpy as np

    if node.op_type != "Shape" or node.domain or node.input[0] not in shapes:
        return None
    kind = shapes[node.input[0]]
    if not kind.HasField("shape"):
        return None
    sizes = [axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim]
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    part = sizes[bounds.get("start", 0) : bounds.get("end", len(sizes))]
    # a declared size of zero is as often a mistake as a fact
    return np.array(part, np.int64) if all(size > 0 for size in part) else None


def _foldable(node: onnx.NodeProto, bytes_of: dict[str, int], shapes: dict[str, Any]) -> bool:
    if node.domain or node.op_type in UNFOLDED:
        return False
    if any(item.HasField("g") or item.graphs for item in node.attribute):
        return False
    if not all(name in bytes_of for name in node.input if name):
        return False
    if node.op_type == "Constant":
        return any(
            item.name in ("value", "value_float", "value_int", "value_ints", "value_floats")
            for item in node.attribute
        ) and all(name in shapes for name in node.output)
    outputs = [name for name in node.output if name]
    if any(name not in shapes or _size(shapes[name]) < 0 for name in outputs):
        return False
    own = sum(bytes_of[name] for name in node.input if name)
    return sum(_size(shapes[name]) for name in outputs) <= own + LARGEST_GROWTH


def _size(kind: Any) -> int:
    """Return the bytes of a tensor of this type; -1 where they are unknown or numpy lacks its numbers."""
    import math

    import onnx

    name = onnx.TensorProto.DataType.Name(kind.elem_type)
    if not kind.HasField("shape") or not READABLE.fullmatch(name):
        return -1
    if not all(axis.HasField("dim_value") for axis in kind.shape.dim):
        return -1
    width: int = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return width * math.prod(int(axis.dim_value) for axis in kind.shape.dim)


def _compute(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str], fixed: dict[str, Array]
) -> dict[str, Array]:
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    if not wanted:
        return {}
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    part.graph.initializer.extend(one for one in model.graph.initializer if one.name in used)
    part.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in fixed.items() if name in used
    )
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(wanted, session.run(wanted, {}), strict=True))


def merge_transposes(model: onnx.ModelProto) -> int:
    """Make one transpose of two that follow each other, none where they cancel; return how many.

    One that cancels becomes an Identity, which the pass after this one takes away.
    """
    made: dict[str, onnx.NodeProto] = {}
    merged = 0
    for node in model.graph.node:
        if node.op_type != "Transpose" or node.domain:
            continue
        first = made.get(node.input[0])
        made[node.output[0]] = node
        second = _permutation(node)
        inner = _permutation(first) if first is not None else None
        if first is None or inner is None or second is None:
            continue
        both = [inner[axis] for axis in second]
        node.input[0] = first.input[0]
        del node.attribute[:]
        if both == sorted(both):
            node.op_type = "Identity"
            del made[node.output[0]]
        else:
            attribute = node.attribute.add(name="perm", ints=both)
            attribute.type = attribute.INTS
        merged += 1
    return merged


def _permutation(node: onnx.NodeProto) -> list[int] | None:
    return next((list(item.ints) for item in node.attribute if item.name == "perm"), None)
