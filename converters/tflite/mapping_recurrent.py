"""Recurrent layers of TensorFlow Lite as ONNX nodes.

Their state is a variable that TensorFlow Lite keeps between runs; here every run begins with zeros,
as the first one does, and the result says so.
"""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.tflite import hybrid
from deploykit._plugins.converters.tflite import mapping_lstm as lstm
from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit
from deploykit._plugins.converters.tflite.reading import Operator, Tensor


def _float_only(m: Emitter, ins: list[Any]) -> None:
    if any(one is not None and one.tensor.dtype in ("int8", "uint8", "int16") for one in ins[:1]):
        raise m.refuse("its activations are integers")


def _zero_state(m: Emitter, x: str, units: int) -> str:
    """Return zeros [batch, units] for `x` [time, batch, features]."""
    batch = m.add("Slice", m.add("Shape", x), m.sizes([1]), m.sizes([2]))
    size = m.add("Concat", batch, m.sizes([units]), axis=0)
    found: str = m.add("Expand", m.number(0.0), size)
    return found


def _over_time(m: Emitter, op: Operator, x: Value) -> tuple[str, int, int | None]:
    """Return `x` as [time, batch, features], where its batch is, and the batch axis it has then."""
    if x.rank != 3:
        raise m.refuse(f"its input has {x.rank} axes")
    row = 1 if op.options["time_major"] else 0
    if x.batch not in (None, row):
        raise m.fixed("runs through the batch")
    data = m.real(x)
    return (data if row else m.add("Transpose", data, perm=[1, 0, 2])), row, x.batch


def _check_activation(m: Emitter, op: Operator) -> None:
    if op.options["activation"] not in lstm.ACTIVATION:
        raise m.refuse(f"its activation is {op.options['activation']}")


def _state(m: Emitter, value: Value, data: str) -> str:
    """Return a state: zeros where it is a variable, else what the graph gives."""
    if value.tensor.variable:
        m.forgets()
    if value.tensor.variable or (value.constant is not None and not value.constant.any()):
        return _zero_state(m, data, value.shape[-1])
    found: str = m.real(value)
    return found


