"""A TensorFlow Lite model at work in LiteRT's interpreter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.protocol import Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TRIED = (2, 16, 64, 224)
"""Sizes of dynamic axes, the batch left out, when a model is tried: it may need some room."""


def interpreter(path: Path, *, delegate: str, threads: int | None) -> Any:
    """Return an interpreter, with XNNPACK or without. Raises ValueError where it refuses the file."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = {
        "xnnpack": OpResolverType.BUILTIN,
        "none": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    }
    return Interpreter(
        model_path=str(path),
        num_threads=threads,
        experimental_op_resolver_type=kinds[delegate],
    )


def try_run(
    path: Path, inputs: tuple[TensorSpec, ...], *, delegate: str
) -> dict[str, tuple[int, ...]]:
    """Run the model once, a dynamic batch of two; return the sizes of its outputs by their names.

    Other dynamic axes are as large as they must be. Raises RuntimeError where it cannot run.
    """
    several = any(not isinstance(size, int) for spec in inputs for size in (spec.shape or ())[1:])
    for tried in TRIED if several else TRIED[:1]:
        shapes = [
            [
                size if isinstance(size, int) else (TRIED[0] if axis == 0 else tried)
                for axis, size in enumerate(spec.shape or ())
            ]
            for spec in inputs
        ]
        try:
            return _tried(path, inputs, shapes, delegate=delegate)
        except RuntimeError:
            if not several or tried == TRIED[-1]:
                raise
    raise AssertionError("unreachable")


def _tried(
    path: Path, inputs: tuple[TensorSpec, ...], shapes: list[list[int]], *, delegate: str
) -> dict[str, tuple[int, ...]]:
    """Run on zeros, and where those cannot be (a division) on ones."""
    import numpy as np

    made = interpreter(path, delegate=delegate, threads=None)
    details = made.get_input_details()
    for shape, detail in zip(shapes, details, strict=True):
        if list(detail["shape"]) != shape:
            made.resize_tensor_input(detail["index"], shape)
    made.allocate_tensors()
    for fill in (np.zeros, np.ones):
        for spec, shape, detail in zip(inputs, shapes, details, strict=True):
            made.set_tensor(detail["index"], fill(shape, spec.dtype))
        try:
            made.invoke()
            break
        except RuntimeError:
            if fill is np.ones:
                raise
    return {
        each["name"]: tuple(made.get_tensor(each["index"]).shape)
        for each in made.get_output_details()
    }


def failed_operator(error: Exception) -> int | None:
    """Return the number of the operator that LiteRT names in an error."""
    found = re.search(r"Node number (\d+) \((\w+)\)", str(error))
    return int(found.group(1)) if found and found.group(2) != "DELEGATE" else None


def reason(error: Exception) -> str:
    """Return LiteRT's words without places in its sources."""
    text = " ".join(str(error).split())
    return re.sub(r"\S+/(?=[\w.]+:\d+)", "", text)[:300] or type(error).__name__


def _array(found: Any) -> Array:
    """Return what the interpreter gives as an array: for a scalar it gives a number."""
    import numpy as np

    return np.asarray(found)


class _Runner:
    """One interpreter, its inputs resized as needed."""

    def __init__(self, made: Any, signature: Signature) -> None:
        self._interpreter = made
        inputs, outputs = made.get_input_details(), made.get_output_details()
        if (len(inputs), len(outputs)) != (len(signature.inputs), len(signature.outputs)):
            raise ValueError("its inputs and outputs are not those of the bundle")
        self._inputs = [
            (spec.name, each["index"]) for spec, each in zip(signature.inputs, inputs, strict=True)
        ]
        self._outputs = [
            (spec.name, each["index"])
            for spec, each in zip(signature.outputs, outputs, strict=True)
        ]
        self._shapes = {each["index"]: tuple(each["shape"]) for each in inputs}
        # what is open is planned when its size is known: the file's is one, too small for windows
        self._planned = not any((each["shape_signature"] < 0).any() for each in inputs)
        if self._planned:
            made.allocate_tensors()

    def set(self, feed: Mapping[str, Array]) -> None:
        """Copy the inputs in; where sizes changed, everything is planned anew."""
        changed = not self._planned
        for name, index in self._inputs:
            shape = feed[name].shape
            if self._shapes[index] != shape:
                self._interpreter.resize_tensor_input(index, list(shape))
                self._shapes[index] = shape
                changed = True
        if changed:
            self._interpreter.allocate_tensors()
            self._planned = True
        for name, index in self._inputs:
            self._interpreter.set_tensor(index, feed[name])

    def run(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs."""
        return {name: _array(self._interpreter.get_tensor(i)) for name, i in self._outputs}


class LitertSession:
    """A model in LiteRT's interpreter."""

    def __init__(
        self, path: Path, signature: Signature, *, threads: int | None, delegate: str
    ) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._signature = signature
        self._options: dict[str, Any] = {"path": path, "threads": threads, "delegate": delegate}
        self._runner: _Runner | None = self._made()

    def _made(self) -> _Runner:
        return _Runner(interpreter(**self._options), self._signature)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        if self._runner is None:
            raise ValueError("the session is closed")
        self._runner.set(feed)
        self._runner.run()
        return self._runner.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundRun:
        """Fix the inputs; calling the result runs one inference on them."""
        if self._runner is None:
            raise ValueError("the session is closed")
        # an interpreter of its own, whose buffers no other run writes to
        runner = self._made()
        runner.set(feed)
        return BoundRun(runner)

    def close(self) -> None:
        """Give the model's memory back."""
        self._runner = None


class BoundRun:
    """An interpreter whose inputs are set; it keeps them from run to run."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner

    def __call__(self) -> None:
        """Run once."""
        self._runner.run()

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return self._runner.outputs()
