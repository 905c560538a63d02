"""MXNet's recurrent layers and operators on sequences, by definition in numpy and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import Node

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]
    Step = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]


def _step(mode: str, matrices: tuple[Array, Array], biases: tuple[Array, Array]) -> Step:
    """Return one step of a layer, from its formula in the documentation of `RNN`."""
    import numpy as np

    def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        own = x @ matrices[0].T + biases[0]
        past = state[0] @ matrices[1].T + biases[1]
        if mode == "lstm":
            enter, forget, cell, leave = np.split(own + past, 4, axis=-1)
            kept = define.sigmoid(forget) * state[1] + define.sigmoid(enter) * np.tanh(cell)
            return define.sigmoid(leave) * np.tanh(kept), kept
        if mode == "gru":
            (r, z, n), (old_r, old_z, old_n) = (np.split(one, 3, axis=-1) for one in (own, past))
            update = define.sigmoid(z + old_z)
            new = np.tanh(n + define.sigmoid(r + old_r) * old_n)
            return ((1 - update) * new + update * state[0],)
        total = own + past
        return (np.tanh(total) if mode == "rnn_tanh" else total * (total > 0),)

    return step


def _rnn(node: Node, ins: list[Array]) -> list[Array]:
    import numpy as np

    x, flat, *states = (one.astype(np.float64) for one in ins)
    mode, units = node.value("mode", ""), node.value("state_size", 0)
    rows = units * {"lstm": 4, "gru": 3}.get(mode, 1)
    layers, ways = node.value("num_layers", 1), 2 if node.value("bidirectional", False) else 1
    flat, cut = flat.reshape(-1), 0

    def take(*shape: int) -> Array:
        nonlocal cut
        cut += int(np.prod(shape))
        return flat[cut - int(np.prod(shape)) : cut].reshape(shape)

    widths = [x.shape[-1]] + [ways * units] * (layers - 1)
    matrices = [(take(rows, width), take(rows, units)) for width in widths for _ in range(ways)]
    biases = [(take(rows), take(rows)) for _ in range(layers * ways)]
    lasts: list[list[Array]] = [[] for _ in states]
    for layer in range(layers):
        parts = []
        for way in range(ways):
            at = layer * ways + way
            begin = tuple(np.broadcast_to(one[at], (x.shape[1], units)) for one in states)
            step = _step(mode, matrices[at], biases[at])
            found, last = define.recurrent(x, begin, step, reverse=way == 1)
            parts.append(found)
            for place, one in enumerate(last):
                lasts[place].append(one)
        x = np.concatenate(parts, axis=-1)
    return [x, *(np.stack(one) for one in lasts)] if node.value("state_outputs", False) else [x]


def _joined(_node: Node, ins: list[Array]) -> Any:
    import numpy as np

    return np.concatenate([one.reshape(-1) for one in ins])


def _each(node: Node, ins: list[Array]) -> Any:
    """Return x with its batch first, then the time, and the length of each sequence."""
    axis = node.value("axis", 0)
    x = ins[0].swapaxes(0, 1) if axis == 0 else ins[0]
    if node.value("use_sequence_length", False):
        return x.astype("float64"), ins[1].astype(int)
    return x.astype("float64"), [x.shape[1]] * len(x)


def _mask(node: Node, ins: list[Array]) -> Any:
    x, lengths = _each(node, ins)
    found = x.copy()
    for one, length in zip(found, lengths, strict=True):
        one[length:] = node.value("value", 0.0)
    return found.swapaxes(0, 1) if node.value("axis", 0) == 0 else found


def _last(node: Node, ins: list[Array]) -> Any:
    import numpy as np

    return np.stack([one[length - 1] for one, length in zip(*_each(node, ins), strict=True)])


def _reversed(node: Node, ins: list[Array]) -> Any:
    x, lengths = _each(node, ins)
    found = x.copy()
    for one, length in zip(found, lengths, strict=True):
        one[:length] = one[:length][::-1].copy()
    return found.swapaxes(0, 1)


COMPUTE: dict[str, Compute] = {
    "RNN": _rnn,
    "_rnn_param_concat": _joined,
    "SequenceMask": _mask,
    "SequenceLast": _last,
    "SequenceReverse": _reversed,
}
