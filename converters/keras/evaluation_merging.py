"""Keras' layers that join several tensors by definition, in float64, and the masks of what they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.reading import Layer

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Compute, Evaluator

    Array = np.ndarray[Any, Any]

ANY = (3, 4)
"""The Keras since which a step counts that counts in any of the tensors."""


def mask_of(
    layer: Layer, given: list[tuple[Array, Array | None]], release: tuple[int, int]
) -> Array | None:
    """Return which steps of the joined tensor count, None where all do."""
    import numpy as np

    masks = [mask for _, mask in given if mask is not None]
    if not masks or layer.kind == "Dot":
        return None
    axis = layer.config.get("axis", -1)
    if layer.kind == "Concatenate" and axis in (1, -2):
        every = [np.ones(x.shape[:2], bool) if mask is None else mask for x, mask in given]
        return np.concatenate(every, axis=1)
    if release < ANY:
        return np.asarray(np.logical_and.reduce(masks))
    return np.asarray(np.logical_or.reduce(masks)) if len(masks) == len(given) else None


def _ranked(inputs: list[Array]) -> list[Array]:
    rank = max(x.ndim for x in inputs)
    return [x.reshape(len(x), *[1] * (rank - x.ndim), *x.shape[1:]) for x in inputs]


def _merged(function: str) -> Compute:
    def compute(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
        import numpy as np

        parts = [x.astype(np.float64) for x in _ranked(inputs)]
        masks = [None if mask is None else mask[..., None] for mask in evaluator.masks]
        masked = any(mask is not None for mask in masks) and evaluator.release >= ANY
        if masked and layer.kind in ("Maximum", "Minimum"):
            return _extreme(getattr(np, function), parts, masks)
        if masked and layer.kind == "Multiply":
            parts = [
                x if m is None else np.where(m, x, 1) for x, m in zip(parts, masks, strict=True)
            ]
        total = parts[0]
        for one in parts[1:]:
            total = getattr(np, function)(total, one)
        known = [mask for mask in masks if mask is not None]
        if masked and layer.kind == "Multiply" and len(known) == len(parts):
            total = total * np.logical_or.reduce(known)
        return total / len(inputs) if layer.kind == "Average" else total

    return compute


def _extreme(function: Any, parts: list[Array], masks: list[Array | None]) -> Array:
    """Fold `parts`: where only one of two counts, it is taken; a part without a mask always counts.

    From then on the total counts everywhere, too (`_apply_merge_op_and_or_mask` in `base_merge.py`).
    """
    import numpy as np

    total, counts = parts[0], masks[0]
    for part, mask in zip(parts[1:], masks[1:], strict=True):
        other = part if mask is None else np.where(mask, part, total)
        total = function(total if counts is None else np.where(counts, total, other), other)
        counts = None if counts is None or mask is None else counts | mask
    return total


def _concatenated(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    return np.concatenate(inputs, axis=layer.config.get("axis", -1))


def _dot(_evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    axes = layer.config.get("axes", layer.config.get("dot_axes", -1))
    pair = [axes, axes] if isinstance(axes, int) else axes
    moved = []
    for x, axis in zip(inputs, pair, strict=True):
        one = np.moveaxis(x.astype(np.float64), axis, -1)
        if layer.config.get("normalize"):
            one = one / np.maximum(np.linalg.norm(one, axis=-1, keepdims=True), 1e-6)
        moved.append(one)
    rows = [np.tensordot(a, b, axes=(-1, -1)) for a, b in zip(*moved, strict=True)]
    return np.stack(rows).reshape(len(rows), *(np.shape(rows[0]) or (1,)))


COMPUTE: dict[str, Compute] = {
    "Add": _merged("add"),
    "Average": _merged("add"),
    "Subtract": _merged("subtract"),
    "Multiply": _merged("multiply"),
    "Maximum": _merged("maximum"),
    "Minimum": _merged("minimum"),
    "Concatenate": _concatenated,
    "Dot": _dot,
}
