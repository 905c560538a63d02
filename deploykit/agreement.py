"""Whether two sessions agree: the same inputs through both, over seeds and sizes of dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.errors import MismatchError, PluginError, UsageError
from deploykit.feeds import make_feed, read_feed, size_plans
from deploykit.parity import OutputParity, Tolerance, compare

if TYPE_CHECKING:
    import numpy as np

    from deploykit.options import Checks
    from deploykit.protocol import TensorSpec

    Array = np.ndarray[Any, Any]
    Pair = tuple[dict[str, Array], dict[str, Array]]

FALLBACK_SIZES = (8, 16, 32, 64, 128, 224)
"""Tried in turn for dynamic axes beyond the first, until the source accepts one."""


class Runs(Protocol):
    """Anything that gives outputs for inputs."""

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Return every output by name."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: where its inputs came from, its sizes, and how each output fared."""

    inputs: str
    sizes: dict[str, int] = field(default_factory=dict)
    outputs: tuple[OutputParity, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every output agrees."""
        return all(output.ok for output in self.outputs)

    def __str__(self) -> str:
        sizes = ", ".join(f"{axis}={size}" for axis, size in self.sizes.items())
        return f"{self.inputs}{f' ({sizes})' if sizes else ''}"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """All cases tried, the input and output pairs of the reference, and the cases it rejected."""

    cases: tuple[Case, ...]
    pairs: tuple[Pair, ...] = ()
    rejected: tuple[str, ...] = ()


def reference_pairs(
    reference: Runs,
    inputs: tuple[TensorSpec, ...],
    *,
    checks: Checks,
    bounds: Mapping[str, tuple[int, int]],
    vary_sizes: bool = True,
) -> tuple[list[tuple[Case, Pair]], tuple[str, ...]]:
    """Run the reference on every case that `checks` asks for.

    Returns the cases with their inputs and outputs, and one line for each size that the reference
    itself rejects. Raises UsageError where it accepts none.
    """
    found: list[tuple[Case, Pair]] = []
    if checks.sample is not None:
        feed = read_feed(checks.sample, inputs)
        found.append((Case(inputs=f"inputs of {checks.sample.name}"), (feed, reference.run(feed))))
        # the user's own sizes are known to be good: vary nothing else
        return found, ()
    base, first = _base_sizes(reference, inputs, bounds)
    found.append((Case(inputs="seed 0", sizes=dict(base)), first))
    for seed in range(1, checks.seeds):
        feed = make_feed(inputs, seed=seed, sizes=base, bounds=bounds)
        found.append((Case(inputs=f"seed {seed}", sizes=dict(base)), (feed, reference.run(feed))))
    rejected = []
    for number, sizes in enumerate(size_plans(inputs, base)[1:] if vary_sizes else []):
        seed = checks.seeds + number
        feed = make_feed(inputs, seed=seed, sizes=sizes, bounds=bounds)
        case = Case(inputs=f"seed {seed}", sizes=dict(sizes))
        try:
            found.append((case, (feed, reference.run(feed))))
        except PluginError as error:
            rejected.append(
                f"{case}: the source framework itself rejects this size: {error.message}"
            )
    return found, tuple(rejected)


def _base_sizes(
    reference: Runs, inputs: tuple[TensorSpec, ...], bounds: Mapping[str, tuple[int, int]]
) -> tuple[Mapping[str, int], Pair]:
    """Return sizes of the dynamic axes that the reference accepts, and what it gave for them.

    A leading axis is a batch, for which one is always fair; an image of one pixel is not.
    """
    ones = size_plans(inputs)[0]
    leading = {spec.shape[0] or f"{spec.name}:0" for spec in inputs if spec.shape}
    inner = [axis for axis in ones if axis not in leading]
    plans = [{**ones, **dict.fromkeys(inner, size)} for size in FALLBACK_SIZES if inner]
    rejected: PluginError | None = None
    for sizes in [*plans, ones]:
        feed = make_feed(inputs, seed=0, sizes=sizes, bounds=bounds)
        try:
            return sizes, (feed, reference.run(feed))
        except PluginError as error:
            rejected = error
    if not ones:
        raise UsageError(
            f"the source framework fails on random inputs: {rejected}",
            hint="where the model needs inputs that make sense, give them with `--sample inputs.npz`",
        ) from rejected
    tried = ", ".join(str(size) for size in ([*FALLBACK_SIZES, 1] if inner else [1]))
    raise UsageError(
        f"the source framework accepts none of the sizes tried for {', '.join(inner or ones)} "
        f"({tried}): {rejected}",
        hint="give your own inputs with `--sample inputs.npz`, or sizes with `--input`",
    )


def agree(
    reference: list[tuple[Case, Pair]], candidate: Runs, *, what: str, tolerance: Tolerance
) -> Agreement:
    """Run `candidate` on every reference case and compare.

    Raises MismatchError, naming the worst output of the first failing case and `what` gave it.
    """
    cases = []
    for case, (feed, expected) in reference:
        outputs = compare(expected, candidate.run(feed), tolerance)
        judged = Case(inputs=case.inputs, sizes=case.sizes, outputs=outputs)
        if not judged.ok:
            raise_mismatch(what, judged, tolerance)
        cases.append(judged)
    return Agreement(cases=tuple(cases), pairs=tuple(pair for _, pair in reference))


def raise_mismatch(what: str, case: Case, tolerance: Tolerance) -> None:
    """Raise the MismatchError that describes the first wrong output of `case`."""
    wrong = next(output for output in case.outputs if not output.ok)
    raise MismatchError(
        f"{what} disagrees on output `{wrong.output}` at {case}: {wrong.reason}",
        hint=f"tolerance was atol={tolerance.atol:g}, rtol={tolerance.rtol:g} "
        "(`--tolerance` changes it, `--no-verify` gives up the proof)",
    )


def worst_by_output(cases: tuple[Case, ...]) -> tuple[OutputParity, ...]:
    """Return, for each output, the parity of the case with the largest error."""
    worst: dict[str, OutputParity] = {}
    for case in cases:
        for output in case.outputs:
            seen = worst.get(output.output)
            if seen is None or (seen.ok, -seen.max_abs_error) > (output.ok, -output.max_abs_error):
                worst[output.output] = output
    return tuple(worst.values())
