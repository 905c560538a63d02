"""Recurrent layers of TensorFlow Lite: the fused LSTM and RNN as an ONNX Scan over time, SVDF as a step.

Their state is a variable that TensorFlow Lite keeps between runs; here every run begins with zeros,
as the first one does. ONNX's own LSTM serves where it computes the same: it clips what enters the
gates and not the cell, and has neither projection nor normalisation.
"""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.tflite import hybrid
from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.mapping_elementwise import Emit
from deploykit._plugins.converters.tflite.reading import Operator, Tensor

from deploykit.graph_building import GraphBuilder

ACTIVATION = {"TANH": "Tanh", "RELU": "Relu", "LOGISTIC": "Sigmoid"}
GATES = ("input", "forget", "cell", "output")


def _float_only(m: Emitter, ins: list[Any]) -> None:
    if any(one is not None and one.tensor.dtype in ("int8", "uint8", "int16") for one in ins[:1]):
        raise m.refuse("its activations are integers")


def _weight(m: Emitter, value: Value) -> str:
    """Return a matrix [out, in] turned for a product from the left."""
    if value.constant is not None and not value.tensor.quantized:
        found: str = m.build.constant(
            value.constant.T.astype("float32"), f"{value.tensor.name}/turned"
        )
    else:
        found = m.add("Transpose", m.real(value), perm=[1, 0])
    return found


class _Body:
    """The graph of one step, its names apart from those outside."""

    def __init__(self, m: Emitter, label: str) -> None:
        self.build = GraphBuilder(label)
        self.label = label
        self.m = Emitter(self.build)
        self.m.op = m.op

    def named(self, part: str) -> str:
        return f"{self.label}/step/{part}"


def _rounded(m: Emitter, x: str, wanted: bool, asymmetric: bool) -> str:
    return hybrid.rounded(m, x, [1], asymmetric=asymmetric) if wanted else x


def _lstm_weights(ins: list[Any], start: int) -> dict[str, Any]:
    """Return the weights by what they are for; those left out are missing."""
    parts: dict[str, Any] = {}
    for at, gate in enumerate(GATES):
        parts[f"{gate}/x"] = ins[start + at]
        parts[f"{gate}/h"] = ins[start + 4 + at]
        parts[f"{gate}/bias"] = ins[start + 11 + at]
    for at, gate in enumerate(("input", "forget", "output")):
        parts[f"{gate}/peephole"] = ins[start + 8 + at]
    parts["projection"], parts["projection/bias"] = ins[start + 15], ins[start + 16]
    return {name: value for name, value in parts.items() if value is not None}


def _lstm(
    m: Emitter,
    op: Operator,
    x: str,
    parts: dict[str, Any],
    state: tuple[str, str],
    *,
    reverse: bool,
) -> str:
    """Return the outputs [time, batch, units] of an LSTM over `x` [time, batch, features]."""
    import onnx

    label = m.build.fresh(f"{op.label}/lstm")
    body = _Body(m, label)
    step = body.m
    quantised = parts["forget/x"].tensor.quantized
    asymmetric = bool(op.options["asymmetric"])
    turned = {
        name: _weight(m, value)
        for name, value in parts.items()
        if name.endswith(("/x", "/h")) or name == "projection"
    }
    vectors = {name: m.real(value) for name, value in parts.items() if name not in turned}
    # the body reads these from outside
    x_t, h, c = body.named("x"), body.named("h"), body.named("c")
    step.build.fresh(x_t), step.build.fresh(h), step.build.fresh(c)

    with step.build.layer(f"{label}/step"):
        x_q = _rounded(step, x_t, quantised, asymmetric)
        h_q = _rounded(step, h, quantised, asymmetric)

        def gate(name: str, cell: str | None) -> str:
            total = step.add("MatMul", x_q, turned[f"{name}/x"])
            if f"{name}/h" in turned:
                total = step.add("Add", total, step.add("MatMul", h_q, turned[f"{name}/h"]))
            peephole = vectors.get(f"{name}/peephole")
            if peephole and cell:
                total = step.add("Add", total, step.add("Mul", cell, peephole))
            scale = vectors.get(f"{name}/norm")
            if scale:
                total = _normalised(step, total, scale)
            bias = vectors.get(f"{name}/bias")
            found: str = step.add("Add", total, bias) if bias else total
            return found

        act = ACTIVATION[op.options["activation"]]
        forget = step.add("Sigmoid", gate("forget", c))
        if "input/x" in turned:
            enter = step.add("Sigmoid", gate("input", c))
        else:  # coupled: what is not forgotten enters
            enter = step.add("Sub", step.number(1.0), forget)
        new = step.add(act, gate("cell", None))
        cell = step.add("Add", step.add("Mul", forget, c), step.add("Mul", enter, new))
        cell = _clipped(step, cell, op.options["cell_clip"])
        out = step.add("Sigmoid", gate("output", cell))
        hidden = step.add("Mul", out, step.add(act, cell))
        if "projection" in turned:
            hidden = _rounded(step, hidden, parts["projection"].tensor.quantized, asymmetric)
            hidden = step.add("MatMul", hidden, turned["projection"])
            if "projection/bias" in vectors:
                hidden = step.add("Add", hidden, vectors["projection/bias"])
            hidden = _clipped(step, hidden, op.options["proj_clip"])
        shown = step.add("Identity", hidden)

    for name, value in ((h, hidden), (c, cell), (x_t, shown)):
        step.build.output(f"{name}/next", value, "float32")
    model, _ = step.build.model()
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    graph.name = label
    for name in (h, c, x_t):
        graph.input.append(onnx.helper.make_tensor_value_info(name, 1, None))
    results: tuple[str, ...] = m.build.add_many(
        "Scan",
        *state,
        x,
        count=3,
        body=graph,
        num_scan_inputs=1,
        scan_input_directions=[int(reverse)],
        scan_output_directions=[int(reverse)],
    )
    return results[2]


