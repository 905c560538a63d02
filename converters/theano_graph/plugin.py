# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = [
#     "pytensor==2.8.11",
#     "lasagne==0.1",
#     "numpy==1.23.5",
#     "scipy==1.10.1",
#     "onnx==1.23.2",
#     "setuptools<81",
# ]
#
# [tool.deploykit]
# name = "theano"
# summary = "Theano graphs by reference (run by pytensor), Lasagne networks, and parameter sets"
# formats = ["theano/reference", "theano/parameters"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# module = "parameters: the code that builds their graph, `FILE.py:callable`"
# floatX = "precision of the graph, as theano.config.floatX: float32 | float64 (default: float32)"
# ///
"""Theano to ONNX: the user's code builds the graph with pytensor, and our own map reads it.

pytensor 2.8 is the last release with Theano's neural operators; `import theano` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.definition_session import DefinitionSession
from deploykit.errors import UsageError
from deploykit.graph_building import finish
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.theano_graph.building import Graph

    Array = np.ndarray[Any, Any]

REJECTIONS = (
    ValueError,
    TypeError,
    IndexError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
)
"""What pytensor raises for inputs that a graph does not take."""

FLOATS = Setting(default="float32", choices=("float32", "float64"))


def inspect(source: Source) -> Signature:
    """Return inputs and outputs; sizes that the graph does not decide are dynamic."""
    from deploykit._plugins.converters.theano_graph.mapping import emit

    signature: Signature
    _, signature, _ = emit(_load(source), _name(source), source.inputs, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the graph as ONNX.

    Raises SourceError where code or parameters do not fit, UnsupportedError, naming the operator,
    where one has no ONNX form.
    """
    from deploykit._plugins.converters.theano_graph.mapping import emit

    graph = _load(request.source)
    phase("mapping the graph")
    build, _, notes = emit(graph, _name(request.source), request.source.inputs, request.dynamic)
    return finish(build, request, repairs=notes, packages=("pytensor", "onnx", "numpy"))


def reference(request: ReferenceRequest) -> Session:
    """Return the graph evaluated by pytensor, without rewriting it."""
    from deploykit._plugins.converters.theano_graph import performing
    from deploykit._plugins.converters.theano_graph.mapping import emit

    graph = _load(request.source)
    _, signature, _ = emit(graph, _name(request.source), request.source.inputs, ())
    phase("compiling the graph")
    compiled = performing.function(list(graph.inputs.values()), list(graph.outputs.values()))

    def evaluate(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            found = compiled(*(feed[name] for name in graph.inputs))
        except REJECTIONS as error:
            # the rest is a page about the node
            raise ValueError(f"{type(error).__name__}: {error}".split("\n")[0]) from error
        return {spec.name: one for spec, one in zip(signature.outputs, found, strict=True)}

    session: Session = DefinitionSession(signature, evaluate)
    return session


def _name(source: Source) -> str:
    return Path(source.location.rpartition(":")[0] or source.location).stem


def _load(source: Source) -> Graph:
    settings = dict(source.options)
    module = settings.pop("module", "")
    settings = in_force(settings, {"floatX": FLOATS}, plugin="the Theano converter")
    from deploykit._plugins.converters.theano_graph import aliases, performing

    phase("importing pytensor")
    performing.prepare(settings["floatX"])
    aliases.install()
    phase("building the graph")
    if source.format == "theano/reference":
        if module:
            raise UsageError(
                "the setting `module` names the code of a set of parameters, and this is code"
            )
        return _seeded(source.location)
    return _with_parameters(source, module)


def _seeded(location: str) -> Graph:
    """Build the graph; one that starts from random weights gets the same in every worker."""
    import random

    import numpy as np
    from deploykit._plugins.converters.theano_graph import building

    random.seed(0)
    np.random.seed(0)
    graph: Graph = building.build(location)
    return graph


def _with_parameters(source: Source, module: str) -> Graph:
    from deploykit._plugins.converters.theano_graph import parameters

    path = Path(source.location)
    values = parameters.load(path, trust=source.trust)
    if not module:
        raise UsageError(
            f"`{path}` holds {len(values)} arrays and no graph",
            hint="name the code that builds the network: `--set module=FILE.py:callable`",
        )
    graph = _seeded(_located(module, path.parent))
    from pytensor.graph.basic import graph_inputs

    shared = [
        one for one in graph_inputs(list(graph.outputs.values())) if hasattr(one, "get_value")
    ]
    parameters.assign(values, graph.parameters, shared, path)
    return graph


def _located(module: str, folder: Path) -> str:
    """Return the reference with its file found: as it is, or beside the parameters."""
    file, colon, name = module.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UsageError(f"the setting `module` is `{module}`", hint="it is `FILE.py:callable`")
    found = Path(file) if Path(file).is_file() else folder / file
    if not found.is_file():
        raise UsageError(
            f"no python file `{file}`, nor `{found}`",
            hint="give its whole path, or put it beside the parameters",
        )
    return f"{found}:{name}"
