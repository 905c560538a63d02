"""Recurrent layers of TensorFlow Lite step by step, from a state of zeros.

Equations of `lstm_eval.cc`, `rnn` and `svdf` of TensorFlow Lite; an LSTM's inputs by their numbers
in `tensorflow/lite/kernels/lstm_shared.h`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.evaluation_call import Call, Compute
from deploykit._plugins.converters.tflite.evaluation_windows import levels

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def _act(call: Call, value: Array) -> Any:
    import numpy as np

    kind = call.option("activation")
    if kind == "TANH":
        return np.tanh(value)
    return call.activated(value)


class _Cell:
    """The weights of one direction, the first at input `start`."""

    def __init__(self, call: Call, start: int, norm: int | None) -> None:
        self.call = call
        self.start = start
        self.norm = norm

    def _maybe(self, at: int) -> Any:
        return self.call.real(at) if self.call.has(at) else None

    def _product(self, x: Array, at: int) -> Any:
        if not self.call.has(at):
            return 0.0
        if self.call.tensor(at).quantized:
            x = levels(self.call, x, (1,), bool(self.call.option("asymmetric")))
        return x @ self.call.real(at).T

    def _gate(self, gate: int, x: Array, h: Array, cell: Array | None) -> Any:
        """Gates by number: input, forget, cell, output."""
        import numpy as np

        total = self._product(x, self.start + gate) + self._product(h, self.start + 4 + gate)
        if cell is not None:
            look = self._maybe(self.start + 8 + (0, 1, None, 2)[gate])  # type: ignore[operator]
            total = total + (cell * look if look is not None else 0)
        if self.norm is not None and self.call.has(self.norm + gate):
            total = total - total.mean(axis=1, keepdims=True)
            spread = (total * total).mean(axis=1, keepdims=True)
            total = total / np.sqrt(np.where(spread == 0, 1e-8, spread))
            total = total * self.call.real(self.norm + gate)
        bias = self._maybe(self.start + 11 + gate)
        return np.asarray(total + (bias if bias is not None else 0))

    def step(self, x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Return the next (hidden, cell)."""
        import numpy as np

        h, c = state
        forget = define.sigmoid(self._gate(1, x, h, c))
        coupled = not self.call.has(self.start)
        enter = 1 - forget if coupled else define.sigmoid(self._gate(0, x, h, c))
        c = forget * c + enter * _act(self.call, self._gate(2, x, h, None))
        limit = self.call.option("cell_clip")
        c = np.clip(c, -limit, limit) if limit > 0 else c
        h = define.sigmoid(self._gate(3, x, h, c)) * _act(self.call, c)
        if self.call.has(self.start + 15):
            h = self._product(h, self.start + 15)
            bias = self._maybe(self.start + 16)
            h = h + (bias if bias is not None else 0)
            limit = self.call.option("proj_clip")
            h = np.clip(h, -limit, limit) if limit > 0 else h
        return h, c

    def run(self, steps: Array, h: int, c: int, *, reverse: bool = False) -> Any:
        """Return the outputs over time."""
        state = tuple(_begin(self.call, at, steps.shape[1]) for at in (h, c))
        return define.recurrent(steps, state, self.step, reverse=reverse)[0]


def _begin(call: Call, at: int, batch: int) -> Any:
    import numpy as np

    if call.tensor(at).variable or not call.has(at):
        return np.zeros((batch, call.tensor(at).shape[-1]))
    return call.real(at)


def _steps(call: Call) -> Any:
    import numpy as np

    x = call.real(0)
    return x if call.option("time_major") else np.swapaxes(x, 0, 1)


def _shown(call: Call, value: Array, at: int = 0) -> Any:
    import numpy as np

    return call.given(value if call.option("time_major") else np.swapaxes(value, 0, 1), at)


def _lstm(call: Call) -> Any:
    cell = _Cell(call, 1, 20)
    return _shown(call, cell.run(_steps(call), 18, 19))


def _both(call: Call, forward: Array, backward: Array) -> list[Array]:
    import numpy as np

    if call.option("merge_outputs"):
        return [_shown(call, np.concatenate([forward, backward], axis=2))]
    return [_shown(call, forward), _shown(call, backward, 1)]


def _two_lstms(call: Call) -> list[Array]:
    steps = _steps(call)
    forward = _Cell(call, 1, None).run(steps, 35, 36)
    backward = _Cell(call, 18, None).run(steps, 37, 38, reverse=True)
    return _both(call, forward, backward)


def _plain(call: Call, start: int, steps: Array, *, reverse: bool = False) -> Any:
    w, r, b = (call.real(start + at) for at in range(3))

    def step(x: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        return (_act(call, x @ w.T + state[0] @ r.T + b),)

    begin = (_begin(call, start + 3, steps.shape[1]),)
    return define.recurrent(steps, begin, step, reverse=reverse)[0]


def _rnn(call: Call) -> Any:
    return _shown(call, _plain(call, 1, _steps(call)))


def _two_rnns(call: Call) -> list[Array]:
    steps = _steps(call)
    return _both(call, _plain(call, 1, steps), _plain(call, 5, steps, reverse=True))


def _one_step(call: Call) -> Any:
    x = call.real(0)
    if call.tensor(1).quantized:
        x = levels(call, x, (1,), bool(call.option("asymmetric")))
    total = x @ call.real(1).T + call.real(3)
    if not call.tensor(4).variable:
        total = total + call.real(4) @ call.real(2).T
    return call.given(_act(call, total))


def _svdf(call: Call) -> Any:
    """The memory holds zeros but for its newest place, which this step fills."""
    import numpy as np

    x, features, time = call.real(0), call.real(1), call.real(2)
    if call.tensor(1).quantized:
        x = levels(call, x, (1,), bool(call.option("asymmetric")))
    memory = np.zeros((len(x), *time.shape))
    memory[:, :, -1] = x @ features.T
    total = (memory * time).sum(axis=2)
    rank = call.option("rank")
    found = total.reshape(len(x), -1, rank).sum(axis=2)
    if call.has(3):
        found = found + call.real(3)
    return call.given(call.activated(found))


COMPUTE: dict[str, Compute] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _two_lstms,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _rnn,
    "BIDIRECTIONAL_SEQUENCE_RNN": _two_rnns,
    "RNN": _one_step,
    "SVDF": _svdf,
}
