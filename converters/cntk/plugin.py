# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "cntk"
# summary = "Microsoft CNTK: models of version 2 (.model, .dnn, .cmf) and 1 (.dnn, .cmf)"
# formats = ["cntk/v2", "cntk/v1"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# outputs = "the outputs to convert, by name or uid: a,b (default: all but those of training)"
# sequences = "one: a sequence is fed alone, [sequence, ...] (default); batch: [batch, sequence, ...]"
# ///
"""CNTK to ONNX by our own readers and operator map: no framework.

Shapes are reversed, so that the slowest axis comes first as everywhere else. The batch is the axis
`batch`, a sequence the axis `sequence`. CNTK packs sequences of different lengths, for which ONNX has
no layout: one sequence is fed at a time, or with `sequences=batch` several of the same length. Sparse
inputs are fed dense. `reference` computes every operator by its definition in float64.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk import network, outputs
from deploykit._plugins.converters.cntk.graph import Root

from deploykit.definition_session import DefinitionSession
from deploykit.errors import DeploykitError, SourceError, UsageError
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
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SETTINGS = ("outputs", "sequences")
READERS = {"cntk/v2": "reading_v2", "cntk/v1": "reading_v1"}


def inspect(source: Source) -> Signature:
    """Return inputs and outputs, the dynamic axes named `batch` and `sequence`.

    Raises SourceError where the file is damaged, UnsupportedError where an operator has no ONNX
    form, UsageError where a setting or a name is unknown.
    """
    _, _, signature, _ = _built(source, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX. Raises as `inspect` does."""
    phase("reading the CNTK model")
    _, build, _, repairs = _built(request.source, request.dynamic)
    return finish(build, request, repairs=repairs)


def reference(request: ReferenceRequest) -> Session:
    """Return the model computed operator by operator by definition. Raises as `inspect` does."""
    from deploykit._plugins.converters.cntk import evaluation

    found, _, signature, _ = _built(request.source, ())

    def evaluate(feed: Mapping[str, Array]) -> dict[str, Array]:
        fed = {found.inputs[name].uid: value for name, value in feed.items()}
        made = evaluation.evaluate(found.graph, fed, found.wanted, alone=found.alone)
        return {root.name: made[root.uid] for root in found.outputs}

    session: Session = DefinitionSession(signature, evaluate)
    return session


def _built(
    source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[network.Network, GraphBuilder, Signature, tuple[str, ...]]:
    check_names(source.options, SETTINGS, plugin="the CNTK converter")
    layout = source.options.get("sequences", "one")
    if layout not in ("one", "batch"):
        raise UsageError(
            f"`sequences` is `one` or `batch`, not `{layout}`", hint="say `--set sequences=batch`"
        )
    reader = importlib.import_module(f"{__package__}.{READERS[source.format]}")
    graph = reader.read(Path(source.location))

    def is_number(root: Root) -> bool:
        """Say whether an output is a single number; one that cannot be converted counts as one."""
        try:
            alone = network.network(graph, [root], alone=True)
            _, (shown,) = network.build(
                alone, _specs(alone, dataclasses.replace(source, inputs=()), ())
            )
        except DeploykitError:
            return True
        return all(isinstance(size, str) or size == 1 for size in shown.shape or ())

    choice = outputs.choose(graph, source.options.get("outputs", ""), is_number)
    found = network.network(graph, choice.outputs, alone=layout == "one")
    found = network.completed(found, {spec.name: spec for spec in source.inputs})
    specs = _specs(found, source, dynamic)
    try:
        build, shown = network.build(found, specs)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise SourceError(
            f"`{source.location}` is a damaged CNTK model: {type(error).__name__}: {error}"[:400],
            hint="copy or download it again",
        ) from error
    repairs = [*graph.repairs, *choice.repairs]
    if sparse := [name for name, leaf in found.inputs.items() if leaf.sparse]:
        repairs.append(f"sparse inputs are fed dense: {', '.join(sparse)}")
    if any(leaf.sequence for leaf in found.inputs.values()):
        how = "alone" if found.alone else "in batches of one length"
        repairs.append(f"sequences are fed {how}: ONNX cannot pack several lengths as CNTK does")
    halves = any(
        leaf.dtype == "float16" for leaf in found.graph.leaves.values() if leaf.values is not None
    )
    if halves:
        repairs.append("float16 weights are computed with in float32")
    return found, build, Signature(inputs=tuple(specs.values()), outputs=shown), tuple(repairs)


def _specs(
    found: network.Network, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> dict[str, TensorSpec]:
    given = {spec.name: spec for spec in source.inputs}
    if unknown := [name for name in given if name not in found.inputs]:
        raise UsageError(
            f"the model has no input `{unknown[0]}`", hint=f"its inputs: {', '.join(found.inputs)}"
        )
    specs = {}
    for name, leaf in found.inputs.items():
        own = network.shape_of(found, leaf)
        shape, dtype = own, found.dtype
        if name in given:
            asked = given[name].shape or ()
            fits = len(asked) == len(own) and all(
                not isinstance(n, int) or not isinstance(size, int) or n == size
                for size, n in zip(asked, own, strict=True)
            )
            if not fits:
                raise UsageError(
                    f"input `{name}` cannot have the shape {list(asked)}",
                    hint=f"the model says {TensorSpec(name=name, dtype=dtype, shape=own)}",
                )
            shape, dtype = asked, given[name].dtype
        elif any(size < -3 or size in (-1, -2) for size in leaf.shape):
            raise UsageError(
                f"the model does not say the shape of the input `{name}`",
                hint=f"give it: `--input '{name}:float32[batch,...]'`",
            )
        wanted = {
            axis.axis % len(shape): axis.name for axis in dynamic if axis.input == name and shape
        }
        shape = tuple(wanted.get(at, size) for at, size in enumerate(shape))
        specs[name] = TensorSpec(name=name, dtype=dtype, shape=shape)
    return specs
