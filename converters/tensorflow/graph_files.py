"""Graphs that do not say where they begin and end: frozen GraphDefs and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.tensorflow import cutting
from deploykit._plugins.converters.tensorflow.graphs import (
    Graph,
    check_names,
    check_settings,
    from_graph,
    names,
    no_tensor,
    overridden,
    plain,
)

from deploykit.errors import SourceError, UsageError
from deploykit.formats.reading import FormatError
from deploykit.formats.tensorflow_checkpoint import prefix
from deploykit.formats.tensorflow_endpoints import Endpoints, find_endpoints
from deploykit.formats.tensorflow_graph import read_graph
from deploykit.protocol import Source

SETTINGS = ("inputs", "outputs", "constants")
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})


def load_graph_def(source: Source, session: Any) -> Graph:
    """Load the part of a frozen GraphDef that its outputs need. Raises SourceError, UsageError."""
    import tensorflow as tf

    check_settings(source, SETTINGS)
    graph_def = tf.compat.v1.GraphDef()
    _parse(graph_def, source, "GraphDef")
    if not graph_def.node:
        raise SourceError(f"`{source.location}` holds a graph without nodes")
    ends = _endpoints(graph_def, source)
    kept = _kept(graph_def, ends, source)
    empty = [node.name for node in kept.node if node.op in _VARIABLES]
    if empty:
        raise SourceError(
            f"`{source.location}` is not frozen: {len(empty)} variables have no values, such as "
            f"`{empty[0]}`",
            hint="convert the checkpoint that it belongs to (its `.meta` file)",
        )
    tf.import_graph_def(kept, name="")
    return _graph(ends, session, source)


def load_checkpoint(source: Source, session: Any) -> Graph:
    """Load the part of a checkpoint's graph that its outputs need, and its variables.

    Raises SourceError where the variables do not fit the graph.
    """
    import tensorflow as tf

    check_settings(source, SETTINGS)
    meta = tf.compat.v1.MetaGraphDef()
    path = Path(source.location)
    if path.suffix != ".meta":
        raise SourceError(
            f"`{source.location}` has weights only: there is no `{prefix(path)}.meta` with the graph",
            hint="load them with the code that made the model, and save a SavedModel",
        )
    _parse(meta, source, "MetaGraph")
    ends = _endpoints(meta.graph_def, source)
    kept = _kept(meta.graph_def, ends, source, [meta.saver_def.restore_op_name])
    tf.import_graph_def(kept, name="")
    values = str(path.with_name(prefix(path)))
    if meta.saver_def.restore_op_name:
        feed = {meta.saver_def.filename_tensor_name: values}
        # V1 files of a session bundle are sharded under one pattern
        shards = sorted(path.parent.glob(f"{prefix(path)}-?????-of-?????"))
        if shards and not path.with_suffix(".index").is_file():
            feed = {meta.saver_def.filename_tensor_name: f"{values}-?????-of-?????"}
        session.run(meta.saver_def.restore_op_name, feed_dict=feed)
    else:
        _restore_by_name(kept, values, session)
    return _graph(ends, session, source)


def _restore_by_name(graph_def: Any, values: str, session: Any) -> None:
    """Give every variable the value that the checkpoint has under its name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(values)
    for node in graph_def.node:
        if node.op not in _VARIABLES:
            continue
        name = node.attr["shared_name"].s.decode() or node.name
        if not reader.has_tensor(name):
            raise SourceError(f"the checkpoint `{values}` has no values for variable `{name}`")
        variable = session.graph.get_tensor_by_name(f"{node.name}:0")
        value = tf.constant(reader.get_tensor(name))
        if node.op == "VarHandleOp":
            session.run(tf.raw_ops.AssignVariableOp(resource=variable, value=value))
        else:
            session.run(tf.raw_ops.Assign(ref=variable, value=value).op)


def _parse(proto: Any, source: Source, kind: str) -> None:
    from google.protobuf.message import DecodeError

    try:
        proto.ParseFromString(Path(source.location).read_bytes())
    except DecodeError as error:
        raise SourceError(f"`{source.location}` is no {kind}: {error}") from error


