"""Normalization of CNTK v1: of features by mean and deviation, of batches."""

from __future__ import annotations

from deploykit._plugins.converters.cntk.v1_file import RawNode
from deploykit._plugins.converters.cntk.v1_translation import Translation


def normalize(made: Translation, node: RawNode) -> None:
    """Translate a PerDimMeanVarNormalization."""
    data, mean, deviation = _as_data(made, node)
    centred = made.between(node, "centred", "Minus", [data, mean], made.shapes.get(node.name))
    made.emit(node, "ElementTimes", (centred, deviation))


def denormalize(made: Translation, node: RawNode) -> None:
    """Translate a PerDimMeanVarDeNormalization."""
    data, mean, inverse = _as_data(made, node)
    deviation = made.between(node, "deviation", "Reciprocal", [inverse])
    scaled = made.between(
        node, "scaled", "ElementTimes", [data, deviation], made.shapes.get(node.name)
    )
    made.emit(node, "Plus", (scaled, mean))


def _as_data(made: Translation, node: RawNode) -> tuple[str, str, str]:
    """Return data, mean and inverse deviation, the latter in the shape of the data."""
    data, mean, inverse = node.inputs
    shape = made.shapes.get(data)
    if shape is None:
        return data, mean, inverse
    return (
        data,
        made.as_shape(mean, shape, "mean", node),
        made.as_shape(inverse, shape, "deviation", node),
    )


def batch_normalization(made: Translation, node: RawNode) -> None:
    """Translate a BatchNormalization; its parameters get the shape of what they normalize."""
    import numpy as np

    data, *others = node.inputs
    shape = made.shapes.get(data)
    spatial = node.fields["spatial"]
    if shape is None or (spatial and node.fields["layout"] == "HWC"):
        made.refuse(node, "of channels first, or of an unknown shape")
        return
    wanted = shape[-1:] if spatial else shape
    steps = ("scale", "bias", "mean", "variance")
    given = [
        made.as_shape(name, wanted, step, node)
        for name, step in zip(others[:4], steps, strict=True)
    ]
    if node.fields["inverse_deviation"]:
        inverse = made.parameter(others[3])
        if inverse is None:
            made.refuse(node, "without a variance of its own")
            return
        # models before version 13 keep 1/deviation, and CNTK converts it so
        with np.errstate(divide="ignore"):
            variance = 1 / np.square(inverse) + np.asarray(node.fields["epsilon"], inverse.dtype)
        given[3] = made.constant(f"{node.name}/variance", variance.reshape(wanted[::-1]))
    counted = (
        others[4]
        if len(others) > 4
        else made.constant(f"{node.name}/count", np.zeros((1,), node.dtype))
    )
    made.emit(
        node,
        "BatchNormalization",
        (data, *given, counted),
        spatial=spatial,
        epsilon=node.fields["epsilon"],
    )
