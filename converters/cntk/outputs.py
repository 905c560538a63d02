"""Which outputs of a CNTK model are evaluated: what belongs to training is cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deploykit._plugins.converters.cntk.graph import Graph, Node, Root
from deploykit._plugins.converters.cntk.ordering import needed

from deploykit.errors import SourceError, UsageError

_IN_TRAINING = (
    "CrossEntropyWithSoftmax ClassificationError SquaredError Logistic LambdaRank NDCG SumAll "
    "EditDistanceError ForwardBackward LatticeSequenceWithSoftmax CosDistanceWithNegativeSamples "
    "Assign RandomSample RandomSampleInclusionFrequency"
)
CRITERIA = frozenset(_IN_TRAINING.split())
"""Operators that are there for training."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The outputs to convert, and in words what was cut off."""

    outputs: tuple[Root, ...]
    repairs: tuple[str, ...]


def choose(graph: Graph, wanted: str, is_number: Callable[[Root], bool]) -> Choice:
    """Return the outputs named in `wanted` (`a,b`), or where it is empty those that a user evaluates.

    Then cut off are outputs that a criterion makes, and single numbers that are computed from
    another output and an input (the labels) that the other does not need. `is_number` says whether
    an output is one number for each sample. Raises UsageError where a name is unknown, SourceError
    where nothing is left.
    """
    if wanted:
        return Choice(outputs=_named(graph, wanted), repairs=())
    made = {uid: node for node in graph.nodes for uid in node.outputs}
    kept = [root for root in graph.roots if not _trains(made, needed(graph, [root.uid]), root.uid)]
    if not kept:
        kept = _predictions(graph, made)
    judged = [root for root in kept if _judges(graph, root, kept) and is_number(root)]
    kept = list({root.uid: root for root in kept if root not in judged}.values())
    if not kept:
        raise SourceError(
            "the model has no output but those of its training",
            hint="name what you evaluate: `--set outputs=NAME,...`",
        )
    names = {root.name for root in kept}
    cut = [root.name for root in graph.roots if root.name not in names]
    repairs = [f"cut off what is there for training: {', '.join(cut)}"] if cut else []
    return Choice(outputs=_distinct(kept), repairs=tuple(repairs))


def _named(graph: Graph, wanted: str) -> tuple[Root, ...]:
    known = {root.name: root.uid for root in graph.roots}
    found = []
    for name in (one.strip() for one in wanted.split(",")):
        uid = known.get(name) or graph.names.get(name)
        if uid is None:
            raise UsageError(
                f"the model has no output `{name}`",
                hint=f"its outputs: {', '.join(sorted(known))}; "
                "any operator can be named by its name or uid",
            )
        found.append(Root(name=name, uid=uid))
    return _distinct(found)


def _distinct(roots: Sequence[Root]) -> tuple[Root, ...]:
    """Return `roots` under names that no other has: CNTK does not insist on that."""
    taken: set[str] = set()
    found = []
    for root in roots:
        name = root.name if root.name not in taken else root.uid
        taken.add(name)
        found.append(Root(name=name, uid=root.uid))
    return tuple(found)


def _trains(made: Mapping[str, Node], below: Mapping[str, Node], uid: str) -> bool:
    return any(node.op in CRITERIA for node in below.values()) and uid in made


def _predictions(graph: Graph, made: Mapping[str, Node]) -> list[Root]:
    """Return what the criteria judge: of their operands the one that parameters made."""
    found = []
    for root in graph.roots:
        for node in needed(graph, [root.uid]).values():
            for uid in node.inputs if node.op in CRITERIA else ():
                below = needed(graph, [uid]).values()
                leaves = {one for node in below for one in node.inputs}
                trained = any(
                    graph.leaves[one].values is not None for one in leaves if one in graph.leaves
                )
                if trained and not any(node.op in CRITERIA for node in below):
                    name = made[uid].name or uid
                    found.append(Root(name=name, uid=uid))
    return found


def _inputs(graph: Graph, uid: str) -> set[str]:
    below = needed(graph, [uid]).values()
    uids = {one for node in below for one in node.inputs} | {uid}
    return {one for one in uids if one in graph.leaves and graph.leaves[one].values is None}


def _judges(graph: Graph, root: Root, roots: Sequence[Root]) -> bool:
    """Whether `root` is computed from another root and from an input that the other does not need."""
    below = needed(graph, [root.uid])
    own = _inputs(graph, root.uid)
    return any(
        other.uid != root.uid and other.uid in below and own - _inputs(graph, other.uid)
        for other in roots
    )
