"""What ONNX Runtime computes on a few inputs, so that a target can try its payload while compiling.

Converters of runtimes drop axes, bake sizes in and misread operators, and end with success. A target
that has to find out by itself what its runtime can keep (which axes stay dynamic, which algorithms
are exact enough) compares with these runs. The proof against the source framework comes after it.

This file also runs inside plugin environments: numpy, onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnsupportedError
from deploykit.feeds import make_feed, size_plans
from deploykit.index_bounds import index_bounds
from deploykit.parity import Tolerance, compare
from deploykit.protocol import Session, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_BASES = (1, 16, 64, 224)
"""Sizes for dynamic axes but the first: sequences run at any, images often only from some size on."""

_MOST = 8
"""Runs; more sizes add little, and each may take seconds."""


@dataclass(frozen=True)
class ReferenceRun:
    """Inputs by name, and ONNX Runtime's outputs by name for them."""

    feed: dict[str, Array]
    outputs: dict[str, Array]

    def __str__(self) -> str:
        sizes = (f"{name}={'x'.join(map(str, a.shape))}" for name, a in self.feed.items())
        return ", ".join(sizes)


def dynamic_axes(inputs: Sequence[TensorSpec]) -> list[str]:
    """Return the axes without a size, each as `input:axis`."""
    return [
        f"{spec.name}:{axis}"
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    ]


def with_first_axis_of_one(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return `inputs` with each dynamic first axis fixed to 1, and those of its name with it."""
    named = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    return tuple(
        TensorSpec(
            name=spec.name,
            dtype=spec.dtype,
            shape=spec.shape
            and tuple(
                1 if size in named or (axis == 0 and size is None) else size
                for axis, size in enumerate(spec.shape)
            ),
        )
        for spec in inputs
    )


def reference_runs(
    model: str, inputs: tuple[TensorSpec, ...], outputs: Sequence[TensorSpec]
) -> list[ReferenceRun]:
    """Return ONNX Runtime's results for the ONNX file `model` on inputs drawn for `inputs`.

    Where axes are dynamic, the runs have several sizes of each, as far as the model takes them.
    Raises SourceError where ONNX Runtime cannot read the file, UnsupportedError where it cannot run
    the model, or not at any of the sizes that were tried.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a size that the model does not take is no news
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (raised.InvalidProtobuf, raised.NoSuchFile, raised.NoModel) as error:
        raise SourceError(
            f"cannot read the ONNX model `{model}`: {_first_line(error)}"
        ) from error
    except (raised.Fail, raised.InvalidGraph, raised.InvalidArgument) as error:
        raise UnsupportedError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
    except raised.NotImplemented as error:
        raise UnsupportedError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error
    bounds = index_bounds(model)
    names = [spec.name for spec in outputs]
    refused = ""
    best: list[ReferenceRun] = []
    for base in _BASES if dynamic_axes(inputs) else (1,):
        runs = []
        plans = size_plans(inputs, _base_sizes(inputs, base))
        for plan in [*plans[:1], *plans[:0:-1]][:_MOST]:  # the last has all axes differ
            feed = make_feed(inputs, seed=len(runs), sizes=plan, bounds=bounds)
            try:
                values = session.run(names, feed)
            except (raised.Fail, raised.InvalidArgument, raised.RuntimeException) as error:
                refused = _first_line(error)
                continue
            runs.append(ReferenceRun(feed, dict(zip(names, values, strict=True))))
        if len(runs) == min(len(plans), _MOST):
            return runs
        best = max(best, runs, key=len)
    if not best:
        raise UnsupportedError(
            f"ONNX Runtime runs the model at none of the sizes that were tried: {refused}",
            hint="give the sizes of the inputs with --shape",
        )
    return best


def disagreement(
    runs: Sequence[ReferenceRun], session: Session, tolerance: Tolerance
) -> str:
    """Return how `session` differs from the reference, empty where it does not."""
    for run in runs:
        for parity in compare(run.outputs, session.run(run.feed), tolerance):
            if not parity.ok:
                return f"output `{parity.output}` at {run}: {parity.reason}"
    return ""


def _base_sizes(inputs: tuple[TensorSpec, ...], base: int) -> dict[str, int]:
    """Return `base` for every dynamic axis but the first ones, which are most often a batch."""
    first = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, size in enumerate(spec.shape or ()):
            if isinstance(size, str) and size not in first:
                sizes[size] = base
            elif size is None and axis:
                sizes[f"{spec.name}:{axis}"] = base
    return sizes


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
