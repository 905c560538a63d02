"""One flat graph out of a graph with functions, and a walk over what a graph runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def needed_nodes(graph_def: Any, outputs: Iterable[str], stops: Iterable[str] = ()) -> set[str]:
    """Return the nodes that `outputs` depend on, `stops` included and nothing behind them."""
    nodes = {node.name: node for node in graph_def.node}
    ends = set(stops)
    waiting, found = [*outputs, *ends], set()
    while waiting:
        name = waiting.pop()
        if name in found or name not in nodes:
            continue
        found.add(name)
        if name not in ends:
            waiting.extend(source.lstrip("^").split(":")[0] for source in nodes[name].input)
    return found


def needed_nodes_of(nodes: dict[str, Any], tensor: str) -> set[str]:
    """Return the names in `nodes` that `tensor` depends on."""
    waiting, found = [tensor], set()
    while waiting:
        name = waiting.pop().lstrip("^").split(":")[0]
        if name not in found and name in nodes:
            found.add(name)
            waiting.extend(nodes[name].input)
    return found


def nodes_and_bodies(graph_def: Any, needed: set[str]) -> Iterator[Any]:
    """Yield the `needed` nodes and those of all functions that they call, each function once."""
    functions = {item.signature.name: item for item in graph_def.library.function}
    waiting = [node for node in graph_def.node if node.name in needed]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        yield node
        called = [node.op]
        for value in node.attr.values():
            called += [value.func.name, *(item.name for item in value.list.func)]
        for name in called:
            if name in functions and name not in seen:
                seen.add(name)
                waiting.extend(functions[name].node_def)


def read_operation(graph: Any, name: str) -> Any:
    """Return the value of the resource variable of node `name`, under the name where freezing looks."""
    import tensorflow as tf

    try:
        return graph.get_tensor_by_name(f"{name}/Read/ReadVariableOp:0")
    except KeyError:
        handle = graph.get_tensor_by_name(f"{name}:0")
        dtype = tf.dtypes.as_dtype(handle.op.get_attr("dtype"))
        with graph.as_default(), tf.compat.v1.name_scope(""):
            return tf.raw_ops.ReadVariableOp(
                resource=handle, dtype=dtype, name=f"{name}/Read/ReadVariableOp"
            )


def flat_graph(
    session: Any, outputs: tuple[str, ...], stops: tuple[str, ...]
) -> tuple[Any, tuple[str, ...]]:
    """Return the flat GraphDef that `outputs` (tensors) need, and the names of nodes that give them.

    A function's writes come before its results: whoever runs it runs all of it.
    """
    import tensorflow as tf

    graph = session.graph
    names = []
    with graph.as_default():
        for number, name in enumerate(outputs):
            tensor = graph.get_tensor_by_name(name)
            with tf.control_dependencies([tensor.op]):
                names.append(tf.identity(tensor, name=f"flat_output_{number}").op.name)
    inputs = [name.split(":")[0] for name in stops]
    whole = inlined(graph, [*names, *inputs])
    needed = needed_nodes(whole, [*names, *inputs])
    flat = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    flat.node.extend(node for node in whole.node if node.name in needed)
    for node in flat.node:
        node.device = ""
        node.attr.pop("_class", None)  # "beside that node", which may be gone
    return flat, tuple(names)


def inlined(graph: Any, outputs: list[str]) -> Any:
    """Return the GraphDef of `graph` that `outputs` need, with function calls replaced by bodies.

    A Keras SavedModel is one call; left so, the weights are arguments to tf2onnx, not constants.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import rewriter_config_pb2
    from tensorflow.python.framework.convert_to_constants import disable_lower_using_switch_merge
    from tensorflow.python.grappler import tf_optimizer

    kept = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), outputs)
    _drop_unused_functions(kept)
    if not kept.library.function:
        return kept
    # tf2onnx and we ourselves read loops better as functions than as frames of Enter and Exit
    kept = disable_lower_using_switch_merge(kept)
    for function in kept.library.function:
        # the name of a faster variant for another device, which inlining must not choose
        function.attr.pop("api_implements", None)
    # without the collections of the graph: they name what is no longer there
    meta = tf.compat.v1.MetaGraphDef(graph_def=kept)
    meta.collection_def["train_op"].node_list.value.extend(f"{name}:0" for name in outputs)
    config = tf.compat.v1.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.append("function")
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta)


def _drop_unused_functions(graph_def: Any) -> None:
    """Leave the functions out that no node calls: those that read data sets, or trained."""
    functions = {item.signature.name: item for item in graph_def.library.function}
    called: set[str] = set()
    for node in nodes_and_bodies(graph_def, {node.name for node in graph_def.node}):
        called.add(node.op)
        for value in node.attr.values():
            called.update([value.func.name, *(item.name for item in value.list.func)])
    del graph_def.library.function[:]
    graph_def.library.function.extend(item for name, item in functions.items() if name in called)
    kept = [item for item in graph_def.library.gradient if item.function_name in called]
    del graph_def.library.gradient[:]
    graph_def.library.gradient.extend(kept)
