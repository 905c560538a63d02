"""Which sizes of dynamic axes an engine is built for: TensorRT wants least, best and most of each."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import TensorSpec

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The least, the best and the greatest shape of an input."""

_HINT = "write NAME=LEAST:BEST:MOST for each, as axes=batch=1:8:32,length=1:128:512"


@dataclass(frozen=True, kw_only=True)
class Range:
    """The sizes that an axis may have: kernels are chosen for `best`."""

    least: int
    best: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}:{self.best}:{self.most}"


BATCH = Range(least=1, best=1, most=32)
LENGTH = Range(least=1, best=128, most=512)


def dynamic_axes(inputs: tuple[TensorSpec, ...]) -> dict[str, list[tuple[str, int]]]:
    """Return each dynamic axis, by its name or else as `INPUT:AXIS`, with where it occurs."""
    found: dict[str, list[tuple[str, int]]] = {}
    for spec in inputs:
        if spec.shape is None:
            raise UnsupportedError(
                f"target tensorrt needs to know how many axes `{spec.name}` has",
                hint="give its size with --shape",
            )
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int):
                found.setdefault(size or f"{spec.name}:{axis}", []).append((spec.name, axis))
    return found


def read_ranges(text: str, known: tuple[str, ...]) -> dict[str, Range]:
    """Return the ranges that the setting `axes` writes: `batch=1:8:32,x:2=64:224:512`.

    Raises UsageError where it cannot be read or names no dynamic axis.
    """
    found: dict[str, Range] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, sizes = part.rpartition("=")
        numbers = sizes.split(":")
        if not equals or len(numbers) != 3 or not all(n.isdecimal() for n in numbers):
            raise UsageError(f"cannot read `{part}` in the setting `axes`", hint=_HINT)
        if name not in known:
            raise UsageError(
                f"no input has a dynamic axis `{name}`",
                hint=f"dynamic axes: {', '.join(known) or 'none'}",
            )
        least, best, most = map(int, numbers)
        if not 1 <= least <= best <= most or name in found:
            raise UsageError(f"`{part}` in the setting `axes` makes no sense", hint=_HINT)
        found[name] = Range(least=least, best=best, most=most)
    return found


def ranges(inputs: tuple[TensorSpec, ...], text: str) -> dict[str, Range]:
    """Return the range of every dynamic axis: as the setting `axes` says, else by what it must be.

    The first axis is taken for a batch, an axis of an input with up to three for a length. Raises
    UnsupportedError for others, such as the height of an image: nobody can guess those.
    """
    axes = dynamic_axes(inputs)
    found = read_ranges(text, tuple(axes))
    ranks = {spec.name: len(spec.shape or ()) for spec in inputs}
    unknown = []
    for name, places in axes.items():
        if name in found:
            continue
        if all(axis == 0 for _, axis in places):
            found[name] = BATCH
        elif all(ranks[where] <= 3 for where, _ in places):
            found[name] = LENGTH
        else:
            unknown.append(name)
    if unknown:
        example = ",".join(f"{name}=64:224:512" for name in unknown)
        raise UnsupportedError(
            f"target tensorrt needs bounds for the dynamic axes {', '.join(unknown)}",
            hint=f"give them with `--set tensorrt.axes={example}`, or fix them with --shape",
        )
    return {name: found[name] for name in axes}


def profile(inputs: tuple[TensorSpec, ...], sizes: dict[str, Range]) -> dict[str, Shapes]:
    """Return the shapes of each input that has a dynamic axis."""
    found: dict[str, Shapes] = {}
    for spec in inputs:
        shape = spec.shape or ()
        if all(isinstance(size, int) for size in shape):
            continue
        bounds = [
            Range(least=size, best=size, most=size)
            if isinstance(size, int)
            else sizes[size or f"{spec.name}:{axis}"]
            for axis, size in enumerate(shape)
        ]
        found[spec.name] = (
            tuple(each.least for each in bounds),
            tuple(each.best for each in bounds),
            tuple(each.most for each in bounds),
        )
    return found
