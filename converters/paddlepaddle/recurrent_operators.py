"""Paddle 1's `lstm` and `gru` over sequences as ONNX's operators.

Both take inputs that were projected before (`fc`), so ONNX's input weights are an identity that puts
the gates in ONNX's order. Sources: `lstm_op.cc` and `gru_op.cc` of Paddle 1.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle.sequence_operators import Emit, Slots, refused
from deploykit._plugins.converters.paddlepaddle.sequences import Sequences, Value

from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ACTIVATIONS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "identity": "Affine"}

LSTM_GATES = (1, 3, 2, 0)
"""Input, output, forget, cell (ONNX) among cell, input, forget, output (Paddle)."""


def _constant(values: list[Value], kind: str) -> Array:
    found: Array | None = values[0].constant if values else None
    if found is None:
        raise refused("with weights that are computed", kind)
    return found


def _activations(attributes: Mapping[str, Any], names: tuple[str, ...], kind: str) -> list[str]:
    found = [str(attributes[name]) for name in names]
    for name in found:
        if name not in ACTIVATIONS:
            raise refused(f"with the activation {name}", kind)
    return [ACTIVATIONS[name] for name in found]


def _start(build: GraphBuilder, ins: Slots, slot: str) -> str:
    """Return an initial state [1, batch, width], or nothing for zeros."""
    given = ins.get(slot)
    return build.add("Unsqueeze", given[0].name, build.shape_constant([0])) if given else ""


def _steps(build: GraphBuilder, x: Value, kind: str) -> tuple[Sequences, str, str]:
    """Return the sequences, the input [longest, batch, width] and the lengths as int32."""
    if not x.lengths:
        raise refused("on an input without sequences", kind)
    own = Sequences(build, x)
    padded = build.add("Transpose", own.padded(x.name), perm=[1, 0, 2])
    return own, padded, build.add("Cast", own.lengths, to=6)


def _back(build: GraphBuilder, own: Sequences, steps: str, width: int) -> str:
    """Return [longest, 1, batch, width] as rows."""
    steps = build.add("Squeeze", steps, build.shape_constant([1]))
    rows: str = own.packed(build.add("Transpose", steps, perm=[1, 0, 2]), width)
    return rows


def _lstm(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    import numpy as np

    x = ins["Input"][0]
    weight, bias = _constant(ins["Weight"], "lstm"), _constant(ins["Bias"], "lstm").reshape(-1)
    width = weight.shape[0]
    own, steps, lengths = _steps(build, x, "lstm")
    order = np.concatenate([np.arange(width) + width * gate for gate in LSTM_GATES])
    recurrent = weight.T[order]
    first = np.concatenate([bias[: 4 * width][order], np.zeros(4 * width, bias.dtype)])
    peepholes = ""
    if attributes.get("use_peepholes", True) and bias.size == 7 * width:
        into, forget, out = np.split(bias[4 * width :], 3)
        peepholes = build.constant(np.concatenate([into, out, forget])[None])
    gate, cell, candidate = _activations(
        attributes, ("gate_activation", "cell_activation", "candidate_activation"), "lstm"
    )
    hidden, _, _ = build.add_many(
        "LSTM",
        steps,
        build.constant(np.eye(4 * width, dtype=weight.dtype)[order][None]),
        build.constant(recurrent[None]),
        build.constant(first[None]),
        lengths,
        _start(build, ins, "H0"),
        _start(build, ins, "C0"),
        peepholes,
        count=3,
        hidden_size=width,
        activations=[gate, candidate, cell],
        direction="reverse" if attributes.get("is_reverse") else "forward",
    )
    return {"Hidden": x.on(_back(build, own, hidden, width))}


def _gru(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    import numpy as np

    x = ins["Input"][0]
    weight = _constant(ins["Weight"], "gru")
    width = weight.shape[0]
    # stored as two matrices one behind the other: of both gates, then of the candidate
    flat = weight.reshape(-1)
    gates = flat[: 2 * width * width].reshape(width, 2 * width)
    candidate = flat[2 * width * width :].reshape(width, width)
    recurrent = np.concatenate([gates.T, candidate.T])
    bias = np.zeros(3 * width, weight.dtype)
    if ins.get("Bias"):
        bias = _constant(ins["Bias"], "gru").reshape(-1).astype(weight.dtype)
    inputs = np.eye(3 * width, dtype=weight.dtype)
    gate, activation = _activations(attributes, ("gate_activation", "activation"), "gru")
    if not attributes.get("origin_mode", False):
        if gate != "Sigmoid":
            raise refused("whose update gate is no sigmoid", "gru")
        # here the gate weighs the candidate, in ONNX the old state: 1 - sigmoid(x) = sigmoid(-x)
        sign = np.repeat(np.array([-1, 1, 1], weight.dtype), width)
        inputs, recurrent, bias = inputs * sign[:, None], recurrent * sign[:, None], bias * sign
    own, steps, lengths = _steps(build, x, "gru")
    hidden, _ = build.add_many(
        "GRU",
        steps,
        build.constant(inputs[None]),
        build.constant(recurrent[None]),
        build.constant(np.concatenate([bias, np.zeros_like(bias)])[None]),
        lengths,
        _start(build, ins, "H0"),
        count=2,
        hidden_size=width,
        activations=[gate, activation],
        direction="reverse" if attributes.get("is_reverse") else "forward",
    )
    return {"Hidden": x.on(_back(build, own, hidden, width))}


EMIT: dict[str, Emit] = {"lstm": _lstm, "gru": _gru}
