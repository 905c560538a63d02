"""Sizes that XDL feeds to a TensorFlow graph as tensors, worked out from the batch instead.

Models written for XDL take the targets of their Reshape operators as inputs: `[-1, 18]`,
`[-1, 100, 18]`. Where the exporter knew all sizes but one, or all but the batch and one more, the
target follows from the data, and the input is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploykit._plugins.converters.xdl.dense import TensorNetwork
from deploykit._plugins.converters.xdl.graph_def import Ref, Shape, TensorNode, tensor_reference
from deploykit._plugins.converters.xdl.tensor_values import Value

from deploykit.graph_building import GraphBuilder


@dataclass(frozen=True)
class Reshapes:
    """Targets by the name of their input: sizes, None for the batch where -1 stands for another.

    `anchor` is an input whose rows are the batch. `reshaped` names the target of each input that is
    only reshaped, by one target.
    """

    targets: Mapping[str, tuple[int | None, ...]]
    anchor: str
    reshaped: Mapping[str, str]
    declared: Mapping[str, Shape]
    """Shapes of inputs that say none themselves, from what they are reshaped to at once."""

    def history(self, name: str) -> str:
        """Return what the length of the sequence `name` is called; empty where it is no sequence.

        A vector is one of a sequence where it is reshaped to [batch, length, width].
        """
        target = self.targets.get(self.reshaped.get(name, ""), ())
        if len(target) != 3 or target[:2] != (None, -1):
            return ""
        return self._length(self.reshaped[name])

    def mask(self, name: str) -> str:
        """Return what the second axis of the mask `name` is called; empty where it is none."""
        target = self.targets.get(self.reshaped.get(name, ""), ())
        return self._length(self.reshaped[name]) if target == (None, -1) else ""

    def _length(self, target: str) -> str:
        sequences = [
            one
            for one, sizes in self.targets.items()
            if sizes[:2] == (None, -1) and len(sizes) == 3
        ]
        # with one sequence all lengths are one
        return "length" if len(sequences) == 1 else f"{target.removesuffix(':0')}_length"


def find(network: TensorNetwork, sizes: list[str], vectors: list[str]) -> Reshapes:
    """Return the targets among the inputs `sizes` that follow from the inputs `vectors`."""
    known = {tensor_reference(name): True for name in network.inputs}
    users: dict[Ref, list[tuple[TensorNode, int]]] = {}
    for node in network.graph.walk(network.wanted, known):
        for at, ref in enumerate(node.inputs):
            users.setdefault(ref, []).append((node, at))
    shapes: dict[str, Shape] = {}
    for name in sizes:
        found = users.get(tensor_reference(name), [])
        if found and all(node.op == "Reshape" and at == 1 for node, at in found):
            shape = _unified([node.shape() for node, _ in found])
            if shape is not None and shape.count(None) in (1, 2):
                shapes[name] = shape
    anchor = _anchor(network, vectors, users, shapes)
    targets: dict[str, tuple[int | None, ...]] = {}
    for name, shape in shapes.items():
        if shape.count(None) == 1:
            targets[name] = tuple(-1 if size is None else size for size in shape)
        elif anchor and shape[0] is None:
            targets[name] = (None, *(-1 if size is None else size for size in shape[1:]))
    reshaped = {}
    declared: dict[str, Shape] = {}
    names = {tensor_reference(name): name for name in targets}
    for name in network.inputs:
        found = users.get(tensor_reference(name), [])
        wanted = [node.shape() for node, at in found if node.op == "Reshape" and at == 0]
        unified = _unified(wanted) if wanted and len(wanted) == len(found) else None
        if unified is not None and network.spec(name).shape is None:
            declared[name] = unified
        by = {node.inputs[1] if node.op == "Reshape" and at == 0 else None for node, at in found}
        (only,) = by if len(by) == 1 else (None,)
        if only in names:
            reshaped[name] = names[only]
    return Reshapes(targets=targets, anchor=anchor, reshaped=reshaped, declared=declared)


def _unified(shapes: list[Shape | None]) -> Shape | None:
    """Return the sizes that all of `shapes` agree on; None where they differ or one is unknown."""
    several = [shape for shape in shapes if shape is not None]
    if len(several) != len(shapes) or len({len(shape) for shape in several}) != 1:
        return None
    found: list[int | None] = []
    for sizes in zip(*several, strict=True):
        fixed = {size for size in sizes if size is not None}
        if len(fixed) > 1:
            return None
        found.append(fixed.pop() if fixed else None)
    return tuple(found)


def _anchor(
    network: TensorNetwork,
    vectors: list[str],
    users: Mapping[Ref, list[tuple[TensorNode, int]]],
    shapes: Mapping[str, Shape],
) -> str:
    """Return a vector input with one row for each row of the batch: reshaped to what it is already."""
    by_ref = {tensor_reference(name): shape for name, shape in shapes.items()}
    for name in vectors:
        own = network.spec(name).shape
        found = users.get(tensor_reference(name), [])
        reshaped = [node for node, at in found if node.op == "Reshape" and at == 0]
        if own is None or own[0] is not None or None in own[1:]:
            continue
        targets = [by_ref.get(node.inputs[1]) for node in reshaped]
        if reshaped and all(target is not None and target == own for target in targets):
            return name
    return ""


def emit(build: GraphBuilder, reshapes: Reshapes, values: dict[Ref, Value]) -> None:
    """Put the targets into `values`, computed from the anchor, which is there already."""
    import numpy as np

    for name, target in reshapes.targets.items():
        if None not in target:
            array = np.array(target, np.int32)
            values[tensor_reference(name)] = Value(
                build.constant(array, name), "int32", array.shape, array
            )
            continue
        shape = build.add("Shape", values[tensor_reference(reshapes.anchor)].name)
        batch = build.add("Slice", shape, build.shape_constant([0]), build.shape_constant([1]))
        rest = build.shape_constant([int(size) for size in target[1:] if size is not None])
        joined = build.add("Concat", batch, rest, axis=0)
        values[tensor_reference(name)] = Value(joined, "int64", (len(target),))


def evaluate(reshapes: Reshapes, values: dict[str, object], rows: int) -> None:
    """Put the targets into `values` for a batch of `rows`."""
    import numpy as np

    for name, target in reshapes.targets.items():
        values[name] = np.array([rows if size is None else size for size in target], np.int32)