def _endpoints(graph_def: Any, source: Source) -> Endpoints:
    """Return inputs and outputs: the settings' and `--input`'s, else what the graph suggests."""
    try:
        graph = read_graph(memoryview(graph_def.SerializeToString()))
    except FormatError as error:
        raise SourceError(f"`{source.location}` is damaged: {error}") from error
    outputs = tuple(names(source, "outputs"))
    for name in outputs:
        if name.split(":")[0] not in graph.nodes:
            raise no_tensor(name if ":" in name else f"{name}:0", source)
    found = find_endpoints(graph, outputs)
    if not found.outputs:
        raise SourceError(
            "every node of the graph is read by another, so none is an output",
            hint="name the outputs: --set outputs=a:0,b:0",
        )
    chosen = names(source, "inputs")
    if not chosen:
        given = [plain(spec.name) for spec in source.inputs]
        inner = [name for name in given if name not in found.inputs]
        # naming an inner tensor with --input cuts the graph there
        chosen = [name for name in found.inputs if name in given] + inner if inner else []
    for name in chosen:
        if name.split(":")[0] not in graph.nodes:
            raise UsageError(
                f"the model has no input `{name}`", hint=f"inputs: {', '.join(found.inputs)}"
            )
    return Endpoints(
        inputs=tuple(chosen) or found.inputs,
        outputs=found.outputs if outputs else _all_of_each(found.outputs, graph_def),
        labels=found.labels,
    )


def _all_of_each(outputs: Iterable[str], graph_def: Any) -> tuple[str, ...]:
    """Name every tensor of numbers that the output nodes give (a split, a top-k), not only the first."""
    from tensorflow.python.framework import op_def_registry

    nodes = {node.name: node for node in graph_def.node}
    read = {source.split(":")[0] for node in graph_def.node for source in node.input}
    found = []
    for name in outputs:
        found.append(name)
        node = nodes[name]
        definition = op_def_registry.get(node.op)
        # what a normalisation keeps for training is no output
        if name in read or definition is None or node.op.startswith("FusedBatchNorm"):
            continue
        count = sum(
            int(node.attr[out.number_attr].i) if out.number_attr else 1
            for out in definition.output_arg
        )
        found += [f"{name}:{number}" for number in range(1, count)]
    return tuple(found)


def _kept(graph_def: Any, ends: Endpoints, source: Source, more: Iterable[str] = ()) -> Any:
    """Return what the endpoints need of `graph_def`: what only training needs may not even load."""
    import tensorflow as tf

    for node in graph_def.node:
        node.attr.pop("_class", None)  # "beside that node", which may be gone
    wanted = dict.fromkeys(name.split(":")[0] for name in (*ends.outputs, *ends.inputs, *more))
    try:
        kept = tf.compat.v1.graph_util.extract_sub_graph(
            graph_def, [name for name in wanted if name]
        )
    except AssertionError as error:
        raise SourceError(f"`{source.location}` is damaged: {error}") from error
    for node in kept.node:
        node.device = ""
    return kept


def _graph(ends: Endpoints, session: Any, source: Source) -> Graph:
    specs = {plain(spec.name): spec for spec in source.inputs}
    outputs = tuple(from_graph(name, session.graph, source) for name in ends.outputs)
    if names(source, "inputs"):
        cut = cutting.Cut(inputs=ends.inputs)
    else:
        cut = cutting.begin_at_numbers(
            session.graph, ends.inputs, tuple(item.tensor for item in outputs)
        )
    if not cut.inputs:
        raise SourceError(
            f"`{source.location}` has no placeholder", hint="name the inputs: --set inputs=a:0,b:0"
        )
    inputs = [from_graph(name, session.graph, source) for name in cut.inputs]
    check_names(specs, [item.spec.name for item in inputs])
    repairs = list(cut.repairs)
    if ends.labels:
        labels = ", ".join(ends.labels)
        found = ", ".join(item.spec.name for item in outputs)
        repairs.append(
            f"outputs are `{found}`, which the loss compares with `{labels}`; "
            "`--set outputs=` names others"
        )
    return Graph(
        session=session,
        inputs=tuple(overridden(item, specs.get(item.spec.name)) for item in inputs),
        outputs=outputs,
        repairs=tuple(repairs),
    )
