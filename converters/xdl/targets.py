"""Which outputs of a dense network are wanted: the prediction, not the loss beside it."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit._plugins.converters.mxnet.network import LOSSES, data_inputs
from deploykit._plugins.converters.mxnet.reading import Symbol
from deploykit._plugins.converters.xdl.graph_def import TensorGraph, tensor_reference
from deploykit._plugins.converters.xdl.reading import Graph, Node, reference

from deploykit.errors import UnsupportedError, UsageError


@dataclass(frozen=True)
class Targets:
    """The names of the outputs, and what to say about the choice."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def of_tensors(graph: Graph, node: Node, tensors: TensorGraph, asked: tuple[str, ...]) -> Targets:
    """Return the wanted tensors: the user's, the tagged ones, or the first that is no number.

    A function that trains gives its loss first. Raises UsageError for unknown names.
    """
    fetched = node.words("target_op_names")
    if asked:
        return Targets(tuple(_tensor(tensors, name, fetched) for name in asked))
    tagged = [name for name in graph.outputs if _is_tensor(tensors, name)]
    tagged += [
        fetched[at]
        for owner, at in (reference(name) for name in graph.outputs)
        if owner == node.name and at < len(fetched)
    ]
    if tagged:
        left = [name for name in fetched if name not in tagged]
        return Targets(tuple(dict.fromkeys(tagged)), _dropped(left))
    several = []
    for name in fetched:
        owner, at = tensor_reference(name)
        shape = tensors.nodes[owner].shape(at) if owner in tensors.nodes else ()
        if shape is None or shape:
            several.append(name)
    if not several:
        raise UnsupportedError(
            f"the graph does not say what its prediction is, and `{node.name}` gives only numbers "
            f"such as a loss: {', '.join(fetched[:8]) or 'nothing'}",
            hint="name it: `--set outputs=NAME:0`",
        )
    left = [name for name in fetched if name != several[0]]
    return Targets(
        (several[0],), (f"no output is tagged: `{several[0]}` is taken", *_dropped(left))
    )


def _dropped(names: list[str]) -> tuple[str, ...]:
    return (f"losses and metrics dropped: {', '.join(names)}"[:300],) if names else ()


def _is_tensor(tensors: TensorGraph, name: str) -> bool:
    return tensor_reference(name)[0] in tensors.nodes


def _tensor(tensors: TensorGraph, name: str, fetched: tuple[str, ...]) -> str:
    if not _is_tensor(tensors, name):
        raise UsageError(
            f"the dense network has no tensor `{name}`",
            hint=f"it gives {', '.join(fetched[:20])}",
        )
    return name if ":" in name else f"{name}:0"


def of_symbol(
    graph: Graph, node: Node, symbol: Symbol, asked: tuple[str, ...]
) -> tuple[Targets, tuple[tuple[int, int], ...]]:
    """Return the wanted outputs and heads of a symbol; a softmax is given with its logits.

    Raises UsageError for unknown names.
    """
    numbers = {one.name: at for at, one in enumerate(symbol.nodes) if one.op != "null"}
    own = [
        symbol.heads[at]
        for owner, at in (reference(name) for name in graph.outputs)
        if owner == node.name and at < len(symbol.heads)
    ]
    notes: list[str] = []
    if asked:
        for name in asked:
            if name.removesuffix("_output") not in numbers:
                given = [symbol.nodes[at].name for at, _ in symbol.heads]
                raise UsageError(
                    f"the dense network has no node `{name}`", hint=f"it gives {', '.join(given)}"
                )
        heads = [(numbers[name.removesuffix("_output")], 0) for name in asked]
    else:
        heads = own + [(numbers[name], 0) for name in graph.outputs if name in numbers]
        if not heads:
            heads = _predictions(graph, node, symbol)
            taken = ", ".join(f"`{symbol.nodes[at].name}`" for at, _ in heads)
            notes.append(f"no output is tagged: {taken} {'is' if len(heads) == 1 else 'are'} taken")
        for head in list(heads):
            one = symbol.nodes[head[0]]
            if one.op in ("SoftmaxOutput", "Softmax"):
                heads.append(one.inputs[0])
                notes.append(f"beside `{one.name}` its logits are given")
    heads = list(dict.fromkeys(heads))
    names = tuple(symbol.nodes[at].name for at, _ in heads)
    left = [symbol.nodes[at].name for at, _ in symbol.heads if symbol.nodes[at].name not in names]
    return Targets(names, (*notes, *_dropped(left))), tuple(heads)


def _predictions(graph: Graph, node: Node, symbol: Symbol) -> list[tuple[int, int]]:
    """Return the heads that predict: with a label of their own, or those that need no label.

    Losses are left out, and the statistics that only update moving averages. Raises
    UnsupportedError where nothing is left.
    """
    heads = symbol.heads
    if losses := [head for head in heads if symbol.nodes[head[0]].op in LOSSES]:
        return losses[:1]
    updates = {
        at
        for one in graph.nodes.values()
        if one.op.startswith("PsApply")
        for owner, at in one.inputs
        if owner == node.name
    }
    names = node.words("var_name_str")
    labels = {
        name
        for name, ref in zip(names, node.inputs, strict=False)
        if graph.features.get(ref, "").split(".")[0] == "label"
    }
    found = []
    for at, head in enumerate(heads):
        is_loss = symbol.nodes[head[0]].op in ("MakeLoss", "make_loss")
        if at not in updates and not is_loss and not labels & variables(symbol, head[0]):
            found.append(head)
    if not found:
        raise UnsupportedError(
            f"the graph does not say what its prediction is: all that `{node.name}` gives are losses",
            hint="name it: `--set outputs=NODE`",
        )
    return found


def variables(symbol: Symbol, number: int) -> set[str]:
    """Return the names of the variables that a node of a symbol depends on."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [number]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        one = symbol.nodes[at]
        if one.op == "null":
            found.add(one.name)
        waiting += [inner for inner, _ in data_inputs(one)]
    return found
