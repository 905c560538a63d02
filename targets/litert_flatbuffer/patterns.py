"""Nodes that together are one operator of TensorFlow Lite: the error function's GELU."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer.node import Node

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.values import Values


def joined(nodes: list[Node], values: Values, outputs: set[str]) -> Iterable[Node]:
    """Return the nodes with x (1 + erf(x / sqrt 2)) / 2 as one Gelu, wherever exporters write it so."""
    makers = {name: node for node in nodes for name in node.outputs if name}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def number(name: str) -> float | None:
        found = values.constant(name)
        return float(found.reshape(-1)[0]) if found is not None and found.size == 1 else None

    def only_reader(name: str) -> Node | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    def operands(node: Node) -> tuple[str, float] | None:
        """The tensor and the number that a commutative node takes."""
        for one, other in (node.inputs, node.inputs[::-1]):
            value = number(other)
            if value is not None and values.constant(one) is None:
                return one, value
        return None

    def scaled(name: str) -> str | None:
        """Return x where `name` is x / sqrt(2)."""
        node = makers.get(name)
        if node is None or node.operator not in ("Div", "Mul"):
            return None
        if node.operator == "Div":
            divisor = number(node.inputs[1])
            near = divisor is not None and math.isclose(divisor, math.sqrt(2), rel_tol=1e-5)
            return node.inputs[0] if near else None
        found = operands(node)
        near = found is not None and math.isclose(found[1], math.sqrt(0.5), rel_tol=1e-5)
        return found[0] if found is not None and near else None

    def match(node: Node) -> tuple[str, Node] | None:
        """Return x, and the node whose output is Gelu of it."""
        x = scaled(node.inputs[0])
        one = only_reader(node.outputs[0])
        if x is None or one is None or one.operator != "Add":
            return None
        added = operands(one)
        if added is None or added[1] != 1:
            return None
        halved = found_x = False
        current = one
        while not (halved and found_x):
            following = only_reader(current.outputs[0])
            if following is None or following.operator != "Mul":
                return None
            other = [name for name in following.inputs if name != current.outputs[0]]
            if len(other) != 1:
                return None
            half = makers.get(other[0])
            if not halved and number(other[0]) == 0.5:
                halved = True
            elif not found_x and other[0] == x:
                found_x = True
            elif (
                not (halved or found_x)
                and half is not None
                and half.operator == "Mul"
                and operands(half) == (x, 0.5)
            ):
                halved = found_x = True
            else:
                return None
            current = following
        return x, current

    replaced: dict[str, Node] = {}
    for node in nodes:
        if node.operator == "Erf" and (found := match(node)) is not None:
            x, last = found
            replaced[last.outputs[0]] = Node("Gelu", last.name, (x,), last.outputs, {}, last.opset)
    return [replaced.get(node.outputs[0], node) if node.outputs else node for node in nodes]
