"""From an open graph to one GraphDef of constants, cut and shaped as asked, ready for tf2onnx."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from deploykit._plugins.converters.tensorflow.graphs import Graph, Tensor

from deploykit.errors import UnsupportedError, UsageError
from deploykit.progress import phase
from deploykit.protocol import DynamicAxis

_WRITES = frozenset(
    [
        "Assign",
        "AssignAdd",
        "AssignSub",
        "AssignVariableOp",
        "AssignAddVariableOp",
        "AssignSubVariableOp",
        "ScatterUpdate",
        "ScatterAdd",
        "ScatterSub",
        "ScatterNdUpdate",
        "ResourceScatterUpdate",
        "ResourceScatterAdd",
        "ResourceScatterNdUpdate",
        "LookupTableInsert",
        "LookupTableInsertV2",
        "TensorListPushBackResource",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """`graph_def` with placeholders `input_0`… and identities `output_0`… in the model's order."""

    graph_def: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    repairs: tuple[str, ...] = ()


def freeze(graph: Graph, dynamic: tuple[DynamicAxis, ...] = ()) -> Frozen:
    """Turn the variables of `graph` into constants and its inputs into placeholders of known rank.

    Raises UnsupportedError for a graph that writes variables, UsageError for an input whose rank
    nobody said.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph,
    )

    phase("freezing variables")
    names = [item.tensor.split(":")[0] for item in graph.outputs]
    whole = graph.session.graph.as_graph_def(add_shapes=False)
    stops = {item.tensor.split(":")[0] for item in graph.inputs}
    needed = _needed(whole, names, stops)
    _refuse_writes(whole, needed)
    kept = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    kept.node.extend(node for node in whole.node if node.name in needed)
    for node in kept.node:
        node.device = ""
    with graph.session.graph.as_default():
        frozen = convert_variables_to_constants_from_session_graph(graph.session, kept, names)
    inputs, repairs = _with_shapes(graph, dynamic)
    return Frozen(
        graph_def=_reconnected(frozen, inputs, graph.outputs),
        inputs=inputs,
        outputs=graph.outputs,
        repairs=repairs,
    )


def _needed(graph_def: Any, outputs: list[str], stops: set[str]) -> set[str]:
    """Return the nodes that `outputs` depend on, not looking behind the inputs."""
    nodes = {node.name: node for node in graph_def.node}
    waiting, found = [*outputs, *stops], set()
    while waiting:
        name = waiting.pop()
        if name in found or name not in nodes:
            continue
        found.add(name)
        waiting.extend(
            source.lstrip("^").split(":")[0]
            for source in nodes[name].input
            # the graph is cut at an inner tensor that was named as input, but must stay loadable
        )
    return found


def _refuse_writes(graph_def: Any, needed: set[str]) -> None:
    functions = {item.signature.name: item for item in graph_def.library.function}
    waiting = [node for node in graph_def.node if node.name in needed]
    seen: set[str] = set()
    written: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node.op in _WRITES:
            written[node.op] = None
        called = [node.op]
        for value in node.attr.values():
            called += [value.func.name, *(item.name for item in value.list.func)]
        for name in called:
            if name in functions and name not in seen:
                seen.add(name)
                waiting.extend(functions[name].node_def)
    if written:
        raise UnsupportedError(
            f"the model keeps state between calls (it runs {', '.join(sorted(written))}), "
            "an ONNX model does not",
            hint="export a variant whose state is an input and an output",
            operators=tuple(sorted(written)),
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
        if not tensor.op.type.startswith("Placeholder"):
            repairs.append(f"the graph is cut at `{name}`")
        elif tensor.shape.rank is None:
            repairs.append(f"placeholder `{name}` of unknown rank has the shape that was given")
        inputs.append(dataclasses.replace(item, spec=dataclasses.replace(item.spec, shape=shape)))
    return tuple(inputs), tuple(repairs)


def axis_name(input_name: str, axis: int) -> str:
    """Return a name for a dynamic axis that has none."""
    # by convention the first axis of every input counts the same examples
    return "batch" if axis == 0 else f"{re.sub(r'[^0-9A-Za-z]+', '_', input_name)}_axis{axis}"


def _reconnected(graph_def: Any, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Any:
    """Import `graph_def` behind new placeholders: any tensor can be an input, with any shape."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        fed = {}
        for number, item in enumerate(inputs):
            sizes = [size if isinstance(size, int) else None for size in item.spec.shape or ()]
            dtype = tf.dtypes.as_dtype(item.spec.dtype)
            fed[item.tensor] = tf.compat.v1.placeholder(dtype, sizes, name=f"input_{number}")
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
        return _inlined(graph, reachable)


def _inlined(graph: Any, outputs: list[str]) -> Any:
    """Return the GraphDef of `graph` that `outputs` need, with function calls replaced by bodies.

    A Keras SavedModel is one call; left so, the weights are arguments to tf2onnx, not constants.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    kept = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), outputs)
    for function in kept.library.function:
        # the name of a faster variant for another device, which inlining must not choose
        function.attr.pop("api_implements", None)
    meta = tf.compat.v1.train.export_meta_graph(graph_def=kept, graph=graph)
    meta.collection_def["train_op"].node_list.value.extend(f"{name}:0" for name in outputs)
    config = tf.compat.v1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.append("function")
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta)
