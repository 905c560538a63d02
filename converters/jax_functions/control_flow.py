"""Loops and branches: `scan` as Scan, `while` as Loop, `cond` as If."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.jax_functions.lowering import Emit, Lowering


def _body(
    low: Lowering, name: str, inputs: Sequence[tuple[str, Any, Sequence[Any]]], emit: Any
) -> Any:
    """Return an inner graph; `emit(lowering, names)` gives pairs of a value and its aval."""
    from deploykit._plugins.converters.jax_functions.lowering import Lowering

    build = low.build.inner(name)
    inner = Lowering(build, low)
    names = [
        build.input(wish, dtype, [None if low.is_symbolic(s) else int(s) for s in shape])
        for wish, dtype, shape in inputs
    ]
    given: set[str] = set()
    for value, dtype, rank in emit(inner, names):
        # an output must be made in the body itself, and be no other output too
        plain = build.makes(value) and value not in given
        own = value if plain else build.add("Identity", value)
        given.add(own)
        build.output(own, own, dtype, (None,) * rank)
    return build.inner_graph()


def _scan(low: Lowering, equation: Any, names: list[str]) -> tuple[str, ...]:
    given = equation.params
    constants, carries = given["num_consts"], given["num_carry"]
    program = given["jaxpr"]
    captured, state, rows = (
        names[:constants],
        names[constants:][:carries],
        names[constants + carries :],
    )
    inner_avals = program.in_avals[constants:]
    inputs = [(f"scan_in_{at}", aval.dtype.name, aval.shape) for at, aval in enumerate(inner_avals)]
    scanned = list(rows)
    if not rows:
        # ONNX's Scan needs something to go along
        scanned = [_steps(low, given["length"])]
        inputs.append(("scan_step", "int64", ()))

    def emit(inner: Lowering, own: list[str]) -> Any:
        used = own if rows else own[:-1]
        found = inner.program(program.jaxpr, program.consts, [*captured, *used])
        return [
            (value, aval.dtype.name, len(aval.shape))
            for value, aval in zip(found, program.out_avals, strict=True)
        ]

    outputs = len(program.out_avals) - carries
    backwards = int(given["reverse"])
    return low.build.add_many(
        "Scan",
        *state,
        *scanned,
        count=len(program.out_avals),
        body=_body(low, "scan_body", inputs, emit),
        num_scan_inputs=len(scanned),
        scan_input_directions=[backwards] * len(scanned),
        scan_output_directions=[backwards] * outputs if outputs else None,
    )


def _steps(low: Lowering, length: Any) -> str:
    import numpy as np

    if not low.is_symbolic(length):
        return low.build.constant(np.arange(int(length), dtype=np.int64))
    zero, one = (low.build.constant(np.asarray(value, np.int64)) for value in (0, 1))
    count = low.build.add("Squeeze", low.size(length), low.build.shape_constant([0]))
    return low.build.add("Range", zero, count, one)


def _while(low: Lowering, equation: Any, names: list[str]) -> tuple[str, ...]:
    given = equation.params
    test, body = given["cond_jaxpr"], given["body_jaxpr"]
    first, second = given["cond_nconsts"], given["body_nconsts"]
    test_constants, body_constants = names[:first], names[first : first + second]
    state = names[first + second :]
    avals = body.out_avals
    (begin,) = low.program(test.jaxpr, test.consts, [*test_constants, *state])
    inputs = [("step", "int64", ()), ("going", "bool", ())]
    inputs += [(f"state_{at}", aval.dtype.name, aval.shape) for at, aval in enumerate(avals)]

    def emit(inner: Lowering, own: list[str]) -> Any:
        found = inner.program(body.jaxpr, body.consts, [*body_constants, *own[2:]])
        (going,) = inner.program(test.jaxpr, test.consts, [*test_constants, *found])
        values = [
            (value, aval.dtype.name, len(aval.shape))
            for value, aval in zip(found, avals, strict=True)
        ]
        return [(going, "bool", 0), *values]

    graph = _body(low, "while_body", inputs, emit)
    return low.build.add_many("Loop", "", begin, *state, count=len(avals), body=graph)


def _cond(low: Lowering, equation: Any, names: list[str]) -> tuple[str, ...]:
    import numpy as np

    which, *arguments = names
    branches = list(equation.params["branches"])
    avals = branches[0].out_avals
    which = low.cast(which, "int64")

    def choose(inner: Lowering, at: int) -> Sequence[str]:
        """Emit branch `at` and those after it: as JAX does, what is outside takes the nearest."""
        if at == len(branches) - 1:
            return inner.program(branches[at].jaxpr, branches[at].consts, arguments)
        here = inner.build.add("LessOrEqual", which, inner.build.constant(np.asarray(at, np.int64)))

        def taken(deeper: Lowering, _: list[str]) -> Any:
            return described(deeper.program(branches[at].jaxpr, branches[at].consts, arguments))

        def otherwise(deeper: Lowering, _: list[str]) -> Any:
            return described(choose(deeper, at + 1))

        return inner.build.add_many(
            "If",
            here,
            count=len(avals),
            then_branch=_body(inner, "branch", [], taken),
            else_branch=_body(inner, "other_branches", [], otherwise),
        )

    def described(found: Sequence[str]) -> Any:
        return [
            (value, aval.dtype.name, len(aval.shape))
            for value, aval in zip(found, avals, strict=True)
        ]

    return tuple(choose(low, 0))


EMIT: dict[str, Emit] = {"scan": _scan, "while": _while, "cond": _cond}
