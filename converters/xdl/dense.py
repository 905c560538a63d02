"""The dense half of an XDL graph: a TensorFlow graph or an MXNet symbol inside one operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet import evaluation as symbol_evaluation
from deploykit._plugins.converters.mxnet import mapping as symbol_mapping
from deploykit._plugins.converters.mxnet.network import assemble, needed
from deploykit._plugins.converters.mxnet.reading import Symbol, parse_symbol
from deploykit._plugins.converters.xdl import tensor_evaluation, tensor_mapping
from deploykit._plugins.converters.xdl.batches import unbatched
from deploykit._plugins.converters.xdl.graph_def import (
    Ref,
    TensorGraph,
    read_meta_graph,
    tensor_reference,
)
from deploykit._plugins.converters.xdl.reading import Graph, Node
from deploykit._plugins.converters.xdl.targets import Targets, of_symbol, of_tensors, variables
from deploykit._plugins.converters.xdl.tensor_values import Value

from deploykit.errors import SourceError, UnsupportedError
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

FLOAT32, FLOAT64 = 1, 11
"""ONNX's numbers of the dtypes."""

SYMBOL_DTYPES = {0: "float32", 1: "float64", 4: "int32", 6: "int64"}
"""Of `__dtype__`, by MXNet's numbers."""

CANCELLING = 1000.0
"""How many times larger than its deviation a mean is that float32 cannot subtract well."""

BACKENDS = ("TFBackendOp", "TFBackEndOp", "MxnetBackendOp", "MxnetBackendOP")


class JoinedBuilder(GraphBuilder):
    """A graph in which the inputs of the dense network are values that were computed before it.

    While `wide`, whatever is a float32 is computed in float64, and outputs are float32 again.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.joined: dict[str, str] = {}
        self.wide = False

    def input(self, name: str, dtype: str, shape: Sequence[Dimension]) -> str:
        """Declare an input, or return the value that stands for it."""
        found = self.joined.get(name) or super().input(name, dtype, shape)
        return super().add("Cast", found, to=FLOAT64) if self.wide and dtype == "float32" else found

    def constant(self, value: Any, name: str = "", dtype: str | None = None) -> str:
        """Hold a constant; see `GraphBuilder.constant`."""
        import numpy as np

        array = np.asarray(value, dtype=dtype)
        if self.wide and array.dtype == np.float32:
            array = array.astype(np.float64)
        elif array.dtype == np.float64 and not self.wide:
            return super().constant(value, name, dtype)
        return super().constant(array, name)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; see `GraphBuilder.add`. Few runtimes have a PRelu of float64."""
        if self.wide and operator in ("PRelu", "LeakyRelu"):
            zero = self.constant(0.0, dtype="float64")
            slope = inputs[1] if operator == "PRelu" else self.constant(attributes["alpha"])
            below = super().add("Mul", super().add("Min", inputs[0], zero), slope)
            return super().add("Add", super().add("Max", inputs[0], zero), below)
        if self.wide and operator == "Cast" and attributes.get("to") == FLOAT32:
            attributes["to"] = FLOAT64
        return super().add(operator, *inputs, **attributes)

    def output(
        self, name: str, value: str, dtype: str, shape: Sequence[Dimension] | None = None
    ) -> None:
        """Declare an output."""
        if self.wide and dtype == "float32":
            value = super().add("Cast", value, to=FLOAT32)
        super().output(name, value, dtype, shape)


