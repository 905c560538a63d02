"""Which ONNX nodes an operation of ONNX Runtime's optimised graph stands for.

A fused operation keeps the name of the tensor that it computes, or tells it in its own name. So it
stands for all nodes of the model between that tensor and those that it reads. Where the names of
those are lost, it is told as the one node that makes its tensor. A node without a name, of which
some exporters have no other, is told by its first output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.onnx_graph import every_node

if TYPE_CHECKING:
    import onnx

FILE = "nodes.json"

# the name of a blocked convolution is its tensor's, of a quantised operator its node's
_BLOCKED = re.compile(r"(.+)_nchwc(_token_\d+)?$")
_QUANTISED = re.compile(r"(.+?)(?:_token_\d+)?$")
# what is put between operations and computes nothing
_PASSING = {"ReorderInput", "ReorderOutput", "Transpose", "Cast"}


def stands_for(saved: onnx.GraphProto, model: onnx.GraphProto) -> dict[str, list[str]]:
    """Return each operation of `saved` with the names of the nodes of `model` that it computes.

    No node is told of two operations.
    """
    makers = {name: node for node in model.node for name in node.output if name}
    order = {id(node): number for number, node in enumerate(model.node)}
    named = {node.name: node for node in model.node if node.name}
    computes = [_computes(node, makers, named) for node in saved.node]
    constant = {tensor.name for tensor in saved.initializer}
    there = constant.union(*computes)
    known = constant | {value.name for value in saved.input} | {""}
    claimed: set[int] = set()
    found = {}
    for position, (node, tensors) in enumerate(zip(saved.node, computes, strict=True)):
        bounded = known.issuperset(node.input)
        if tensors or (bounded and node.op_type in _PASSING):
            known.update(node.output)
        region: dict[int, str] = {}
        todo = list(tensors)
        while todo:
            maker = makers.get(todo.pop())
            if maker is None or order[id(maker)] in claimed:
                continue
            claimed.add(order[id(maker)])
            region[order[id(maker)]] = "" if maker.op_type == "Constant" else called(maker)
            if bounded:
                todo += [name for name in maker.input if name not in there]
        # as the profile calls it
        name = node.name or f"{node.op_type}_{position}"
        found[name] = [region[number] for number in sorted(region) if region[number]]
    return {**_inner(saved, model), **found}


def called(node: onnx.NodeProto) -> str:
    """Return the name of a node of the model, or of its first output where it has none."""
    return node.name or next(iter(node.output), "")


def give_names(graph: onnx.GraphProto) -> bool:
    """Name the nodes that have no name, in place; return whether there were any."""
    unnamed = [node for node in graph.node if not node.name]
    for node in unnamed:
        node.name = called(node)
    return bool(unnamed)


def _computes(
    node: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    named: Mapping[str, onnx.NodeProto],
) -> list[str]:
    """Return the tensors of the model that an operation computes; none where its name is lost."""
    if node.op_type.startswith("Reorder"):
        return []
    blocked = _BLOCKED.fullmatch(node.name) if node.domain == "com.microsoft.nchwc" else None
    if blocked and blocked[1] in makers:
        return [blocked[1]]
    own = [name for name in node.output if name in makers]
    quantised = _QUANTISED.fullmatch(node.name)
    if own or quantised is None or quantised[1] not in named:
        return own
    return [name for name in named[quantised[1]].output if name]


def _inner(saved: onnx.GraphProto, model: onnx.GraphProto) -> dict[str, list[str]]:
    """Return the nodes of branches and loops that kept their names."""
    outer = {node.name for node in saved.node}
    names = {node.name for node in every_node(model) if node.name}
    kept = {node.name for node in every_node(saved)} - outer
    return {name: [name] for name in sorted(kept & names)}


def write(payload: Path, saved: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Keep beside the saved graph what its operations stand for."""
    found = stands_for(saved.graph, model.graph)
    temporary = payload / f"{FILE}.tmp"
    temporary.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(payload / FILE)


def read(payload: Path) -> dict[str, list[str]]:
    """Return what `write` kept; nothing where the payload has none."""
    path = payload / FILE
    found: dict[str, list[str]] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found
