"""One run of an open graph: constants fed, state put in before and taken out after."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tensorflow import flattening
from deploykit._plugins.converters.tensorflow.graphs import Graph

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def caller(graph: Graph) -> Callable[..., list[Array]]:
    """Return a function from the values of all inputs to those of all outputs, in their order.

    State is written into the model's own variables, the model runs as it is, and the variables are
    read again: nothing of this knows how the ONNX model was made.
    """
    # an input that is fixed (the keep_prob of a dropout) is there and has no effect
    kept = [n for n, item in enumerate(graph.inputs) if item.tensor not in graph.constants]
    # a callable skips the look-ups and checks of Session.run at every call
    run: Callable[..., list[Array]] = graph.session.make_callable(
        [item.tensor for item in graph.outputs],
        feed_list=[*(graph.inputs[n].tensor for n in kept), *graph.constants],
    )
    constants = list(graph.constants.values())
    width = len(graph.inputs)

    def call(*values: Array) -> list[Array]:
        return list(run(*(values[n] for n in kept), *constants))

    if graph.state is None:
        return call
    write, read = _state(graph)

    def call_with_state(*values: Array) -> list[Array]:
        write(*values[width:])
        results = call(*values[:width])
        return [*results, *read()]

    return call_with_state


def _state(graph: Graph) -> tuple[Callable[..., Any], Callable[[], list[Array]]]:
    """Return functions that write and read all variables of state."""
    import tensorflow as tf

    assert graph.state is not None
    within = graph.session.graph
    feeds, writes, reads = [], [], []
    with within.as_default():
        for item in graph.state.variables:
            value = tf.compat.v1.placeholder(item.initial.dtype, item.initial.shape)
            variable = within.get_tensor_by_name(f"{item.node}:0")
            if within.get_operation_by_name(item.node).type == "VarHandleOp":
                writes.append(tf.raw_ops.AssignVariableOp(resource=variable, value=value))
                reads.append(flattening.read_operation(within, item.node))
            else:
                writes.append(tf.raw_ops.Assign(ref=variable, value=value).op)
                reads.append(variable)
            feeds.append(value)
    write = graph.session.make_callable(writes, feed_list=feeds)
    read = graph.session.make_callable(reads)
    return write, lambda: list(read())