@dataclass(frozen=True)
class TensorNetwork:
    """A TensorFlow graph: `inputs` are what the wanted outputs depend on, variables too."""

    graph: TensorGraph
    inputs: tuple[str, ...]
    targets: Targets

    @property
    def wanted(self) -> list[Ref]:
        return [tensor_reference(name) for name in self.targets.names]

    def spec(self, name: str) -> TensorSpec:
        node = self.graph.nodes[tensor_reference(name)[0]]
        return TensorSpec(name=name, dtype=node.dtype("dtype"), shape=node.shape())

    def grouped(self) -> set[str]:
        """Return the inputs whose rows are taken by number, so that they are not those of the batch."""
        known = {tensor_reference(name): True for name in self.inputs}
        found: set[str] = set()
        for node in self.graph.walk(self.wanted, known):
            if node.op in ("Gather", "GatherV2") and node.dtype("Tparams").startswith("float"):
                below = self.graph.walk(node.inputs[:1], known)
                refs = {node.inputs[0], *(ref for one in below for ref in one.inputs)}
                found |= {name for name in self.inputs if tensor_reference(name) in refs}
        return found

    def refuse(self) -> None:
        """Raise UnsupportedError for operators without a mapping."""
        known = {tensor_reference(name): True for name in self.inputs}
        tensor_mapping.refuse(self.graph, known, self.wanted)

    def given(
        self, build: JoinedBuilder, specs: list[TensorSpec], weights: Mapping[str, Array]
    ) -> dict[Ref, Value]:
        """Return the values of inputs and weights, which it puts into the graph."""
        values: dict[Ref, Value] = {}
        for spec in specs:
            name = build.input(spec.name, spec.dtype, spec.shape or ())
            sizes = None
            if spec.shape is not None:
                sizes = tuple(one if isinstance(one, int) else None for one in spec.shape)
            values[tensor_reference(spec.name)] = Value(name, spec.dtype, sizes)
        for label, array in weights.items():
            constant = build.constant(array, label)
            whole = array if array.dtype.kind in "iub" or array.size == 1 else None
            values[tensor_reference(label)] = Value(constant, array.dtype.name, array.shape, whole)
        return values

    def emit_values(self, build: GraphBuilder, values: Mapping[Ref, Value]) -> list[TensorSpec]:
        """Append the network for values that are in the graph already."""
        found = tensor_mapping.emit(build, self.graph, values, self.wanted)
        outputs = []
        for name, one in zip(self.targets.names, found, strict=True):
            build.output(name, one.name, one.dtype, one.shape)
            outputs.append(TensorSpec(name=name, dtype=one.dtype, shape=one.shape))
        return outputs

    def evaluate(self, values: Mapping[str, Array]) -> dict[str, Array]:
        known = {tensor_reference(name): value for name, value in values.items()}
        found = tensor_evaluation.evaluate(self.graph, known, self.wanted)
        return dict(zip(self.targets.names, found, strict=True))


@dataclass(frozen=True)
class SymbolNetwork:
    """An MXNet symbol, cut to the outputs that are wanted."""

    symbol: Symbol
    inputs: tuple[str, ...]
    targets: Targets

    def spec(self, name: str) -> TensorSpec:
        (node,) = (node for node in self.symbol.nodes if node.op == "null" and node.name == name)
        shape = node.value("__shape__", None)
        dtype = SYMBOL_DTYPES.get(node.value("__dtype__", 0), "float32")
        if not isinstance(shape, (tuple, list)) or not shape:
            return TensorSpec(name=name, dtype=dtype, shape=None)
        sizes = tuple(int(size) or None for size in shape)
        # the first size is the batch of the training
        return TensorSpec(name=name, dtype=dtype, shape=(None, *sizes[1:]))

    def emit(
        self, build: JoinedBuilder, specs: list[TensorSpec], weights: Mapping[str, Array]
    ) -> list[TensorSpec]:
        model = assemble(self.symbol, dict(weights))
        symbol_mapping.refuse(model)
        build.wide = bool(self.cancelling(weights))
        outputs: list[TensorSpec] = symbol_mapping.emit(build, model, specs)
        return outputs

    def grouped(self) -> set[str]:
        """Return the inputs whose rows are taken by number, so that they are not those of the batch."""
        used = needed(self.symbol)
        found: set[str] = set()
        for at in used:
            node = self.symbol.nodes[at]
            if node.op == "take" and node.value("axis", 0) == 0:
                found |= variables(self.symbol, node.inputs[0][0])
        return found

    def cancelling(self, weights: Mapping[str, Array]) -> tuple[str, ...]:
        """Return the batch normalisations that subtract means far larger than what is left.

        In float32 little is left of the digits then, and no two runtimes agree.
        """
        import numpy as np

        found = []
        used = needed(self.symbol)
        for at, node in enumerate(self.symbol.nodes):
            if at in used and node.op.startswith("BatchNorm") and len(node.inputs) == 5:
                mean, variance = (
                    weights.get(self.symbol.nodes[one].name) for one, _ in node.inputs[3:]
                )
                if mean is None or variance is None or mean.shape != variance.shape:
                    continue
                deviation = np.sqrt(np.abs(variance.astype(np.float64)) + node.value("eps", 1e-3))
                if mean.size and (np.abs(mean) / deviation).max() > CANCELLING:
                    found.append(node.name)
        return tuple(found)

    def evaluate(self, values: Mapping[str, Array]) -> dict[str, Array]:
        # whatever is a weight or an input: the definition only looks names up
        model = assemble(self.symbol, {})
        outputs: dict[str, Array] = symbol_evaluation.evaluate(model, dict(values))
        return outputs


