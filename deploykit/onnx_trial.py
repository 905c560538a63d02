"""What ONNX Runtime computes on a few inputs, so that a target can try its payload while compiling.

Converters of runtimes drop axes, bake sizes in and misread operators, and end with success. A target
that has to find out by itself what its runtime can keep (which axes stay dynamic, which algorithms
are exact enough) compares with these runs. The proof against the source framework comes after it.

This file also runs inside plugin environments: numpy, onnx and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from deploykit.errors import SourceError, UnsupportedError
from deploykit.feeds import make_feed, size_plans
from deploykit.index_bounds import index_bounds
from deploykit.parity import Tolerance, compare
from deploykit.protocol import Session, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

T = TypeVar("T")

_BASES = (64, 16, 224, 1)
"""Sizes for dynamic axes but the first. What is right at 1 may be wrong at 64, where pooling leaves
more than one place; and images often run only from some size on."""


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
        replace(
            spec,
            shape=spec.shape
            and tuple(
                1 if size in named or (axis == 0 and size is None) else size
                for axis, size in enumerate(spec.shape)
            ),
        )
        for spec in inputs
    )


def with_fewest_fixed(
    target: str, inputs: tuple[TensorSpec, ...], build: Callable[[tuple[TensorSpec, ...]], T]
) -> tuple[T, tuple[str, ...]]:
    """Return `build(inputs)`, or where that is unsupported what it gives for a batch of one.

    The second value is a note for the user where axes had to be fixed. Raises UnsupportedError as
    `build` does, with the hint to fix sizes where some are dynamic.
    """
    batch_of_one = with_first_axis_of_one(inputs)
    try:
        return build(inputs), ()
    except UnsupportedError as error:
        reason = error
    try:
        if batch_of_one == inputs:
            raise reason
        axes = [axis for axis in dynamic_axes(inputs) if axis not in dynamic_axes(batch_of_one)]
        note = f"{target} cannot keep {', '.join(axes)} dynamic: fixed to 1 ({reason.message})"
        return build(batch_of_one), (note,)
    except UnsupportedError as error:
        if dynamic_axes(batch_of_one) and not error.hint:
            error.hint = "give the sizes of the inputs with --shape"
        raise


def outputs_seen(
    asked: tuple[TensorSpec, ...], inputs: Sequence[TensorSpec], runs: Sequence[ReferenceRun]
) -> tuple[TensorSpec, ...]:
    """Return the outputs with the sizes they had, as far as fixed inputs or a missing rank allow."""
    made = []
    for spec in asked:
        seen = {run.outputs[spec.name].shape for run in runs}
        shape = spec.shape and tuple(
            None if isinstance(size, int) and size < 0 else size for size in spec.shape
        )
        if len(seen) == 1 and not dynamic_axes(inputs):
            shape = next(iter(seen))
        elif shape is None and len({len(each) for each in seen}) == 1:
            shape = (None,) * len(next(iter(seen)))
        made.append(replace(spec, shape=shape))
    return tuple(made)


def reference_runs(
    model: str, inputs: tuple[TensorSpec, ...], outputs: Sequence[TensorSpec]
) -> list[ReferenceRun]:
    """Return ONNX Runtime's results for the ONNX file `model` on inputs drawn for `inputs`.

    Where axes are dynamic, the runs have several sizes of each, as far as the model takes them. Where
    all sizes are fixed and it takes none of the inputs (a sampling rate is drawn as 1), there are no
    runs. Raises SourceError where ONNX Runtime cannot read the file, UnsupportedError where it cannot
    load the model, or run it at any of the sizes that were tried.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a size that the model does not take is no news
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (raised.InvalidProtobuf, raised.NoSuchFile, raised.NoModel) as error:
        raise SourceError(f"cannot read the ONNX model `{model}`: {_first_line(error)}") from error
    except (raised.Fail, raised.InvalidGraph, raised.InvalidArgument) as error:
        raise UnsupportedError(
            f"ONNX Runtime cannot load the model: {_first_line(error)}"
        ) from error
    except raised.NotImplemented as error:
        raise UnsupportedError(
            f"ONNX Runtime cannot run the model: {_first_line(error)}"
        ) from error
    bounds = index_bounds(model)
    names = [spec.name for spec in outputs]
    refused = ""
    runs: list[ReferenceRun] = []
    for base in _BASES if dynamic_axes(inputs) else (1,):
        plans = size_plans(inputs, _base_sizes(inputs, base))
        seen: dict[str, set[int]] = {key: set() for key in plans[0]}
        # the last has all axes differ
        others = sorted(plans[1:-1], key=lambda plan: -sum(plan.values()))
        for plan in (plans[0], plans[-1], *others):
            if runs and all(size in seen[key] or len(seen[key]) > 1 for key, size in plan.items()):
                continue  # teaches nothing
            feed = make_feed(inputs, seed=len(runs), sizes=plan, bounds=bounds)
            try:
                values = session.run(names, feed)
            except (raised.Fail, raised.InvalidArgument, raised.RuntimeException) as error:
                refused = _first_line(error)
                continue
            runs.append(ReferenceRun(feed, dict(zip(names, values, strict=True))))
            for key, size in plan.items():
                seen[key].add(size)
    if not runs and dynamic_axes(inputs):
        raise UnsupportedError(
            f"the model runs on none of the inputs that were drawn to try its sizes: {refused}",
            hint="give the sizes of the inputs with --shape",
        )
    return runs


def first_that_agrees(
    choices: Sequence[T],
    load: Callable[[T], Session],
    runs: Sequence[ReferenceRun],
    tolerance: Tolerance,
) -> tuple[T, str]:
    """Return the first of `choices` with which `load` gives a session that agrees with `runs`.

    Where none does, the last, and how it differs by more than ten times the tolerance; up to there
    it is for the proof against the source framework to say, whose tolerance the user may widen.
    """
    for choice in choices:
        if not _difference(load(choice), runs, tolerance):
            return choice, ""
    wide = Tolerance(atol=10 * tolerance.atol, rtol=10 * tolerance.rtol, steps=tolerance.steps + 2)
    return choices[-1], _difference(load(choices[-1]), runs, wide)


def changes_nothing(one: Session, other: Session, run: ReferenceRun) -> bool:
    """Return whether two sessions, which are closed then, give the very same bits."""
    results = []
    for session in (one, other):
        results.append(session.run(run.feed))
        session.close()
    return all(value.tobytes() == results[1][name].tobytes() for name, value in results[0].items())


def _difference(session: Session, runs: Sequence[ReferenceRun], tolerance: Tolerance) -> str:
    """Return how `session`, which is closed then, differs from `runs`; empty where it does not."""
    try:
        for run in runs:
            for parity in compare(run.outputs, session.run(run.feed), tolerance):
                if not parity.ok:
                    return f"output `{parity.output}` at {run}: {parity.reason}"
    except UnsupportedError as error:
        return error.message
    finally:
        session.close()
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
