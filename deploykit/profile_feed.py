"""The inputs of a profile: one feed that every contender gets, of the batch and sizes asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.bundle import Manifest, golden
from deploykit.compilation import Build
from deploykit.errors import UsageError
from deploykit.feeds import make_feed
from deploykit.index_bounds import index_bounds
from deploykit.onnx_graph import fixed_inputs
from deploykit.prepared import Prepared
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Feed = Mapping[str, Array]


def feed_of_model(
    prepared: Prepared, build: Build, *, batch: int | None, seed: int
) -> tuple[Build, Feed]:
    """Return the build with the sizes that are asked for, and the inputs of every measurement.

    Without a batch or shapes the bundles stay dynamic, and are measured at the smallest sizes that
    the source accepts; of several sets of sizes the first is measured. Raises UsageError for sizes
    that the model does not have.
    """
    shapes = build.shapes[0]
    inputs = prepared.conversion.signature.inputs
    # the targets check it too, but nobody else does for the source framework alone
    fixed = fixed_inputs(inputs, shapes)
    feed: Feed = prepared.pairs[0][1][0] if prepared.pairs else make_feed(inputs, seed=seed)
    sizes = {name: tuple(array.shape) for name, array in feed.items()} | dict(shapes)
    if batch is not None:
        if len(build.shapes) > 1:
            raise UsageError("`--batch` and several shapes of an input exclude each other")
        names = _batched(fixed, batch, prepared.model.name)
        batched = {name: (batch, *sizes[name][1:]) for name in names}
        shapes = {**shapes, **batched}
        build = replace(build, shapes=(shapes,))
        sizes |= batched
    if not shapes:
        return build, feed
    whole = tuple(
        replace(spec, shape=_filled(spec, sizes[spec.name]))
        for spec in fixed_inputs(inputs, shapes)  # an axis fixed in one input is in all
    )
    return build, make_feed(whole, seed=seed, bounds=index_bounds(prepared.onnx))


def feed_of_bundle(folder: Path, manifest: Manifest, *, batch: int | None, seed: int) -> Feed:
    """Return the first golden inputs of a bundle, their rows repeated to fill the batch.

    Raises UsageError where it takes no such batch.
    """
    import numpy as np

    inputs = manifest.signature.inputs
    pairs = golden(folder, manifest)
    feed: Feed = pairs[0][0] if pairs else make_feed(inputs, seed=seed)
    if batch is None:
        return feed
    names = _batched(inputs, batch, f"the bundle `{folder}`")
    rows = {name: np.arange(batch) % len(feed[name]) for name in names}
    return {
        name: np.take(array, rows[name], axis=0) if name in rows else array
        for name, array in feed.items()
    }


def _filled(spec: TensorSpec, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(
        size if isinstance(size, int) else other
        for size, other in zip(spec.shape or sizes, sizes, strict=True)
    )


def _batched(inputs: tuple[TensorSpec, ...], batch: int, what: str) -> list[str]:
    """Return the inputs whose first axis can be, or already is, of size `batch`.

    Raises UsageError where there is none: a throughput would count items that are not there.
    """
    names = [
        spec.name
        for spec in inputs
        if spec.shape and (not isinstance(spec.shape[0], int) or spec.shape[0] == batch)
    ]
    if not names:
        raise UsageError(
            f"no input of {what} has a first axis that can be {batch}, so `--batch` cannot "
            f"apply: {', '.join(map(str, inputs))}",
            hint="convert it with `--dynamic INPUT:0=batch` if the model allows other batches",
        )
    return names
