"""A model of MNN at work: ONNX's names, ranks and dtypes outside, MNN's variables inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.protocol import LoadRequest, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MODEL = "model.mnn"

# MNN's number of the hint WINOGRAD_MEMORY_LEVEL (Interpreter.hpp); at level 0 it does without
WINOGRAD_LEVEL = 3

# precision asked for -> MNN's word; `normal`, its default, lets it take float16 where it likes
PRECISIONS = {"fp32": "high", "fp16": "low", "bf16": "lowBF"}

# ONNX's dtype -> what MNN is fed: it has no other element types for inputs
FED = {
    **dict.fromkeys(("float16", "float32", "float64"), "float32"),
    **dict.fromkeys(("bool", "int16", "int32", "int64", "uint16", "uint32", "uint64"), "int32"),
    "uint8": "uint8",
    "int8": "int8",
}


def runtime() -> Any:
    """Return the package MNN, imported so that nothing of it reaches the network.

    `MNN.tools` posts this machine's identifier to a log service, and runs `pip install` to be able
    to (MNN/tools/utils/log.py of 3.6.1); it is made impossible to import.
    """
    # None in sys.modules is how the import system says "not found"
    sys.modules["MNN.tools"] = None  # type: ignore[assignment]
    import MNN
    import MNN.expr
    import MNN.nn

    return MNN


def configuration(request: LoadRequest) -> dict[str, Any]:
    """Return MNN's configuration; the precision is always asked for, its default may be lower."""
    return {
        "backend": "CPU",
        "numThread": request.threads or _cores(),
        "precision": PRECISIONS[request.precision],
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fed(spec: TensorSpec, array: Array) -> Array:
    """Return a copy of `array` in the element type that MNN is fed for `spec`.

    Raises UnsupportedError for whole numbers beyond 32 bits and for an array without elements.
    """
    import numpy as np

    kind = np.dtype(FED[spec.dtype])
    if not array.size:
        raise UnsupportedError(
            f"MNN takes no input without elements: `{spec.name}` {list(array.shape)}"
        )
    if array.dtype.kind in "iu":
        limits = np.iinfo(kind)
        if array.min() < limits.min or array.max() > limits.max:
            raise UnsupportedError(f"input `{spec.name}` holds numbers beyond 32 bits")
    return np.array(array, dtype=kind, order="C", copy=True)


class MnnSession:
    """A loaded model."""

    def __init__(self, request: LoadRequest, *, winograd: bool) -> None:
        mnn = runtime()
        self.inputs = request.signature.inputs
        self.outputs = request.signature.outputs
        self._expr = mnn.expr
        path = Path(request.payload) / MODEL
        if not path.is_file():
            raise UnavailableError(f"the payload has no `{MODEL}`")
        self._manager = mnn.nn.create_runtime_manager((configuration(request),))
        if not winograd:
            self._manager.set_hint(WINOGRAD_LEVEL, 0)
        try:
            self._module = mnn.nn.load_module_from_file(
                str(path),
                [spec.name for spec in self.inputs],
                [spec.name for spec in self.outputs],
                runtime_manager=self._manager,
            )
        except (RuntimeError, SystemError, ValueError) as error:
            raise _unreadable(mnn) from error
        if self._module is None:
            raise _unreadable(mnn)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        return self._read(self._forward(self._variables(feed)))

    def bind(self, feed: Mapping[str, Array]) -> BoundModule:
        """Fix the inputs; calling the result runs one inference on them."""
        return BoundModule(self, self._variables(feed))

    def close(self) -> None:
        """Give the model's memory back."""
        self._module = self._manager = None

    def _variables(self, feed: Mapping[str, Array]) -> list[Any]:
        expr = self._expr
        types = {
            "float32": expr.float,
            "int32": expr.int,
            "uint8": expr.uint8,
            "int8": expr.int8,
        }
        made = []
        for spec in self.inputs:
            array = fed(spec, feed[spec.name])
            made.append(expr.const(array, list(array.shape), expr.NCHW, types[str(array.dtype)]))
        return made

    def _forward(self, variables: list[Any]) -> list[Array]:
        """Run once and return the outputs as MNN has them, in memory of their own."""
        import numpy as np

        if self._module is None:
            raise ValueError("the session is closed")
        found = self._module.forward(variables)
        if len(found) != len(self.outputs):
            raise UnsupportedError("MNN fails to compute the model at these sizes")
        arrays = []
        for spec, variable in zip(self.outputs, found, strict=True):
            if variable.data_format == self._expr.NC4HW4:
                # packed by four channels inside
                variable = self._expr.convert(variable, self._expr.NCHW)
            array = variable.read()
            if array is None:
                raise UnsupportedError(f"MNN fails to compute output `{spec.name}` at these sizes")
            arrays.append(np.array(array, copy=True))
        return arrays

    def _read(self, arrays: list[Array]) -> dict[str, Array]:
        return {
            spec.name: _in_kind(spec, array)
            for spec, array in zip(self.outputs, arrays, strict=True)
        }


class BoundModule:
    """A model with its inputs in MNN's variables."""

    def __init__(self, session: MnnSession, variables: list[Any]) -> None:
        self._session = session
        self._variables = variables
        self._found: list[Array] = []

    def __call__(self) -> None:
        """Run once."""
        self._found = self._session._forward(self._variables)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return self._session._read([array.copy() for array in self._found])


def _unreadable(mnn: Any) -> UnavailableError:
    return UnavailableError(
        f"MNN {mnn.version()} cannot read `{MODEL}` of the payload",
        hint="it is damaged or of a newer MNN: compile it again",
    )


def _in_kind(spec: TensorSpec, array: Array) -> Array:
    """Return `array` in the dtype of the model's output.

    Raises UnsupportedError where MNN gives floats for whole numbers, or another number of axes.
    """
    whole = spec.dtype == "bool" or "int" in spec.dtype
    if whole and array.dtype.kind == "f":
        raise UnsupportedError(f"MNN gives floats for output `{spec}`")
    if spec.shape is not None and len(spec.shape) != array.ndim:
        raise UnsupportedError(f"MNN gives output `{spec}` the shape {list(array.shape)}")
    return array.astype(spec.dtype, copy=False)
