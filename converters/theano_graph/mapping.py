"""The whole graph into ONNX: inputs, outputs, and the rule for each of pytensor's operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploykit._plugins.converters.theano_graph import (
    elementwise,
    indexing,
    looping,
    reducing,
    shaping,
    windows,
)
from deploykit._plugins.converters.theano_graph.building import Graph
from deploykit._plugins.converters.theano_graph.emission import (
    Emission,
    Rule,
    operator_name,
    rule_name,
    rule_of,
)
from deploykit._plugins.converters.theano_graph.sizes import Axis, Sizes

from deploykit.errors import UnsupportedError, UsageError
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension, DynamicAxis, Signature, TensorSpec

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **shaping.RULES,
    **indexing.RULES,
    **reducing.RULES,
    **windows.RULES,
    **looping.RULES,
}


def emit(
    graph: Graph, name: str, given: Sequence[TensorSpec], dynamic: Sequence[DynamicAxis]
) -> tuple[GraphBuilder, Signature, list[str]]:
    """Return the graph in ONNX, its signature, and what is to be noted about it.

    Raises UnsupportedError, naming the operators, where some have no ONNX form.
    """
    refuse_unknown(graph)
    build = GraphBuilder(name)
    emission = Emission(build, RULES)
    sizes = Sizes(emission)
    shapes = input_shapes(graph, sizes, given, dynamic)
    inputs = []
    for key, variable in graph.inputs.items():
        dtype = variable.type.dtype
        inputs.append(TensorSpec(name=key, dtype=dtype, shape=shapes[key]))
        emission.names[variable] = build.input(key, dtype, shapes[key])
    found = emission.values(list(graph.outputs.values()))
    outputs = []
    for (key, variable), value in zip(graph.outputs.items(), found, strict=True):
        shown = f"{key}_output" if key in graph.inputs else key
        unknown: tuple[Dimension, ...] = (None,) * int(variable.type.ndim)
        build.output(shown, value, variable.type.dtype)
        outputs.append(TensorSpec(name=shown, dtype=variable.type.dtype, shape=unknown))
    signature = Signature(inputs=tuple(inputs), outputs=tuple(outputs))
    return build, signature, list(emission.notes)


def refuse_unknown(graph: Graph) -> None:
    """Raise UnsupportedError for all operators of the graph that have no rule, loops' too."""
    wrong = [node for node in _nodes(graph.outputs.values()) if rule_name(RULES, node) is None]
    names = tuple(dict.fromkeys(operator_name(node) for node in wrong))
    if not wrong:
        return
    try:
        rule_of(RULES, wrong[0])
    except UnsupportedError as error:
        more = f"; also {', '.join(names[1:10])}" if len(names) > 1 else ""
        raise UnsupportedError(f"{error.message}{more}", operators=names, hint=error.hint) from None


def _nodes(outputs: Any) -> list[Any]:
    from pytensor.graph.basic import applys_between

    found: list[Any] = []
    for node in applys_between([], list(outputs)):
        if type(node.op).__name__ in ("MakeSlice",):
            continue
        found.append(node)
        inner = getattr(node.op, "inner_outputs", None) if _is_loop(node) else None
        if inner is not None:
            found += _nodes(inner)
    return found


def _is_loop(node: Any) -> bool:
    return type(node.op).__name__ in ("Scan", "OpFromGraph")


def input_shapes(
    graph: Graph, sizes: Sizes, given: Sequence[TensorSpec], dynamic: Sequence[DynamicAxis]
) -> dict[str, tuple[Dimension, ...]]:
    """Return the shape of each input: what the user says, what the graph decides, else dynamic.

    Raises UsageError where the user's words do not fit the graph.
    """
    _check(graph, given, dynamic)
    for name, declared in graph.shapes.items():
        for axis, size in zip(sizes.of(graph.inputs[name]), declared, strict=False):
            if size is not None:
                axis.fix(int(size))
    told = {spec.name: spec for spec in given}
    for name, spec in told.items():
        for axis, one in zip(sizes.of(graph.inputs[name]), spec.shape or (), strict=True):
            if isinstance(one, int):
                axis.fix(one)
    sizes.follow(list(graph.inputs.values()), list(graph.outputs.values()))
    names: dict[Axis, str] = {}
    for wish in dynamic:
        axes = sizes.of(graph.inputs[wish.input])
        names.setdefault(axes[wish.axis % len(axes)].root(), wish.name)
    found: dict[str, tuple[Dimension, ...]] = {}
    for name, variable in graph.inputs.items():
        own: tuple[Dimension, ...] = told[name].shape or () if name in told else ()
        shape: list[Dimension] = []
        for at, axis in enumerate(sizes.of(variable)):
            if own and not isinstance(own[at], int) and own[at] is not None:
                names.setdefault(axis.root(), str(own[at]))
            size = axis.size
            if own and isinstance(own[at], int):
                size = int(own[at] or 0)
            shape.append(
                names.setdefault(axis.root(), f"{name}_axis{at}") if size is None else size
            )
        wanted = {one.axis % len(shape): one.name for one in dynamic if one.input == name}
        found[name] = tuple(wanted.get(at, size) for at, size in enumerate(shape))
    return found


def _check(graph: Graph, given: Sequence[TensorSpec], dynamic: Sequence[DynamicAxis]) -> None:
    known: Mapping[str, Any] = graph.inputs
    for name in [*(one.name for one in given), *(one.input for one in dynamic)]:
        if name not in known:
            raise UsageError(
                f"the graph has no input `{name}`", hint=f"its inputs: {', '.join(known)}"
            )
    for spec in given:
        own = known[spec.name].type
        if spec.dtype != own.dtype:
            raise UsageError(
                f"the input `{spec.name}` is of {own.dtype}, not {spec.dtype}",
                hint="a network of the other precision: `--set floatX=float32` or `float64`",
            )
        if spec.shape is not None and len(spec.shape) != own.ndim:
            raise UsageError(f"the input `{spec.name}` has {own.ndim} axes, not {len(spec.shape)}")
    for wish in dynamic:
        if not -known[wish.input].type.ndim <= wish.axis < known[wish.input].type.ndim:
            raise UsageError(f"the input `{wish.input}` has no axis {wish.axis}")
