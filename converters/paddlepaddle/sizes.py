"""Which sizes the inputs get: the user's, else the file's, else what Paddle itself accepts.

Paddle does not insist on the sizes that a file declares: a text classifier saved with 32x100 is run
with 48x192 by everybody. ONNX runtimes do insist. So a declared image size becomes dynamic where
Paddle, asked for another size, gives outputs of the same batch.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from deploykit._plugins.converters.paddlepaddle import predictor

from deploykit.errors import UsageError
from deploykit.protocol import Dimension, DynamicAxis, TensorSpec

if TYPE_CHECKING:
    from deploykit._plugins.converters.paddlepaddle.files import ModelFiles
    from deploykit._plugins.converters.paddlepaddle.program import Loaded

Shapes = dict[str, tuple[Dimension, ...]]

SMALLEST_IMAGE = 16
"""An axis shorter than this is rather a count of channels or boxes than a side of an image."""


def wanted(
    loaded: Loaded, given: tuple[TensorSpec, ...] = (), dynamic: tuple[DynamicAxis, ...] = ()
) -> Shapes:
    """Return the shape of every input: as declared, then `--input`, then `--dynamic`.

    Dynamic axes without a name get one: `batch` for the leading axis of all inputs, `height` and
    `width` for the images of a convolutional network. Raises UsageError for an unknown input, another dtype, rank or axis.
    """
    declared = {spec.name: spec for spec in loaded.inputs}
    images = loaded.convolutional
    shapes: Shapes = {}
    for spec in loaded.inputs:
        shape = spec.shape or ()
        shapes[spec.name] = tuple(
            name if size is None else size
            for size, name in zip(shape, _axis_names(spec, images), strict=True)
        )
    for spec in given:
        own = declared.get(spec.name)
        if own is None:
            raise _unknown(spec.name, list(declared))
        if spec.dtype != own.dtype:
            raise UsageError(
                f"input `{spec.name}` is {own.dtype} in the model, not {spec.dtype}",
                hint="feed it what the model takes; a dtype cannot be overridden for Paddle",
            )
        if spec.shape is None:
            continue
        if len(spec.shape) != len(own.shape or ()):
            raise UsageError(
                f"input `{spec.name}` has {len(own.shape or ())} axes in the model, "
                f"`{spec}` has {len(spec.shape)}"
            )
        shapes[spec.name] = tuple(
            name if size is None else size
            for size, name in zip(spec.shape, _axis_names(own, images), strict=True)
        )
    for axis in dynamic:
        if axis.input not in shapes:
            raise _unknown(axis.input, list(shapes))
        shape = shapes[axis.input]
        if not -len(shape) <= axis.axis < len(shape):
            raise UsageError(
                f"input `{axis.input}` has no axis {axis.axis}, only {len(shape)} axes"
            )
        number = axis.axis % len(shape)
        shapes[axis.input] = (*shape[:number], axis.name, *shape[number + 1 :])
    return shapes


def widen(
    model: ModelFiles, loaded: Loaded, shapes: Shapes, *, keep: set[str], notes: list[str]
) -> Shapes:
    """Return `shapes` with declared image sizes made dynamic where Paddle accepts others.

    `keep` are the inputs about which the user has spoken. What was widened is added to `notes`.
    """
    images = [
        (spec, image)
        for spec in loaded.inputs
        if spec.name not in keep and (image := _declared_image(spec)) is not None
    ]
    if len(images) != 1:
        return shapes
    image, (channels, height, width) = images[0]
    probe: dict[str, tuple[int, ...]] = {
        spec.name: tuple(size if isinstance(size, int) else 1 for size in spec.shape or ())
        for spec in loaded.inputs
    }
    probe[image.name] = (1, channels, _other(height), _other(width))
    if not predictor.accepts(model, loaded, probe):
        return shapes
    notes.append(
        f"input `{image.name}` declares images of {height}x{width} on which Paddle does not insist: "
        "height and width are dynamic"
    )
    first, second = shapes[image.name][:2]
    return {**shapes, image.name: (first, second, "height", "width")}


def _declared_image(spec: TensorSpec) -> tuple[int, int, int] | None:
    """Return channels (3 where unknown), height and width of an image of declared size."""
    if not spec.dtype.startswith("float") or len(spec.shape or ()) != 4:
        return None
    _, channels, height, width = spec.shape or ()
    if not (isinstance(height, int) and isinstance(width, int)):
        return None
    if min(height, width) < SMALLEST_IMAGE:
        return None
    return channels if isinstance(channels, int) else 3, height, width


def _other(size: int) -> int:
    """Return another plausible image size, a multiple of 32 as most detectors want, and cheap."""
    rounded = size // 32 * 32
    return rounded + 32 if size < 256 else max(32, rounded // 64 * 32)


def _axis_names(spec: TensorSpec, images: bool) -> list[str]:
    rank = len(spec.shape or ())
    names = [f"{spec.name}_{axis}" for axis in range(rank)]
    if rank:
        names[0] = "batch"
    if images and rank == 4 and spec.dtype.startswith("float"):
        names[2:] = ["height", "width"]
    return names


def _unknown(name: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    guess = f' (did you mean "{near[0]}"?)' if near else ""
    return UsageError(
        f'the model has no input "{name}"{guess}', hint=f"its inputs are {', '.join(known)}"
    )
