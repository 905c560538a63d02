"""Graphs within graphs: Theano's Scan, IfElse and functions of graphs into ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph.emission import (
    Body,
    Emission,
    described,
    layer_name,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx


def scan(emission: Emission, node: Any) -> list[str]:
    """Emit a `Scan` as a Loop.

    What the source keeps in one buffer (the states before the first step, then those of each step)
    is a state of the loop for each tap, and an output that is joined to the first states behind it.
    """
    from pytensor.scan.utils import ScanArgs

    parts = ScanArgs.from_node(node)
    if parts.outer_in_mit_mot:
        raise UnsupportedError(
            f"{described(node)} is the gradient of a scan",
            operators=("Scan",),
            hint="return the outputs of the network, not its loss or updates",
        )
    build = emission.build
    sequences = emission.values(parts.outer_in_seqs)
    outside = emission.values(parts.outer_in_non_seqs)
    states: list[_State] = []
    taps = [*parts.mit_sot_in_slices, *parts.sit_sot_in_slices]
    buffers = [*parts.outer_in_mit_sot, *parts.outer_in_sit_sot]
    inner_in = [*parts.inner_in_mit_sot, *([one] for one in parts.inner_in_sit_sot)]
    inner_out = [*parts.inner_out_mit_sot, *parts.inner_out_sit_sot]
    for offsets, buffer, inputs, made in zip(taps, buffers, inner_in, inner_out, strict=True):
        states.append(_State(offsets, emission.value(buffer), inputs, made))
    shared = emission.values(parts.outer_in_shared)

    body = Body(build, build.fresh(f"{layer_name(node)}/body"))
    inside = Emission(body, emission.rules)
    inside.notes = emission.notes
    step, going = body.fresh("step"), body.fresh("going")
    declared = [_declared(step, "int64", ()), _declared(going, "bool", ())]
    results: list[onnx.ValueInfoProto] = []
    initial: list[str] = []
    for state in states:
        names = [body.fresh("state") for _ in range(state.depth)]
        for at, name in enumerate(names):
            initial.append(
                build.add("Gather", state.buffer, build.constant(at, dtype="int64"), axis=0)
            )
            declared.append(_declared(name, state.dtype, state.axes))
        state.names = names
        for offset, variable in zip(state.offsets, state.inputs, strict=True):
            inside.names[variable] = names[state.depth + offset]
    for name, variable in zip(shared, parts.inner_in_shared, strict=True):
        own = body.fresh("state")
        initial.append(name)
        declared.append(_declared(own, variable.type.dtype, _axes(variable)))
        inside.names[variable] = own
    for name, variable, outer in zip(
        outside, parts.inner_in_non_seqs, parts.outer_in_non_seqs, strict=True
    ):
        inside.names[variable] = name
        inside.assume(variable, emission.known(outer))
    with body.layer(layer_name(node)):
        for name, variable in zip(sequences, parts.inner_in_seqs, strict=True):
            inside.names[variable] = body.add("Gather", name, step, axis=0)
        made = inside.values([state.made for state in states])
        found = inside.values(parts.inner_out_nit_sot)
        kept = inside.values(parts.inner_out_shared)
        if parts.cond:
            until = body.add("Reshape", inside.as_type(parts.cond[0], "bool"), _nothing(build))
            goes_on = body.add("Not", until)
        else:
            goes_on = body.add("Identity", going)
        results.append(_declared(goes_on, "bool", ()))
        carried = [
            (name, state.made)
            for state, new in zip(states, made, strict=True)
            for name in (*state.names[1:], new)
        ]
        carried += zip(kept, parts.inner_out_shared, strict=True)
        scanned = [(new, state.made) for state, new in zip(states, made, strict=True)]
        scanned += zip(found, parts.inner_out_nit_sot, strict=True)
        # an output of a body must be its own, and each but once
        for name, variable in [*carried, *scanned]:
            own = body.add("Identity", name)
            results.append(_declared(own, variable.type.dtype, _axes(variable)))
    rounds = build.add("Reshape", emission.as_type(parts.n_steps, "int64"), _nothing(build))
    outputs = build.add_many(
        "Loop",
        rounds,
        build.constant(True, dtype="bool"),
        *initial,
        count=len(carried) + len(scanned),
        body=body.graph(declared, results),
    )
    histories = list(outputs[len(carried) :])
    finals = list(outputs[len(carried) - len(kept) : len(carried)])
    whole = []
    for state, history in zip(states, histories, strict=False):
        first = build.add(
            "Slice",
            state.buffer,
            build.shape_constant([0]),
            build.shape_constant([state.depth]),
            build.shape_constant([0]),
        )
        whole.append(build.add("Concat", first, history, axis=0))
    return [*whole, *histories[len(states) :], *finals]


class _State:
    """A buffer of states: how far back it is read, and what a step reads and makes of it."""

    def __init__(self, offsets: Sequence[int], buffer: str, inputs: Sequence[Any], made: Any):
        self.offsets = [int(one) for one in offsets]
        if max(self.offsets) >= 0:
            raise UnsupportedError("a scan that reads states of its future", operators=("Scan",))
        self.depth = -min(self.offsets)
        self.buffer = buffer
        self.inputs = list(inputs)
        self.made = made
        self.dtype = str(made.type.dtype)
        self.axes = _axes(made)
        self.names: list[str] = []


def if_else(emission: Emission, node: Any) -> list[str]:
    """Emit an `IfElse` as an If; what only one branch needs is computed within it."""
    build, op = emission.build, node.op
    count = int(op.n_outs)
    condition, branches = node.inputs[0], node.inputs[1:]
    flag = build.add("Reshape", emission.as_type(condition, "bool"), _nothing(build))
    bodies = []
    for title, variables in (("then", branches[:count]), ("else", branches[count:])):
        body = Body(build, build.fresh(f"{layer_name(node)}/{title}"))
        inside = Emission(body, emission.rules)
        inside.notes = emission.notes
        inside.names.update(emission.names)
        results = []
        with body.layer(title):
            for variable, output in zip(variables, node.outputs, strict=True):
                name = inside.as_type(variable, output.type.dtype)
                own = body.add("Identity", name)
                results.append(_declared(own, output.type.dtype, _axes(output)))
        bodies.append(body.graph([], results))
    return list(
        build.add_many("If", flag, count=count, then_branch=bodies[0], else_branch=bodies[1])
    )


def inline(emission: Emission, node: Any) -> list[str]:
    """Emit the graph of an `OpFromGraph` in its place."""
    inner = node.op.fgraph
    part = Emission(emission.build, emission.rules)
    part.notes = emission.notes
    part.names.update(zip(inner.inputs, emission.values(node.inputs), strict=False))
    found: list[str] = part.values(inner.outputs)
    return found


def _nothing(build: Any) -> str:
    """Return the shape of a scalar."""
    empty: str = build.constant([], dtype="int64")
    return empty


def _axes(variable: Any) -> list[None]:
    """Return the shape of a value of which only the number of axes is known."""
    return [None] * int(variable.type.ndim)


def _declared(name: str, dtype: str, shape: Sequence[int | None]) -> onnx.ValueInfoProto:
    import numpy as np
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


RULES = {"Scan": scan, "IfElse": if_else, "OpFromGraph": inline}
