"""TensorFlow Lite's fused LSTM as ONNX's, which tf2onnx lacks."""

from __future__ import annotations

from typing import Any

from deploykit.errors import UnsupportedError

LSTM = "TFL_UNIDIRECTIONAL_SEQUENCE_LSTM"

_PLAIN_INPUTS = 15
"""Data, 4 input weights, 4 recurrent weights, 4 biases (in, forget, cell, out), 2 variables: the
operator without peepholes, projection, normalisation and coupled gates. tf2onnx leaves absent
inputs out, so any other number means one of those."""


def replace_lstms(graph: Any) -> tuple[str, ...]:
    """Write every fused LSTM of tf2onnx's `graph` as an ONNX LSTM; say what that leaves out.

    Raises UnsupportedError for a variant that ONNX's LSTM does not have.
    """
    notes: dict[str, None] = {}
    for node in [node for node in graph.get_nodes() if node.type == LSTM]:
        clip = _check(graph, node)
        _replace(graph, node)
        notes[
            "TensorFlow Lite's fused LSTM is written as ONNX LSTM, its state zero at every run"
        ] = None
        if clip:
            notes[f"ONNX LSTM does not limit its cell state (the source does, to {clip:g})"] = None
    return tuple(notes)


def _check(graph: Any, node: Any) -> float:
    def refused(why: str) -> UnsupportedError:
        return UnsupportedError(
            f"ONNX's LSTM has no form for the fused LSTM `{node.name}`: {why}",
            operators=(LSTM[4:],),
        )

    if len(node.input) != _PLAIN_INPUTS:
        raise refused("it has peepholes, a projection, normalisation or coupled gates")
    activation = node.get_attr_str("fused_activation_function")
    if activation != "TANH":
        raise refused(f"its activation is {activation}")
    if not all(_is_float_constant(graph, name) for name in node.input[1:13]):
        raise refused("its weights are quantised or computed")
    return float(node.get_attr_value("cell_clip", 0.0))


def _is_float_constant(graph: Any, name: str) -> bool:
    producer = graph.get_node_by_output(name)
    return (
        producer is not None
        and producer.is_const()
        and producer.get_tensor_value(as_list=False).dtype.kind == "f"
    )


def _replace(graph: Any, node: Any) -> None:
    import numpy as np

    def joined(names: list[str]) -> Any:
        enter, forget, cell, leave = (
            graph.get_node_by_output(name).get_tensor_value(as_list=False) for name in names
        )
        return np.concatenate([enter, leave, forget, cell])  # ONNX's order of the gates: i o f c

    weights, recurrent = joined(node.input[1:5])[None], joined(node.input[5:9])[None]
    biases = joined(node.input[9:13])
    both = np.concatenate([biases, np.zeros_like(biases)])[None]  # of input and of recurrence

    def constant(part: str, value: Any) -> str:
        return str(graph.make_const(f"{node.name}__{part}", value.astype(np.float32)).output[0])

    def made(kind: str, inputs: list[str], **attributes: Any) -> str:
        return str(graph.make_node(kind, inputs, attr=attributes, skip_conversion=True).output[0])

    time_major = node.get_attr_int("time_major") == 1
    data, result = node.input[0], node.output[0]
    shape, dtype = graph.get_shape(result), graph.get_dtype(result)
    graph.remove_node(node.name)
    steps = data if time_major else made("Transpose", [data], perm=[1, 0, 2])
    hidden = int(recurrent.shape[2])
    lstm = graph.make_node(
        "LSTM",
        [
            steps,
            constant("weights", weights),
            constant("recurrent_weights", recurrent),
            constant("biases", both),
        ],
        attr={"hidden_size": hidden, "direction": "forward"},
        output_count=1,
        skip_conversion=True,
    ).output[0]  # [time, 1, batch, hidden]
    graph.make_node(
        "Transpose",
        [made_squeezed(graph, node.name, lstm)],
        attr={"perm": [0, 1, 2] if time_major else [1, 0, 2]},
        outputs=[result],
        shapes=[shape],
        dtypes=[dtype],
        skip_conversion=True,
    )


def made_squeezed(graph: Any, name: str, tensor: str) -> str:
    """Drop ONNX's axis of directions from `tensor` and return the result's name."""
    import numpy as np

    axis = graph.make_const(f"{name}__direction_axis", np.array([1], dtype=np.int64)).output[0]
    return str(graph.make_node("Squeeze", [tensor, axis], skip_conversion=True).output[0])
