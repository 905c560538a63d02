"""Which values of a CNTK v1 network are its outputs.

The file lists features, labels, criteria, evaluations and outputs. Where it lists no output, the
prediction that its criteria judge is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from deploykit._plugins.converters.cntk.v1_file import Network

LABEL_FIRST = (
    "ClassBasedCrossEntropyWithSoftmax",
    "ClassificationError",
    "CrossEntropy",
    "CrossEntropyWithSoftmax",
    "ErrorPrediction",
    "Logistic",
    "NoiseContrastiveEstimation",
    "SequenceWithSoftmax",
)
"""Criteria whose first input is the label whatever the file says of labels."""


def outputs(network: Network) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the outputs, and what to tell the user of how they were found."""
    groups = network.groups
    trained = tuple(dict.fromkeys(groups.get("criterion", ()) + groups.get("evaluation", ())))
    listed = groups.get("output", ())
    kept = tuple(name for name in dict.fromkeys(listed) if name not in trained)
    repairs = []
    if not kept and listed:
        kept = tuple(dict.fromkeys(listed))
    if not kept:
        kept = judged(network, trained) or ends(network, trained)
        if kept:
            repairs.append(
                f"the file names no output: taken for it: {', '.join(kept)}, "
                + ("which its criteria judge" if trained else "which nothing else uses")
            )
    cut = [name for name in trained if name not in kept]
    if cut:
        repairs.append(f"left out: {', '.join(cut)}, which only training needs")
    return kept, tuple(repairs)


def judged(network: Network, criteria: Iterable[str]) -> tuple[str, ...]:
    """Return what `criteria` compare with the labels."""
    given = {
        name
        for name, node in network.nodes.items()
        if node.op in ("InputValue", "SparseInputValue")
    }
    labels = set(network.groups.get("label", ()))
    for node in network.nodes.values():
        if node.op in LABEL_FIRST and node.inputs and node.inputs[0] in given:
            labels.add(node.inputs[0])
    by_label = downstream(network, labels)
    fed = given - labels
    predicted = downstream(network, fed)
    found: dict[str, None] = {}
    left = [name for name in criteria if name in by_label]
    seen = set(left)
    while left:
        for name in network.nodes[left.pop()].inputs:
            if name in by_label and name not in seen:
                seen.add(name)
                left.append(name)
            elif name in predicted - by_label and name not in fed:
                found[name] = None
    return tuple(found)


def ends(network: Network, criteria: Iterable[str]) -> tuple[str, ...]:
    """Return the operators whose values no other takes, criteria aside."""
    used = {name for node in network.nodes.values() for name in node.inputs}
    cut = set(criteria)
    return tuple(
        name
        for name, node in network.nodes.items()
        if node.inputs and name not in used and name not in cut
    )


def downstream(network: Network, names: Iterable[str]) -> set[str]:
    """Return the nodes that depend on any of `names`, these included."""
    users: dict[str, list[str]] = {}
    for name, node in network.nodes.items():
        for one in node.inputs:
            users.setdefault(one, []).append(name)
    found = set(names)
    left = list(found)
    while left:
        for name in users.get(left.pop(), ()):
            if name not in found:
                found.add(name)
                left.append(name)
    return found
