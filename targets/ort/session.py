"""A model open in ONNX Runtime: single runs, and runs on bound buffers; errors in our own words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.ort import providers

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

    Array = np.ndarray[Any, Any]


def open_model(
    model: str | bytes,
    options: onnxruntime.SessionOptions,
    path: str,
    *,
    device: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> onnxruntime.InferenceSession:
    """Open `model` (a file, or its bytes) on `device`, without the optimisers named in `without`.

    `path` names it in errors. Raises UnsupportedError naming an operator without a kernel,
    SourceError for a file that is no model, UnavailableError where ONNX Runtime leaves the device
    out, which it does with no more than a line in its log.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    onnxruntime.disable_telemetry_events()
    chosen = providers.attach(device, options, provider_options or {})
    try:
        session = onnxruntime.InferenceSession(
            model, options, **chosen, disabled_optimizers=list(without) or None, enable_fallback=0
        )
    except (
        raised.NotImplemented,
        raised.InvalidGraph,
        raised.Fail,
        raised.RuntimeException,
        raised.EPFail,
    ) as error:
        raise _translated(error, path, device) from error
    except (raised.InvalidProtobuf, raised.InvalidArgument, raised.NoSuchFile) as error:
        raise SourceError(f"ONNX Runtime cannot read `{path}`: {error}") from error
    session.disable_fallback()  # else an error in a run opens it again, on the CPU
    name = providers.PROVIDERS[device].name
    if name not in session.get_providers():
        raise UnavailableError(
            f"onnxruntime:{device} cannot run here: {name} does not start",
            hint="`deploykit doctor onnxruntime` says what each device needs",
        )
    return session


def _translated(error: Exception, path: str, device: str) -> SourceError | UnsupportedError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0]
    missing = re.search(
        r"implementation for (\w+)|No Op registered for (\w+)|(\S+) is not a registered function",
        text,
    )
    if missing is not None:
        operator = next(name for name in missing.groups() if name).split(":")[-1]
        return UnsupportedError(
            f"target onnxruntime has no kernel for operator {operator}: {text}",
            operators=(operator,),
        )
    inside = r"Exception during initialization|EP_FAIL|CreateProvider"
    if device != "cpu" and re.search(inside, text):
        return _provider_fails(error, device)
    return SourceError(f"ONNX Runtime cannot take `{path}`: {text}")


def _provider_fails(error: Exception, device: str) -> UnsupportedError:
    """Return what a provider cannot do; the first lines say through which functions it came."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = re.split(r"FAIL : |Status Message: |\[OpenVINO-EP\] ", lines[-1])[-1]
    return UnsupportedError(
        f"the provider of onnxruntime:{device} cannot run the model: {reason}",
        hint="try onnxruntime:cpu",
    )


class OrtSession:
    """A model in ONNX Runtime."""

    def __init__(
        self, session: onnxruntime.InferenceSession, signature: Signature, device: str = "cpu"
    ) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._device = device
        self._names = [spec.name for spec in signature.outputs]
        self._session: onnxruntime.InferenceSession | None = session

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        from onnxruntime.capi import onnxruntime_pybind11_state as raised

        try:
            outputs = self._open().run(self._names, feed)
        except (raised.Fail, raised.EPFail, raised.RuntimeException) as error:
            if self._device == "cpu":
                raise
            raise _provider_fails(error, self._device) from error
        return dict(zip(self._names, outputs, strict=True))

    def bind(self, feed: Mapping[str, Array]) -> BoundBuffers | BoundFeed:
        """Fix the inputs; calling the result runs one inference on them."""
        session = self._open()
        if any(spec.dtype == "string" for spec in (*self.inputs, *self.outputs)):
            return BoundFeed(session, dict(feed), self._names)
        return BoundBuffers(session, feed, self._names)

    def close(self) -> None:
        """Give the model's memory back."""
        self._session = None

    def _open(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise ValueError("the session is closed")
        return self._session


class BoundBuffers:
    """Inputs and outputs at fixed places: ONNX Runtime keeps the outputs' buffers between runs."""

    def __init__(
        self, session: onnxruntime.InferenceSession, feed: Mapping[str, Array], names: list[str]
    ) -> None:
        import numpy as np

        self._binding = session.io_binding()
        # the binding keeps addresses, not arrays: without this they would be freed under it
        self._feed = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in self._feed.items():
            # ascontiguousarray makes a scalar one-dimensional
            self._binding.bind_cpu_input(name, array.reshape(feed[name].shape))
        for name in names:
            self._binding.bind_output(name)
        self._names = names
        self._run = session.run_with_iobinding

    def __call__(self) -> None:
        """Run once."""
        self._run(self._binding)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))


class BoundFeed:
    """The same for strings, which have no fixed buffers: every run copies them."""

    def __init__(
        self, session: onnxruntime.InferenceSession, feed: dict[str, Array], names: list[str]
    ) -> None:
        self._session = session
        self._feed = feed
        self._names = names
        self._outputs: list[Array] = []

    def __call__(self) -> None:
        """Run once."""
        self._outputs = self._session.run(self._names, self._feed)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return {name: array.copy() for name, array in zip(self._names, self._outputs, strict=True)}
