# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "xdl"
# summary = "XDL: exported graph (TensorFlow or MXNet inside) with its embedding tables, checkpoints"
# formats = ["xdl/graph", "xdl/checkpoint"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# sparse = "ids: ids go in and are looked up (default); pooled: the dense network alone, vectors go in"
# outputs = "tensors or nodes of the dense network, with commas (default: the tagged prediction)"
# graph = "of a checkpoint: the graph (default: graph.txt or graph.pb beside it)"
# checkpoint = "of a graph: the folder of a checkpoint that has the weights (default: the export)"
# tables = "of a checkpoint without a graph: tables to look up, with commas (default: every hash table)"
# ///
"""XDL to ONNX by our own reader and operator map: no framework.

Its `reference` computes every lookup and operator by its definition in float64.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deploykit._plugins.converters.xdl import checkpoint, lookups, model, reading, weights

from deploykit.definition_session import DefinitionSession
from deploykit.errors import SourceError, UsageError
from deploykit.formats.content import shown
from deploykit.graph_building import GraphBuilder, finish
from deploykit.plugin_settings import check_names
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    DynamicAxis,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)

SETTINGS = ("sparse", "outputs", "graph", "checkpoint", "tables")


def inspect(source: Source) -> Signature:
    """Return inputs and outputs: lists of ids for each feature, or vectors, and the prediction.

    Raises SourceError where files are damaged or missing, UnsupportedError where an operator has no
    ONNX form, UsageError for wrong settings and inputs.
    """
    _, signature = _built(_read(source), source, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX, losses and training left out. Raises as `inspect` does."""
    phase("reading the XDL model")
    whole = _read(request.source)
    build, _ = _built(whole, request.source, request.dynamic)
    return finish(build, request, repairs=whole.notes)


def reference(request: ReferenceRequest) -> Session:
    """Return the model computed by definition. Raises as `inspect` does."""
    whole = _read(request.source)
    _, signature = _built(whole, request.source, ())
    session: Session = DefinitionSession(signature, whole.evaluate)
    return session


def _read(source: Source) -> model.Model | lookups.Lookups:
    check_names(source.options, SETTINGS, plugin="the XDL converter")
    sparse = source.options.get("sparse", "ids")
    if sparse not in ("ids", "pooled"):
        raise UsageError(f"setting `sparse` cannot be `{sparse}`", hint="it takes ids | pooled")
    location = Path(source.location)
    stored: weights.Weights
    if location.is_dir():
        graph = _graph_beside(source, location)
        if graph is None:
            return lookups.read(checkpoint.read(location), _words(source, "tables"))
        stored = weights.Stored(location)
    else:
        graph, stored = location, _stored(source, location)
    with _whole_or_damaged(source):
        return model.assemble(
            reading.read(graph),
            stored,
            outputs=_words(source, "outputs"),
            pooled=sparse == "pooled",
        )


def _words(source: Source, key: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in source.options.get(key, "").split(",") if word.strip())


def _graph_beside(source: Source, folder: Path) -> Path | None:
    if "graph" in source.options:
        named = Path(source.options["graph"])
        return named / "graph.txt" if named.is_dir() else named
    return next((one for one in (folder / "graph.txt", folder / "graph.pb") if one.is_file()), None)


def _stored(source: Source, graph: Path) -> weights.Weights:
    if "checkpoint" in source.options:
        return weights.Stored(Path(source.options["checkpoint"]))
    if (graph.parent / "checkpoints").is_file() and not (graph.parent / "sparse.txt").is_file():
        return weights.Stored(graph.parent)
    return weights.Export(graph.parent)


def _built(
    whole: model.Model | lookups.Lookups, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    given = {spec.name: spec for spec in source.inputs}
    with _whole_or_damaged(source):
        build, signature = whole.build(given, dynamic)
    return build, signature


@contextlib.contextmanager
def _whole_or_damaged(source: Source) -> Iterator[None]:
    """Turn what goes wrong where parts do not fit together into a SourceError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise SourceError(
            f"`{shown(source.location)}` is a damaged XDL model: {type(error).__name__}: {error}"[
                :400
            ],
            hint="graph, weights and tables do not fit together",
        ) from error
