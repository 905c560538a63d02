"""A Keras model computed layer by layer by definition, in numpy and float64, as its own backend does.

Written from the documentation of the layers and the backends' sources, apart from the mapping to
ONNX: what the two have in common is the reading of the file and the rule of padding in
`backends.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import (
    activations,
    evaluation_attention,
    evaluation_merging,
    evaluation_norms,
    evaluation_preparing,
    evaluation_shaping,
    evaluation_space,
    evaluation_time,
    operation_values,
    tensor_arguments,
)
from deploykit._plugins.converters.keras.reading import (
    KerasModel,
    Layer,
    Network,
    Ref,
    release,
    zeroes_masked,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Masked = tuple[Array, Array | None]
    Compute = Callable[["Evaluator", Layer, list[Array]], Array]


def evaluate(model: KerasModel, feed: dict[str, Array]) -> dict[str, Array]:
    """Return the outputs of `model`, by the names that the converter gives them."""
    from deploykit._plugins.converters.keras.plugin import output_names

    evaluator = Evaluator(
        model.backend or "tensorflow",
        model.version,
        bool(zeroes_masked(model.written)),
        release(model.written),
    )
    values = evaluator.network(
        model.network, [(feed[name], None) for name, _, _ in model.network.inputs]
    )
    return {name: value for name, (value, _) in zip(output_names(model), values, strict=True)}


class Evaluator:
    """Computes networks; a layer's value is made when something asks for it."""

    def __init__(
        self,
        backend: str,
        version: int,
        zeroes_masked: bool,
        release: tuple[int, int] = (2, 0),
    ) -> None:
        self.release = release
        self.backend = backend
        self.version = version
        self.zeroes_masked = zeroes_masked
        self.mask: Array | None = None
        """Which steps of the layer at work count; it leaves here the mask of what it gives."""
        self.masks: list[Array | None] = []
        """Those of each input of the merging layer at work."""
        self.states: tuple[Array, ...] = ()
        """What the layer at work gives besides its output."""

    def network(self, network: Network, inputs: list[Masked]) -> list[Masked]:
        """Return the outputs of `network`, each with its mask."""
        layers = {layer.name: layer for layer in network.layers}
        values: dict[Ref, Masked] = dict(zip(network.inputs, inputs, strict=True))

        def value(ref: Ref) -> Masked:
            waiting = [ref]
            while waiting:
                name, node, _ = wanted = waiting[-1]
                if wanted in values:
                    waiting.pop()
                    continue
                layer = layers[name]
                mask = layer.masks[node] if node < len(layer.masks) else None
                needed = [*layer.calls[node], *([mask] if mask is not None else [])]
                missing = [one for one in needed if one not in values]
                if missing:
                    waiting += missing
                    continue
                given = [values[one] for one in layer.calls[node]]
                if mask is not None:
                    given = [(x, values[mask][0]) for x, _ in given]
                found: list[Masked]
                if layer.kind == "operation":
                    called = layer.config["calls"][node]
                    operation = layer.config["operation"]
                    inputs = [x for x, _ in given]
                    found = [(operation_values.compute(operation, called, inputs), None)]
                elif layer.kind in tensor_arguments.KINDS:
                    found = evaluation_attention.attend(self, layer, node, given)
                elif layer.inner is not None and layer.kind != "TimeDistributed":
                    found = self.network(layer.inner, given)
                else:
                    found = [self._layer(layer, given), *((one, None) for one in self.states)]
                values.update({(name, node, at): one for at, one in enumerate(found)})
            return values[ref]

        return [value(ref) for ref in network.outputs]

    def _layer(self, layer: Layer, given: list[Masked]) -> Masked:
        import numpy as np

        masks = [mask for _, mask in given if mask is not None]
        self.mask = np.logical_and.reduce(masks) if masks else None
        if layer.kind in MERGES:
            self.mask = evaluation_merging.mask_of(layer, given, self.release)
            self.masks = [mask for _, mask in given]
        self.states = ()
        found = self.compute(layer, [x for x, _ in given])
        if layer.kind not in MASK_MAKERS and layer.kind not in MASK_KEEPERS:
            keeps = layer.kind in RECURRENT and found.ndim == 3
            keeps = keeps or (layer.kind in ("Normalization", "Rescaling") and self.version >= 3)
            self.mask = self.mask if keeps else None
        return found, self.mask

    def compute(self, layer: Layer, inputs: list[Array]) -> Array:
        """Return what `layer` makes of `inputs`, whatever counts."""
        return COMPUTE[layer.kind](self, layer, inputs)

    def activation(self, layer: Layer, x: Array, value: Any) -> Array:
        """Return `x` through the activation that a configuration names."""
        own = activations.layer_of(value)
        if own is not None:
            return self.compute(Layer(name=layer.name, kind=own[0], config=own[1]), [x])
        name = activations.name_of(value, layer.name, self.version)
        found: Array = activations.compute(name, x)
        return found


MERGES = tuple(evaluation_merging.COMPUTE)
MASK_MAKERS = ("Masking", "Embedding")
RECURRENT = ("LSTM", "GRU", "SimpleRNN", "Bidirectional")
MASK_KEEPERS = (
    *("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout"),
    *("ActivityRegularization", "Activation", "Dense", "TimeDistributedDense", "TimeDistributed"),
    *("BatchNormalization", "LayerNormalization", "LeakyReLU", "ELU", "PReLU", "ReLU"),
    *("ThresholdedReLU", "Identity", "UnitNormalization", "GroupNormalization", *MERGES),
)
"""Layers with `supports_masking` in Keras 2.3 that hand on the steps that count."""

COMPUTE: dict[str, Compute] = {
    **evaluation_space.COMPUTE,
    **evaluation_merging.COMPUTE,
    **evaluation_norms.COMPUTE,
    **evaluation_preparing.COMPUTE,
    **evaluation_shaping.COMPUTE,
    **evaluation_time.COMPUTE,
}
