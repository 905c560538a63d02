"""A symbol with its parameters: which variables are weights, which are inputs, which only labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet.reading import (
    Node,
    Symbol,
    read_parameters,
    read_symbol,
)

from deploykit.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LOSSES = (
    "SoftmaxOutput",
    "Softmax",
    "LinearRegressionOutput",
    "LogisticRegressionOutput",
    "MAERegressionOutput",
    "SVMOutput",
)
"""Heads with a label: their first input is the prediction, and the label does not change it."""

OUTPUT_NAMES = {
    "make_loss": ("loss",),
    "RNN": ("output", "state_output", "statecell_output"),
    "LeakyReLU": ("output", "mask"),
    "BatchNorm": ("output", "mean", "var"),
    "_contrib_SyncBatchNorm": ("output", "mean", "var"),
    "GroupNorm": ("output", "mean", "std"),
    "LayerNorm": ("output", "mean", "std"),
}
"""What MXNet calls the outputs of an operator, where it is not `output` with a number."""

NUMBERED = ("SliceChannel", "split", "_split_v2", "sort")


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model: `weights` by the names of variables, `inputs` and `labels` the other variables."""

    symbol: Symbol
    weights: dict[str, Array]
    inputs: tuple[str, ...]
    labels: tuple[str, ...]

    def walk(self) -> Iterator[tuple[int, Node]]:
        """Yield number and node of the operators that the outputs depend on, inputs first."""
        for number in sorted(needed(self.symbol)):
            if self.symbol.nodes[number].op != "null":
                yield number, self.symbol.nodes[number]


def data_inputs(node: Node) -> tuple[tuple[int, int], ...]:
    """Return the inputs that matter at inference."""
    inputs: tuple[tuple[int, int], ...] = node.inputs
    return inputs[:1] if node.op in LOSSES else inputs


def needed(symbol: Symbol) -> set[int]:
    """Return the numbers of the nodes that the outputs depend on."""
    found: set[int] = set()
    waiting = [number for number, _ in symbol.heads]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting += [at for at, _ in data_inputs(symbol.nodes[number])]
    return found


def read(symbol_path: Path, params: Path | None) -> Network:
    """Read a symbol and its parameters (None: the last epoch beside it).

    Raises SourceError where files are missing or damaged.
    """
    symbol = read_symbol(symbol_path)
    return assemble(symbol, read_parameters(params or _parameters(symbol_path)))


def assemble(symbol: Symbol, weights: dict[str, Array]) -> Network:
    """Return the network of `symbol` with `weights`; what has no weight is an input."""
    used = needed(symbol)
    variables = [
        (number, node.name) for number, node in enumerate(symbol.nodes) if node.op == "null"
    ]
    inputs = tuple(name for number, name in variables if number in used and name not in weights)
    unused = tuple(name for number, name in variables if number not in used and name not in weights)
    if not inputs:
        raise SourceError(f"`{symbol.path}` has no input: every variable has a weight")
    return Network(symbol=symbol, weights=weights, inputs=inputs, labels=unused)


def _parameters(symbol: Path) -> Path:
    prefix = symbol.name.removesuffix(".json").removesuffix("-symbol")
    every = sorted(symbol.parent.glob("*.params"))
    own = [path for path in every if path.name.startswith(f"{prefix}-")]
    if own or len(every) == 1:
        return (own or every)[-1]
    raise SourceError(
        f"the weights of `{symbol}` are missing: there is no `{prefix}-0000.params` beside it",
        hint="name them: `--set params=FILE.params`",
    )


def output_name(symbol: Symbol, head: tuple[int, int], outputs: int) -> str:
    """Return the name that MXNet gives to an output (`list_outputs`)."""
    node = symbol.nodes[head[0]]
    if node.op == "null":
        return str(node.name)
    if node.op in OUTPUT_NAMES:
        return f"{node.name}_{OUTPUT_NAMES[node.op][head[1]]}"
    is_numbered = outputs > 1 or node.op in NUMBERED
    if node.op == "topk" and node.value("ret_typ", "indices") == "value":
        is_numbered = True  # it also makes the indices, which cannot be seen
    return f"{node.name}_output{head[1] if is_numbered else ''}"
