# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "tflite"
# summary = "TensorFlow Lite: float, float16 and int8 weights, fully quantised to QDQ"
# formats = ["tensorflow/tflite"]
# functions = ["inspect", "convert", "reference"]
# ///
"""TensorFlow Lite to ONNX by our own reader and operator map: no framework.

Its `reference` computes every operator by its definition, integers as TensorFlow Lite's kernels do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite import evaluation, mapping, reading, rounding
from deploykit._plugins.converters.tflite.emitting import FixedBatchError

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

BATCH = "batch"
_DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class Built:
    """A model with its ONNX graph; `batched` are inputs, `batches` axes of outputs that grow."""

    graph: reading.Graph
    build: GraphBuilder
    signature: Signature
    batched: frozenset[int]
    batches: tuple[int | None, ...]
    notes: tuple[str, ...]


def inspect(source: Source) -> Signature:
    """Return inputs and outputs; the batch is dynamic where every operator keeps its members apart.

    Raises SourceError where the file is damaged, UnsupportedError where an operator has no ONNX
    form, UsageError where the user's words about inputs do not fit.
    """
    return _built(source, ()).signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX. Raises as `inspect` does."""
    phase("reading the TensorFlow Lite model")
    built = _built(request.source, request.dynamic)
    result = finish(built.build, request, repairs=built.notes)
    phase("measuring how far TensorFlow Lite's own kernels differ")
    try:
        steps, atol = rounding.allowance(built.graph)
    except _DAMAGE as error:
        raise _damaged(Path(request.source.location), error) from error
    return dataclasses.replace(result, steps=steps, atol=atol)


