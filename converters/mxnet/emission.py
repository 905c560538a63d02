"""What the functions that emit MXNet's operators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit._plugins.converters.mxnet.reading import Node

from deploykit.graph_building import GraphBuilder

Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """A tensor: its name in the graph, its shape, None where a size is not fixed, and its dtype."""

    name: str
    shape: Sizes
    dtype: str = "float32"
    array: Any = None
    """Its value, where it is a weight."""

    @property
    def rank(self) -> int:
        return len(self.shape)


Emit = Callable[[GraphBuilder, Node, list[Value]], "list[Value]"]


def as_line(build: GraphBuilder, value: Value) -> Value:
    """Return `value`, a number without axes as an array of one: MXNet has no others."""
    if value.shape:
        return value
    return Value(build.add("Reshape", value.name, build.shape_constant([1])), (1,), value.dtype)


def broadcast(shapes: Sequence[Sizes]) -> Sizes:
    """Return the shape of an operator between tensors of `shapes`."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(
        next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True)
    )
