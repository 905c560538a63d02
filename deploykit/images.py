"""Read an image file into the input of a vision model; Pillow is needed for this alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError, UsageError
from deploykit.protocol import Dimension, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_MODES: dict[Dimension, str] = {1: "L", 3: "RGB", 4: "RGBA"}
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def read_image(path: str | Path, spec: TensorSpec) -> tuple[Array, str]:
    """Return the image `path` as a value for the input `spec`, and one line that says what was done.

    `spec` is [N, C, H, W], [N, H, W, C], the same without N, or [H, W], with 1 (grey), 3 (RGB) or
    4 (RGBA) channels. The image is turned as its EXIF data say and resized (bilinear) where H and W
    are fixed. Values are 0 … 1 for float inputs, 0 … 255 for uint8; mean and standard deviation of
    the training data are not known here and not applied.

    Raises UsageError where the file is no image or the input cannot hold one, UnavailableError
    where Pillow is not installed.
    """
    import numpy as np

    from deploykit.tensor_spec import numpy_dtype

    layout, mode = _layout(spec)
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UnavailableError(
            f"reading the image `{path}` needs Pillow",
            hint="`pip install pillow`, or give an .npy or .npz file",
        ) from error
    sizes = dict(zip(layout, spec.shape or (), strict=True))
    height, width = sizes["H"], sizes["W"]
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"cannot read `{path}` as an image: {error}", hint="an .npz, an .npy or an image"
        ) from error
    done = [f"image `{Path(path).name}`, {image.width}x{image.height}, read as {mode}"]
    size = (
        width if isinstance(width, int) else image.width,
        height if isinstance(height, int) else image.height,
    )
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
        done.append(f"resized to {size[0]}x{size[1]} (bilinear, aspect ratio not kept)")
    value = np.asarray(image)
    if spec.dtype in _FLOATS:
        value = value.astype(np.float32) / 255
        done.append("scaled to 0 … 1")
    if "C" in layout:
        # Pillow gives [H, W, C], and [H, W] where C is 1
        value = value.reshape(image.height, image.width, -1)
    if "CHW" in layout:
        value = value.transpose(2, 0, 1)
    if layout[0] == "N":
        value = value[np.newaxis]
    done.append(f"laid out as {layout}; no mean or deviation applied")
    return np.ascontiguousarray(value, dtype=numpy_dtype(spec.dtype)), ", ".join(done)


def _layout(spec: TensorSpec) -> tuple[str, str]:
    """Return the meaning of the axes, such as `NCHW`, and Pillow's mode for the channels."""
    shape = spec.shape or ()
    if spec.dtype not in (*_FLOATS, "uint8"):
        raise UsageError(f"the input `{spec}` holds no image: neither floats nor uint8")
    batch = "N" if len(shape) == 4 else ""
    if batch and isinstance(shape[0], int) and shape[0] != 1:
        raise UsageError(
            f"one image does not fill the batch of {shape[0]} of the input `{spec}`",
            hint="give an .npy or .npz file",
        )
    inner = shape[len(batch) :]
    if len(inner) == 2:
        return "HW", "L"
    if len(inner) == 3:
        first, last = inner[0], inner[2]
        if first in _MODES and (last not in _MODES or (first == 3 != last)):
            return f"{batch}CHW", _MODES[first]
        if last in _MODES and (first not in _MODES or (last == 3 != first)):
            return f"{batch}HWC", _MODES[last]
    raise UsageError(
        f"cannot tell where the channels of the input `{spec}` are",
        hint="an image needs [N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels; "
        "give an .npy or .npz file",
    )
