"""A CNTK network as an ONNX graph: its inputs, its operators in order, its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk import mapping, sequences
from deploykit._plugins.converters.cntk.emission import Emission, Value
from deploykit._plugins.converters.cntk.graph import (
    FREE,
    UNKNOWN,
    Axis,
    Graph,
    Leaf,
    Node,
    Root,
)
from deploykit._plugins.converters.cntk.ordering import Loop, needed, steps

from deploykit.errors import DeploykitError, SourceError, UnsupportedError
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

EMIT = {**mapping.EMIT, **sequences.EMIT}


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is converted: the graph, its outputs, its inputs under the names they are fed by.

    `alone` says that one sequence is computed at a time: there is no batch axis beside a sequence
    axis. `dtype` is that of all values.
    """

    graph: Graph
    outputs: tuple[Root, ...]
    inputs: Mapping[str, Leaf]
    alone: bool
    dtype: str

    @property
    def wanted(self) -> list[str]:
        return [root.uid for root in self.outputs]


def network(graph: Graph, outputs: Sequence[Root], *, alone: bool) -> Network:
    """Return what is converted of `graph`.

    Raises UnsupportedError where an operator has no ONNX form, SourceError where nothing is fed.
    """
    nodes = list(
        {node.uid: node for node in needed(graph, [r.uid for r in outputs]).values()}.values()
    )
    wrong = [node for node in nodes if node.op not in EMIT]
    if wrong:
        named = ", ".join(f"{node.op} (`{node.name or node.uid}`)" for node in wrong[:10])
        raise UnsupportedError(
            f"no ONNX form for the CNTK operators {named}",
            operators=tuple(dict.fromkeys(node.op for node in wrong)),
            hint="choose outputs before them: `--set outputs=NAME,...`",
        )
    uids = [uid for node in nodes for uid in node.inputs] + [root.uid for root in outputs]
    used = {uid: graph.leaves[uid] for uid in dict.fromkeys(uids) if uid in graph.leaves}
    if not _orders(nodes):
        # nothing asks which step comes after which: every step is a sample
        used = {uid: replace(leaf, sequence="") for uid, leaf in used.items()}
        graph = replace(graph, leaves={**graph.leaves, **used})
    wide = any(leaf.dtype == "float64" for leaf in used.values() if not _is_scalar(leaf))
    inputs: dict[str, Leaf] = {}
    for uid, leaf in graph.leaves.items():
        if uid in used and leaf.values is None:
            # CNTK does not insist on names, nor on different ones
            name = leaf.name if leaf.name and leaf.name not in inputs else uid
            inputs[name] = leaf
    if not inputs:
        raise SourceError("the outputs of the model depend on no input")
    taken = set(inputs)
    shown = tuple(
        replace(root, name=f"{root.name}_output") if root.name in taken else root
        for root in outputs
    )
    return Network(
        graph=graph,
        outputs=shown,
        inputs=inputs,
        alone=alone,
        dtype="float64" if wide else "float32",
    )


def completed(found: Network, given: Mapping[str, TensorSpec]) -> Network:
    """Give inputs of which the file does not even say the rank the shapes that a user gives."""
    known: dict[str, Leaf] = {}
    for name, leaf in found.inputs.items():
        asked = given[name].shape if name in given else None
        if leaf.shape == UNKNOWN and asked:
            lead = len(shape_of(found, replace(leaf, shape=())))
            sizes = tuple(size if isinstance(size, int) else FREE for size in asked[lead:])
            known[name] = replace(leaf, shape=sizes[::-1])
    leaves = {**found.graph.leaves, **{leaf.uid: leaf for leaf in known.values()}}
    graph = replace(found.graph, leaves=leaves)
    return replace(found, graph=graph, inputs={**found.inputs, **known})


def _is_scalar(leaf: Leaf) -> bool:
    return leaf.values is not None and leaf.values.size == 1


def _orders(nodes: Iterable[Node]) -> bool:
    for node in nodes:
        if node.op in sequences.ALONG_SEQUENCE:
            return True
        axes = [node.attributes.get("axis"), *_tuple(node.attributes.get("axisVec"))]
        if node.op == "ReduceElements" and any(
            isinstance(axis, Axis)
            and axis.index is None
            and axis.name not in ("batch", "all static axes")
            for axis in axes
        ):
            return True
        if node.op == "Times" and node.attributes.get("inferInputRankToMap") == -2:
            return True
    return False


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def shape_of(found: Network, leaf: Leaf) -> tuple[Dimension, ...]:
    """Return the shape in which an input is fed: [batch, sequence, *static axes slowest first].

    Where one sequence is computed alone, an input with a sequence axis has no batch axis, and any
    other a batch of 1.
    """
    static: list[Dimension] = [None if size < 0 else size for size in leaf.shape[::-1]]
    lead: list[Dimension] = []
    if leaf.batch and not (found.alone and leaf.sequence):
        single = found.alone and any(one.sequence for one in found.inputs.values())
        lead.append(1 if single else "batch")
    if leaf.sequence:
        lead.append(leaf.sequence)
    return (*lead, *static)


