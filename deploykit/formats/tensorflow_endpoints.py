"""Where a TensorFlow graph begins and ends, which a GraphDef and a checkpoint's graph do not say.

Inputs are placeholders that outputs depend on. Outputs are what nobody reads, except for training,
saving and summaries; in a graph that was trained they are what the loss compares with the labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deploykit.formats.tensorflow_graph import (
    PLACEHOLDERS,
    SIDE_EFFECTS,
    VARIABLES,
    Graph,
    Node,
)

TRAINING_SCOPES = ("gradients", "save", "report_uninitialized", "GradientDescent", "train_op")
_UPDATES = ("Assign", "Apply", "Scatter", "Resource", "SparseApply", "Save", "Restore")
_QUIET = frozenset(
    [
        *("Queue", "Enqueue", "Reader", "Dataset", "Iterator", "Summary"),
        *("LookupTable", "InitializeTable", "HashTable"),
    ]
)
_WEIGHS = ("MatMul", "Conv", "DepthwiseConv", "BiasAdd", "Gather", "ResourceGather", "Einsum")
"""How the operators begin that put weights to data: no loss does that after the labels came in."""
_STEERS = frozenset(
    ["Switch", "RefSwitch", "LoopCond", "Enter", "RefEnter", "NextIteration", "ControlTrigger"]
)
"""Parts of loops and branches that nobody reads where a branch does not need them."""
_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})
"""What comes after them no longer depends on the values."""
_OF_A_LOSS = frozenset(
    ["ArgMax", "Log", "Maximum", "Minimum", "Reshape", "Identity", "StopGradient", "Cast", "Round"]
)
"""What a loss or an accuracy does to a prediction before it compares it with the label.

