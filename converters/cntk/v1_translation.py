"""Leaves and operators of v2 in the making, for a CNTK v1 network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk import v1_shapes
from deploykit._plugins.converters.cntk.graph import Leaf, Node
from deploykit._plugins.converters.cntk.v1_file import Matrix, Network, RawNode

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Shape = tuple[int, ...]

NEEDS_SEQUENCE = (
    "Delay",
    "FutureValue",
    "GatherPacked",
    "OptimizedRNNStack",
    "PackedIndex",
    "PastValue",
    "RNN",
    "ScatterPacked",
    "Where",
)
UID_MARK, NAME_MARK = "__v2libuid__", "__v2libname__"
"""Around the parts of a name in a v1 file that CNTK v2 wrote."""


def shown(name: str) -> str:
    """Return the name that a user gave a node: CNTK v2 wrapped it, with its uid, in v1 files."""
    if name.startswith(UID_MARK) and NAME_MARK in name:
        uid, _, own = name.removeprefix(UID_MARK).partition(NAME_MARK)
        return own or uid
    return name


class Translation:
    """Leaves and nodes of v2 in the making. The uid of a v1 node's value is its name."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shapes = v1_shapes.inferred(network)
        self.leaves: dict[str, Leaf] = {}
        self.nodes: list[Node] = []
        self.sequences = any(
            node.op in NEEDS_SEQUENCE or min(node.fields.get("axes", (0,)), default=0) < -1
            for node in network.nodes.values()
            if node.op not in ("Transpose", "TransposeDimensions")
        )

    def refuse(self, node: RawNode, why: str = "") -> None:
        """Keep `node` under a name that no mapping knows: it matters only where it is needed."""
        self.emit(node, f"{node.op}({why})" if why else node.op, node.inputs)

    def emit(self, node: RawNode, op: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Add the operator that makes the value of `node`."""
        self.nodes.append(
            Node(
                uid=node.name,
                name=shown(node.name),
                op=op,
                inputs=tuple(inputs),
                outputs=(node.name,),
                attributes=attributes,
                shape=self.shapes.get(node.name),
            )
        )

    def between(
        self,
        node: RawNode,
        step: str,
        op: str,
        inputs: Sequence[str],
        shape: Shape | None = None,
        **attributes: Any,
    ) -> str:
        """Add an operator that `node` needs on the way, and return the uid of its value."""
        uid = f"{node.name}/{step}"
        self.nodes.append(
            Node(
                uid=uid,
                name=shown(node.name),
                op=op,
                inputs=tuple(inputs),
                outputs=(uid,),
                attributes=attributes,
                shape=shape,
            )
        )
        return uid

    def constant(self, uid: str, values: Array, name: str = "") -> str:
        """Add a constant of numpy's shape, and return its uid."""
        self.leaves[uid] = Leaf(
            uid=uid,
            name=name or uid,
            shape=values.shape[::-1],
            dtype=values.dtype.name,
            values=values,
        )
        return uid

    def parameter(self, name: str) -> Array | None:
        """Return the values of the parameter `name` as they lie in the file, None of other nodes."""
        matrix = self.network.nodes[name].fields.get("value")
        return matrix.values if isinstance(matrix, Matrix) else None

    def operands(self, node: RawNode) -> tuple[str, ...]:
        """Return the inputs of `node`; of old files in one shape, where they are columns."""
        shape = self.shapes.get(node.name)
        names: tuple[str, ...] = node.inputs
        given = [(name, self.shapes.get(name)) for name in names]
        known = [(name, own) for name, own in given if own is not None]
        if self.network.version >= 3 or shape is None or len(known) < len(given):
            return names
        if node.op in v1_shapes.OF_ROWS:
            wanted = [(name, (math.prod(own),)) for name, own in known]
        elif node.op in v1_shapes.BROADCAST:
            size = math.prod(shape)
            crossed = math.prod(v1_shapes.broadcast(own for _, own in known)) > size
            wanted = [
                (name, shape if crossed and math.prod(own) == size else own) for name, own in known
            ]
        else:
            return names
        return tuple(
            self.as_shape(name, own, f"operand {at}", node) for at, (name, own) in enumerate(wanted)
        )

    def as_shape(self, name: str, shape: Shape, step: str, node: RawNode) -> str:
        """Return the uid of the value of `name` in another shape with as many elements."""
        if self.shapes.get(name) == shape:
            return name
        values = self.parameter(name)
        if values is None or values.size != math.prod(shape):
            return self.between(node, step, "Reshape", [name], shape, newShape=shape)
        return self.constant(f"{name}/{step} of {node.name}", values.reshape(shape[::-1]), name)
