"""Calls of layers that take several tensors by name: attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploykit.errors import UnsupportedError

Ref = tuple[str, int, int]

MULTI_HEAD = ("query", "value", "key")
MULTI_HEAD_3 = (*MULTI_HEAD, "query_mask", "value_mask", "key_mask", "attention_mask")
"""Positional arguments of a MultiHeadAttention; Keras 2 writes all but the first by name."""

KINDS = ("MultiHeadAttention", "Attention", "AdditiveAttention")

SWITCHES = ("return_attention_scores", "use_causal_mask")
IGNORED = ("training", "name")


@dataclass(frozen=True)
class Slot:
    """The place of a tensor among the inputs of a call."""

    index: int


def arguments_of(
    layer: Mapping[str, Any],
) -> Iterator[tuple[tuple[Ref, ...], dict[str, Slot | bool]]]:
    """Yield, for each call, its tensors, and its arguments by name.

    Raises UnsupportedError for an argument that is not known.
    """
    kind = str(layer["class_name"])
    for node in layer.get("inbound_nodes") or []:
        positional, named = _modern(node) if isinstance(node, dict) else _older(node)
        if kind == "MultiHeadAttention":
            given = dict(zip((*MULTI_HEAD_3, *SWITCHES[:1]), positional, strict=False))
        else:
            first = positional[0] if positional and isinstance(positional[0], list) else positional
            given = dict(zip(MULTI_HEAD, first, strict=False))
            masks = named.pop("mask", None) or []
            names = ("query_mask", "value_mask")
            given |= dict(zip(names, masks if isinstance(masks, list) else [], strict=False))
        refs: list[Ref] = []
        found: dict[str, Slot | bool] = {}
        for key, value in {**given, **named}.items():
            if key in IGNORED or value is None:
                continue
            if isinstance(value, tuple):
                refs.append(value)
                found[key] = Slot(len(refs) - 1)
            elif key in SWITCHES and isinstance(value, bool):
                found[key] = value
            else:
                raise UnsupportedError(
                    f"layer `{layer.get('name')}` is called with `{key}`, which is not supported",
                    operators=(kind,),
                )
        if not {"query", "value"} <= set(found):
            raise ValueError(f"the layer `{layer.get('name')}` is called without query or value")
        yield tuple(refs), found


def _modern(node: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    named = {key: _value(value) for key, value in (node.get("kwargs") or {}).items()}
    return [_value(one) for one in node.get("args") or []], named


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        name, node, tensor = value["config"]["keras_history"]
        return str(name), int(node), int(tensor)
    return value


def _older(node: Any) -> tuple[list[Any], dict[str, Any]]:
    entries = [node] if node and isinstance(node[0], str) else list(node)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for name, number, tensor, *rest in entries:
        positional.append((str(name), int(number), int(tensor)))
        for extra in rest:
            named |= {key: _reference(value) for key, value in (extra or {}).items()}
    return positional, named


def _reference(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return str(value[0]), int(value[1]), int(value[2])
    return [_reference(one) for one in value] if isinstance(value, list) else value
