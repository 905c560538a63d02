"""A session over a function of numpy arrays: how a converter without a framework answers as reference.

This file also runs inside plugin environments: numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deploykit.protocol import Signature

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Evaluate = Callable[[Mapping[str, Array]], dict[str, Array]]


class DefinitionSession:
    """`evaluate` maps inputs by name to outputs by name; see `deploykit.protocol.Session`.

    The outputs are cast to the dtypes of the signature: definitions compute in float64.
    """

    def __init__(self, signature: Signature, evaluate: Evaluate) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._evaluate: Evaluate | None = evaluate

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        import numpy as np

        if self._evaluate is None:
            raise RuntimeError("the session is closed")
        found = self._evaluate(feed)
        return {
            # numpy has no dtype of this name: strings of any length stay as they are
            spec.name: np.asarray(
                found[spec.name], dtype=None if spec.dtype == "string" else spec.dtype
            )
            for spec in self.outputs
        }

    def bind(self, feed: Mapping[str, Array]) -> BoundDefinition:
        """Fix the inputs."""
        return BoundDefinition(self, feed)

    def close(self) -> None:
        """Release the model."""
        self._evaluate = None


class BoundDefinition:
    """Repeated evaluation of the same inputs."""

    def __init__(self, session: DefinitionSession, feed: Mapping[str, Array]) -> None:
        self._session = session
        self._feed = dict(feed)
        self._last: dict[str, Array] = {}

    def __call__(self) -> None:
        """Evaluate once."""
        self._last = self._session.run(self._feed)

    def outputs(self) -> dict[str, Array]:
        """Return the outputs of the last evaluation."""
        return dict(self._last)
