"""CNTK's operators along the sequence as ONNX nodes, recurrences as Scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from deploykit._plugins.converters.cntk.emission import Emission, Value, listed, whole_number
from deploykit._plugins.converters.cntk.graph import FREE, Axis, Node, Shape
from deploykit._plugins.converters.cntk.ordering import DELAYS, Loop
from deploykit._plugins.converters.cntk.stacks import stack

from deploykit.errors import UnsupportedError

FURTHEST = 256
"""Steps that a delay can reach back: each is a state of its own."""

Step = Callable[[Node, list[Value]], list[Value]]


def _refuse(node: Node, what: str, kind: str) -> UnsupportedError:
    return UnsupportedError(f"`{node.name or node.uid}` {what}", operators=(kind,))


def reconcile(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit ReconcileDynamicAxis: the first input on the axes of the second."""
    data, like = ins
    if data.sequence and like.sequence:
        # CNTK insists that both have the same lengths
        return replace(data, sequence=like.sequence, constant=None)
    if data.sequence:
        raise _refuse(node, "takes the sequence from a sequence", "ReconcileDynamicAxis")
    whole = replace(like, name="", shape=data.shape, constant=None, positional=data.positional)
    return to.expanded(data, whole, like)


def delayed(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit a PastValue or FutureValue that is part of no recurrence: a shift."""
    data, initial = ins
    offset = whole_number(node, "offset", 1)
    if not data.sequence:
        raise ValueError("it delays what is no sequence")
    if not 1 <= offset <= FURTHEST:
        raise _refuse(node, f"delays by {offset} steps", f"{node.op}(offset)")
    if initial.sequence:
        raise _refuse(node, "begins with a sequence", f"{node.op}(initial state is a sequence)")
    shape = tuple(
        max(a, b) for a, b in zip(data.shape, _wide(initial.shape, len(data.shape)), strict=True)
    )
    axis = int(data.batch)
    whole = replace(data, name="", shape=shape, constant=None)
    data = to.expanded(data, whole, data) if shape != data.shape else data
    row = to.add("Slice", data.name, to.sizes(0), to.sizes(1), to.sizes(axis))
    first = to.expanded(initial, whole, replace(whole, name=row))
    before = [first.name] * offset
    parts = [*before, data.name] if node.op == "PastValue" else [data.name, *before]
    joined = to.add("Concat", *parts, axis=axis)
    start, end = (0, -offset) if node.op == "PastValue" else (offset, 2**31)
    name = to.add("Slice", joined, to.sizes(start), to.sizes(end), to.sizes(axis))
    return replace(whole, name=name, positional=data.positional and initial.positional)


def _wide(shape: Shape, rank: int) -> Shape:
    if len(shape) > rank:
        raise ValueError(f"its initial state has the shape {shape}")
    return (*shape, *[1] * (rank - len(shape)))


def where(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Note the condition of a Where; the gathering that uses it is emitted with its data."""
    (condition,) = ins
    if not condition.sequence or any(size != 1 for size in condition.shape):
        raise _refuse(node, f"looks for places in {condition.shape}", "Where")
    flat = replace(condition, name=to.reshape(condition, ()), shape=())
    axes = [axis.name for axis in listed(node, "newDynamicAxes", Axis)]
    named = [name for name in axes if name != "batch"]
    scaling = node.attributes.get("newSequenceAxisLengthScalingFactor")
    adding = node.attributes.get("newSequenceAxisLengthAdditiveFactor")
    if axes:
        sequence = named[0] if named else ""
    elif scaling == 0 and adding == 1:
        sequence = ""
    else:
        sequence = f"{condition.sequence}_where"
    return replace(flat, name="", mask=flat.name, sequence=sequence, constant=None)


def packed_index(_to: Emission, _node: Node, ins: list[Value]) -> Value:
    """Pass on the places: PackedIndex only translates them to CNTK's own memory layout."""
    return ins[1]


def gather_packed(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit GatherPacked: the steps of a sequence where a condition is not zero."""
    data, places = ins
    if not places.mask or not data.sequence or not data.batch:
        raise _refuse(node, "gathers by something else than a Where", "GatherPacked")
    is_true = to.add("Not", to.add("Equal", places.mask, to.real(0.0)))
    if not places.sequence:
        first = to.add("ArgMax", to.cast(is_true), axis=1, keepdims=1)
        name = to.add("GatherND", data.name, first, batch_dims=1)
        return replace(data, name=name, sequence="", constant=None, positional=False)
    if not places.positional and not to.alone:
        raise UnsupportedError(
            f"`{node.name or node.uid}` keeps other steps of each sequence, by their data",
            operators=("GatherPacked(data-dependent)",),
            hint="convert for one sequence at a time: leave out `--set sequences=batch`",
        )
    # every sequence of the batch keeps the same steps
    row = to.add("Gather", is_true, to.build.constant(0, dtype="int64"), axis=0)
    name = to.add("Compress", data.name, row, axis=1)
    return replace(data, name=name, sequence=places.sequence, constant=None)


def unpack(to: Emission, _node: Node, ins: list[Value]) -> list[Value]:
    """Emit UnpackSequence: the sequence becomes the slowest static axis; every step is valid."""
    (data,) = ins
    if not data.sequence:
        raise ValueError("it unpacks what is no sequence")
    shape = (*data.shape, FREE)
    made = replace(data, shape=shape, sequence="", constant=None, positional=False)
    lead = to.lead(data)
    ones = to.add("Expand", to.real(1.0), lead)
    return [made, replace(made, name=ones, shape=(FREE,))]


def to_sequence(_to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit ToSequence or ToSequenceLike: the slowest static axis becomes the sequence."""
    data = ins[0]
    if data.sequence or not data.batch or not data.shape:
        raise ValueError(f"it makes a sequence of a value of shape {data.shape}")
    if node.op == "ToSequenceLike":
        name = ins[1].sequence
    elif len(ins) > 1:
        raise _refuse(node, "is told the length of each sequence", "ToSequence(lengths)")
    else:
        prefix = node.attributes.get("sequenceAxis")
        name = str(prefix) if isinstance(prefix, str) and prefix else "sequence"
    if not name:
        raise ValueError("it makes a sequence like what is none")
    return replace(data, shape=data.shape[:-1], sequence=name, constant=None, positional=False)


EMIT: dict[str, Callable[[Emission, Node, list[Value]], Any]] = {
    "ReconcileDynamicAxis": reconcile,
    **dict.fromkeys(DELAYS, delayed),
    "Where": where,
    "PackedIndex": packed_index,
    "GatherPacked": gather_packed,
    "UnpackSequence": unpack,
    **dict.fromkeys(("ToSequence", "ToSequenceLike"), to_sequence),
    "OptimizedRNNStack": stack,
}

ALONG_SEQUENCE = frozenset((*EMIT, "ScatterPacked", "ConvolutionSequenceShape"))
"""Operators for which it matters that the steps of a sequence belong together."""


def recurrence(
    to: Emission,
    loop: Loop,
    values: Mapping[str, Value],
    step: Step,
    wanted: set[str],
) -> dict[str, Value]:
    """Emit a recurrence as one Scan and return the values of `wanted` that it makes.

    Each delay of n steps is n states; the body sees one step of every sequence from outside.
    `step` emits an operator of the body.
    """
    from onnx import TensorProto, helper

    outer = {uid: values[uid] for uid in loop.inputs()}
    scanned = {uid: value for uid, value in outer.items() if value.sequence}
    layout = _layout(loop, scanned)
    for node in loop.body:
        if node.op in ALONG_SEQUENCE and node.op not in DELAYS:
            raise _refuse(node, "stands within a recurrence", f"{node.op}(in a recurrence)")
    kind = TensorProto.DOUBLE if to.dtype == "float64" else TensorProto.FLOAT
    states: list[tuple[Node, list[str], Value, Value]] = []
    for node in loop.delays:
        shape = _state_shape(node, values)
        offset = whole_number(node, "offset", 1)
        if not 1 <= offset <= FURTHEST:
            raise _refuse(node, f"delays by {offset} steps", f"{node.op}(offset)")
        whole = Value("", shape, batch=layout.batch)
        initial = values[node.inputs[1]]
        if initial.sequence:
            raise _refuse(node, "begins with a sequence", f"{node.op}(initial state is a sequence)")
        first = to.expanded(initial, whole, layout)
        names = [to.build.fresh(f"{node.uid}/state") for _ in range(offset)]
        states.append((node, names, first, whole))
    with to.build.body() as nodes:
        inside = dict(outer)
        steps = {}
        for uid, value in scanned.items():
            steps[uid] = to.build.fresh(f"{value.name}/step")
            inside[uid] = replace(value, name=steps[uid], sequence="")
        for node, names, _, whole in states:
            inside[node.outputs[0]] = replace(whole, name=names[0])
        for node in loop.body:
            with to.build.layer(node.name or node.uid):
                made = step(node, [inside[uid] for uid in node.inputs])
            inside.update(zip(node.outputs, made, strict=False))
        finals = []
        for node, names, _, whole in states:
            newest = inside[node.inputs[0]]
            if newest.shape != whole.shape:
                raise ValueError(
                    f"`{node.name or node.uid}` delays {newest.shape}, and gives {whole.shape}"
                )
            newest = to.expanded(newest, whole, replace(whole, name=names[0]))
            finals += [to.add("Identity", one) for one in [*names[1:], newest.name]]
        given = sorted(uid for uid in loop.outputs if uid in wanted)
        shown = [to.add("Identity", inside[uid].name) for uid in given]
    flat_states = [(name, whole) for _, names, _, whole in states for name in names]
    steps_of = [(steps[uid], replace(scanned[uid], sequence="")) for uid in scanned]
    body = helper.make_graph(
        nodes,
        to.build.fresh("recurrence"),
        [
            helper.make_tensor_value_info(name, kind, _dimensions(value))
            for name, value in [*flat_states, *steps_of]
        ],
        [
            helper.make_tensor_value_info(name, kind, _dimensions(value))
            for name, value in [
                *zip(finals, [value for _, value in flat_states], strict=True),
                *((name, inside[uid]) for name, uid in zip(shown, given, strict=True)),
            ]
        ],
    )
    made = to.build.add_many(
        "Scan",
        *(first.name for _, names, first, _ in states for _ in names),
        *(value.name for value in scanned.values()),
        count=len(flat_states) + len(given),
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_axes=[int(value.batch) for value in scanned.values()],
        scan_input_directions=[int(loop.reverse)] * len(scanned),
        scan_output_axes=[int(inside[uid].batch) for uid in given],
        scan_output_directions=[int(loop.reverse)] * len(given),
    )
    results = {}
    for uid, name in zip(given, made[len(flat_states) :], strict=True):
        inner = replace(inside[uid], sequence=layout.sequence, positional=False)
        results[uid] = replace(inner, name=name, constant=None)
    return results


def _layout(loop: Loop, scanned: Mapping[str, Value]) -> Value:
    names = {value.sequence for value in scanned.values()}
    if len(names) != 1:
        node = loop.delays[0]
        what = "no sequence" if not names else f"the sequences {', '.join(sorted(names))}"
        raise _refuse(node, f"closes a recurrence over {what}", f"{node.op}(recurrence)")
    return next((value for value in scanned.values() if value.batch), next(iter(scanned.values())))


def _state_shape(node: Node, values: Mapping[str, Value]) -> Shape:
    shape = node.shape if node.shape is not None else values[node.inputs[1]].shape
    if any(size < 0 for size in shape):
        raise _refuse(node, f"holds a state of shape {shape}", f"{node.op}(free size)")
    return shape


def _dimensions(value: Value) -> list[int | None]:
    static: list[int | None] = [None if size == FREE else size for size in value.shape[::-1]]
    return [None] * value.dynamic + static
