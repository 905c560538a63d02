"""In what order a network is computed: operator after operator, recurrences as loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deploykit._plugins.converters.cntk.graph import Graph, Node

from deploykit.errors import SourceError, UnsupportedError

DELAYS = ("PastValue", "FutureValue")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Operators that depend on themselves through `delays`, `body` in the order of one step."""

    delays: tuple[Node, ...]
    body: tuple[Node, ...]

    @property
    def reverse(self) -> bool:
        """Whether it runs from the end of the sequence."""
        return bool(self.delays[0].op == "FutureValue")

    @property
    def outputs(self) -> set[str]:
        return {uid for node in (*self.delays, *self.body) for uid in node.outputs}

    def inputs(self) -> Iterator[str]:
        """Yield the uids from outside that the steps need, initial states not among them."""
        own, seen = self.outputs, set[str]()
        for node in (*self.delays, *self.body):
            for uid in node.inputs[:1] if node.op in DELAYS else node.inputs:
                if uid not in own and uid not in seen:
                    seen.add(uid)
                    yield uid


def needed(graph: Graph, wanted: Iterable[str]) -> dict[str, Node]:
    """Return the nodes that the values `wanted` depend on, by the uids of their outputs."""
    made = {uid: node for node in graph.nodes for uid in node.outputs}
    found: dict[str, Node] = {}
    left = list(wanted)
    while left:
        uid = left.pop()
        if uid not in found and uid in made:
            found[uid] = made[uid]
            left += made[uid].inputs
    return found


def steps(graph: Graph, wanted: Iterable[str]) -> list[Node | Loop]:
    """Return what to compute for the values `wanted`, in an order in which it can be computed.

    Raises SourceError where operators wait for each other without a delay, UnsupportedError where a
    recurrence runs in both directions at once.
    """
    made = needed(graph, wanted)
    nodes = list({node.uid: node for node in made.values()}.values())
    after = {node.uid: [made[uid].uid for uid in node.inputs if uid in made] for node in nodes}
    by_uid = {node.uid: node for node in nodes}
    found: list[Node | Loop] = []
    for group in _components([node.uid for node in nodes], after):
        if len(group) == 1 and group[0] not in after[group[0]]:
            found.append(by_uid[group[0]])
        else:
            found.append(_loop([by_uid[uid] for uid in group], made))
    return found


def _loop(nodes: Sequence[Node], made: Mapping[str, Node]) -> Loop:
    delays = tuple(node for node in nodes if node.op in DELAYS)
    if len({node.op for node in delays}) != 1:
        names = ", ".join(node.name or node.uid for node in (delays or nodes)[:5])
        if not delays:
            raise SourceError(f"the operators {names} wait for each other without a delay")
        raise UnsupportedError(
            f"the recurrence through {names} runs in both directions at once",
            operators=tuple(sorted({node.op for node in delays})),
            hint="no network can be computed so: check how it was built",
        )
    own = {node.uid for node in nodes} - {node.uid for node in delays}
    inner = {
        node.uid: [made[uid].uid for uid in node.inputs if uid in made and made[uid].uid in own]
        for node in nodes
        if node.uid in own
    }
    by_uid = {node.uid: node for node in nodes}
    body = []
    for group in _components(list(inner), inner):
        if len(group) > 1 or group[0] in inner[group[0]]:
            raise SourceError(
                f"the operators {', '.join(group[:5])} wait for each other without a delay"
            )
        body.append(by_uid[group[0]])
    return Loop(delays=delays, body=tuple(body))


def _components(order: Sequence[str], after: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the strongly connected components, each after those it depends on (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for start in order:
        if start in index:
            continue
        work: list[tuple[str, Iterator[str]]] = [(start, iter(after[start]))]
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        while work:
            uid, rest = work[-1]
            for other in rest:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(after[other])))
                    break
                if other in on_stack:
                    low[uid] = min(low[uid], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[uid])
                if low[uid] == index[uid]:
                    group = []
                    while True:
                        group.append(stack.pop())
                        on_stack.discard(group[-1])
                        if group[-1] == uid:
                            break
                    found.append(group)
    return found
