"""Where Keras' backends compute different things from the same file: padding, and the sense of a kernel.

TensorFlow pads `same` by what is missing, more of it at the end. Theano pads half of the kernel on
both sides and cuts the end (`theano_backend.py` of Keras 2.2, `conv2d` and `pool2d`), and convolves
where the others correlate, so that kernels appear rotated. CNTK centres the kernel on the cells
that the strides reach (`ConvolutionGeometry`, `GetLowerPad`).
"""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.errors import UnsupportedError

BACKENDS = ("tensorflow", "theano", "cntk")

DIFFERING = (
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Conv2DTranspose",
    "Conv3DTranspose",
    "SeparableConv1D",
    "SeparableConv2D",
    "DepthwiseConv2D",
    "LocallyConnected1D",
    "LocallyConnected2D",
)
"""Layers whose result depends on the backend, whatever their settings."""

PADDED = tuple(f"{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3))
"""Layers whose result depends on the backend where they pad."""


def pads(
    backend: str,
    padding: str,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[int | None],
    pooling: bool,
    layer: str,
) -> list[tuple[int, int]] | None:
    """Return the padding (before, after) of each axis of space, None where TensorFlow's rule must be
    left to the runtime because a size is not fixed.

    `sizes` are those of the input, None where dynamic. Raises UnsupportedError for paddings that do
    not exist, or that need a size which is dynamic.
    """
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if padding == "valid":
        return [(0, 0)] * len(reach)
    if padding == "causal":
        return [(one - 1, 0) for one in reach]
    if padding != "same":
        raise UnsupportedError(f"layer `{layer}` pads in a way called `{padding}`")
    if backend == "theano":
        return [_theano(one, pooling) for one in reach]
    if all(stride == 1 for stride in strides):
        if backend == "cntk":
            return [((one - 1) // 2, one - 1 - (one - 1) // 2) for one in reach]
        return [((one - 1) // 2, one // 2) for one in reach]
    if any(size is None for size in sizes):
        if backend == "tensorflow":
            return None
        raise UnsupportedError(
            f"layer `{layer}` pads as CNTK does with strides, which needs fixed sizes",
            hint="give them with `--input`",
        )
    found = []
    for one, stride, size in zip(reach, strides, sizes, strict=True):
        assert size is not None
        count = -(-size // stride)
        total = max((count - 1) * stride + one - size, 0)
        if backend == "cntk":
            extra = size - ((count - 1) * stride + 1)
            lower = (one - 1) // 2 - extra // 2
            if lower < 0:
                raise UnsupportedError(
                    f"layer `{layer}` strides {stride} over a kernel of {one}, so that CNTK begins "
                    "within its input, which is not supported"
                )
            # a cell that no window reaches need not be cut off
            found.append((lower, max((count - 1) * stride + one - size - lower, 0)))
        else:
            found.append((total // 2, total - total // 2))
    return found


def _theano(reach: int, pooling: bool) -> tuple[int, int]:
    """Return Theano's padding with the cut at the end already taken off."""
    if not pooling:
        return reach // 2, (reach - 1) // 2
    if reach == 1:
        return 0, 0
    before = reach - 2 if reach % 2 else reach - 1
    return before, reach - 1 - before
