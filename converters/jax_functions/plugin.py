# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["jax==0.10.2", "flax==0.12.8", "onnx==1.23.2", "numpy>=2,<3"]
#
# [tool.deploykit]
# name = "jax"
# summary = "JAX functions and Flax modules by reference"
# formats = ["jax/reference"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# outputs = "names for the outputs in order, separated by commas (default: dict keys, else output_0, …)"
# ///
"""JAX to ONNX: the function is traced to a jaxpr, and each of its primitives becomes ONNX nodes.

The traced program holds no Python any more, so that Flax, Haiku, Equinox and plain functions are
all the same here. Dynamic axes are JAX's symbolic dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit.definition_session import DefinitionSession
from deploykit.graph_building import finish
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def inspect(source: Source) -> Signature:
    """Return the names, dtypes and shapes of the function's arrays.

    Raises SourceError where the callable is not there or returns something else, UsageError where an
    input has no shape, UnsupportedError where the function cannot be traced.
    """
    from deploykit._plugins.converters.jax_functions.loading import load

    signature: Signature = load(source).signature()
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the function as ONNX.

    Raises as `inspect` does, and UnsupportedError where a primitive has no ONNX form.
    """
    from deploykit._plugins.converters.jax_functions.loading import load
    from deploykit._plugins.converters.jax_functions.lowering import lower

    function = load(request.source, request.dynamic)
    phase("turning primitives into ONNX nodes")
    return finish(lower(function), request, packages=("jax", "flax", "onnx", "numpy"))


def reference(request: ReferenceRequest) -> Session:
    """Return the function itself, compiled by JAX for the CPU. Raises as `inspect` does."""
    import jax
    import numpy as np
    from deploykit._plugins.converters.jax_functions.loading import load

    function = load(request.source)
    compiled = jax.jit(function.flat)

    def evaluate(feed: Mapping[str, Array]) -> dict[str, Array]:
        found = compiled(*(feed[name] for name in function.names))
        return {
            name: np.asarray(value)
            for name, value in zip(function.output_names, found, strict=True)
        }

    session: Session = DefinitionSession(function.signature(), evaluate)
    return session
