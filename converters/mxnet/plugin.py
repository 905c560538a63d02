# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "mxnet"
# summary = "MXNet: symbol and parameters, Module and Gluon exports"
# formats = ["mxnet/symbol"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# params = "the file of parameters (default: the last epoch beside the symbol)"
# ///
"""MXNet to ONNX by our own reader and operator map: no framework.

Its `reference` computes every operator by its definition in float64.
"""

from __future__ import annotations

from pathlib import Path

from deploykit._plugins.converters.mxnet import (
    evaluation,
    input_shapes,
    mapping,
    network,
)

from deploykit.definition_session import DefinitionSession
from deploykit.errors import SourceError
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
    """Return inputs and outputs: sizes that the weights decide are fixed, the others dynamic.

    Raises SourceError where the files are damaged or do not fit together, UnsupportedError where an
    operator has no ONNX form, UsageError for wrong settings and inputs.
    """
    _, signature = _built(_read(source), source, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX, loss heads as what they give at inference. Raises as `inspect` does."""
    phase("reading the MXNet model")
    model = _read(request.source)
    build, _ = _built(model, request.source, request.dynamic)
    repairs = []
    if model.labels:
        repairs.append(f"label inputs dropped: {', '.join(model.labels)}")
    return finish(build, request, repairs=repairs)


def reference(request: ReferenceRequest) -> Session:
    """Return the model computed operator by operator by definition. Raises as `inspect` does."""
    model = _read(request.source)
    _, signature = _built(model, request.source, ())
    session: Session = DefinitionSession(
        signature, lambda feed: evaluation.evaluate(model, dict(feed))
    )
    return session


def _read(source: Source) -> network.Network:
    check_names(source.options, ("params",), plugin="the MXNet converter")
    params = Path(source.options["params"]) if "params" in source.options else None
    return network.read(Path(source.location), params)


def _built(
    model: network.Network, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    mapping.refuse(model)
    try:
        return _graph(model, source, dynamic)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise SourceError(
            f"`{model.symbol.path}` is a damaged MXNet model: {type(error).__name__}: {error}"[
                :400
            ],
            hint="symbol and parameters do not fit together",
        ) from error


def _graph(
    model: network.Network, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    given = {spec.name: spec for spec in source.inputs}
    shapes = input_shapes.input_shapes(model, given)
    build = GraphBuilder(model.symbol.path.name.removesuffix("-symbol.json"))
    inputs = []
    for name, shape in shapes.items():
        wanted = {axis.axis % len(shape): axis.name for axis in dynamic if axis.input == name}
        named: tuple[Dimension, ...] = tuple(
            wanted.get(at, size or ("batch" if at == 0 else f"{name}_axis{at}"))
            for at, size in enumerate(shape)
        )
        dtype = given[name].dtype if name in given else "float32"
        inputs.append(TensorSpec(name=name, dtype=dtype, shape=named))
    outputs = mapping.emit(build, model, inputs)
    return build, Signature(inputs=tuple(inputs), outputs=tuple(outputs))
