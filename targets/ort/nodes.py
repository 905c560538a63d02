"""Which ONNX nodes an operation of ONNX Runtime's optimised graph stands for.

A fused operation keeps the name of the tensor that it computes, a blocked convolution in its own
name. So it stands for all nodes of the model between that tensor and those that the optimised graph
still has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.onnx_graph import every_node

if TYPE_CHECKING:
    import onnx

FILE = "nodes.json"

_BLOCKED = re.compile(r"(.+)_nchwc(_token_\d+)?$")
_REORDERS = {"ReorderInput", "ReorderOutput"}


def stands_for(saved: onnx.GraphProto, model: onnx.GraphProto) -> dict[str, list[str]]:
    """Return each named operation of `saved` with the names of the nodes of `model` it computes."""
    makers = {name: node for node in model.node for name in node.output if name}
    order = {id(node): number for number, node in enumerate(model.node)}
    there = {name for node in saved.node for name in _computes(node)}
    there |= {tensor.name for tensor in saved.initializer}
    found = {}
    for node in saved.node:
        if not node.name or node.op_type in _REORDERS:
            continue
        region: dict[int, str] = {}
        todo = _computes(node)
        while todo:
            maker = makers.get(todo.pop())
            if maker is None or order[id(maker)] in region:
                continue
            region[order[id(maker)]] = "" if maker.op_type == "Constant" else maker.name
            todo += [name for name in maker.input if name not in there]
        found[node.name] = [region[number] for number in sorted(region) if region[number]]
    return {**_inner(saved, model), **found}


def _computes(node: onnx.NodeProto) -> list[str]:
    """Return the tensors of the model that an operation computes."""
    blocked = _BLOCKED.fullmatch(node.name) if node.domain == "com.microsoft.nchwc" else None
    return [blocked[1]] if blocked else [*node.output]


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
