# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26", "h5py>=3.10", "pyyaml>=6"]
#
# [tool.deploykit]
# name = "keras"
# summary = "Keras 1, 2 and 3: HDF5, .keras, JSON or YAML with weights; backends TensorFlow, Theano and CNTK"
# formats = ["keras/hdf5", "keras/json", "keras/yaml", "keras/v3"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# backend = "theano, tensorflow or cntk: whose arithmetic a file of Keras 1 was made for"
# weights = "the HDF5 file with the weights of an architecture in JSON or YAML (default: the only one beside it)"
# ///
"""Keras to ONNX by our own reader and layer map: no framework, and the arithmetic of the file's own backend.

Its `reference` computes every layer by its definition in float64.
"""

from __future__ import annotations

from dataclasses import replace

from deploykit._plugins.converters.keras import backends, evaluation, mapping, reading
from deploykit._plugins.converters.keras.emission import Context, Value
from deploykit._plugins.converters.keras.reading import KerasModel

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
    """Return inputs and outputs under the names of their layers, the batch dynamic.

    Raises SourceError where the file is damaged, UnsupportedError where a layer has no ONNX form or
    the result depends on a backend that the file does not say, UsageError for wrong settings.
    """
    model = _read(source)
    _, signature = _built(model, source, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX. Raises as `inspect` does."""
    phase("reading the Keras model")
    model = _read(request.source)
    build, _ = _built(model, request.source, request.dynamic)
    repairs = []
    if model.backend != "tensorflow":
        repairs.append(f"computed as Keras {model.version} on {model.backend} does")
    return finish(build, request, repairs=repairs, packages=("onnx", "numpy", "h5py"))


def reference(request: ReferenceRequest) -> Session:
    """Return the model computed layer by layer by definition. Raises as `inspect` does."""
    model = _read(request.source)
    _, signature = _built(model, request.source, ())
    session: Session = DefinitionSession(
        signature, lambda feed: evaluation.evaluate(model, dict(feed))
    )
    return session


def _read(source: Source) -> KerasModel:
    check_names(source.options, ("backend", "weights"), plugin="the Keras converter")
    asked = source.options.get("backend")
    if asked is not None and asked not in backends.BACKENDS:
        raise UsageError(
            f"there is no backend `{asked}`", hint=f"it is one of {', '.join(backends.BACKENDS)}"
        )
    model = reading.read(source.location, source.format, source.options)
    if asked is not None and model.backend is not None and asked != model.backend:
        raise UsageError(
            f"`{model.path.name}` says that its backend is {model.backend}, not {asked}",
            hint="leave `--keras-backend` away",
        )
    model = replace(model, backend=model.backend or asked)
    if model.backend is not None and model.backend not in backends.BACKENDS:
        raise UsageError(f"`{model.path.name}` was made with the backend {model.backend}")
    mapping.refuse(model)
    mapping.check_backend(model)
    # what does not depend on it is the same in all of them
    return replace(model, backend=model.backend or "tensorflow")


def _built(
    model: KerasModel, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    """Return the graph and its signature.

    Raises SourceError where settings or weights of a layer make no sense together.
    """
    try:
        return _graph(model, source, dynamic)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise SourceError(
            f"`{model.path}` is a damaged Keras model: {type(error).__name__}: {error}"[:400],
            hint="its layers' settings and weights do not fit together; save it again",
        ) from error


def _graph(
    model: KerasModel, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    build = GraphBuilder(model.network.name)
    given = {spec.name: spec for spec in source.inputs}
    specs = []
    for name, dtype, shape in mapping.input_specs(model.network):
        spec = given.pop(name, None)
        if spec is not None and spec.shape is not None:
            if len(spec.shape) != len(shape):
                raise UsageError(
                    f"input `{name}` has {len(shape)} axes, `{spec}` has another number"
                )
            shape = spec.shape
        specs.append(TensorSpec(name=name, dtype=dtype, shape=_named(name, shape, dynamic)))
    if given:
        raise UsageError(
            f"the model has no input `{next(iter(given))}`",
            hint=f"its inputs are {', '.join(spec.name for spec in specs)}",
        )
    context = Context(
        build=build,
        backend=model.backend or "tensorflow",
        version=model.version,
        zeroes_masked=reading.zeroes_masked(model.written),
        release=reading.release(model.written),
    )
    values = []
    for spec in specs:
        assert spec.shape is not None
        name = build.input(spec.name, spec.dtype, spec.shape)
        sizes = tuple(s if isinstance(s, int) else None for s in spec.shape)
        values.append(Value(name, sizes, dtype=spec.dtype))
    found = mapping.emit_network(context, model.network, values)
    outputs = []
    for name, value in zip(output_names(model), found, strict=True):
        inner: tuple[Dimension, ...] = value.shape
        if inner and inner[0] is None and specs[0].shape:
            inner = (specs[0].shape[0], *inner[1:])
        dtype = "float64" if specs[0].dtype == "float64" else value.dtype
        build.output(name, value.name, dtype, inner)
        outputs.append(TensorSpec(name=name, dtype=dtype, shape=inner))
    return build, Signature(inputs=tuple(specs), outputs=tuple(outputs))


def _named(
    name: str, shape: tuple[Dimension, ...], dynamic: tuple[DynamicAxis, ...]
) -> tuple[Dimension, ...]:
    wanted = {axis.axis % len(shape): axis.name for axis in dynamic if axis.input == name}
    return tuple(
        wanted.get(at, size if size is not None else ("batch" if at == 0 else f"{name}_axis{at}"))
        for at, size in enumerate(shape)
    )


def output_names(model: KerasModel) -> list[str]:
    """Return a name for each output: its layer's, numbered where a layer gives several."""
    names: list[str] = []
    for layer, node, tensor in model.network.outputs:
        name = layer if tensor == 0 and layer not in names else f"{layer}_{node}_{tensor}"
        names.append(name)
    return names
