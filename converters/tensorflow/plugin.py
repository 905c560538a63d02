# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["tensorflow-cpu==2.21.0", "tf2onnx==1.17.0", "onnx==1.23.2", "numpy>=1.26,<3"]
#
# [tool.deploykit]
# name = "tensorflow"
# summary = "TensorFlow SavedModel (1 and 2), frozen GraphDef, checkpoint with graph"
# formats = ["tensorflow/saved_model", "tensorflow/graph_def", "tensorflow/checkpoint"]
# functions = ["inspect", "convert", "reference"]
# compiler = "XLA"
#
# [tool.deploykit.settings]
# signature = "SavedModel: which signature to convert (default: serving_default)"
# inputs = "tensors to take as inputs, such as a:0,b:0; inner ones too (default: found in the graph)"
# outputs = "tensors to take as outputs, inner ones too (default: found in the graph)"
# constants = "tensors that keep one value, such as is_training=false,keep_prob=1"
# ///
"""TensorFlow to ONNX by tf2onnx, names and order as the source has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from deploykit.onnx_file import opset_of, strip_traces, write_model
from deploykit.progress import phase
from deploykit.protocol import (
    Bound,
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def inspect(source: Source) -> Signature:
    """Return the names, dtypes and shapes of the model's inputs and outputs."""
    from deploykit._plugins.converters.tensorflow import graphs

    graph = graphs.open_graph(source)
    graph.session.close()
    signature: Signature = graph.signature()
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX.

    Raises UnsupportedError for an operator without ONNX form and for a model that keeps state.
    """
    from deploykit._plugins.converters.tensorflow import exporting, freezing, graphs, states

    graph = graphs.open_graph(request.source)
    try:
        frozen = freezing.freeze(graph, request.dynamic)
    finally:
        graph.session.close()
    model = exporting.export_graph(frozen, request.opset)
    if graph.state is not None:
        model.metadata_props.add(key=states.METADATA, value=states.metadata(graph.state))
    strip_traces(model)
    phase("checking the ONNX model")
    signature = write_model(model, request.output)
    return ConvertResult(
        signature=signature,
        opset=opset_of(model),
        repairs=frozen.repairs,
        versions={name: version(name) for name in ("tensorflow-cpu", "tf2onnx", "onnx")},
    )


def reference(request: ReferenceRequest) -> Session:
    """Return the model in TensorFlow itself, compiled by XLA where that is asked for."""
    from deploykit._plugins.converters.tensorflow import graphs

    graph = graphs.open_graph(request.source, request.threads, compiled=request.compiled)
    return GraphSession(graph)


class GraphSession:
    """A TensorFlow graph that takes and gives numpy arrays by name."""

    def __init__(self, graph: Any) -> None:
        from deploykit._plugins.converters.tensorflow.calling import caller

        signature: Signature = graph.signature()
        self.inputs: tuple[TensorSpec, ...] = signature.inputs
        self.outputs: tuple[TensorSpec, ...] = signature.outputs
        self._session = graph.session
        self._call: Callable[..., list[Array]] = caller(graph)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        values = self._call(*(feed[spec.name] for spec in self.inputs))
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def bind(self, feed: Mapping[str, Array]) -> Bound:
        """Fix the inputs; calling the result runs the graph on them."""
        return _BoundCall(self._call, [feed[spec.name] for spec in self.inputs], self.outputs)

    def close(self) -> None:
        """Close TensorFlow's session."""
        self._session.close()


class _BoundCall:
    def __init__(
        self, call: Callable[..., list[Array]], values: list[Array], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._call = call
        self._values = values
        self._names = [spec.name for spec in outputs]
        self._last: list[Array] = []

    def __call__(self) -> None:
        """Run once."""
        self._last = self._call(*self._values)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return {name: value.copy() for name, value in zip(self._names, self._last, strict=True)}
