"""CNTK's operators along the sequence by definition, in CNTK's order of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.evaluation_shapes import Compute, Datum
from deploykit._plugins.converters.cntk.graph import Node

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def level(ins: Sequence[Datum]) -> list[Array]:
    """Return arrays that broadcast as CNTK does it: shapes begin at the same axis."""
    rank = max(one.rank for one in ins)
    return [one.array.reshape(*one.array.shape, *[1] * (rank - one.rank)) for one in ins]


def _delay(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    data, initial = level(ins)
    offset, length = int(node.attributes.get("offset", 1)), data.shape[1]
    shape = np.broadcast_shapes(data.shape, initial.shape)
    data = np.broadcast_to(data, shape)
    found = np.array(np.broadcast_to(initial, shape), np.float64)
    kept = max(length - offset, 0)
    if node.op == "PastValue":
        found[:, length - kept :] = data[:, :kept]
    else:
        found[:, :kept] = data[:, length - kept :]
    return replace(ins[0], array=found)


def _reconcile(_node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    data, like = ins
    batch, length = (
        max(a, b) for a, b in zip(data.array.shape[:2], like.array.shape[:2], strict=True)
    )
    wide = np.broadcast_to(data.array, (batch, length, *data.array.shape[2:]))
    return Datum(wide, like.batch, like.sequence)


def _where(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    mask = ins[0].array.reshape(*ins[0].array.shape[:2]) != 0
    axes = node.attributes.get("newDynamicAxes")
    if axes:
        sequence = next((axis.name for axis in axes if axis.name != "batch"), "")
    else:
        single = node.attributes.get("newSequenceAxisLengthScalingFactor") == 0
        sequence = "" if single else f"{ins[0].sequence}_where"
    places = tuple(tuple(int(at) for at in np.flatnonzero(row)) for row in mask)
    return Datum(ins[0].array, ins[0].batch, sequence, places)


def _gather_packed(_node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    data, places = ins
    rows = places.places * (len(data.array) if len(places.places) == 1 else 1)
    kept = [row[:1] or (0,) for row in rows] if not places.sequence else list(rows)
    parts = [one[list(row)] for one, row in zip(data.array, kept, strict=True)]
    return Datum(np.stack(parts), data.batch, places.sequence)


def _unpack(_node: Node, ins: list[Datum]) -> list[Datum]:
    import numpy as np

    x = ins[0].array
    made = np.moveaxis(x, 1, -1)[:, None]
    return [Datum(made, ins[0].batch), Datum(np.ones((len(x), 1, x.shape[1])), ins[0].batch)]


def _to_sequence(node: Node, ins: list[Datum]) -> Datum:
    import numpy as np

    name = ins[1].sequence if len(ins) > 1 else node.attributes.get("sequenceAxis") or "sequence"
    return Datum(np.moveaxis(ins[0].array[:, 0], -1, 1), ins[0].batch, str(name))


def _stack(node: Node, ins: list[Datum]) -> Datum:
    """Compute layers of cuDNN's recurrent cells, both directions of a layer side by side.

    The weights are one vector: for each layer and direction W and R, gate after gate, and behind
    those of all layers the two biases of each gate.
    """
    import numpy as np

    a = node.attributes
    hidden, kind = int(a["hiddenSize"]), a["recurrentOp"]
    gates = {"lstm": 4, "gru": 3}.get(kind, 1)
    ways = 2 if a["bidirectional"] else 1
    x = ins[0].array
    flat = ins[1].array[0, 0].transpose().reshape(-1)
    at = 0

    def next_matrix(columns: int) -> Array:
        nonlocal at
        size = hidden * columns
        found = [
            flat[at + g * size : at + (g + 1) * size].reshape(hidden, columns) for g in range(gates)
        ]
        at += gates * size
        return np.stack(found)

    widths = [x.shape[2]] + [ways * hidden] * (int(a["numLayers"]) - 1)
    weights = [[(next_matrix(n), next_matrix(hidden)) for _ in range(ways)] for n in widths]
    biases = [[(next_matrix(1), next_matrix(1)) for _ in range(ways)] for _ in widths]
    for layer, shifts in zip(weights, biases, strict=True):
        sides = [
            _layer(kind, x, *matrices, *(one[..., 0] for one in both), backwards=bool(way))
            for way, (matrices, both) in enumerate(zip(layer, shifts, strict=True))
        ]
        x = np.concatenate(sides, axis=2)
    return replace(ins[0], array=x)


def _layer(
    kind: str, x: Array, w: Array, r: Array, bw: Array, br: Array, *, backwards: bool
) -> Array:
    """Return the states of one direction of a layer: `x` is [batch, step, input]."""
    import numpy as np

    batch, length = x.shape[:2]
    h = c = np.zeros((batch, r.shape[1]))
    found: list[Any] = [None] * length
    for t in range(length)[:: -1 if backwards else 1]:
        own = [x[:, t] @ one.T + b for one, b in zip(w, bw, strict=True)]
        past = [h @ one.T + b for one, b in zip(r, br, strict=True)]
        if kind == "lstm":
            i, f, new, o = (p + q for p, q in zip(own, past, strict=True))
            c = define.sigmoid(f) * c + define.sigmoid(i) * np.tanh(new)
            h = define.sigmoid(o) * np.tanh(c)
        elif kind == "gru":
            reset, update = (define.sigmoid(own[g] + past[g]) for g in (0, 1))
            h = (1 - update) * np.tanh(own[2] + reset * past[2]) + update * h
        else:
            total = own[0] + past[0]
            h = np.tanh(total) if kind == "rnnTanh" else np.maximum(total, 0)
        found[t] = h
    return np.stack(found, axis=1)


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(("PastValue", "FutureValue"), _delay),
    "ReconcileDynamicAxis": _reconcile,
    "Where": _where,
    "PackedIndex": lambda _node, ins: ins[1],
    "GatherPacked": _gather_packed,
    "UnpackSequence": _unpack,
    **dict.fromkeys(("ToSequence", "ToSequenceLike"), _to_sequence),
    "OptimizedRNNStack": _stack,
}
