"""MXNet's fused recurrent layers and its operators on sequences of given length, as ONNX nodes.

The layout of the fused parameters: `src/operator/rnn-inl.h` and `python/mxnet/rnn/rnn_cell.py`
(`FusedRNNCell._slice_weights`) of Apache MXNet 1.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.emission import Emit, Value
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.errors import SourceError, UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

INT64 = 7
GATES = {
    "lstm": (0, 3, 1, 2),  # MXNet has input, forget, cell, output; ONNX input, output, forget, cell
    "gru": (1, 0, 2),  # MXNet has reset, update, new; ONNX update, reset, new
    "rnn_tanh": (0,),
    "rnn_relu": (0,),
}
"""At each of ONNX's gates, MXNet's."""


def _refused(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(f"node `{node.name}` {what}", operators=(node.op,))


def _rnn(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    """Layers over x [time, batch, width] from states [layers * directions, batch, units]."""
    import numpy as np

    mode, units = node.value("mode", ""), node.value("state_size", 0)
    layers, ways = node.value("num_layers", 1), 1 + node.value("bidirectional", False)
    x, parameters, states = ins[0], ins[1].array, ins[2:]
    limits = ("projection_size", "lstm_state_clip_min", "lstm_state_clip_max")
    if node.value("use_sequence_length", False) or any(node.value(k, None) for k in limits):
        raise _refused(node, "projects or clips its states, or takes the lengths of sequences")
    width = x.shape[2]
    if mode not in GATES or parameters is None or width is None:
        raise _refused(
            node, "has weights or a width that are computed, or another mode than lstm, gru, rnn"
        )
    weights = _unpacked(node, np.asarray(parameters).reshape(-1), width, (layers, ways, units))
    order, kind = GATES[mode], {"lstm": "LSTM", "gru": "GRU"}.get(mode, "RNN")
    names: list[list[str]] = [[] for _ in states]
    value = x.name
    for layer in range(layers):
        packed = []
        for part in range(2):
            both = [
                np.concatenate([np.split(one[part], len(order))[gate] for gate in order])
                for one in weights[layer]
            ]
            packed.append(build.constant(np.stack(both)))
        biases = [
            np.concatenate([np.split(bias, len(order))[gate] for bias in one[2:] for gate in order])
            for one in weights[layer]
        ]
        begins = [_begin(build, state, layer * ways, ways) for state in states]
        attributes: dict[str, Any] = {
            "hidden_size": units,
            "direction": "bidirectional" if ways == 2 else "forward",
            "linear_before_reset": 1 if mode == "gru" else None,
            "activations": ["Relu"] * ways if mode == "rnn_relu" else None,
        }
        outputs = build.add_many(
            kind,
            *(value, *packed, build.constant(np.stack(biases)), "", *begins),
            count=1 + len(states),
            **attributes,
        )
        # [time, directions, batch, units] to [time, batch, directions * units]
        turned = build.add("Transpose", outputs[0], perm=[0, 2, 1, 3])
        value = build.add("Reshape", turned, build.shape_constant([0, 0, ways * units]))
        for at, one in enumerate(outputs[1:]):
            names[at].append(one)
    found = [Value(value, (x.shape[0], x.shape[1], ways * units))]
    if node.value("state_outputs", False):
        found += [
            Value(build.add("Concat", *one, axis=0), (layers * ways, x.shape[1], units))
            for one in names
        ]
    return found


def _begin(build: GraphBuilder, state: Value, first: int, count: int) -> str:
    """Return the part of `state` that a layer begins with; nothing where it is zeros."""
    if state.array is not None and not state.array.any():
        return ""
    limits = (build.shape_constant([one]) for one in (first, first + count, 0))
    return build.add("Slice", state.name, *limits)


def _unpacked(
    node: Node, flat: Array, width: int, sizes: tuple[int, int, int]
) -> list[list[tuple[Array, ...]]]:
    """Return input and state weights, input and state biases, of each layer and direction.

    All weights come first, then all biases.
    """
    layers, ways, units = sizes
    rows = len(GATES[node.value("mode", "")]) * units
    widths = [width] + [ways * units] * (layers - 1)
    total = ways * sum(rows * (one + units + 2) for one in widths)
    if flat.size != total:
        raise SourceError(f"node `{node.name}` has {flat.size} weights where {total} are needed")
    at = 0
    matrices: list[tuple[Array, Array]] = []
    found: list[list[tuple[Array, ...]]] = []
    for one in widths:
        for _ in range(ways):
            first = flat[at : at + rows * one].reshape(rows, one)
            at += rows * one
            matrices.append((first, flat[at : at + rows * units].reshape(rows, units)))
            at += rows * units
    for layer in range(layers):
        row: list[tuple[Array, ...]] = []
        for way in range(ways):
            pair = (flat[at : at + rows], flat[at + rows : at + 2 * rows])
            row.append((*matrices[layer * ways + way], *pair))
            at += 2 * rows
        found.append(row)
    return found


def _joined_parameters(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    import numpy as np

    if any(one.array is None for one in ins):
        raise _refused(node, "joins weights that are computed")
    array = np.concatenate([one.array.reshape(-1) for one in ins])
    return [Value(build.constant(array), array.shape, str(array.dtype), array)]


def _times(build: GraphBuilder, x: Value, axis: int) -> str:
    """Return 0, 1, ... along the axis of time, in the rank of x without what is behind its batch."""
    place = build.constant(axis, dtype="int64")
    size = build.add("Gather", build.add("Shape", x.name), place)
    return build.add(
        "Range",
        *(build.constant(one, dtype="int64") for one in (0,)),
        size,
        build.constant(1, dtype="int64"),
    )


def _lengths(node: Node, x: Value) -> int:
    axis = node.value("axis", 0)
    if axis not in (0, 1) or x.rank < 2:
        raise _refused(node, f"has its time on axis {axis}")
    return int(axis)


def _mask(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, axis = ins[0], _lengths(node, ins[0])
    if not node.value("use_sequence_length", False):
        return [x]
    lengths = build.add("Cast", ins[1].name, to=INT64)
    times = build.add("Unsqueeze", _times(build, x, axis), build.shape_constant([1 - axis]))
    lengths = build.add("Unsqueeze", lengths, build.shape_constant([axis]))
    inside = build.add("Less", times, lengths)
    if x.rank > 2:
        inside = build.add("Unsqueeze", inside, build.shape_constant(list(range(2, x.rank))))
    name = build.add("Where", inside, x.name, build.constant(node.value("value", 0.0)))
    return [Value(name, x.shape)]


def _last(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x, axis = ins[0], _lengths(node, ins[0])
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if not node.value("use_sequence_length", False):
        name = build.add("Gather", x.name, build.constant(-1, dtype="int64"), axis=axis)
        return [Value(name, shape)]
    last = build.add(
        "Sub", build.add("Cast", ins[1].name, to=INT64), build.constant(1, dtype="int64")
    )
    first = x.name
    if axis == 0:
        first = build.add("Transpose", x.name, perm=[1, 0, *range(2, x.rank)])
    index = build.add("Unsqueeze", last, build.shape_constant([1]))
    return [Value(build.add("GatherND", first, index, batch_dims=1), shape)]


def _reversed(build: GraphBuilder, node: Node, ins: list[Value]) -> list[Value]:
    x = ins[0]
    if node.value("axis", 0) != 0:
        raise _refused(node, "turns sequences whose time is not the first axis")
    if not node.value("use_sequence_length", False):
        limits = (build.shape_constant([one]) for one in (2**31 - 1, -(2**31), 0, -1))
        return [Value(build.add("Slice", x.name, *limits), x.shape)]
    lengths = build.add("Cast", ins[1].name, to=INT64)
    name = build.add("ReverseSequence", x.name, lengths, batch_axis=1, time_axis=0)
    return [Value(name, x.shape)]


EMIT: dict[str, Emit] = {
    "RNN": _rnn,
    "_rnn_param_concat": _joined_parameters,
    "SequenceMask": _mask,
    "SequenceLast": _last,
    "SequenceReverse": _reversed,
}
