"""The size of the training batch, which models written for XDL's MXNet put into their operators.

A prediction has rows as many as it is asked for, so the size gives way to the codes that keep it.
"""

from __future__ import annotations

import dataclasses

from deploykit._plugins.converters.mxnet.network import data_inputs, needed
from deploykit._plugins.converters.mxnet.reading import Node, Symbol

from deploykit.errors import UnsupportedError

REPEATS = (
    *("batch_dot", "broadcast_add", "broadcast_plus", "broadcast_sub", "broadcast_minus"),
    *("broadcast_mul", "broadcast_div", "broadcast_maximum", "broadcast_minimum"),
)
"""Operators that repeat a first axis of one by themselves."""


def unbatched(symbol: Symbol) -> Symbol:
    """Return `symbol` for batches of any size.

    Raises UnsupportedError where an operator holds the size in a way that cannot give way.
    """
    used = needed(symbol)
    batch = _batch(symbol, used)
    if batch is None:
        return symbol
    users: dict[int, list[Node]] = {}
    for at in used:
        for one, _ in data_inputs(symbol.nodes[at]):
            users.setdefault(one, []).append(symbol.nodes[at])
    nodes = list(symbol.nodes)
    for at in used:
        node = nodes[at]
        if node.op in ("Reshape", "reshape"):
            nodes[at] = _reshape(node, batch)
        elif node.op == "broadcast_to":
            nodes[at] = _broadcast(node, batch, users.get(at, []))
    return dataclasses.replace(symbol, nodes=tuple(nodes))


def _batch(symbol: Symbol, used: set[int]) -> int | None:
    """Return the size that all inputs of the network begin with, None where they have none."""
    sizes = set()
    for at in used:
        node = symbol.nodes[at]
        if node.op == "null" and "__create_by_xdl__" in node.attrs:
            shape = node.value("__shape__", None)
            if isinstance(shape, (tuple, list)) and shape:
                sizes.add(int(shape[0]))
    return sizes.pop() if len(sizes) == 1 and max(sizes) > 1 else None


def _reshape(node: Node, batch: int) -> Node:
    shape = list(node.value("shape", ()))
    if not shape or shape[0] != batch:
        return node
    # -1 is what is left; where that is taken, 0 keeps the size
    shape[0] = 0 if -1 in shape[1:] else -1
    return _with_shape(node, shape)


def _broadcast(node: Node, batch: int, users: list[Node]) -> Node:
    shape = list(node.value("shape", ()))
    if not shape or shape[0] != batch:
        return node
    if any(one.op not in REPEATS for one in users):
        raise UnsupportedError(
            f"node `{node.name}` (broadcast_to) holds the size {batch} of the training batch",
            operators=("broadcast_to",),
            hint="cut the network before it: `--set outputs=NODE`",
        )
    return _with_shape(node, [0, *shape[1:]])


def _with_shape(node: Node, shape: list[int]) -> Node:
    attrs = {**node.attrs, "shape": str(tuple(shape))}
    return dataclasses.replace(node, attrs=attrs)
