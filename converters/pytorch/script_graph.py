"""The graph of a script, looked at: its nodes, the attributes it reads, where a node comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Place = tuple[str, str]
"""The path of a module, such as `encoder.0`, and the name of its attribute."""


def attributes(script: Any) -> dict[Place, Any]:
    """Return what `forward` of a script reads of its modules' attributes, modules aside."""
    import torch

    graph = script.inlined_graph
    found: dict[Place, Any] = {}
    modules = {next(graph.inputs()).debugName(): ("", script)}
    for node in nodes(graph):
        if node.kind() != "prim::GetAttr":
            continue
        owner = modules.get(next(node.inputs()).debugName())
        if owner is None:
            continue
        path, module = owner
        value = getattr(module, node.s("name"))
        if isinstance(value, torch.nn.Module):
            modules[node.output().debugName()] = f"{path}.{node.s('name')}".lstrip("."), value
        else:
            found[path, node.s("name")] = value
    return found


def nodes(block: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the blocks in it, in the order of the text."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from nodes(inner)


def where(node: Any) -> str:
    """Return the module or the line of the script that a node comes from, empty where unknown."""
    scope = node.scopeName().rpartition("::")[2].replace("__module.", "")
    if scope:
        return str(scope)
    lines = [line.strip() for line in node.sourceRange().splitlines() if line.strip()]
    return lines[0][:120] if lines else ""
