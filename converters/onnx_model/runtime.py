"""ONNX Runtime as a reference: the graph as it is written, no optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.onnx_model import signatures
from deploykit._plugins.converters.onnx_model.reading import OnnxModel

from deploykit.errors import SourceError
from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def open_session(model: OnnxModel, *, threads: int | None, untouched: bool) -> OnnxSession:
    """Load the file of `model` as it is where `untouched`, else (or if that fails) its mended graph.

    Raises SourceError where ONNX Runtime takes neither.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    signature = signatures.read(model.proto)
    reason = ""
    if untouched:
        try:
            return OnnxSession(_create(str(model.path), options), signature)
        except Exception as error:  # onnxruntime's classes have no common base but Exception
            reason = f"{error}"
    try:
        if model.external:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(model.folder)
            )
        return OnnxSession(_create(model.proto.SerializeToString(), options), signature)
    except Exception as error:
        raise SourceError(
            f"ONNX Runtime cannot load `{model.path}`: {reason or error}".splitlines()[0],
            hint="the graph is invalid, or uses operators that ONNX Runtime does not have",
        ) from error


def _create(model: str | bytes, options: Any) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxSession:
    """A model in ONNX Runtime; see `deploykit.protocol.Session`."""

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session: Any = session
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._names = [spec.name for spec in signature.outputs]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        return dict(zip(self._names, self._session.run(self._names, dict(feed)), strict=True))

    def bind(self, feed: Mapping[str, Array]) -> BoundStrings | BoundTensors:
        """Fix the inputs; the outputs stay in ONNX Runtime's memory until they are asked for."""
        if any(spec.dtype == "string" for spec in (*self.inputs, *self.outputs)):
            # ONNX Runtime binds no strings
            return BoundStrings(self, feed)
        return BoundTensors(self._session, feed, self._names)

    def close(self) -> None:
        """Release the session."""
        self._session = None


class BoundTensors:
    """Repeated inference through ONNX Runtime's own binding."""

    def __init__(self, session: Any, feed: Mapping[str, Array], names: list[str]) -> None:
        import numpy as np

        self._session = session
        self._binding = session.io_binding()
        self._names = names
        for name, array in feed.items():
            # asarray with an order keeps scalars scalar, unlike ascontiguousarray
            self._binding.bind_cpu_input(name, np.asarray(array, order="C"))
        for name in names:
            self._binding.bind_output(name)

    def __call__(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))


class BoundStrings:
    """Repeated inference of a model with strings, whose inputs are converted at every run."""

    def __init__(self, session: OnnxSession, feed: Mapping[str, Array]) -> None:
        self._session = session
        self._feed = dict(feed)
        self._last: dict[str, Array] = {}

    def __call__(self) -> None:
        """Run once."""
        self._last = self._session.run(self._feed)

    def outputs(self) -> dict[str, Array]:
        """Return the outputs of the last run."""
        return dict(self._last)
