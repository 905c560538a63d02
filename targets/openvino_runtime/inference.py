"""A compiled model of OpenVINO as a session: named tensors in and out, copied only where needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.openvino_runtime.graphs import positions

from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np
    import openvino

    Array = np.ndarray[Any, Any]


class OpenvinoSession:
    """A compiled model in OpenVINO."""

    def __init__(self, compiled: openvino.CompiledModel, signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._inputs = positions(compiled.inputs, signature.inputs)
        self._outputs = positions(compiled.outputs, signature.outputs)
        self._compiled: openvino.CompiledModel | None = compiled
        self._request = compiled.create_infer_request()
        self._held: list[openvino.Tensor] = []

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        request = self._request
        self._held = _set_inputs(request, self._inputs, feed)
        request.infer(share_outputs=True)
        # the buffers belong to the request, which writes to them again
        return {name: request.get_output_tensor(i).data.copy() for name, i in self._outputs}

    def bind(self, feed: Mapping[str, Array]) -> BoundRequest:
        """Fix the inputs; calling the result runs one inference on them."""
        if self._compiled is None:
            raise ValueError("the session is closed")
        request = self._compiled.create_infer_request()
        tensors = _set_inputs(request, self._inputs, feed)
        return BoundRequest(request, tensors, self._outputs)

    def close(self) -> None:
        """Give the model's memory back."""
        self._compiled = self._request = None
        self._held = []


class BoundRequest:
    """A request whose tensors stay where they are."""

    def __init__(
        self,
        request: openvino.InferRequest,
        tensors: list[openvino.Tensor],
        outputs: tuple[tuple[str, int], ...],
    ) -> None:
        self._request = request
        self._tensors = tensors
        self._outputs = outputs

    def __call__(self) -> None:
        """Run once."""
        self._request.infer(share_outputs=True)

    def profile(self) -> list[openvino.ProfilingInfo]:
        """Return what OpenVINO measured of each operation in the last run (with PERF_COUNT only)."""
        return self._request.get_profiling_info()

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        tensor = self._request.get_output_tensor
        return {name: tensor(index).data.copy() for name, index in self._outputs}


def _set_inputs(
    request: openvino.InferRequest, inputs: tuple[tuple[str, int], ...], feed: Mapping[str, Array]
) -> list[openvino.Tensor]:
    """Put the arrays of `feed` into the request, copied only where OpenVINO cannot share them.

    The request keeps addresses only: the tensors returned must live until the last inference.
    """
    import numpy as np
    import openvino

    tensors = []
    for name, index in inputs:
        array = feed[name]
        if not (array.flags.c_contiguous and array.flags.writeable):
            array = np.array(array, order="C")
        tensors.append(openvino.Tensor(array, shared_memory=True))
        request.set_input_tensor(index, tensors[-1])
    return tensors
