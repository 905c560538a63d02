"""TensorFlow Lite: its interpreter as the reference, and tf2onnx's reader of the flatbuffer."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tensorflow.exporting import DEFAULT_OPSET, finish
from deploykit._plugins.converters.tensorflow.freezing import axis_name
from deploykit._plugins.converters.tensorflow.graphs import check_settings, plain
from deploykit._plugins.converters.tensorflow.lite_lstm import replace_lstms

from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.progress import phase
from deploykit.protocol import ConvertRequest, Dimension, Signature, Source, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class LiteModel:
    """An interpreter with the model loaded; `details` maps a name to the interpreter's own record."""

    interpreter: Any
    signature: Signature
    details: dict[str, dict[str, Any]]
    repairs: tuple[str, ...] = ()

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give the inputs these sizes. Raises RuntimeError or ValueError where the graph refuses."""
        for name, shape in shapes.items():
            self.interpreter.resize_tensor_input(self.details[name]["index"], list(shape))
        self.interpreter.allocate_tensors()

    def output_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Run once on zeros of these sizes; return the sizes of the outputs. Raises as `resize`."""
        import numpy as np

        self.resize(shapes)
        for name, shape in shapes.items():
            zeros = np.zeros(shape, self.details[name]["dtype"])
            self.interpreter.set_tensor(self.details[name]["index"], zeros)
        self.interpreter.invoke()
        return {
            spec.name: tuple(
                int(size)
                for size in self.interpreter.get_tensor(self.details[spec.name]["index"]).shape
            )
            for spec in self.signature.outputs
        }


