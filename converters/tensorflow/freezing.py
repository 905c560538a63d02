"""From an open graph to one GraphDef of constants, cut and shaped as asked, ready for tf2onnx."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from deploykit._plugins.converters.tensorflow import complex_numbers, flattening
from deploykit._plugins.converters.tensorflow.graphs import Graph, Tensor

from deploykit.errors import UsageError
from deploykit.progress import phase
from deploykit.protocol import DynamicAxis


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """`graph_def` with placeholders `input_0`… and identities `output_0`… in the model's order."""

    graph_def: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    repairs: tuple[str, ...] = ()


def freeze(graph: Graph, dynamic: tuple[DynamicAxis, ...] = ()) -> Frozen:
    """Turn the variables of `graph` into constants and its inputs into placeholders of known rank.

    State comes after the other inputs and outputs. Raises UsageError for an input whose rank nobody
    said.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph,
    )

    phase("freezing variables")
    inputs, repairs = _with_shapes(graph, dynamic)
    if graph.state is not None:
        whole, variables = graph.state.graph_def, graph.state.variables
        outputs = [
            *(
                dataclasses.replace(item, tensor=f"{name}:0")
                for item, name in zip(graph.outputs, graph.state.outputs, strict=True)
            ),
            *(Tensor(tensor=f"{item.result}:0", spec=item.output) for item in variables),
        ]
        inputs += tuple(Tensor(tensor=item.tensor, spec=item.input) for item in variables)
    else:
        whole, outputs = graph.session.graph.as_graph_def(add_shapes=False), list(graph.outputs)
    ends = [item.tensor.split(":")[0] for item in outputs]
    # what lies behind an inner tensor that became an input stays until it is replaced
    needed = flattening.needed_nodes(
        whole, [*ends, *(item.tensor.split(":")[0] for item in inputs)]
    )
    kept = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    kept.node.extend(node for node in whole.node if node.name in needed)
    for node in kept.node:
        node.device = ""
        node.attr.pop("_class", None)  # "beside that node", which may be gone
        if node.op == "VarHandleOp":
            flattening.read_operation(graph.session.graph, node.name)
    with graph.session.graph.as_default():
        frozen = convert_variables_to_constants_from_session_graph(graph.session, kept, ends)
    bodies = (function.node_def for function in frozen.library.function)
    for node in (*frozen.node, *(node for body in bodies for node in body)):
        # a loop that carried a variable's handle now carries its value
        node.attr.pop("_output_shapes", None)
    connected = _reconnected(frozen, inputs, tuple(outputs), graph)
    real, said = complex_numbers.lowered(connected)
    return Frozen(
        graph_def=real,
        inputs=inputs,
        outputs=tuple(outputs),
        repairs=(*graph.repairs, *repairs, *said),
    )


def _with_shapes(
    graph: Graph, dynamic: tuple[DynamicAxis, ...]
) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Name every dynamic axis, and refuse an input of unknown rank."""
    wishes = {(wish.input, wish.axis): wish.name for wish in dynamic}
    known = {item.spec.name for item in graph.inputs}
    for wish in dynamic:
        if wish.input not in known:
            raise UsageError(
                f"the model has no input `{wish.input}`", hint=f"inputs: {', '.join(sorted(known))}"
            )
    inputs, repairs = [], []
    for item in graph.inputs:
        name = item.spec.name
        if item.spec.shape is None:
            raise UsageError(
                f"the model does not say the rank of input `{name}`",
                hint=f"give it: --input {name}:{item.spec.dtype}[] for a scalar, "
                f"{name}:{item.spec.dtype}[?,224,224,3] for images",
            )
        axes = [axis for wished, axis in wishes if wished == name]
        if any(not 0 <= axis < len(item.spec.shape) for axis in axes):
            raise UsageError(f"input `{name}` has {len(item.spec.shape)} axes, asked for {axes}")
        shape = tuple(
            wishes.get((name, axis), size if size is not None else axis_name(name, axis))
            for axis, size in enumerate(item.spec.shape)
        )
        tensor = graph.session.graph.get_tensor_by_name(item.tensor)
        said = any("begins at " in line and f"`{name}`" in line for line in graph.repairs)
        if not tensor.op.type.startswith("Placeholder") and not said:
            repairs.append(f"the graph is cut at `{name}`")
        elif tensor.shape.rank is None and item.tensor not in graph.constants:
            repairs.append(f"placeholder `{name}` of unknown rank has the shape that was given")
        inputs.append(dataclasses.replace(item, spec=dataclasses.replace(item.spec, shape=shape)))
    return tuple(inputs), tuple(repairs)


def axis_name(input_name: str, axis: int) -> str:
    """Return a name for a dynamic axis that has none."""
    # by convention the first axis of every input counts the same examples
    return "batch" if axis == 0 else f"{re.sub(r'[^0-9A-Za-z]+', '_', input_name)}_axis{axis}"


def _reconnected(
    graph_def: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], source: Graph
) -> Any:
    """Import `graph_def` behind new placeholders: any tensor can be an input, with any shape."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        fed = {}
        for number, item in enumerate(inputs):
            sizes = [size if isinstance(size, int) else None for size in item.spec.shape or ()]
            dtype = tf.dtypes.as_dtype(item.spec.dtype)
            fed[item.tensor] = tf.compat.v1.placeholder(dtype, sizes, name=f"input_{number}")
        for name, value in source.constants.items():
            fed[name] = tf.constant(value)
        for name in source.draws:  # its size no longer matters either
            fed[name] = tf.constant(0.5, graph_tensor_dtype(source, name))
        tensors = [item.tensor for item in outputs]
        present = {node.name for node in graph_def.node}
        used = {name: tensor for name, tensor in fed.items() if name.split(":")[0] in present}
        found = tf.import_graph_def(
            graph_def, input_map=used, return_elements=tensors, name="model"
        )
        for number, tensor in enumerate(found):
            tf.identity(tensor, name=f"output_{number}")
        reachable = [f"output_{number}" for number in range(len(outputs))]
        reachable += [f"input_{number}" for number in range(len(inputs))]
        return flattening.inlined(graph, reachable)


def graph_tensor_dtype(graph: Graph, name: str) -> Any:
    """Return the dtype of a tensor of the open graph."""
    return graph.session.graph.get_tensor_by_name(name).dtype
