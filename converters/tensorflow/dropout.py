"""Random numbers in a graph: dropout is switched off, everything else is refused.

TensorFlow 1 writes dropout as `floor(keep_prob + uniform)` (before 1.13) or `uniform >= rate`. With a
keep_prob of 1, or a rate of 0, either is exactly one, whatever is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploykit._plugins.converters.tensorflow import flattening

from deploykit.errors import UnsupportedError

_DRAWS = frozenset(
    [
        "RandomUniform",
        "RandomUniformInt",
        "RandomStandardNormal",
        "TruncatedNormal",
        "ParameterizedTruncatedNormal",
        "Multinomial",
        "RandomShuffle",
        "RandomGamma",
        "RandomPoisson",
        "RandomPoissonV2",
        "StatefulUniform",
        "StatefulStandardNormalV2",
        "StatefulRandomBinomial",
        "RandomCrop",
    ]
)
_PASSES = frozenset({"Identity", "Add", "AddV2", "Mul", "Sub", "Cast"})
_OUTWARDS = frozenset({"Identity", "Enter", "Switch", "RefSwitch", "StopGradient", "Cast"})


@dataclass(frozen=True, kw_only=True)
class Quieted:
    """`fixed` are tensors and the value each shall have; `draws` tensors that no longer matter."""

    fixed: dict[str, float]
    draws: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()


def quieten(graph_def: Any, needed: set[str], fixed: dict[str, float]) -> Quieted:
    """Return what to fix so that no dropout among the `needed` nodes is active.

    `fixed` are tensors that have a value already. Raises UnsupportedError for other random numbers:
    an ONNX model would draw its own, and nobody could tell whether it is right.
    """
    nodes = {node.name: node for node in graph_def.node}
    readers: dict[str, list[str]] = {}
    for node in graph_def.node:
        for source in node.input:
            readers.setdefault(source.split(":")[0], []).append(node.name)
    found: dict[str, float] = {}
    draws = []
    for node in flattening.nodes_and_bodies(graph_def, needed):
        if node.op not in _DRAWS:
            continue
        masks = _masks(node.name, nodes, readers) if node.name in nodes else []
        wishes = [_wish(mask, drawn, nodes, set(fixed)) for mask, drawn in masks]
        if node.op != "RandomUniform" or not wishes or not all(wishes):
            raise UnsupportedError(
                f"the model draws random numbers (node `{node.name}`, {node.op}), so that nothing "
                "can show that an ONNX model of it is right",
                hint="take the random tensor as an input (`--set inputs=...`), name outputs that do "
                "not need it (`--set outputs=...`), or fix what switches it on "
                "(`--set constants=is_training=false`)",
                operators=(node.op,),
            )
        for wish in wishes:
            if wish is None:
                continue
            tensor, value = wish
            if fixed.get(tensor, value) != value:
                raise UnsupportedError(
                    f"with `{tensor}` at {fixed[tensor]:g} the model draws random numbers "
                    f"(node `{node.name}`): dropout is active",
                    hint=f"--set constants={tensor.removesuffix(':0')}={value:g}, or leave it away",
                    operators=(node.op,),
                )
            if tensor not in fixed:
                found[tensor] = value
        draws.append(f"{node.name}:0")
    repairs = tuple(
        f"dropout is left out, as at inference: `{name.removesuffix(':0')}` is {value:g}"
        for name, value in found.items()
    )
    if draws and not found:
        repairs = ("dropout is left out, as at inference",)
    return Quieted(fixed=found, draws=tuple(draws), repairs=repairs)


def _masks(
    name: str, nodes: dict[str, Any], readers: dict[str, list[str]]
) -> list[tuple[Any, str]]:
    """Return the nodes that make a mask of the random numbers, each with what it reads of them.

    An empty list where something else is made of them too.
    """
    found = []
    waiting, seen = [name], set()
    while waiting:
        one = waiting.pop()
        for reader in readers.get(one, ()):
            node = nodes[reader]
            if f"^{one}" in node.input and one not in [s.split(":")[0] for s in node.input]:
                continue
            if node.op in ("Floor", "GreaterEqual"):
                found.append((node, one))
            elif node.op not in _PASSES:
                return []
            elif reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return found


def _wish(
    mask: Any, drawn: str, nodes: dict[str, Any], fixed: set[str]
) -> tuple[str, float] | None:
    """Return the tensor to fix so that `mask` is one, and its value; None where that is unknown."""
    if mask.op == "GreaterEqual":
        if mask.input[0].split(":")[0] != drawn:
            return None
        return _root(mask.input[1], 0.0, nodes, fixed)
    # floor(keep_prob + uniform): the addend that is no random number
    total = nodes.get(drawn)
    if total is None or total.op not in ("Add", "AddV2"):
        return None
    for keep, other in ((0, 1), (1, 0)):
        behind = flattening.needed_nodes_of(nodes, total.input[keep])
        if not any(nodes[one].op in _DRAWS for one in behind):
            random = flattening.needed_nodes_of(nodes, total.input[other])
            if any(nodes[one].op in _DRAWS for one in random):
                return _root(total.input[keep], 1.0, nodes, fixed)
    return None


def _root(
    tensor: str, value: float, nodes: dict[str, Any], fixed: set[str]
) -> tuple[str, float] | None:
    """Follow `tensor` back to a constant or placeholder, and `value` with it."""
    for _ in range(100):
        name = tensor.split(":")[0]
        node = nodes.get(name)
        if f"{name}:0" in fixed:
            return f"{name}:0", value
        if node is None:
            return None
        if node.op in ("Const", "Placeholder", "PlaceholderV2", "PlaceholderWithDefault"):
            return f"{name}:0", value
        if node.op in _OUTWARDS:
            tensor = node.input[0]
        elif node.op == "Sub" and _is_one(nodes.get(node.input[0].split(":")[0])):
            tensor, value = node.input[1], 1.0 - value
        else:
            return None
    return None


def _is_one(node: Any) -> bool:
    import tensorflow as tf

    return (
        node is not None
        and node.op == "Const"
        and bool((tf.make_ndarray(node.attr["value"].tensor) == 1).all())
    )
