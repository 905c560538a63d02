"""What the functions that emit Caffe's layers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploykit._plugins.converters.caffe.reading import Layer

from deploykit.graph_building import GraphBuilder

Sizes = tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """A blob: its name in the graph and its shape, None where a size is dynamic."""

    name: str
    shape: Sizes

    @property
    def rank(self) -> int:
        return len(self.shape)


Emit = Callable[[GraphBuilder, Layer, list[Value]], list[Value]]
