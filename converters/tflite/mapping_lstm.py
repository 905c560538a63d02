"""The fused LSTM of TensorFlow Lite: ONNX's own where that computes the same, else a Scan over time.

ONNX's LSTM clips what enters the gates and not the cell, and has neither coupled gates, projection nor
normalisation. A clip that the cell cannot reach, growing by at most 1 at each step, is none.
"""

from __future__ import annotations

from typing import Any

from deploykit._plugins.converters.tflite import hybrid
from deploykit._plugins.converters.tflite.emitting import Emitter, Value
from deploykit._plugins.converters.tflite.reading import Operator

from deploykit.graph_building import GraphBuilder

ACTIVATION = {"TANH": "Tanh", "RELU": "Relu", "LOGISTIC": "Sigmoid"}
GATES = ("input", "forget", "cell", "output")
ONNX_GATES = ("input", "output", "forget", "cell")


def turned(m: Emitter, value: Value) -> str:
    """Return a matrix [out, in] turned for a product from the left."""
    if value.constant is not None and not value.tensor.quantized:
        found: str = m.build.constant(
            value.constant.T.astype("float32"), f"{value.tensor.name}/turned"
        )
    else:
        found = m.add("Transpose", m.weight(value), perm=[1, 0])
    return found


def _is_plain(op: Operator, parts: dict[str, Any], steps: int) -> bool:
    """Whether ONNX's LSTM computes the same."""
    clip = op.options["cell_clip"]
    return (
        "input/x" in parts
        and "projection" not in parts
        and not any(name.endswith("/norm") for name in parts)
        and not any(value.tensor.quantized for value in parts.values())
        and op.options["activation"] == "TANH"
        and (clip <= 0 or clip >= steps)
        and all(f"{gate}/{part}" in parts for gate in GATES for part in ("x", "h", "bias"))
    )


def _plain(
    m: Emitter, x: str, parts: dict[str, Any], state: tuple[str, str], *, reverse: bool
) -> str:
    """Return the outputs [time, batch, units] of ONNX's LSTM."""

    def joined(part: str, gates: tuple[str, ...]) -> str:
        values = [m.real(parts[f"{gate}/{part}"]) for gate in gates]
        whole = values[0] if len(values) == 1 else m.add("Concat", *values, axis=0)
        found: str = m.add("Unsqueeze", whole, m.sizes([0]))
        return found

    units = parts["forget/h"].shape[0]
    no_bias = m.build.constant([[0.0] * 4 * units], dtype="float32")
    peepholes = ""
    if "forget/peephole" in parts:
        peepholes = joined("peephole", ("input", "output", "forget"))
    shown: tuple[str, ...] = m.build.add_many(
        "LSTM",
        x,
        joined("x", ONNX_GATES),
        joined("h", ONNX_GATES),
        m.add("Concat", joined("bias", ONNX_GATES), no_bias, axis=1),
        "",
        *(m.add("Unsqueeze", one, m.sizes([0])) for one in state),
        peepholes,
        count=1,
        hidden_size=units,
        direction="reverse" if reverse else "forward",
    )
    found: str = m.add("Squeeze", shown[0], m.sizes([1]))
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


def weights_of(ins: list[Any], start: int) -> dict[str, Any]:
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


def outputs(
    m: Emitter,
    op: Operator,
    x: str,
    parts: dict[str, Any],
    state: tuple[str, str],
    *,
    steps: int,
    reverse: bool,
) -> str:
    """Return the outputs [time, batch, units] of an LSTM over `x` of `steps` [time, batch, features]."""
    import onnx

    if _is_plain(op, parts, steps):
        return _plain(m, x, parts, state, reverse=reverse)

    label = m.build.fresh(f"{op.label}/lstm")
    body = _Body(m, label)
    step = body.m
    quantised = parts["forget/x"].tensor.quantized
    asymmetric = bool(op.options["asymmetric"])
    matrices = {
        name: turned(m, value)
        for name, value in parts.items()
        if name.endswith(("/x", "/h")) or name == "projection"
    }
    vectors = {name: m.real(value) for name, value in parts.items() if name not in matrices}
    # the body reads these from outside
    x_t, h, c = body.named("x"), body.named("h"), body.named("c")
    step.build.fresh(x_t), step.build.fresh(h), step.build.fresh(c)

    with step.build.layer(f"{label}/step"):
        x_q = _rounded(step, x_t, quantised, asymmetric)
        h_q = _rounded(step, h, quantised, asymmetric)

        def gate(name: str, cell: str | None) -> str:
            total = step.add("MatMul", x_q, matrices[f"{name}/x"])
            if f"{name}/h" in matrices:
                total = step.add("Add", total, step.add("MatMul", h_q, matrices[f"{name}/h"]))
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
        if "input/x" in matrices:
            enter = step.add("Sigmoid", gate("input", c))
        else:  # coupled: what is not forgotten enters
            enter = step.add("Sub", step.number(1.0), forget)
        new = step.add(act, gate("cell", None))
        cell = step.add("Add", step.add("Mul", forget, c), step.add("Mul", enter, new))
        cell = _clipped(step, cell, op.options["cell_clip"])
        out = step.add("Sigmoid", gate("output", cell))
        hidden = step.add("Mul", out, step.add(act, cell))
        if "projection" in matrices:
            hidden = _rounded(step, hidden, parts["projection"].tensor.quantized, asymmetric)
            hidden = step.add("MatMul", hidden, matrices["projection"])
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