def build(
    found: Network, specs: Mapping[str, TensorSpec]
) -> tuple[GraphBuilder, tuple[TensorSpec, ...]]:
    """Return the network as a graph in the making and what its outputs are.

    `specs` are the inputs in the order of `found.inputs`.
    """
    builder = GraphBuilder("cntk")
    to = Emission(builder, found.dtype, alone=found.alone)
    values: dict[str, Value] = {}
    for name, leaf in found.inputs.items():
        spec = specs[name]
        fed = builder.input(name, spec.dtype, spec.shape or ())
        values[leaf.uid] = _fed(to, fed, spec, leaf)
    for uid in _constants(found):
        values[uid] = _stored(builder, found, found.graph.leaves[uid])
    order = steps(found.graph, found.wanted)
    wanted = _used(order) | set(found.wanted)
    for step in order:
        if isinstance(step, Loop):
            with builder.layer(step.delays[0].name or step.delays[0].uid):
                values.update(
                    sequences.recurrence(to, step, values, lambda n, ins: emit(to, n, ins), wanted)
                )
            continue
        with builder.layer(step.name or step.uid):
            made = emit(to, step, [values[uid] for uid in step.inputs])
        values.update(zip(step.outputs, made, strict=False))
    shown = []
    for root in found.outputs:
        value = values[root.uid]
        if value.mask:
            raise UnsupportedError(f"`{root.name}` is a list of places", operators=("Where",))
        name = value.name
        shape = list(_dimensions(value))
        if value.batch and any(leaf.sequence for leaf in found.inputs.values()) and found.alone:
            shape[0] = 1
        if found.alone and value.batch and value.sequence:
            name = to.add("Squeeze", name, to.sizes(0))
            shape = shape[1:]
        builder.output(root.name, name, found.dtype, shape)
        shown.append(TensorSpec(name=root.name, dtype=found.dtype, shape=tuple(shape)))
    return builder, tuple(shown)


def emit(to: Emission, node: Node, ins: list[Value]) -> list[Value]:
    """Emit one operator. Raises SourceError where its inputs and attributes do not fit together."""
    if any(one.mask for one in ins) and node.op not in ("PackedIndex", "GatherPacked"):
        raise UnsupportedError(
            f"`{node.name or node.uid}` computes with the places that a Where found",
            operators=(f"{node.op}(Where)",),
        )
    try:
        made = EMIT[node.op](to, node, ins)
    except DeploykitError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError, ArithmeticError) as error:
        raise SourceError(
            f"operator `{node.name or node.uid}` ({node.op}) does not fit: {error}"[:400],
            hint="the model is damaged, or was saved before its shapes were known",
        ) from error
    several = made if isinstance(made, list) else [made]
    if node.op in mapping.IDENTITY:
        return several
    # what is known of an input is not known of what was made of it
    keeps = node.op == "OneHot"
    return [replace(one, constant=None, index=one.index if keeps else "") for one in several]


def _fed(to: Emission, name: str, spec: TensorSpec, leaf: Leaf) -> Value:
    """Return an input in the layout of all values: with a batch axis, in the graph's dtype."""
    static = len(leaf.shape)
    given = list(spec.shape or ())
    shape = tuple(size if isinstance(size, int) else FREE for size in given[::-1][:static])
    if spec.dtype != to.dtype:
        name = to.cast(name)
    if to.alone and leaf.sequence and leaf.batch:
        name = to.add("Unsqueeze", name, to.sizes(0))
    return Value(name, shape, batch=leaf.batch, sequence=leaf.sequence)


def _constants(found: Network) -> list[str]:
    made = needed(found.graph, found.wanted).values()
    uids = dict.fromkeys([uid for node in made for uid in node.inputs] + found.wanted)
    leaves = found.graph.leaves
    return [uid for uid in uids if uid in leaves and leaves[uid].values is not None]


def _stored(builder: GraphBuilder, found: Network, leaf: Leaf) -> Value:
    import numpy as np

    values = leaf.values
    assert values is not None
    if values.dtype != np.dtype(found.dtype):
        values = values.astype(found.dtype)
    name = builder.constant(values, leaf.uid)
    return Value(name, leaf.shape, constant=values, positional=True)


def _used(order: Sequence[Node | Loop]) -> set[str]:
    """Return what is read from outside of the loop that makes it."""
    found: set[str] = set()
    for step in order:
        if isinstance(step, Loop):
            found |= set(step.inputs()) | {node.inputs[1] for node in step.delays}
        else:
            found |= set(step.inputs)
    return found


def _dimensions(value: Value) -> Iterable[Dimension]:
    if value.batch:
        yield "batch"
    if value.sequence:
        yield value.sequence
    for size in value.shape[::-1]:
        yield None if size == FREE else size