def open_model(source: Source, threads: int | None = None) -> LiteModel:
    """Load the `.tflite` file of `source` into TensorFlow Lite's interpreter.

    An axis that the file calls dynamic stays so only where the interpreter can really change it.
    """
    phase("importing tensorflow")
    import tensorflow as tf

    phase("loading the model")
    check_settings(source, ())
    try:
        content = Path(source.location).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the interpreter announces its own move to LiteRT
            # with its default kernels (XNNPACK), as users run it: the built-in ones quantise
            # activations on the fly where weights are int8, which is another model
            interpreter = tf.lite.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    except OSError as error:
        raise SourceError(f"cannot read `{source.location}`: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:
        raise _unreadable(source, error) from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    specs = {plain(spec.name): spec for spec in source.inputs}
    known = [plain(item["name"]) for item in inputs]
    for name in specs:
        if name not in known:
            raise UsageError(f"the model has no input `{name}`", hint=f"inputs: {', '.join(known)}")
    model = LiteModel(
        interpreter=interpreter,
        signature=Signature(
            inputs=tuple(_spec(item, specs.get(plain(item["name"]))) for item in inputs),
            outputs=tuple(_spec(item, None) for item in outputs),
        ),
        details={plain(item["name"]): item for item in (*inputs, *outputs)},
    )
    return _without_false_axes(model)


def _unreadable(source: Source, error: Exception) -> SourceError | UnsupportedError:
    text = " ".join(str(error).split())
    if "custom op" in text or "Flex" in text or "unresolved" in text.lower():
        return UnsupportedError(
            f"`{source.location}` uses an operator that TensorFlow Lite itself does not have: {text}"
        )
    return SourceError(f"TensorFlow Lite cannot read `{source.location}`: {text[:300]}")


def _spec(item: Mapping[str, Any], wish: TensorSpec | None) -> TensorSpec:
    import numpy as np

    dtype = "string" if item["dtype"] in (np.bytes_, np.object_) else np.dtype(item["dtype"]).name
    if item.get("sparsity_parameters"):
        raise UnsupportedError(f"`{item['name']}` is a sparse tensor")
    declared = item["shape_signature"] if len(item["shape_signature"]) else item["shape"]
    shape: tuple[Dimension, ...] = tuple(None if size < 0 else int(size) for size in declared)
    if wish is not None:
        if wish.dtype != dtype:
            raise UsageError(f"input `{wish.name}` is {dtype} in the model, asked for {wish.dtype}")
        shape = shape if wish.shape is None else wish.shape
    return TensorSpec(name=plain(item["name"]), dtype=dtype, shape=shape)


def _without_false_axes(model: LiteModel) -> LiteModel:
    """Fix the axes that the file calls dynamic although its graph bakes in their size.

    A converter that froze the batch still writes -1 into the signature; running at another size
    then fails, or gives an output of the old size.
    """
    inputs = model.signature.inputs
    own = {
        spec.name: tuple(int(size) for size in model.details[spec.name]["shape"]) for spec in inputs
    }
    fixed = {spec.name: _filled(spec, own[spec.name], 0) for spec in inputs}
    try:
        sizes = model.output_sizes(fixed)
    except (RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{name}{list(shape)}" for name, shape in own.items())
        raise UnsupportedError(
            f"the model cannot run at these input sizes: {' '.join(str(error).split())[:200]}",
            hint=f"its own sizes are {shapes}",
        ) from error
    larger = {spec.name: _filled(spec, own[spec.name], 1) for spec in inputs}
    grown = sizes
    if larger != fixed:
        try:
            grown = model.output_sizes(larger)
        except (RuntimeError, ValueError):
            grown = sizes  # it refuses: as much fixed as one that ignores the size
        model.output_sizes(fixed)
    signature = model.signature
    repairs: tuple[str, ...] = ()
    if larger != fixed and grown == sizes:
        repairs = ("the file calls an axis dynamic that its graph fixes: it is fixed here too",)
        signature = dataclasses.replace(
            signature,
            inputs=tuple(dataclasses.replace(spec, shape=fixed[spec.name]) for spec in inputs),
        )
    outputs = []
    for spec in signature.outputs:
        pairs = zip(sizes[spec.name], grown[spec.name], strict=True)
        shape = tuple(small if small == large else None for small, large in pairs)
        outputs.append(dataclasses.replace(spec, shape=shape))
    return dataclasses.replace(
        model, signature=dataclasses.replace(signature, outputs=tuple(outputs)), repairs=repairs
    )


def _filled(spec: TensorSpec, own: tuple[int, ...], more: int) -> tuple[int, ...]:
    """Return the sizes of `spec`, a dynamic axis as large as the file's own, plus `more`."""
    return tuple(
        size if isinstance(size, int) else own[axis] + more
        for axis, size in enumerate(spec.shape or ())
    )


class LiteSession:
    """TensorFlow Lite's interpreter, resized when the sizes of the inputs change."""

    def __init__(self, model: LiteModel) -> None:
        self._model = model
        self.inputs = model.signature.inputs
        self.outputs = model.signature.outputs
        self._sizes: dict[str, tuple[int, ...]] = {}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        bound = self.bind(feed)
        bound()
        return bound.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundLite:
        """Copy the inputs into the interpreter; calling the result runs it on them."""
        sizes = {spec.name: feed[spec.name].shape for spec in self.inputs}
        if sizes != self._sizes:
            self._model.resize(sizes)
            self._sizes = sizes
        return BoundLite(self._model, {spec.name: feed[spec.name] for spec in self.inputs})

    def close(self) -> None:
        """Let the interpreter go."""
        self._model = dataclasses.replace(self._model, interpreter=None)


class BoundLite:
    """One inference of the interpreter."""

    def __init__(self, model: LiteModel, feed: Mapping[str, Array]) -> None:
        self._model = model
        for name, value in feed.items():
            model.interpreter.set_tensor(model.details[name]["index"], value)

    def __call__(self) -> None:
        """Run once, from the initial state: variable tensors would carry over from the last run."""
        self._model.interpreter.reset_all_variables()
        self._model.interpreter.invoke()

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return {
            spec.name: self._model.interpreter.get_tensor(self._model.details[spec.name]["index"])
            for spec in self._model.signature.outputs
        }


def export(request: ConvertRequest) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model as ONNX, and what was mended."""
    from tf2onnx import tf_loader, tfonnx

    model = open_model(request.source)
    inputs = _named_axes(model, request)
    phase("converting to ONNX")
    tf_loader.clear_functions()
    graph, subgraphs = tfonnx.graphs_from_tflite(request.source.location, None, None)
    for part in (graph, *subgraphs):
        part.set_config(None, request.opset or DEFAULT_OPSET, None)
    repairs = replace_lstms(graph)
    converted = tfonnx.process_graphs(
        graph,
        subgraphs,
        custom_op_handlers=None,
        inputs_as_nchw=[],
        outputs_as_nchw=[],
        continue_on_error=False,
        custom_rewriter=None,
        initialized_tables=None,
        tensors_to_rename={item["name"]: name for name, item in model.details.items()},
        is_tflite=True,
    )
    onnx_model = finish(converted, inputs, model.signature.outputs)
    return onnx_model, (*model.repairs, *repairs)


def _named_axes(model: LiteModel, request: ConvertRequest) -> list[TensorSpec]:
    wishes = {(wish.input, wish.axis): wish.name for wish in request.dynamic}
    for name, axis in wishes:
        spec = next((item for item in model.signature.inputs if item.name == name), None)
        if spec is None or spec.shape is None or not 0 <= axis < len(spec.shape):
            raise UsageError(f"the model has no axis {axis} of an input `{name}`")
        if isinstance(spec.shape[axis], int):
            raise UnsupportedError(
                f"the model fixes axis {axis} of `{name}` to {spec.shape[axis]}",
                hint="convert the SavedModel that it was made from",
            )
    return [
        dataclasses.replace(
            spec,
            shape=tuple(
                wishes.get((spec.name, axis), size or axis_name(spec.name, axis))
                for axis, size in enumerate(spec.shape or ())
            ),
        )
        for spec in model.signature.inputs
    ]