def sequence_lstm(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """UNIDIRECTIONAL_SEQUENCE_LSTM."""
    _float_only(m, ins)
    _check_activation(m, op)
    if op.options["diagonal"]:
        raise m.refuse("its recurrent weights are diagonal")
    ins = [*ins, *[None] * (24 - len(ins))]
    data, row, batch = _over_time(m, op, ins[0])
    parts = lstm.weights_of(ins, 1)
    for at, gate in enumerate(lstm.GATES):
        if ins[20 + at] is not None:
            parts[f"{gate}/norm"] = ins[20 + at]
    state = (_state(m, ins[18], data), _state(m, ins[19], data))
    steps = ins[0].shape[1 - row]
    name = lstm.outputs(m, op, data, parts, state, steps=steps, reverse=False)
    if not row:
        name = m.add("Transpose", name, perm=[1, 0, 2])
    units = (parts["projection"] if "projection" in parts else parts["forget/x"]).shape[0]
    return [m.made(outs[0], name, batch=batch, shape=(*ins[0].shape[:2], units))]


def bidirectional_lstm(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """BIDIRECTIONAL_SEQUENCE_LSTM without auxiliary inputs."""
    _float_only(m, ins)
    _check_activation(m, op)
    ins = [*ins, *[None] * (48 - len(ins))]
    if any(one is not None for one in ins[39:]):
        raise m.refuse("it has auxiliary inputs")
    data, row, batch = _over_time(m, op, ins[0])
    names, units = [], []
    steps = ins[0].shape[1 - row]
    for reverse, start, at in ((False, 1, 35), (True, 18, 37)):
        state = (_state(m, ins[at], data), _state(m, ins[at + 1], data))
        parts = lstm.weights_of(ins, start)
        names.append(lstm.outputs(m, op, data, parts, state, steps=steps, reverse=reverse))
        units.append((parts["projection"] if "projection" in parts else parts["forget/x"]).shape[0])
    return _both_ways(m, op, names, outs, row, batch, ins[0].shape[:2], units)


def _both_ways(
    m: Emitter,
    op: Operator,
    names: list[str],
    outs: list[Tensor],
    row: int,
    batch: int | None,
    outer: tuple[int, ...],
    units: list[int],
) -> list[Value]:
    if op.options["merge_outputs"]:
        units = [sum(units)]
        names = [m.add("Concat", *names, axis=2)]
    if not row:
        names = [m.add("Transpose", name, perm=[1, 0, 2]) for name in names]
    return [
        m.made(out, name, batch=batch, shape=(*outer, size))
        for out, name, size in zip(outs, names, units, strict=True)
    ]


def _rnn(m: Emitter, op: Operator, x: str, parts: list[Any], state: str, *, reverse: bool) -> str:
    """Return the outputs of `act(W x + R h + b)` over time: ONNX's RNN, both biases in one."""
    w, r, b = parts
    if w.tensor.quantized:
        raise m.refuse("float activations meet quantised weights")
    act = lstm.ACTIVATION[op.options["activation"]]
    zero = m.add("Mul", m.real(b), m.number(0.0))
    y, _ = m.build.add_many(
        "RNN",
        x,
        m.add("Unsqueeze", m.real(w), m.sizes([0])),
        m.add("Unsqueeze", m.real(r), m.sizes([0])),
        m.add("Unsqueeze", m.add("Concat", m.real(b), zero, axis=0), m.sizes([0])),
        "",
        m.add("Unsqueeze", state, m.sizes([0])),
        count=2,
        activations=[act],
        hidden_size=w.shape[0],
        direction="reverse" if reverse else "forward",
    )
    found: str = m.add("Squeeze", y, m.sizes([1]))
    return found


def sequence_rnn(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """UNIDIRECTIONAL_SEQUENCE_RNN(x, W, R, bias, state)."""
    _float_only(m, ins)
    _check_activation(m, op)
    data, row, batch = _over_time(m, op, ins[0])
    name = _rnn(m, op, data, ins[1:4], _state(m, ins[4], data), reverse=False)
    if not row:
        name = m.add("Transpose", name, perm=[1, 0, 2])
    shape = (*ins[0].shape[:2], ins[1].shape[0])
    return [m.made(outs[0], name, batch=batch, shape=shape)]


def bidirectional_rnn(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """BIDIRECTIONAL_SEQUENCE_RNN without auxiliary inputs."""
    _float_only(m, ins)
    _check_activation(m, op)
    if any(one is not None for one in ins[9:]):
        raise m.refuse("it has auxiliary inputs")
    data, row, batch = _over_time(m, op, ins[0])
    names = [
        _rnn(m, op, data, ins[at : at + 3], _state(m, ins[at + 3], data), reverse=at > 1)
        for at in (1, 5)
    ]
    units = [ins[at].shape[0] for at in (1, 5)]
    return _both_ways(m, op, names, outs, row, batch, ins[0].shape[:2], units)


def step_rnn(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """RNN: one step from a state of zeros."""
    _float_only(m, ins)
    _check_activation(m, op)
    x, w, r, b, state = ins
    if x.batch not in (None, 0):
        raise m.fixed("runs through the batch")
    data = m.real(x)
    if hybrid.is_hybrid(x, w):
        data = hybrid.rounded(m, data, [1], asymmetric=bool(op.options["asymmetric"]))
    name = m.add("Gemm", data, m.weight(w), m.real(b), transB=1)
    if state.tensor.variable:
        m.forgets()
    else:
        name = m.add("Add", name, m.add("MatMul", m.real(state), lstm.turned(m, r)))
    name = m.add(lstm.ACTIVATION[op.options["activation"]], name)
    return [m.made(outs[0], name, batch=x.batch, shape=(x.shape[0], w.shape[0]))]


def filters(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SVDF(x, features [units * rank, in], time [units * rank, memory], bias, state), from zeros.

    Of an empty memory only the newest place counts: the last column of the time weights.
    """
    _float_only(m, ins)
    x, features, time, b, state = ins
    if not state.tensor.variable:
        raise m.refuse("its state is given")
    m.forgets()
    if x.batch not in (None, 0):
        raise m.fixed("runs through the batch")
    rank = op.options["rank"]
    if rank < 1 or features.shape[0] % rank:
        raise ValueError(f"a rank of {rank} for {features.shape[0]} filters")
    data = m.real(x)
    if hybrid.is_hybrid(x, features):
        data = hybrid.rounded(m, data, [1], asymmetric=bool(op.options["asymmetric"]))
    name = m.add("MatMul", data, lstm.turned(m, features))
    last = m.add("Slice", m.weight(time), m.sizes([-1]), m.sizes([1 << 62]), m.sizes([1]))
    name = m.add("Mul", name, m.add("Reshape", last, m.sizes([-1])))
    units = features.shape[0] // rank
    name = m.add("Reshape", name, m.sizes([-1, units, rank]))
    name = m.add("ReduceSum", name, m.sizes([2]), keepdims=0)
    if b is not None:
        name = m.add("Add", name, m.real(b))
    name = m.activated(name, op.options["activation"], outs[0])
    return [m.made(outs[0], name, batch=x.batch, shape=(x.shape[0], units))]


EMIT: dict[str, Emit] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": sequence_lstm,
    "BIDIRECTIONAL_SEQUENCE_LSTM": bidirectional_lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": sequence_rnn,
    "BIDIRECTIONAL_SEQUENCE_RNN": bidirectional_rnn,
    "RNN": step_rnn,
    "SVDF": filters,
}