A node of these that somebody gave a name of its own (`pred`, not `Add_1`) is an output all the same.
"""


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Names of tensors; `labels` are placeholders that only the loss reads."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...] = ()


def find_endpoints(graph: Graph, outputs: Iterable[str] = ()) -> Endpoints:
    """Return the inputs and outputs of `graph`; with `outputs` given, the inputs that they need.

    Both are empty where nothing is found.
    """
    flow = _Flow(graph)
    chosen = tuple(outputs)
    labels: tuple[str, ...] = ()
    if not chosen:
        found, labels = flow.outputs()
        chosen = tuple(found)
    needed = flow.before(tensor.split(":")[0] for tensor in chosen)
    fed = [name for name, node in graph.nodes.items() if node.operator in PLACEHOLDERS]
    inputs = [name for name in fed if name in needed]
    # one with a default is a switch or a size, unless there is nothing else
    without = [n for n in inputs if graph.nodes[n].operator != "PlaceholderWithDefault"]
    inputs = without or inputs
    return Endpoints(inputs=tuple(inputs), outputs=chosen, labels=labels)


class _Flow:
    """Who reads whom, and what depends on placeholders and on variables."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.readers: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for node in graph.nodes.values():
            for source in _data(node):
                if source in self.readers:
                    self.readers[source].append(node.name)
        self.trained = any(_is_training(node) for node in graph.nodes.values())

    def before(self, names: Iterable[str]) -> set[str]:
        """Return the nodes that those of these `names` depend on, and these."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in found or name not in self.nodes:
                continue
            found.add(name)
            waiting.extend(part.removeprefix("^").split(":")[0] for part in self.nodes[name].inputs)
        return found

    def after(self, starts: Iterable[str], *, by_value: bool = True) -> set[str]:
        """Return the nodes that depend on `starts`, and these; training does not count."""
        found: set[str] = set()
        waiting = list(starts)
        while waiting:
            name = waiting.pop()
            if name in found or _is_training(self.nodes[name]):
                continue
            if by_value and self.nodes[name].operator in _SHAPES:
                continue
            found.add(name)
            waiting.extend(self.readers[name])
        return found

    def outputs(self) -> tuple[list[str], tuple[str, ...]]:
        """Return the nodes that are outputs, and the placeholders that are labels."""
        labels = self._labels() if self.trained else ()
        tainted = self.after(labels, by_value=False)
        variables = [name for name, node in self.nodes.items() if node.operator in VARIABLES]
        fed = [name for name, node in self.nodes.items() if node.operator in PLACEHOLDERS]
        alive = self.after([name for name in fed if name not in labels])
        weighed = self.after(variables) if variables else set(self.nodes)
        found: dict[str, None] = {}
        for name, node in self.nodes.items():
            if name in tainted or not _can_be_output(node):
                continue
            readers = [one for one in self.readers[name] if _can_be_read(self.nodes[one])]
            if not readers and not self._steers(node):
                # what depends on no input is a counter or a schedule, where anything does
                if not fed or name in alive or not alive:
                    found[name] = None
            elif (
                readers
                and name in alive
                and name in weighed
                and any(one in tainted for one in readers)
            ):
                for one in self._out_of_the_loss(name, tainted):
                    found[one] = None
        chosen = self._without_followers(list(found), tainted)
        # of a loop's results only some are read; the others are its counters
        results = [name for name in chosen if self.nodes[name].operator != "Exit"]
        return results or chosen, labels

    def _steers(self, node: Node) -> bool:
        """Whether a node only says which way a loop or a branch goes."""
        sources = [self.nodes[one] for one in _data(node) if one in self.nodes]
        passes = node.operator == "Identity" and sources and sources[0].operator in _STEERS
        return node.operator in _STEERS or bool(passes)

    def _without_followers(self, names: list[str], tainted: set[str]) -> list[str]:
        """Leave out an argmax or a regulariser that follows another output of the same name list."""
        if not tainted:
            return names
        kept = []
        for name in names:
            others = [one for one in names if one != name]
            follows = self.nodes[name].operator in ("ArgMax", "L2Loss") and any(
                one in self.before([name]) for one in others
            )
            if not follows:
                kept.append(name)
        return kept

    def _out_of_the_loss(self, name: str, tainted: set[str]) -> list[str]:
        """Return where the value came from, before a loss rounded, reshaped or took logarithms."""
        seen: set[str] = set()
        waiting, found = [name], []
        scopes = {scope for one in tainted for scope in _scopes(one)}
        while waiting:
            one = waiting.pop()
            node = self.nodes[one]
            inside = any(scope in scopes for scope in _scopes(one)[:1])
            sources = [
                source
                for source in _data(node)
                if source in self.nodes and self.nodes[source].operator != "Const"
            ]
            prepares = node.operator in _OF_A_LOSS and _is_unnamed(node)
            if sources and (prepares or inside) and one not in seen:
                seen.add(one)
                waiting.extend(
                    source
                    for source in sources
                    if self.nodes[source].operator not in (*_SHAPES, *PLACEHOLDERS)
                    and _can_be_output(self.nodes[source])
                    and not _of_shape(self.nodes, source)
                )
            elif one not in found and one not in seen:
                found.append(one)
        return found or [name]

    def _labels(self) -> tuple[str, ...]:
        """Return the placeholders that meet the model's results, and no weights before or after."""
        variables = [name for name, node in self.nodes.items() if node.operator in VARIABLES]
        weighed = self.after(variables)
        fed = [name for name, node in self.nodes.items() if node.operator in PLACEHOLDERS]
        reach = {name: self.after([name]) for name in fed}
        found = []
        for name in fed:
            others = set().union(*(reach[one] for one in fed if one != name))
            if reach[name] != {name} and self._is_label(reach[name], weighed, others):
                found.append(name)
        return tuple(found) if len(found) < len(fed) else ()

    def _is_label(self, own: set[str], weighed: set[str], others: set[str]) -> bool:
        for one in own:
            node = self.nodes[one]
            strangers = [source for source in _data(node) if source not in own]
            met = [source for source in strangers if source in weighed]
            if node.operator.startswith(_WEIGHS) and met:
                return False
            if node.operator in ("Switch", "RefSwitch", "If", "StatelessIf"):
                return False
            # weights met before any result of the model: data
            pure = all(source not in others for source in _data(node))
            if met and pure and not any(source in others for source in met):
                return False
            drawn = [
                source
                for source in strangers
                if source in self.nodes and self.nodes[source].operator.startswith("Random")
            ]
            if drawn:
                return False
        return bool(own & others & weighed)


def _is_unnamed(node: Node) -> bool:
    return node.name.rpartition("/")[2].rstrip("_0123456789") == node.operator


def _data(node: Node) -> list[str]:
    return [part.split(":")[0] for part in node.inputs if not part.startswith("^")]


def _of_shape(nodes: dict[str, Node], name: str) -> bool:
    """Whether a node computes with sizes: its sources end in Shape and constants."""
    seen: set[str] = set()
    waiting, shaped = [name], False
    while waiting and len(seen) < 50:
        one = waiting.pop()
        if one in seen or one not in nodes:
            continue
        seen.add(one)
        node = nodes[one]
        if node.operator in _SHAPES:
            shaped = True
        elif node.operator in (*PLACEHOLDERS, *VARIABLES):
            return False
        else:
            waiting.extend(_data(node))
    return shaped


def _scopes(name: str) -> list[str]:
    """Return the name scopes around a node, the innermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _is_training(node: Node) -> bool:
    parts = node.name.split("/")[:-1] or [""]
    return (
        node.operator.startswith(_UPDATES) and not node.operator.startswith(("ResourceGather",))
    ) or any(part.rstrip("_0123456789") in TRAINING_SCOPES for part in parts)


def _can_be_read(node: Node) -> bool:
    """Whether it counts that this node reads another."""
    return not _is_training(node) and not any(word in node.operator for word in _QUIET)


def _can_be_output(node: Node) -> bool:
    return (
        node.operator not in SIDE_EFFECTS
        and node.operator not in PLACEHOLDERS
        and node.operator not in _SHAPES
        and not any(word in node.operator for word in _QUIET)
        and not _is_training(node)
    )
