"""Attention layers of Keras in ONNX.

Sources: `keras/src/layers/attention` of Keras 3, and the same of Keras 2.15. What a query gives whose
every key is masked is the mean of all values, as it is there in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deploykit._plugins.converters.keras.emission import Context, Value
from deploykit._plugins.converters.keras.reading import Layer
from deploykit._plugins.converters.keras.tensor_arguments import Slot

from deploykit.errors import UnsupportedError

FAR = -1e9
"""What takes the place of a masked score."""

AUTOMATIC = (2, 10)
"""The Keras since which MultiHeadAttention reads the masks of its inputs."""


@dataclass(frozen=True)
class Given:
    """The arguments of one call: tensors by name, and its switches."""

    tensors: dict[str, Value]
    switches: dict[str, Any]


def _given(layer: Layer, node: int, inputs: list[Value]) -> Given:
    arguments = layer.config["arguments"][node]
    tensors = {k: inputs[v.index] for k, v in arguments.items() if isinstance(v, Slot)}
    return Given(tensors, {k: v for k, v in arguments.items() if not isinstance(v, Slot)})


def _causal(context: Context, query: str, key: str, axis: int) -> str:
    """Return the bool matrix [queries, keys] that is true where a key is no later than its query."""
    build = context.build
    zero, one = build.constant(0, dtype="int64"), build.constant(1, dtype="int64")
    ranges = []
    for name in (query, key):
        size = build.add("Shape", name, start=axis, end=axis + 1)
        size = build.add("Squeeze", size, build.shape_constant([0]))
        ranges.append(build.add("Range", zero, size, one))
    rows = build.add("Unsqueeze", ranges[0], build.shape_constant([1]))
    return build.add("GreaterOrEqual", rows, ranges[1])


def _every(context: Context, masks: list[str]) -> str:
    joined = masks[0]
    for other in masks[1:]:
        joined = context.build.add("And", joined, other)
    return joined


def _steps(context: Context, mask: str, axis: int) -> str:
    return context.build.add("Unsqueeze", mask, context.build.shape_constant([axis]))


def _softmax(context: Context, scores: str, mask: str) -> str:
    if mask:
        scores = context.build.add("Where", mask, scores, context.build.constant(FAR))
    return context.build.add("Softmax", scores, axis=-1)


def _heads(context: Context, layer: Layer, role: str, x: Value) -> str:
    """Return `x` [.., steps, features] projected to [.., heads, steps, size]."""
    import numpy as np

    build = context.build
    kernel = layer.weights[f"{role}_kernel"]
    heads, size = kernel.shape[1:]
    name = build.add("MatMul", x.name, build.constant(kernel.reshape(len(kernel), -1)))
    if f"{role}_bias" in layer.weights:
        name = build.add("Add", name, build.constant(np.ravel(layer.weights[f"{role}_bias"])))
    lead = build.add("Shape", x.name, start=0, end=x.rank - 1)
    split = build.add("Concat", lead, build.shape_constant([heads, size]), axis=0)
    name = build.add("Reshape", name, split)
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2, x.rank]
    return build.add("Transpose", name, perm=order)


def _multi_head(context: Context, layer: Layer, node: int, inputs: list[Value]) -> list[Value]:
    build, config = context.build, layer.config
    given = _given(layer, node, inputs)
    query, value = given.tensors["query"], given.tensors["value"]
    key = given.tensors.get("key", value)
    axes = config.get("attention_axes") or [query.rank - 2]
    axes = [axes] if isinstance(axes, int) else list(axes)
    output = layer.weights["output_kernel"]
    if (
        axes not in ([query.rank - 2], [-2])
        or {value.rank, key.rank} != {query.rank}
        or config.get("use_gate")
        or config.get("sliding_window")
        or output.ndim != 3
    ):
        raise UnsupportedError(
            f"layer `{layer.name}` attends along the axes {axes} of a tensor with {query.rank}, or "
            "with a gate or a window, which is not supported",
            operators=(layer.kind,),
        )
    masks = _masks(context, layer, given, query)
    if given.switches.get("use_causal_mask"):
        masks.append(_causal(context, query.name, value.name, query.rank - 2))
    mask = build.add("Unsqueeze", _every(context, masks), _minus_three(context)) if masks else ""
    q, k, v = (
        _heads(context, layer, role, x)
        for role, x in (("query", query), ("key", key), ("value", value))
    )
    size = layer.weights["query_kernel"].shape[-1]
    q = build.add("Mul", q, build.constant(1 / math.sqrt(size)))
    turn = [*range(query.rank - 1), query.rank, query.rank - 1]
    shares = _softmax(context, build.add("MatMul", q, build.add("Transpose", k, perm=turn)), mask)
    found = build.add("MatMul", shares, v)
    back = [*range(query.rank - 2), query.rank - 1, query.rank - 2, query.rank]
    found = build.add("Transpose", found, perm=back)
    lead = build.add("Shape", query.name, start=0, end=query.rank - 1)
    flat = build.add("Concat", lead, build.shape_constant([-1]), axis=0)
    found = build.add("Reshape", found, flat)
    found = build.add("MatMul", found, build.constant(output.reshape(-1, output.shape[-1])))
    if "output_bias" in layer.weights:
        found = build.add("Add", found, build.constant(layer.weights["output_bias"]))
    made = Value(found, (*query.shape[:-1], output.shape[-1]), query.mask)
    if not given.switches.get("return_attention_scores"):
        return [made]
    heads = layer.weights["query_kernel"].shape[1]
    sizes = (*query.shape[:-2], heads, query.shape[-2], value.shape[-2])
    return [made, Value(shares, sizes)]


def _minus_three(context: Context) -> str:
    return context.build.shape_constant([-3])


def _masks(context: Context, layer: Layer, given: Given, query: Value) -> list[str]:
    """Return the masks of a call as bool tensors that broadcast to [batch, queries, keys]."""
    found = []
    automatic = context.release >= AUTOMATIC
    for role, axis in (("query", -1), ("value", -2), ("key", -2)):
        own = given.tensors.get(f"{role}_mask")
        tensor = given.tensors.get(role)
        name = own.name if own else (tensor.mask if tensor and automatic else "")
        if name and query.rank != 3:
            raise UnsupportedError(
                f"layer `{layer.name}` reads masked steps of a tensor with {query.rank} axes",
                operators=(f"{layer.kind}(mask)",),
            )
        if name and role == "query":
            _check_masked_queries(context, layer, given)
        if name:
            found.append(_steps(context, name, axis))
    if "attention_mask" in given.tensors:
        own = given.tensors["attention_mask"]
        found.append(own.name if own.dtype == "bool" else context.build.add("Cast", own.name, to=9))
    return found


def _check_masked_queries(context: Context, layer: Layer, given: Given) -> None:
    """Raise UnsupportedError where releases of Keras 3 differ: zeros, or the mean of all values."""
    scored = given.switches.get("return_attention_scores") or layer.config.get("dropout")
    if context.release >= (3, 13) and scored:
        raise UnsupportedError(
            f"layer `{layer.name}` attends from masked steps; what it gives there depends on the "
            "release of Keras 3",
            operators=(f"{layer.kind}(mask)",),
            hint="where no input is padded, save the model with `mask_zero=False`",
        )


def _attention(context: Context, layer: Layer, node: int, inputs: list[Value]) -> list[Value]:
    build, config, weights = context.build, layer.config, layer.weights
    given = _given(layer, node, inputs)
    query, value = given.tensors["query"], given.tensors["value"]
    key = given.tensors.get("key", value)
    if {query.rank, value.rank, key.rank} != {3}:
        raise UnsupportedError(
            f"layer `{layer.name}` attends over tensors of other than 3 axes",
            operators=(layer.kind,),
        )
    scale = build.constant(weights["scale"]) if "scale" in weights else ""
    if layer.kind == "Attention" and config.get("score_mode", "dot") == "dot":
        scores = build.add("MatMul", query.name, build.add("Transpose", key.name, perm=[0, 2, 1]))
        scores = build.add("Mul", scores, scale) if scale else scores
    else:
        total = build.add("Add", _steps(context, query.name, 2), _steps(context, key.name, 1))
        additive = layer.kind == "AdditiveAttention"
        if scale and not additive:
            total = build.add("Mul", total, scale)
        total = build.add("Tanh", total)
        if scale and additive:
            total = build.add("Mul", total, scale)
        scores = build.add("ReduceSum", total, build.shape_constant([-1]), keepdims=0)
        if not additive:
            scores = build.add("Mul", scores, build.constant(weights["concat"]))
    query_mask, value_mask = (
        given.tensors[f"{role}_mask"].name if f"{role}_mask" in given.tensors else one.mask
        for role, one in (("query", query), ("value", value))
    )
    masks = [_steps(context, value_mask, 1)] if value_mask else []
    if given.switches.get("use_causal_mask") or config.get("causal"):
        masks.append(_causal(context, query.name, value.name, 1))
    shares = _softmax(context, scores, _every(context, masks) if masks else "")
    found = build.add("MatMul", shares, value.name)
    if query_mask:
        found = build.add("Where", _steps(context, query_mask, 2), found, build.constant(0.0))
    made = Value(found, (*query.shape[:-1], value.shape[-1]), query_mask)
    if not given.switches.get("return_attention_scores"):
        return [made]
    return [made, Value(shares, (*query.shape[:-1], value.shape[1]))]


EMIT_CALLS = {
    "MultiHeadAttention": _multi_head,
    "Attention": _attention,
    "AdditiveAttention": _attention,
}
"""Layers with several named tensors; `node` is the number of the call."""
