# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "caffe2"
# summary = "Caffe2: predict_net and init_net, NCHW and NHWC"
# formats = ["caffe2/net"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# init = "the net that fills the weights (default: the one beside it)"
# ///
"""Caffe2 to ONNX by our own reader and operator map: no framework.

Its `reference` computes every operator by its definition in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.caffe2 import evaluation, mapping, reading

from deploykit.definition_session import DefinitionSession
from deploykit.errors import SourceError, UnsupportedError, UsageError
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

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

IMAGE_IN = "PackedInt8BGRANHWCToNCHWCStylizerPreprocess"
IMAGE_OUT = "BRGNCHWCToPackedInt8BGRAStylizerDeprocess"
"""Pictures to tensors and back, the first with random noise: the model in between is converted."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The operators to convert, the weights, and the blobs that go in and come out."""

    path: Path
    name: str
    operators: tuple[reading.Operator, ...]
    weights: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cut: tuple[str, ...]

    def output_names(self) -> list[str]:
        """Return the names of the outputs, changed where an input has the same."""
        return [f"{name}_output" if name in self.inputs else name for name in self.outputs]


def inspect(source: Source) -> Signature:
    """Return inputs and outputs; sizes that the weights do not decide are dynamic.

    Raises SourceError where the files are damaged or do not fit together, UnsupportedError where an
    operator has no ONNX form, UsageError where the shape of an input is needed.
    """
    _, signature = _built(_read(source), source, ())
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the net as ONNX. Raises as `inspect` does."""
    phase("reading the Caffe2 nets")
    model = _read(request.source)
    build, _ = _built(model, request.source, request.dynamic)
    repairs = (
        [f"left out: {', '.join(model.cut)}, which turn pictures to tensors"] if model.cut else []
    )
    return finish(build, request, repairs=repairs)


def reference(request: ReferenceRequest) -> Session:
    """Return the net computed operator by operator by definition. Raises as `inspect` does."""
    model = _read(request.source)
    _, signature = _built(model, request.source, ())

    def evaluate(feed: Any) -> dict[str, Array]:
        found = evaluation.evaluate(model.operators, {**model.weights, **feed}, model.outputs)
        return dict(zip(model.output_names(), found, strict=True))

    session: Session = DefinitionSession(signature, evaluate)
    return session


def _read(source: Source) -> Model:
    try:
        return _model(source)
    except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
        raise SourceError(
            f"`{source.location}` is a damaged Caffe2 net: {type(error).__name__}: {error}"[:400],
            hint="copy or download both of its files again",
        ) from error


def _model(source: Source) -> Model:
    check_names(source.options, ("init",), plugin="the Caffe2 converter")
    path = Path(source.location)
    net = reading.read(path)
    init = Path(source.options["init"]) if "init" in source.options else _init_beside(path)
    weights, stand_ins = reading.filled(reading.read(init))
    operators = net.operators
    cut = [op.kind for op in operators if op.kind in (IMAGE_IN, IMAGE_OUT)]
    outputs = net.outputs
    if operators and operators[0].kind == IMAGE_IN:
        stand_ins.add(operators[0].outputs[0])
        operators = operators[1:]
    if operators and operators[-1].kind == IMAGE_OUT:
        outputs = (operators[-1].inputs[0],)
        operators = operators[:-1]
    made: set[str] = set()
    inputs: dict[str, None] = {}
    for op in operators:
        for name in op.inputs:
            if name not in made and (name not in weights or name in stand_ins):
                inputs[name] = None
        made |= set(op.outputs)
    if not inputs or not outputs:
        raise SourceError(f"`{path}` has no {'inputs' if not inputs else 'outputs'}")
    missing = [name for name in outputs if name not in made]
    if missing:
        raise SourceError(f"`{path}`: nothing makes the output `{missing[0]}`")
    model = Model(
        path=path,
        name=net.name,
        operators=operators,
        weights={name: value for name, value in weights.items() if name not in inputs},
        inputs=tuple(inputs),
        outputs=outputs,
        cut=tuple(cut),
    )
    _refuse(model)
    return model


def _init_beside(path: Path) -> Path:
    named = path.with_name(path.name.replace("predict", "init"))
    if named != path and named.is_file():
        return named
    others = [one for one in sorted(path.parent.glob(f"*{path.suffix}")) if one != path]
    init = [one for one in others if "init" in one.name]
    if len(others) == 1 or len(init) == 1:
        return (init or others)[0]
    raise SourceError(
        f"the weights of `{path}` are missing: there is no `init_net{path.suffix}` beside it",
        hint="name them: `--set init=FILE`",
    )


def _refuse(model: Model) -> None:
    wrong = [
        op for op in model.operators if op.kind not in mapping.EMIT and reading.fill(op) is None
    ]
    if wrong:
        named = ", ".join(f"{op.kind} (makes `{', '.join(op.outputs)}`)" for op in wrong[:10])
        raise UnsupportedError(
            f"no ONNX form for the Caffe2 operators {named}",
            operators=tuple(dict.fromkeys(op.kind for op in wrong)),
            hint="cut the net before them and export it again",
        )


def _bakes_batch(model: Model) -> bool:
    """Whether a Reshape has the size of the batch as a constant."""
    for op in model.operators:
        if op.kind == "Reshape":
            stored = model.weights.get(op.inputs[1]) if len(op.inputs) > 1 else None
            shape = [int(one) for one in stored] if stored is not None else op.integers("shape")
            if shape and shape[0] > 0:
                return True
    return False


def _shape(model: Model, name: str) -> tuple[Dimension, ...]:
    """Return what the weights say of the shape of the input `name`."""
    same = {name}
    for op in model.operators:
        if op.inputs and op.inputs[0] in same:
            if op.kind == "Conv" and op.inputs[1] in model.weights:
                weight = model.weights[op.inputs[1]]
                batch: Dimension = 1 if _bakes_batch(model) else "batch"
                if op.word("order", "NCHW") == "NHWC":
                    return (batch, "height", "width", weight.shape[3] * op.integer("group", 1))
                return (batch, weight.shape[1] * op.integer("group", 1), "height", "width")
            if op.kind in ("FC", "FCTransposed") and op.inputs[1] in model.weights:
                weight = model.weights[op.inputs[1]]
                return ("batch", weight.shape[1 if op.kind == "FC" else 0])
            if op.kind in ("Copy", "PadImage", "MaxPool", "AveragePool", "SpatialBN", "Relu"):
                same.add(op.outputs[0])
    raise UsageError(
        f"neither net nor weights say the shape of the input `{name}`",
        hint=f"give it: `--input '{name}:float32[batch,...]'`",
    )


def _built(
    model: Model, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    try:
        return _graph(model, source, dynamic)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise SourceError(
            f"`{model.path}` is a damaged Caffe2 net: {type(error).__name__}: {error}"[:400],
            hint="net and weights do not fit together",
        ) from error


def _graph(
    model: Model, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[GraphBuilder, Signature]:
    build = GraphBuilder(model.name)
    given = {spec.name: spec for spec in source.inputs}
    if unknown := [name for name in given if name not in model.inputs]:
        raise UsageError(
            f"the net has no input `{unknown[0]}`", hint=f"its inputs: {', '.join(model.inputs)}"
        )
    blobs: dict[str, mapping.Value] = {}
    specs = []
    for name in model.inputs:
        own = given[name].shape if name in given else None
        sizes = own or _shape(model, name)
        wanted = {axis.axis % len(sizes): axis.name for axis in dynamic if axis.input == name}
        shape = tuple(wanted.get(at, size) for at, size in enumerate(sizes))
        dtype = given[name].dtype if name in given else "float32"
        specs.append(TensorSpec(name=name, dtype=dtype, shape=shape))
        blobs[name] = mapping.Value(build.input(name, dtype, shape), rank=len(shape))
    for op in model.operators:
        made = reading.fill(op)
        with build.layer(op.name or op.outputs[0]):
            if made is not None:
                blobs[op.outputs[0]] = _constant(build, op.outputs[0], made)
                continue
            for name in op.inputs:
                if name not in blobs:
                    blobs[name] = _constant(build, name, model.weights[name])
            found = mapping.EMIT[op.kind](build, op, [blobs[name] for name in op.inputs])
        blobs.update(zip(op.outputs, found, strict=False))
    outputs = []
    for name, shown in zip(model.outputs, model.output_names(), strict=True):
        build.output(shown, blobs[name].name, "float32")
        rank = blobs[name].rank
        unknown_shape: tuple[Dimension, ...] | None = None if rank is None else (None,) * rank
        outputs.append(TensorSpec(name=shown, dtype="float32", shape=unknown_shape))
    return build, Signature(inputs=tuple(specs), outputs=tuple(outputs))


def _constant(build: GraphBuilder, name: str, value: Array) -> mapping.Value:
    return mapping.Value(build.constant(value, name), constant=value, rank=value.ndim)
