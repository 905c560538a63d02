"""A compiled library at work: what `load` of the plugin gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tvm_relax import runtime

if TYPE_CHECKING:
    import numpy as np

    from deploykit.protocol import Signature

    Array = np.ndarray[Any, Any]


class TvmSession:
    """A compiled library in TVM's virtual machine."""

    def __init__(self, machine: Any, order: list[str], signature: Signature, device: str) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._function = machine["main"]
        self._order = order
        self._device = device
        self._names = [spec.name for spec in signature.outputs]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        return _named(self._names, self._function(*self._arguments(feed)))

    def bind(self, feed: Mapping[str, Array]) -> BoundCall:
        """Fix the inputs; calling the result runs one inference on them."""
        return BoundCall(self._function, self._arguments(feed), self._names, self._device)

    def close(self) -> None:
        """Give the library and its constants back."""
        self._function = None

    def _arguments(self, feed: Mapping[str, Array]) -> list[Any]:
        return [runtime.tensor(feed[name], self._device) for name in self._order]


class BoundCall:
    """The compiled function with its arguments in the device's memory."""

    def __init__(self, function: Any, arguments: list[Any], names: list[str], device: str) -> None:
        self._function = function
        self._arguments = arguments
        self._names = names
        self._device = device
        self._result: Any = None

    def __call__(self) -> None:
        """Run once."""
        self._result = self._function(*self._arguments)
        runtime.wait(self._device)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return _named(self._names, self._result)


def _named(names: list[str], result: Any) -> dict[str, Array]:
    results = [result] if hasattr(result, "shape") else list(result)
    return {name: runtime.array(each) for name, each in zip(names, results, strict=True)}