def _clipped(m: Emitter, x: str, limit: float) -> str:
    if limit <= 0:
        return x
    found: str = m.add("Clip", x, m.number(-limit), m.number(limit))
    return found


def _normalised(m: Emitter, x: str, scale: str) -> str:
    """Layer normalisation as TensorFlow Lite has it: no spread at all counts as 1e-8."""
    mean = m.add("ReduceMean", x, axes=[1], keepdims=1)
    centred = m.add("Sub", x, mean)
    variance = m.add("ReduceMean", m.add("Mul", centred, centred), axes=[1], keepdims=1)
    flat = m.add("Equal", variance, m.number(0.0))
    spread = m.add("Sqrt", m.add("Where", flat, m.number(1e-8), variance))
    found: str = m.add("Mul", m.add("Div", centred, spread), scale)
    return found


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
    if op.options["activation"] not in ACTIVATION:
        raise m.refuse(f"its activation is {op.options['activation']}")


def _state(m: Emitter, value: Value, data: str) -> str:
    """Return a state: zeros where it is a variable, else what the graph gives."""
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
    parts = _lstm_weights(ins, 1)
    for at, gate in enumerate(GATES):
        if ins[20 + at] is not None:
            parts[f"{gate}/norm"] = ins[20 + at]
    state = (_state(m, ins[18], data), _state(m, ins[19], data))
    name = _lstm(m, op, data, parts, state, reverse=False)
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
    for reverse, start, at in ((False, 1, 35), (True, 18, 37)):
        state = (_state(m, ins[at], data), _state(m, ins[at + 1], data))
        parts = _lstm_weights(ins, start)
        names.append(_lstm(m, op, data, parts, state, reverse=reverse))
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
    act = ACTIVATION[op.options["activation"]]
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
    name = m.add("Gemm", data, m.real(w), m.real(b), transB=1)
    if not state.tensor.variable:
        name = m.add("Add", name, m.add("MatMul", m.real(state), _weight(m, r)))
    name = m.add(ACTIVATION[op.options["activation"]], name)
    return [m.made(outs[0], name, batch=x.batch, shape=(x.shape[0], w.shape[0]))]


def filters(m: Emitter, op: Operator, ins: list[Any], outs: list[Tensor]) -> list[Value]:
    """SVDF(x, features [units * rank, in], time [units * rank, memory], bias, state), from zeros.

    Of an empty memory only the newest place counts: the last column of the time weights.
    """
    _float_only(m, ins)
    x, features, time, b, state = ins
    if not state.tensor.variable:
        raise m.refuse("its state is given")
    if x.batch not in (None, 0):
        raise m.fixed("runs through the batch")
    rank = op.options["rank"]
    if rank < 1 or features.shape[0] % rank:
        raise ValueError(f"a rank of {rank} for {features.shape[0]} filters")
    data = m.real(x)
    if hybrid.is_hybrid(x, features):
        data = hybrid.rounded(m, data, [1], asymmetric=bool(op.options["asymmetric"]))
    name = m.add("MatMul", data, _weight(m, features))
    last = m.add("Slice", m.real(time), m.sizes([-1]), m.sizes([1 << 62]), m.sizes([1]))
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
