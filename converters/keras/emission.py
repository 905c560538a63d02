"""What the functions that emit layers share: tensors with their shapes, and the graph in the making."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploykit._plugins.converters.keras import activations
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.graph_building import GraphBuilder


@dataclass(frozen=True)
class Value:
    """A tensor: its name in the graph and its shape, None where a size is dynamic (the batch first).

    `mask` names the bool tensor [batch, time] that says which steps count, where there is one.
    """

    name: str
    shape: tuple[int | None, ...]
    mask: str = ""
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a layer's function needs beside the layer: the graph, and whose arithmetic it is."""

    build: GraphBuilder
    backend: str
    version: int
    zeroes_masked: bool | None = False
    """Whether a Bidirectional gives zeros in masked steps, None where the file does not tell."""

    release: tuple[int, int] = (2, 0)
    """The first two numbers of the version of Keras that wrote the file."""

    def value(self, name: str, shape: tuple[int | None, ...]) -> Value:
        """Return a tensor of the graph with its shape."""
        return Value(name, shape)

    def activated(self, layer: Layer, x: Value, setting: str = "activation") -> Value:
        """Append the activation that `layer` ends with."""
        from deploykit._plugins.converters.keras import shaping

        given = layer.config.get(setting)
        own = activations.layer_of(given)
        if own is not None:
            return shaping.EMIT[own[0]](
                self, Layer(name=layer.name, kind=own[0], config=own[1]), [x]
            )
        name = activations.name_of(given, layer.name, self.version)
        return Value(activations.emit(self.build, name, x.name), x.shape)


Emit = Callable[[Context, Layer, list[Value]], Value]
EmitSeveral = Callable[[Context, Layer, list[Value]], list[Value]]