def read(
    graph: Graph, outputs: tuple[str, ...]
) -> tuple[Node, TensorNetwork | SymbolNetwork, list[str]]:
    """Return the backend operator to run, its network, and what to say about the choice.

    The copy for prediction is taken before the one for training; `outputs` are the user's own words.
    Raises SourceError or UnsupportedError where there is none, UsageError for unknown outputs.
    """
    nodes = [node for node in graph.nodes.values() if node.op in BACKENDS]
    if not nodes:
        raise UnsupportedError(
            f"`{graph.path}` holds no dense network: no operator {' or '.join(BACKENDS[::2])}",
            hint="export the graph of the model, with its network in TensorFlow or MXNet",
        )
    node = _chosen(graph, nodes, outputs)
    notes = []
    if len(nodes) > 1:
        kind = "prediction" if not _trains(node) else "training"
        notes.append(f"of {len(nodes)} copies of the dense network `{node.name}` ({kind}) is used")
    definition = node.attrs.get("graph_def")
    if not isinstance(definition, bytes):
        raise SourceError(f"node `{node.name}` holds no network")
    if node.op.startswith("TF"):
        tensors = read_meta_graph(definition)
        targets = of_tensors(graph, node, tensors, outputs)
        return node, _tensor_network(node, tensors, targets), notes + list(targets.notes)
    try:
        symbol = parse_symbol(definition.decode("utf-8"), graph.path)
    except UnicodeDecodeError as error:
        raise SourceError(f"node `{node.name}` holds no MXNet symbol: {error}") from error
    targets, heads = of_symbol(graph, node, symbol, outputs)
    return node, _symbol_network(node, symbol, heads, targets), notes + list(targets.notes)


def _trains(node: Node) -> bool:
    size = node.attrs.get("gradient_size", 0)
    return bool(size) if isinstance(size, int) else bool(node.attrs.get("is_training", True))


def _chosen(graph: Graph, nodes: list[Node], outputs: tuple[str, ...]) -> Node:
    wanted = [*outputs, *graph.outputs]
    for name in wanted:
        owner = name.rpartition(":")[0] or name
        named = [
            node for node in nodes if node.name == owner or name in node.words("target_op_names")
        ]
        if named:
            return named[-1]
    return ([node for node in nodes if not _trains(node)] or nodes)[-1]


def _tensor_network(node: Node, graph: TensorGraph, targets: Targets) -> TensorNetwork:
    fed = node.words("input_op_names")
    if len(fed) != len(node.inputs):
        raise SourceError(
            f"node `{node.name}` names {len(fed)} inputs and has {len(node.inputs)}",
            hint="export the graph again",
        )
    known = {tensor_reference(name): True for name in fed}
    wanted = [tensor_reference(name) for name in targets.names]
    used: set[Ref] = {ref for ref in wanted if ref in known}
    for one in graph.walk(wanted, known):
        used |= set(one.inputs) & set(known)
        if one.op in ("Placeholder", "PlaceholderV2", "VariableV2", "Variable", "VarHandleOp"):
            raise SourceError(f"nothing feeds `{one.name}` ({one.op}) of the TensorFlow graph")
    return TensorNetwork(
        graph=graph,
        inputs=tuple(name for name in fed if tensor_reference(name) in used),
        targets=targets,
    )


def _symbol_network(
    node: Node, symbol: Symbol, heads: tuple[tuple[int, int], ...], targets: Targets
) -> SymbolNetwork:
    cut = unbatched(dataclasses.replace(symbol, heads=heads))
    used = needed(cut)
    fed = set(node.words("var_name_str"))
    names = [one.name for at, one in enumerate(cut.nodes) if at in used and one.op == "null"]
    # the moving statistics are no arguments of a graph that trains
    statistics = _statistics(cut, used)
    if missing := [name for name in names if name not in fed | statistics]:
        raise SourceError(f"nothing feeds `{missing[0]}` of the MXNet symbol")
    if len(node.words("var_name_str")) > len(node.inputs):
        raise SourceError(f"node `{node.name}` names more inputs than it has")
    return SymbolNetwork(symbol=cut, inputs=tuple(names), targets=targets)


def _statistics(symbol: Symbol, used: set[int]) -> set[str]:
    return {
        symbol.nodes[at].name
        for number in used
        if symbol.nodes[number].op.startswith("BatchNorm")
        for at, _ in symbol.nodes[number].inputs[3:5]
    }
