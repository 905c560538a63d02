# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "caffe"
# summary = "Caffe: prototxt and caffemodel, old and new layers"
# formats = ["caffe/caffemodel"]
# functions = ["inspect", "convert", "reference"]
# ///
"""Caffe to ONNX by our own reader and layer map: no framework.

Its `reference` computes every layer by its definition in float64.
"""

from __future__ import annotations

from pathlib import Path

from deploykit._plugins.converters.caffe import evaluation, mapping, reading

from deploykit.definition_session import DefinitionSession
from deploykit.errors import SourceError, UsageError
from deploykit.graph_building import GraphBuilder, finish
from deploykit.plugin_settings import check_names
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    Dimension,
    DynamicAxis,
    ReferenceRequest,
    Session,
    Signature,
    Source,
    TensorSpec,
)


def inspect(source: Source) -> Signature:
    """Return inputs and outputs; the batch is dynamic where no layer has it in its settings.

    Raises SourceError where the files are damaged or do not fit together, UnsupportedError where a
    layer has no ONNX form, UsageError where the size of an input is needed.
    """
    _, signature = _built(_read(source), source, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the network in its test phase as ONNX. Raises as `inspect` does."""
    phase("reading the Caffe network")
    net = _read(request.source)
    build, _ = _built(net, request.source, request.dynamic)
    repairs = [f"layers of training dropped: {', '.join(net.dropped)}"] if net.dropped else []
    return finish(build, request, repairs=repairs)


def reference(request: ReferenceRequest) -> Session:
    """Return the network computed layer by layer by definition. Raises as `inspect` does."""
    net = _read(request.source)
    _, signature = _built(net, request.source, ())
    session: Session = DefinitionSession(
        signature, lambda feed: evaluation.evaluate(net, dict(feed))
    )
    return session


def _read(source: Source) -> reading.CaffeNet:
    check_names(source.options, (), plugin="the Caffe converter")
    net = reading.read(Path(source.location))
    mapping.refuse(net)
    return net


def _built(
    net: reading.CaffeNet, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    try:
        return _graph(net, source, dynamic)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise SourceError(
            f"`{net.path}` is a damaged Caffe network: {type(error).__name__}: {error}"[:400],
            hint="prototxt and caffemodel do not fit together",
        ) from error


def _graph(
    net: reading.CaffeNet, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    build = GraphBuilder(net.name)
    given = {spec.name: spec for spec in source.inputs}
    if unknown := [name for name in given if name not in net.inputs]:
        raise UsageError(
            f"the network has no input `{unknown[0]}`", hint=f"its inputs: {', '.join(net.inputs)}"
        )
    specs = []
    for name, shape in net.inputs.items():
        own = given[name].shape if name in given else None
        sizes: tuple[Dimension, ...] | None = own or shape
        if sizes is None:
            raise UsageError(
                f"the network does not say the shape of its input `{name}`",
                hint=f"give it: `--input '{name}:float32[batch,3,224,224]'`",
            )
        wanted = {axis.axis % len(sizes): axis.name for axis in dynamic if axis.input == name}
        if own is None and not mapping.bakes_batch(net):
            wanted.setdefault(0, "batch")
        named = tuple(
            wanted.get(at, size if size is not None else f"{name}_axis{at}")
            for at, size in enumerate(sizes)
        )
        specs.append(TensorSpec(name=name, dtype="float32", shape=named))
    values = {}
    for spec in specs:
        shape_of = tuple(one if isinstance(one, int) else None for one in spec.shape or ())
        name = build.input(spec.name, spec.dtype, spec.shape or ())
        values[spec.name] = mapping.Value(name, shape_of)
    blobs = mapping.emit(build, net, values)
    batch = specs[0].shape[0] if specs and specs[0].shape else None
    outputs = []
    for name in net.outputs:
        sizes_of: tuple[Dimension, ...] = tuple(
            batch if at == 0 and one is None else one for at, one in enumerate(blobs[name].shape)
        )
        build.output(name, blobs[name].name, "float32", sizes_of)
        outputs.append(TensorSpec(name=name, dtype="float32", shape=sizes_of))
    return build, Signature(inputs=tuple(specs), outputs=tuple(outputs))
