"""LSTM, GRU and RNN, unrolled: one set of products per step, the weights shared by all steps.

https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer import mapping_activations as activations
from deploykit._plugins.targets.litert_flatbuffer.mapping_products import fully_connected
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

    Array = np.ndarray[Any, Any]
    Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

Function = tuple[str, float, float]
"""An activation, its alpha and its beta."""

MOST_STEPS = 512
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
SIMPLE = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "Relu": "RELU"}


def recurrent(graph: Graph, node: Node) -> None:
    """Map LSTM, GRU and RNN of a known number of steps."""
    if node.attribute("layout", 0):
        raise UnsupportedError("layout is 1")
    if node.attribute("clip", 0) or node.attribute("input_forget", 0):
        raise UnsupportedError("clip or input_forget is set")
    _check_lengths(graph, node)
    (steps,) = graph.sizes(node.input(0), [0])
    if steps > MOST_STEPS:
        raise UnsupportedError(f"{steps} steps: it is unrolled, up to {MOST_STEPS}")
    hidden = int(node.attributes["hidden_size"])
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
        node.attribute("direction", "forward")
    ]
    x = graph.own(node.input(0))
    rows = x.shape[1]
    inputs = [
        graph.emit.reshape(graph.emit.slice(x, [at, 0, 0], [1, -1, -1]), (rows, x.shape[2]))
        for at in range(steps)
    ]
    sequences: list[list[Tensor]] = []
    finals: list[tuple[Tensor, ...]] = []
    for number, backwards in enumerate(directions):
        step = _step(graph, node, number, hidden)
        state = _initial(graph, node, number, rows, hidden)
        made = []
        for one in reversed(inputs) if backwards else inputs:
            state = step(one, state)
            made.append(state[0])
        sequences.append(made[::-1] if backwards else made)
        finals.append(state)
    _put_sequence(graph, node, sequences, rows, hidden)
    for at in range(1, len(node.outputs)):
        if node.outputs[at]:
            parts = [graph.emit.reshape(state[at - 1], (1, rows, hidden)) for state in finals]
            made_one = parts[0] if len(parts) == 1 else graph.emit.concat(parts, 0)
            graph.put(node.outputs[at], made_one)


def _check_lengths(graph: Graph, node: Node) -> None:
    if node.input(4):
        lengths = graph.constant(node.input(4))
        (steps,) = graph.sizes(node.input(0), [0])
        if lengths is None or (lengths != steps).any():
            raise UnsupportedError("its sequences have lengths of their own")


def _put_sequence(
    graph: Graph, node: Node, sequences: list[list[Tensor]], rows: int | str, hidden: int
) -> None:
    if not node.outputs[0]:
        return
    parts = []
    for each in zip(*sequences, strict=True):
        for one in each:
            parts.append(graph.emit.reshape(one, (1, rows, hidden)))
    joined = parts[0] if len(parts) == 1 else graph.emit.concat(parts, 0)
    shape = (len(sequences[0]), len(sequences), rows, hidden)
    graph.put(node.outputs[0], graph.emit.reshape(joined, shape))


def _initial(
    graph: Graph, node: Node, number: int, rows: int | str, hidden: int
) -> tuple[Tensor, ...]:
    """Return the state before the first step: hidden, and for LSTM the cell."""
    import numpy as np

    made = []
    for at in (5, 6) if node.operator == "LSTM" else (5,):
        if node.input(at):
            whole = graph.own(node.input(at))
            part = (
                graph.emit.slice(whole, [number, 0, 0], [1, -1, -1])
                if whole.data is None
                else graph.emit.constant(whole.data[number : number + 1])
            )
            made.append(graph.emit.reshape(part, (rows, hidden)))
        elif isinstance(rows, int):
            made.append(graph.emit.constant(np.zeros((rows, hidden), np.float32)))
        else:
            sizes = graph.size_tensor((rows, hidden))
            zero = graph.emit.constant(0, "float32")
            made.append(
                graph.emit.add("FILL", [sizes, zero], (rows, hidden), "float32", "FillOptions")
            )
    return tuple(made)


def _step(graph: Graph, node: Node, number: int, hidden: int) -> Step:
    import numpy as np

    kind = node.operator
    gates = GATES[kind]
    weight = graph.known(node, 1)[number]
    recurrence = graph.known(node, 2)[number]
    bias = graph.optional(node, 3)
    both = np.zeros(2 * gates * hidden, np.float32) if bias is None else bias[number]
    bias_in, bias_back = both[: gates * hidden], both[gates * hidden :]
    functions = _functions(node, number, len(DEFAULTS[kind]))
    emit = graph.emit

    def apply(function: Function, x: Tensor) -> Tensor:
        name, alpha, beta = function
        if name == "HardSigmoid":
            return activations.clamped_line(emit, x, alpha, beta)
        return emit.unary(SIMPLE[name], x)

    def part(x: Tensor, at: int) -> Tensor:
        return emit.slice(x, [0, at * hidden], [-1, hidden])

    if kind == "GRU":
        return _gru(graph, node, weight, recurrence, bias_in, bias_back, apply, functions, part)
    whole_in = emit.constant(weight)
    whole_back = emit.constant(recurrence)
    term = emit.constant((bias_in + bias_back).astype(np.float32))
    peephole = graph.optional(node, 7) if kind == "LSTM" else None

    def products(x: Tensor, state: Tensor) -> Tensor:
        forward = fully_connected(emit, x, whole_in, term)
        return emit.binary("ADD", forward, fully_connected(emit, state, whole_back))

    def rnn(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (apply(functions[0], products(x, state[0])),)

    def lstm(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        last, cell = state
        whole = products(x, last)
        # the gates lie in the order input, output, forget, cell; peepholes input, output, forget
        entering, leaving, forgetting, fresh = (part(whole, at) for at in range(4))

        def peeped(gate: Tensor, at: int, seen: Tensor) -> Tensor:
            if peephole is None:
                return gate
            factor = emit.constant(peephole[number][at * hidden : (at + 1) * hidden])
            return emit.binary("ADD", gate, emit.binary("MUL", seen, factor))

        kept = emit.binary("MUL", apply(functions[0], peeped(forgetting, 2, cell)), cell)
        new = emit.binary(
            "MUL", apply(functions[0], peeped(entering, 0, cell)), apply(functions[1], fresh)
        )
        cell = emit.binary("ADD", kept, new)
        gate = apply(functions[0], peeped(leaving, 1, cell))
        return emit.binary("MUL", gate, apply(functions[2], cell)), cell

    return lstm if kind == "LSTM" else rnn


def _gru(
    graph: Graph,
    node: Node,
    weight: Array,
    recurrence: Array,
    bias_in: Array,
    bias_back: Array,
    apply: Callable[[Function, Tensor], Tensor],
    functions: list[Function],
    part: Callable[[Tensor, int], Tensor],
) -> Step:
    """Return a step of a GRU: gates update and reset, then the new state."""
    import numpy as np

    emit = graph.emit
    hidden = recurrence.shape[1]
    two = 2 * hidden
    after = bool(node.attribute("linear_before_reset", 0))
    whole_in = emit.constant(weight)
    term = bias_in.copy()
    term[:two] += bias_back[:two]
    if not after:
        term[two:] += bias_back[two:]
    term_in = emit.constant(term.astype(np.float32))
    gates_back = emit.constant(recurrence[:two])
    new_back = emit.constant(recurrence[two:])
    term_new = emit.constant(bias_back[two:].astype(np.float32)) if after else None

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (last,) = state
        forward = fully_connected(emit, x, whole_in, term_in)
        back = fully_connected(emit, last, gates_back)
        update = apply(functions[0], emit.binary("ADD", part(forward, 0), part(back, 0)))
        reset = apply(functions[0], emit.binary("ADD", part(forward, 1), part(back, 1)))
        if after:
            inner = emit.binary("MUL", reset, fully_connected(emit, last, new_back, term_new))
        else:
            inner = fully_connected(emit, emit.binary("MUL", reset, last), new_back)
        fresh = apply(functions[1], emit.binary("ADD", part(forward, 2), inner))
        # (1 - update) fresh + update last
        change = emit.binary("MUL", update, emit.binary("SUB", last, fresh))
        return (emit.binary("ADD", fresh, change),)

    return step


def _functions(node: Node, number: int, count: int) -> list[Function]:
    """Return the activations of one direction, each with its alpha and beta.

    Those that have them take the next of the node's lists, in the order of all activations.
    """
    names = [str(each) for each in node.attribute("activations", ())]
    names = names or [*DEFAULTS[node.operator]] * (number + 1)
    alphas, betas = (list(node.attribute(f"activation_{each}", ())) for each in ("alpha", "beta"))
    found: list[Function] = []
    for name in names:
        if name == "HardSigmoid":
            alpha = float(alphas.pop(0)) if alphas else 0.2
            beta = float(betas.pop(0)) if betas else 0.5
            found.append((name, alpha, beta))
        elif name in SIMPLE:
            found.append((name, 0.0, 0.0))
        else:
            raise UnsupportedError(f"the activation {name}")
    mine = found[number * count : (number + 1) * count]
    if len(mine) != count:
        raise UnsupportedError(f"{len(names)} activations")
    return mine
