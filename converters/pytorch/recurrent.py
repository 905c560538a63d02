"""Recurrent layers that stay one node, with batch and time of any size.

torch.export unrolls `nn.LSTM`, `nn.GRU` and `nn.RNN` to see their shapes, which fixes both axes. Here
each layer is an operator of our own while it is traced, and becomes ONNX's LSTM, GRU or RNN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from deploykit.errors import UnsupportedError

_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
"""Where each gate of ONNX (i o f c; z r h) stands in torch's weights (i f c o; r z h)."""
_library: Any = None


def _operators() -> Any:
    """Return the namespace of our operators, defined at the first call."""
    global _library
    import torch

    if _library is None:
        _library = torch.library.Library("deploykit", "DEF")
        _library.define(
            "lstm(Tensor x, Tensor w, Tensor r, Tensor b, Tensor h, Tensor c) "
            "-> (Tensor, Tensor, Tensor)"
        )
        for name in ("gru", "rnn_tanh", "rnn_relu"):
            _library.define(
                f"{name}(Tensor x, Tensor w, Tensor r, Tensor b, Tensor h) -> (Tensor, Tensor)"
            )

        def shapes(x: Any, _w: Any, _r: Any, _b: Any, h: Any, *c: Any) -> Any:
            sequence = x.new_empty((x.shape[0], h.shape[0], x.shape[1], h.shape[2]))
            last = [x.new_empty((h.shape[0], x.shape[1], h.shape[2])) for _ in (h, *c)]
            return sequence, *last

        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            torch.library.register_fake(f"deploykit::{name}", shapes, lib=_library)
    return torch.ops.deploykit


def translations() -> dict[Any, Callable[..., Any]]:
    """Return what torch's ONNX exporter makes of our operators (`custom_translation_table`)."""
    from onnxscript import opset18 as op

    operators = _operators()

    def settings(r: Any) -> dict[str, Any]:
        directions, _, hidden = r.shape
        return {
            "hidden_size": int(hidden),
            "direction": "bidirectional" if directions == 2 else "forward",
        }

    def lstm(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any) -> Any:
        return op.LSTM(x, w, r, b, None, h, c, **settings(r))

    def gru(x: Any, w: Any, r: Any, b: Any, h: Any) -> Any:
        return op.GRU(x, w, r, b, None, h, linear_before_reset=1, **settings(r))

    def rnn(activation: str) -> Callable[..., Any]:
        def of(x: Any, w: Any, r: Any, b: Any, h: Any) -> Any:
            found = settings(r)
            names = [activation] * (2 if found["direction"] == "bidirectional" else 1)
            return op.RNN(x, w, r, b, None, h, activations=names, **found)

        return of

    return {
        operators.lstm.default: lstm,
        operators.gru.default: gru,
        operators.rnn_tanh.default: rnn("Tanh"),
        operators.rnn_relu.default: rnn("Relu"),
    }


def layers(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands for `torch.lstm` and its like while a model is traced.

    It takes their arguments (input, state, weights, has_biases, num_layers, dropout, train,
    bidirectional, batch_first) and hands packed sequences to `original`.
    """

    def run(x: Any, state: Any, weights: Any, *rest: Any) -> Any:
        import torch

        if len(rest) != 6 or isinstance(weights, torch.Tensor):
            return original(x, state, weights, *rest)  # of a packed sequence
        has_biases, number, dropout, train, bidirectional, batch_first = rest
        directions = 2 if bidirectional else 1
        each = 4 if has_biases else 2
        if len(weights) != each * number * directions:
            raise UnsupportedError(
                "the model has an LSTM with projections (proj_size), which ONNX does not have",
                hint="write its recurrence as a loop over a fixed number of steps",
                operators=("aten::lstm",),
            )
        if train and dropout:
            return original(x, state, weights, *rest)
        states = list(state) if kind == "lstm" else [state]
        operator = getattr(_operators(), kind).default
        y = x.transpose(0, 1) if batch_first else x
        last: list[list[Any]] = [[] for _ in states]
        for layer in range(number):
            start = layer * directions
            parts = [
                weights[(start + number) * each : (start + number + 1) * each]
                for number in range(directions)
            ]
            w, r, b = _packed(kind, parts)
            begin = [one[start : start + directions] for one in states]
            y, *end = operator(y, w, r, b, *begin)
            y = y.transpose(1, 2).flatten(2)  # [time, directions, batch, hidden] to features
            for found, one in zip(last, end, strict=True):
                found.append(one)
        y = y.transpose(0, 1) if batch_first else y
        return y, *(torch.cat(found) for found in last)

    return run


def _packed(kind: str, directions: Sequence[Sequence[Any]]) -> tuple[Any, Any, Any]:
    """Return W, R and B as ONNX has them: gates in its order, directions stacked."""
    import torch

    order = _ORDER.get(kind, (0,))

    def reordered(tensor: Any) -> Any:
        size = tensor.shape[0] // len(order)  # slices, and not chunk: they are folded
        return torch.cat([tensor[place * size : (place + 1) * size] for place in order])

    w = torch.stack([reordered(parts[0]) for parts in directions])
    r = torch.stack([reordered(parts[1]) for parts in directions])
    biases = []
    for parts in directions:
        pair = parts[2:] or [torch.zeros_like(parts[0][:, 0])] * 2
        biases.append(torch.cat([reordered(one) for one in pair]))
    return w, r, torch.stack(biases)


@contextlib.contextmanager
def kept_whole() -> Iterator[None]:
    """Let `torch.nn`'s recurrent layers be operators of ours inside the block."""
    import torch

    functions = torch._VF
    before = dict(vars(functions))
    for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        setattr(functions, kind, layers(kind, getattr(torch._C._VariableFunctions, kind)))
    try:
        yield
    finally:
        vars(functions).clear()
        vars(functions).update(before)


def special() -> dict[str, Callable[..., Any]]:
    """Return the same for the operators of TorchScript."""
    import torch

    functions = torch._C._VariableFunctions
    return {
        f"aten::{kind}": layers(kind, getattr(functions, kind))
        for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    }
