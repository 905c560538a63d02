"""Keras' attention layers by definition, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.reading import Layer
from deploykit._plugins.converters.keras.tensor_arguments import Slot

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Evaluator

    Array = np.ndarray[Any, Any]
    Masked = tuple[Array, Array | None]


def attend(evaluator: Evaluator, layer: Layer, node: int, given: list[Masked]) -> list[Masked]:
    """Return what one call of an attention layer gives: its output, and the scores if asked for."""
    import numpy as np

    called = layer.config["arguments"][node]
    parts = {name: given[slot.index] for name, slot in called.items() if isinstance(slot, Slot)}
    for role in ("query", "value", "key"):
        automatic = layer.kind != "MultiHeadAttention" or evaluator.release >= (2, 10)
        mask = parts[role][1] if role in parts and automatic else None
        if f"{role}_mask" not in parts and mask is not None:
            parts[f"{role}_mask"] = (mask, None)
    x = {name: value for name, (value, _) in parts.items()}
    queries, keys = x["query"].shape[-2], x["value"].shape[-2]
    allowed = np.ones((len(x["query"]), queries, keys), bool)
    if "value_mask" in x:
        allowed &= x["value_mask"].astype(bool)[:, None, :]
    if called.get("use_causal_mask") or layer.config.get("causal"):
        allowed &= np.arange(queries)[:, None] >= np.arange(keys)
    if layer.kind == "MultiHeadAttention":
        found, shares = _multi_head(layer, x, allowed)
    else:
        found, shares = _single(layer, x, allowed)
    mask = parts["query"][1] if layer.kind == "MultiHeadAttention" else x.get("query_mask")
    outputs: list[Masked] = [(found, mask)]
    return [*outputs, (shares, None)] if called.get("return_attention_scores") else outputs


def _multi_head(layer: Layer, x: dict[str, Array], allowed: Array) -> tuple[Array, Array]:
    import numpy as np

    if "query_mask" in x:
        allowed = allowed & x["query_mask"].astype(bool)[:, :, None]
    if "key_mask" in x:
        allowed = allowed & x["key_mask"].astype(bool)[:, None, :]
    if x["query"].ndim > 3:
        # further axes are more of the batch
        middle = x["query"].ndim - 3
        allowed = allowed.reshape(len(allowed), *[1] * middle, *allowed.shape[1:])
    if "attention_mask" in x:
        allowed = allowed & x["attention_mask"].astype(bool)
    weights, heads = layer.weights, layer.weights["query_kernel"].shape[1]

    def head(role: str, number: int) -> Array:
        tensor = x.get(role, x["value"]).astype(np.float64)
        found = tensor @ weights[f"{role}_kernel"][:, number]
        bias = weights.get(f"{role}_bias")
        return np.asarray(found if bias is None else found + bias[number])

    total: Any = weights.get("output_bias", 0.0)
    every = []
    for number in range(heads):
        query = head("query", number)
        scores = query @ head("key", number).swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        every.append(define.softmax(np.where(allowed, scores, -1e9)))
        total = total + every[-1] @ head("value", number) @ weights["output_kernel"][number]
    return np.asarray(total), np.stack(every, axis=-3)


def _single(layer: Layer, x: dict[str, Array], allowed: Array) -> tuple[Array, Array]:
    import numpy as np

    query, value = x["query"].astype(np.float64), x["value"].astype(np.float64)
    key = x["key"].astype(np.float64) if "key" in x else value
    scale = layer.weights.get("scale", 1.0)
    if layer.kind == "AdditiveAttention":
        scores = (scale * np.tanh(query[:, :, None] + key[:, None])).sum(axis=-1)
    elif layer.config.get("score_mode", "dot") == "dot":
        scores = np.einsum("bqd,bkd->bqk", query, key) * scale
    else:
        scores = np.tanh(scale * (query[:, :, None] + key[:, None])).sum(axis=-1)
        scores = scores * layer.weights["concat"]
    shares = define.softmax(np.where(allowed, scores, -1e9))
    found = shares @ value
    if "query_mask" in x:
        found = found * x["query_mask"].astype(bool)[:, :, None]
    return found, shares
