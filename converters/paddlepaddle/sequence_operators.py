"""Paddle 1's operators on sequences as ONNX nodes.

Sources: `paddle/fluid/operators/sequence_ops/*.cc`, `lstm_op.cc` and `gru_op.cc` of Paddle 1.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from deploykit._plugins.converters.paddlepaddle.sequences import Sequences, Value

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

Slots = Mapping[str, list[Value]]
Emit = Callable[[GraphBuilder, Slots, Mapping[str, Any]], dict[str, Value]]


def refused(what: str, kind: str) -> UnsupportedError:
    """Return the error for an operator `kind` in a form without a mapping."""
    return UnsupportedError(
        f"no ONNX form for {kind} {what}",
        operators=(kind,),
        hint="export the model with padded inputs and a later version of Paddle",
    )


def _sequences(build: GraphBuilder, value: Value, kind: str) -> Sequences:
    if not value.lengths:
        raise refused("on an input without sequences", kind)
    return Sequences(build, value)


def _rows(build: GraphBuilder, x: Value, kind: str) -> str:
    """Return `x` as [rows, width]."""
    if x.rank == 2:
        return str(x.name)
    if x.rank == 1:
        return build.add("Unsqueeze", x.name, build.shape_constant([1]))
    raise refused(f"on {x.rank} axes", kind)


def _pool(build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    own = _sequences(build, x, "sequence_pool")
    rows = _rows(build, x, "sequence_pool")
    how = str(attributes.get("pooltype", "AVERAGE")).upper()
    empty = build.constant(float(attributes.get("pad_value", 0.0)), dtype="float32")
    count = build.add("Unsqueeze", build.add("Cast", own.lengths, to=1), own.axes(1))
    has_rows = build.add("Greater", count, build.constant(0.0, dtype="float32"))
    if how in ("SUM", "AVERAGE", "SQRT"):
        found = build.add("MatMul", build.add("Cast", own.members, to=1), rows)
        if how != "SUM":
            divisor = count if how == "AVERAGE" else build.add("Sqrt", count)
            one = build.constant(1.0, dtype="float32")
            found = build.add("Div", found, build.add("Where", has_rows, divisor, one))
    elif how == "MAX":
        inside = build.add("Unsqueeze", own.members, own.axes(2))
        every = build.add("Unsqueeze", rows, own.axes(0))
        least = build.constant(-3.4028235e38, dtype="float32")
        found = build.add(
            "ReduceMax", build.add("Where", inside, every, least), axes=[1], keepdims=0
        )
    elif how in ("FIRST", "LAST"):
        place = own.starts if how == "FIRST" else build.add("Sub", own.ends, own.number(1))
        found = build.add("Gather", rows, own.within(place), axis=0)
    else:
        raise refused(f"of kind {how}", "sequence_pool")
    return {"Out": x.on(build.add("Where", has_rows, found, empty), rank=2, lengths="")}


def _softmax(build: GraphBuilder, ins: Slots, _: Mapping[str, Any]) -> dict[str, Value]:
    x = ins["X"][0]
    own = _sequences(build, x, "sequence_softmax")
    flat = build.add("Reshape", x.name, build.shape_constant([-1]))
    least = build.constant(-3.4028235e38, dtype="float32")
    inside = build.add("Where", own.members, build.add("Unsqueeze", flat, own.axes(0)), least)
    top = build.add("Gather", build.add("ReduceMax", inside, axes=[1], keepdims=0), own.owners)
    powers = build.add("Exp", build.add("Sub", flat, top))
    total = build.add("MatMul", build.add("Cast", own.members, to=1), powers)
    shares = build.add("Div", powers, build.add("Gather", total, own.owners))
    return {"Out": x.on(build.add("Reshape", shares, build.add("Shape", x.name)))}


def _window(build: GraphBuilder, own: Sequences, rows: str, shift: int) -> tuple[str, str]:
    """Return the rows `shift` further on [rows, width], and whether they are of the same sequence."""
    index = build.add("Add", own.rows, own.number(shift))
    begun = build.add("GreaterOrEqual", index, build.add("Gather", own.starts, own.owners))
    ended = build.add("Less", index, build.add("Gather", own.ends, own.owners))
    inside = build.add("Unsqueeze", build.add("And", begun, ended), own.axes(1))
    return build.add("Gather", rows, own.within(index), axis=0), inside


def _convolution(
    build: GraphBuilder, ins: Slots, attributes: Mapping[str, Any]
) -> dict[str, Value]:
    x = ins["X"][0]
    if attributes.get("paddingTrainable") or int(attributes.get("contextStride", 1)) != 1:
        raise refused("with trained padding or a stride", "sequence_conv")
    own = _sequences(build, x, "sequence_conv")
    rows = _rows(build, x, "sequence_conv")
    zero = build.constant(0.0, dtype="float32")
    parts = []
    for at in range(int(attributes["contextLength"])):
        moved, inside = _window(build, own, rows, int(attributes.get("contextStart", 0)) + at)
        parts.append(build.add("Where", inside, moved, zero))
    columns = build.add("Concat", *parts, axis=1)
    return {"Out": x.on(build.add("MatMul", columns, ins["Filter"][0].name), rank=2)}


def _expand(build: GraphBuilder, ins: Slots, _: Mapping[str, Any]) -> dict[str, Value]:
    x, like = ins["X"][0], ins["Y"][0]
    if x.lengths:
        raise refused("of an input that has sequences itself", "sequence_expand")
    own = _sequences(build, like, "sequence_expand")
    return {"Out": x.on(build.add("Gather", x.name, own.owners, axis=0), lengths=like.lengths)}


EMIT: dict[str, Emit] = {
    "sequence_pool": _pool,
    "sequence_softmax": _softmax,
    "sequence_conv": _convolution,
    "sequence_expand": _expand,
}
