"""An XDL model whole: the dense network, the lookups before it, and the weights of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl import dense, evaluation, mapping, reshaping, sparse
from deploykit._plugins.converters.xdl.graph_def import Ref, tensor_reference
from deploykit._plugins.converters.xdl.reading import Graph
from deploykit._plugins.converters.xdl.sparse import Fixed, Outside, Pooled, Taken, Weight
from deploykit._plugins.converters.xdl.tables import Table
from deploykit._plugins.converters.xdl.tensor_values import Value
from deploykit._plugins.converters.xdl.weights import Weights

from deploykit.errors import SourceError, UsageError
from deploykit.protocol import Dimension, DynamicAxis, Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is known of a model before its ONNX graph is built.

    `sources` says where each input of the dense network comes from, `weights` holds its variables
    and constants. In `lookups` are the sources that are computed from ids.
    """

    name: str
    network: dense.TensorNetwork | dense.SymbolNetwork
    sources: Mapping[str, sparse.Source]
    weights: Mapping[str, Array]
    tables: Mapping[str, Table]
    lookups: Mapping[str, Pooled | Taken]
    reshapes: reshaping.Reshapes | None
    features: Mapping[sparse.Ref, str] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())

    def build(
        self, given: Mapping[str, TensorSpec], dynamic: tuple[DynamicAxis, ...]
    ) -> tuple[dense.JoinedBuilder, Signature]:
        """Build the ONNX graph; see `build`."""
        return build(self, given, dynamic)

    def evaluate(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by definition; see `evaluate`."""
        return evaluate(self, feed)

    def label(self, name: str) -> str:
        """Return what the input `name` of the dense network is called: its tag in the whole model."""
        source = self.sources.get(name)
        if self.lookups and isinstance(source, Outside) and source.ref in self.features:
            return self.features[source.ref]
        return name

    def direct(self) -> list[str]:
        """Return the inputs of the dense network that are inputs of the model."""
        derived = self.reshapes.targets if self.reshapes is not None else {}
        return [
            name
            for name in self.network.inputs
            if name not in self.weights and name not in self.lookups and name not in derived
        ]


def assemble(graph: Graph, weights: Weights, *, outputs: tuple[str, ...], pooled: bool) -> Model:
    """Join the dense network of `graph` with its lookups and weights.

    Where `pooled`, the vectors that the lookups give are inputs, and no table is read.
    Raises SourceError, UnsupportedError or UsageError where that cannot be done.
    """
    node, network, notes = dense.read(graph, outputs)
    labels = node.words("input_op_names") or node.words("var_name_str")
    refs = dict(zip(labels, node.inputs, strict=False))
    sources: dict[str, sparse.Source] = {}
    arrays: dict[str, Array] = {}
    for name in network.inputs:
        stem = name.removesuffix(":0")
        if name not in refs:
            arrays[name] = weights.dense(name)  # a moving statistic of a graph that trains
            continue
        traced = sparse.trace(graph, refs[name], stem)
        if isinstance(traced, Weight):
            arrays[name] = weights.dense(traced.name)
        elif isinstance(traced, Fixed):
            arrays[name] = traced.value
        else:
            sources[name] = traced
    if not sources:
        raise SourceError(f"the dense network of `{graph.path}` has no input but its weights")
    lookups: dict[str, Pooled | Taken] = {}
    tables: dict[str, Table] = {}
    vectors = {name: one for name, one in sources.items() if isinstance(one, (Pooled, Taken))}
    for name, source in vectors.items() if not pooled else ():
        lookups[name] = source
        own = _pooled(source)
        shape = network.spec(name).shape
        width = shape[-1] if shape and isinstance(shape[-1], int) else None
        if own.table not in tables:
            inner = width if own.length is None else None
            inner = inner or sparse.registered_width(graph, own.table)
            tables[own.table] = weights.table(own.table, inner)
        if width not in (None, own.width(tables[own.table].width)):
            raise SourceError(f"the table `{own.table}` has not the width {width} of `{name}`")
    reshapes = None
    if isinstance(network, dense.TensorNetwork):
        sizes = [
            name
            for name, one in sources.items()
            if isinstance(one, Outside) and network.spec(name).dtype in ("int32", "int64")
        ]
        reshapes = reshaping.find(network, sizes, list(vectors))
        network.refuse()
    return Model(
        name=graph.path.parent.name or "xdl",
        network=network,
        sources=sources,
        weights=arrays,
        tables=tables,
        lookups=lookups,
        reshapes=reshapes,
        features=graph.features,
        notes=(
            *notes,
            *_told(network, arrays, reshapes, tables),
            *_weak(reshapes, list(vectors), pooled),
        ),
    )


def _pooled(source: Pooled | Taken) -> Pooled:
    return source.of if isinstance(source, Taken) else source


def _told(
    network: dense.TensorNetwork | dense.SymbolNetwork,
    weights: Mapping[str, Array],
    reshapes: reshaping.Reshapes | None,
    tables: Mapping[str, Table],
) -> list[str]:
    notes = []
    if reshapes is not None and reshapes.targets:
        for name, target in reshapes.targets.items():
            words = ", ".join("batch" if size is None else str(size) for size in target)
            notes.append(f"the sizes `{name}` are no input any more but [{words}]")
    if isinstance(network, dense.TensorNetwork) and _uses_batch(network):
        notes.append(
            "the graph normalises with the statistics of its batch: a row's result depends "
            "on the rows beside it, as in XDL"
        )
    if isinstance(network, dense.SymbolNetwork):
        notes.append(
            "batch normalisation uses its moving statistics; sizes of the training batch "
            "are dynamic"
        )
        if wide := network.cancelling(weights):
            notes.append(
                f"computed in float64: {', '.join(wide)} subtract means that float32 cannot"
            )
    searched = [name for name, one in tables.items() if not mapping.is_contiguous(one)]
    if tables:
        notes.append("ids that a table lacks give zeros")
    if searched:
        notes.append(
            f"ids of {', '.join(searched)} are scattered: verify with real ones (`--sample`)"
        )
    return notes


def _weak(reshapes: reshaping.Reshapes | None, vectors: list[str], pooled: bool) -> list[str]:
    if reshapes is None or not pooled or not any(reshapes.history(name) for name in vectors):
        return []
    return [
        "batch, length and rows of a sequence belong together: verify with real ones (`--sample`)"
    ]


def _uses_batch(network: dense.TensorNetwork) -> bool:
    """Whether something is averaged over the first axis: batch norm that trains, or Dice."""
    known = {tensor_reference(name): True for name in network.inputs}
    for node in network.graph.walk(network.wanted, known):
        if node.op.startswith("FusedBatchNorm") and node.attrs.get("is_training", True):
            return True
        if node.op == "Mean" and len(node.inputs) > 1:
            axes = network.graph.nodes.get(node.inputs[1][0])
            if axes is not None and axes.op == "Const":
                from deploykit._plugins.converters.xdl.graph_def import constant

                if 0 in constant(axes).reshape(-1).tolist():
                    return True
    return False


def outside(model: Model) -> list[Outside]:
    """Return the inputs of the lookups, each once, in the order of the dense network's inputs."""
    found: dict[str, Outside] = {}
    for source in model.lookups.values():
        own = _pooled(source)
        several = [own.ids, own.index, own.values, own.segments]
        if isinstance(source, Taken):
            several.append(source.indicator)
        for one in several:
            if one is None:
                continue
            if found.setdefault(one.name, one) != one:
                raise SourceError(f"two inputs of the graph have the name `{one.name}`")
    return list(found.values())


def build(
    model: Model, given: Mapping[str, TensorSpec], dynamic: tuple[DynamicAxis, ...]
) -> tuple[dense.JoinedBuilder, Signature]:
    """Build the ONNX graph. `given` are the user's own words about inputs.

    Raises UsageError where the shape of an input is unknown, or `given` names none.
    """
    builder = dense.JoinedBuilder(model.name)
    specs: list[TensorSpec] = []
    lists = outside(model)
    shapes = _list_shapes(model)
    for one in lists:
        spec = TensorSpec(name=one.name, dtype=one.dtype, shape=shapes[one.name])
        specs.append(_told_by_user(spec, given))
    for name in model.direct():
        # the same data may feed lookups and the network
        if model.label(name) not in {spec.name for spec in specs}:
            specs.append(_told_by_user(_spec(model, name, given), given))
    every = [_with_names(spec, dynamic) for spec in specs]
    if unknown := [name for name in given if name not in {spec.name for spec in every}]:
        raise UsageError(
            f"the model has no input `{unknown[0]}`",
            hint=f"its inputs: {', '.join(spec.name for spec in every)}"[:500],
        )
    names = {spec.name: builder.input(spec.name, spec.dtype, spec.shape or ()) for spec in every}
    builder.joined = {name: names[model.label(name)] for name in model.direct()}
    builder.joined |= _looked_up(builder, model, names)
    by_name = {spec.name: spec for spec in every}
    inner = [
        _rows(model, name)
        if name in model.lookups
        else dataclasses.replace(by_name[model.label(name)], name=name)
        for name in model.network.inputs
        if name in model.lookups or name in model.direct()
    ]
    outputs = _dense(builder, model, inner)
    return builder, Signature(inputs=tuple(every), outputs=tuple(outputs))


def _rows(model: Model, name: str) -> TensorSpec:
    own = _pooled(model.lookups[name])
    width = own.width(model.tables[own.table].width)
    return TensorSpec(name=name, dtype="float32", shape=(None, width))


def _looked_up(builder: dense.JoinedBuilder, model: Model, names: dict[str, str]) -> dict[str, str]:
    """Append all lookups; those of one table together. Return the vectors by dense input."""
    found: dict[str, str] = {}
    vectors: dict[tuple[str, str], str] = {}
    for table in model.tables.values():
        ids = list(
            dict.fromkeys(
                _pooled(one).ids.name
                for one in model.lookups.values()
                if _pooled(one).table == table.name
            )
        )
        with builder.layer(table.name):
            gathered = mapping.look_up(builder, table, [names[one] for one in ids])
        vectors |= {(table.name, one): name for one, name in zip(ids, gathered, strict=True)}
    done: dict[Pooled, str] = {}
    for name, source in model.lookups.items():
        own = _pooled(source)
        with builder.layer(name.removesuffix(":0")):
            if own not in done:
                width = model.tables[own.table].width
                done[own] = mapping.pool(
                    builder, own, vectors[own.table, own.ids.name], width, names
                )
            found[name] = done[own]
            if isinstance(source, Taken):
                found[name] = builder.add(
                    "Gather", found[name], names[source.indicator.name], axis=0
                )
    return found


def _dense(builder: dense.JoinedBuilder, model: Model, specs: list[TensorSpec]) -> list[TensorSpec]:
    if isinstance(model.network, dense.SymbolNetwork):
        outputs: list[TensorSpec] = model.network.emit(builder, specs, model.weights)
        return outputs
    network = model.network
    values: dict[Ref, Value] = network.given(builder, specs, model.weights)
    if model.reshapes is not None:
        reshaping.emit(builder, model.reshapes, values)
    found: list[TensorSpec] = network.emit_values(builder, values)
    return found


def _list_shapes(model: Model) -> dict[str, tuple[Dimension, ...]]:
    """Return the shapes of the inputs of lookups, by name.

    What is one size has one name: the ids of a feature and their values, the rows of the batch. The
    ends of a sequence stand in a matrix [batch, length], which is read row by row.
    """
    found: dict[str, tuple[Dimension, ...]] = {}
    grouped = model.network.grouped()
    for name, source in model.lookups.items():
        own = _pooled(source)
        count = f"{own.ids.name.removesuffix('.ids')}.count"
        pair = model.tables[own.table].is_pair
        if own.index is None:
            found[own.ids.name] = (count, 2) if pair else (count,)
        else:
            found[own.ids.name] = (f"{count}_unique", 2) if pair else (f"{count}_unique",)
            found[own.index.name] = (count,)
        if own.values is not None:
            found[own.values.name] = (count,)
        length = model.reshapes.history(name) if model.reshapes is not None else ""
        if isinstance(source, Taken):
            found[own.segments.name] = ("groups",)
            found[source.indicator.name] = ("batch",)
        elif length:
            found[own.segments.name] = ("batch", length)
        elif name in grouped:
            found[own.segments.name] = ("groups",)
        else:
            found[own.segments.name] = ("batch",)
    return found


def _spec(model: Model, name: str, given: Mapping[str, TensorSpec]) -> TensorSpec:
    spec = model.network.spec(name)
    shape: tuple[Dimension, ...] | None = spec.shape
    reshapes = model.reshapes
    if reshapes is not None and reshapes.mask(name):
        shape = ("batch", reshapes.mask(name))
    elif reshapes is not None and reshapes.history(name) and shape:
        # batch times length
        shape = (f"{reshapes.history(name)}_rows", *shape[1:])
    elif shape is None and reshapes is not None:
        shape = reshapes.declared.get(name)
    label = model.label(name)
    if shape is None and label in given:
        shape = given[label].shape
    if shape is None:
        raise UsageError(
            f"the graph does not say the shape of the input `{label}`",
            hint=f"give it: `--input '{label}:{spec.dtype}[batch,...]'`",
        )
    if shape and shape[0] is None:
        rows = "groups" if name in model.network.grouped() else "batch"
        shape = (rows, *shape[1:])
    return TensorSpec(name=label, dtype=spec.dtype, shape=shape)


def _told_by_user(spec: TensorSpec, given: Mapping[str, TensorSpec]) -> TensorSpec:
    own = given.get(spec.name)
    if own is None:
        return spec
    if own.dtype != spec.dtype:
        raise UsageError(f"the input `{spec.name}` is {spec.dtype}, not {own.dtype}")
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=own.shape or spec.shape)


def _with_names(spec: TensorSpec, dynamic: tuple[DynamicAxis, ...]) -> TensorSpec:
    shape = spec.shape or ()
    wanted = {
        axis.axis % len(shape): axis.name for axis in dynamic if axis.input == spec.name and shape
    }
    sizes = tuple(wanted.get(at, size) for at, size in enumerate(shape))
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=sizes)


def evaluate(model: Model, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs by definition. Raises ValueError where the inputs do not fit together."""
    values: dict[str, Any] = {name: feed[model.label(name)] for name in model.direct()}
    values |= model.weights
    for name, source in model.lookups.items():
        values[name] = evaluation.compute(source, feed, model.tables)
    if model.reshapes is not None and model.reshapes.targets:
        rows = len(values[model.reshapes.anchor]) if model.reshapes.anchor else 0
        reshaping.evaluate(model.reshapes, values, rows)
    outputs: dict[str, Array] = model.network.evaluate(values)
    return outputs