def reference(request: ReferenceRequest) -> Session:
    """Return the model computed operator by operator by definition. Raises as `inspect` does."""
    built = _built(request.source, ())
    graph = built.graph
    ins = dict(zip([spec.name for spec in built.signature.inputs], graph.inputs, strict=True))
    outs = [spec.name for spec in built.signature.outputs]

    def once(feed: Mapping[str, Array]) -> list[Array]:
        # rounded as by the kernels that an interpreter has by default
        values = evaluation.evaluate(graph, {ins[name]: feed[name] for name in ins}, once=True)
        return [values[at] for at in graph.outputs]

    def evaluate(feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run each member of the batch alone, as the file's own sizes have it."""
        import numpy as np

        grown = [name for name, at in ins.items() if at in built.batched]
        sizes = {len(feed[name]) for name in grown} or {1}
        if len(sizes) > 1:
            raise ValueError(f"batches of {', '.join(map(str, sorted(sizes)))}")
        (size,) = sizes
        runs = [
            once({n: v[at : at + 1] if n in grown else v for n, v in feed.items()})
            for at in range(size)
        ]
        found = {}
        for number, (name, axis) in enumerate(zip(outs, built.batches, strict=True)):
            parts = [run[number] for run in runs]
            found[name] = parts[0] if axis is None else np.concatenate(parts, axis)
        return found

    session: Session = DefinitionSession(built.signature, evaluate)
    return session


def _built(source: Source, dynamic: tuple[DynamicAxis, ...]) -> Built:
    check_names(source.options, (), plugin="the TensorFlow Lite converter")
    model = reading.read(Path(source.location))
    try:
        return _graph(model, source, dynamic)
    except _DAMAGE as error:
        if any(spec.shape for spec in source.inputs):
            raise UsageError(
                f"the model does not fit the sizes {', '.join(map(str, source.inputs))}: {error}",
                hint="convert it with the sizes that it has",
            ) from error
        raise _damaged(model.path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"`{path}` is a damaged TensorFlow Lite model: {type(error).__name__}: {error}"[:400],
        hint="its operators and tensors do not fit together",
    )


def _graph(model: reading.Model, source: Source, dynamic: tuple[DynamicAxis, ...]) -> Built:
    graph = model.graphs[0]
    mapping.refuse(graph)
    taken: set[str] = set()
    names = {at: _unique(graph.tensors[at].name, taken) for at in graph.inputs}
    shown = tuple(_unique(graph.tensors[at].name, taken) for at in graph.outputs)
    given = {_plain(spec.name): spec for spec in source.inputs}
    for name in given:
        if name not in names.values():
            raise UsageError(
                f"the model has no input `{name}`", hint=f"inputs: {', '.join(names.values())}"
            )
    specs = {at: _spec(graph.tensors[at], names[at], given.get(names[at])) for at in graph.inputs}
    graph = _resized(graph, specs)
    wishes = {(_plain(axis.input), axis.axis): axis.name for axis in dynamic}
    for name, axis in wishes:
        if not any(
            spec.name == name and 0 <= axis < len(spec.shape or ()) for spec in specs.values()
        ):
            raise UsageError(f"the model has no axis {axis} of an input `{name}`")
        if axis:
            raise UnsupportedError(
                f"a TensorFlow Lite model fixes axis {axis} of `{name}`",
                hint="convert the model that it was made from",
            )
    able = frozenset(
        at
        for at, spec in specs.items()
        if spec.shape
        and len(spec.shape) > 1
        and spec.shape[0] in (1, BATCH)
        and not (names[at] in given and spec.shape[0] == 1)
    )
    notes: tuple[str, ...] = ()
    for batched in dict.fromkeys((able, frozenset[int]())):
        build = GraphBuilder(model.path.stem)
        inputs = {
            at: dataclasses.replace(
                spec,
                shape=(wishes.get((spec.name, 0), BATCH) if at in batched else 1, *spec.shape[1:])
                if spec.shape and (at in able)
                else spec.shape,
            )
            for at, spec in specs.items()
        }
        try:
            mapped = mapping.emit(build, graph, inputs, shown, batched)
        except FixedBatchError as error:
            if wishes:
                raise UnsupportedError(f"the batch cannot grow: {error}") from error
            notes = (f"the batch stays 1: {error}",)
            continue
        return Built(
            graph=graph,
            build=build,
            signature=Signature(inputs=tuple(inputs.values()), outputs=mapped.outputs),
            batched=batched,
            batches=mapped.batches,
            notes=(*notes, *mapped.notes),
        )
    raise ValueError(notes[0])


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _unique(name: str, taken: set[str]) -> str:
    base = name = _plain(name)
    number = 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def _spec(tensor: reading.Tensor, name: str, wish: TensorSpec | None) -> TensorSpec:
    if tensor.dtype not in reading.NUMERIC or "complex" in tensor.dtype:
        raise UnsupportedError(
            f"the input `{name}` is {tensor.dtype}", hint="cut the model after what takes it in"
        )
    shape: tuple[Dimension, ...] = tensor.shape
    if wish is not None and wish.dtype != tensor.dtype:
        raise UsageError(f"input `{name}` is {tensor.dtype} in the model, not {wish.dtype}")
    if wish is not None and wish.shape is not None:
        if len(wish.shape) != len(tensor.shape):
            raise UsageError(f"input `{name}` is {list(tensor.shape)} in the model, not {wish}")
        shape = tuple(BATCH if at == 0 and not _fixed(n) else n for at, n in enumerate(wish.shape))
    elif any(size < 0 for size in tensor.signature[1:]):
        sizes = ",".join("?" if size < 0 else str(size) for size in tensor.signature)
        raise UsageError(
            f"the model leaves sizes of the input `{name}` open: [{sizes}]",
            hint=f"say them: `--input '{name}:{tensor.dtype}[SIZES]'`; only the batch can stay open",
        )
    open_axes = [at for at, size in enumerate(shape) if at and not _fixed(size)]
    if open_axes:
        raise UsageError(
            f"axis {open_axes[0]} of the input `{name}` needs a size",
            hint="only the batch can stay open",
        )
    return TensorSpec(name=name, dtype=tensor.dtype, shape=shape)


def _fixed(size: Dimension) -> bool:
    return isinstance(size, int)


def _resized(graph: reading.Graph, specs: Mapping[int, TensorSpec]) -> reading.Graph:
    """Return the graph with its inputs as large as asked for, a batch of one where that is open."""
    tensors = list(graph.tensors)
    for at, spec in specs.items():
        sizes = tuple(size if isinstance(size, int) else 1 for size in spec.shape or ())
        tensors[at] = dataclasses.replace(tensors[at], shape=sizes)
    return dataclasses.replace(graph, tensors=tuple(tensors))
