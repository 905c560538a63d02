"""pytensor made ready to evaluate graphs without a C compiler, and quickly enough for real networks.

Its own Python loops of convolution and pooling take minutes on a photograph (and pooling's fail on
numpy 1.23), so they are replaced by definitions in numpy that compute in float64.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

from deploykit import definitions

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_folders: list[tempfile.TemporaryDirectory[str]] = []
"""Kept until the process ends: pytensor wants a folder for what it compiles."""


def prepare(float_type: str) -> None:
    """Import pytensor with `floatX` = `float_type`, and teach it convolution and pooling."""
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="deploykit-pytensor-"))
    flags = {
        "floatX": float_type,
        "cxx": "",
        "mode": "FAST_COMPILE",
        "blas__ldflags": "",
        "base_compiledir": _folders[0].name,
        "on_opt_error": "raise",
        "warn__ignore_bug_before": "all",
    }
    os.environ["PYTENSOR_FLAGS"] = ",".join(f"{key}={value}" for key, value in flags.items())
    # a file of settings in the user's home belongs to another installation
    os.environ["PYTENSORRC"] = os.devnull
    # pytensor announces for years what it will remove
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import pytensor
    from pytensor.tensor.nnet import abstract_conv
    from pytensor.tensor.signal import pool

    pytensor.config.floatX = float_type
    abstract_conv.AbstractConv.perform = _convolve
    abstract_conv.AbstractConv_gradInputs.perform = _convolve_back
    pool.Pool.perform = _pool


def function(inputs: list[Any], outputs: list[Any]) -> Any:
    """Return the graph compiled as it is: no rewriting, numpy only."""
    import pytensor
    from pytensor.compile.mode import Mode
    from pytensor.link.vm import VMLinker

    mode = Mode(linker=VMLinker(use_cloop=False), optimizer=None)
    return pytensor.function(inputs, outputs, mode=mode, on_unused_input="ignore")


def pads_of(op: Any, kernel: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (before, after) of each axis of space: `border_mode` for a kernel of this size."""
    from pytensor.tensor.nnet.abstract_conv import border_mode_to_pad

    reach = [(k - 1) * d + 1 for k, d in zip(kernel, op.filter_dilation, strict=True)]
    return [
        (int(a), int(b)) for a, b in border_mode_to_pad(op.border_mode, op.convdim, tuple(reach))
    ]


def _flipped(op: Any, kernel: Array) -> Array:
    # a true convolution: the kernel is turned by 180 degrees
    space = tuple(range(kernel.ndim - op.convdim, kernel.ndim))
    import numpy as np

    return np.flip(kernel, space) if op.filter_flip else kernel


def _convolve(op: Any, node: Any, inputs: Any, output_storage: Any) -> None:
    x, kernel = inputs
    if op.unshared:
        raise NotImplementedError("unshared convolution")
    size = kernel.shape[2:]
    if x.shape[1] != kernel.shape[1] * op.num_groups:
        raise ValueError(
            f"an image of {x.shape[1]} channels, a kernel for {kernel.shape[1] * op.num_groups}"
        )
    found = definitions.convolution(
        x,
        _flipped(op, kernel),
        strides=op.subsample,
        pads=pads_of(op, size),
        dilations=op.filter_dilation,
        groups=op.num_groups,
    )
    output_storage[0][0] = found.astype(node.outputs[0].dtype)


def _convolve_back(op: Any, node: Any, inputs: Any, output_storage: Any) -> None:
    kernel, top, shape = inputs
    if op.unshared:
        raise NotImplementedError("unshared convolution")
    pads = pads_of(op, kernel.shape[2:])
    full = definitions.transposed_convolution(
        top,
        _flipped(op, kernel),
        strides=op.subsample,
        pads=[(0, 0)] * op.convdim,
        # a stride leaves rows at the end of the image unread; they get nothing
        extra=[s - 1 for s in op.subsample],
        dilations=op.filter_dilation,
        groups=op.num_groups,
    )
    window = tuple(slice(p[0], p[0] + int(n)) for p, n in zip(pads, shape, strict=True))
    output_storage[0][0] = full[(slice(None), slice(None), *window)].astype(node.outputs[0].dtype)


def _pool(op: Any, node: Any, inputs: Any, output_storage: Any, _: Any = None) -> None:
    import numpy as np

    x: Any
    x, size, stride, pad = inputs
    rank = op.ndim
    lead, space = x.shape[:-rank], x.shape[-rank:]
    windows = [
        _regions(op, int(n), int(w), int(s), int(p))
        for n, w, s, p in zip(space, size, stride, pad, strict=True)
    ]
    result: Any = np.zeros((*lead, *(len(one) for one in windows)), dtype=np.float64)
    for place in itertools.product(*(range(len(one)) for one in windows)):
        bounds: list[Any] = [windows[axis][at] for axis, at in enumerate(place)]
        region = x[(..., *[slice(low, high) for low, high, _ in bounds])]
        axes = tuple(range(-rank, 0))
        if op.mode == "max":
            found = region.max(axis=axes)
        else:
            found = region.sum(axis=axes, dtype=np.float64)
            if op.mode != "sum":
                found = found / np.prod([count for _, _, count in bounds])
        result[(..., *place)] = found
    output_storage[0][0] = result.astype(node.outputs[0].dtype)


def _regions(op: Any, n: int, size: int, stride: int, pad: int) -> list[tuple[int, int, int]]:
    """Return begin, end (within the image) and divisor of each window along one axis of `n` places."""
    whole = n + 2 * pad
    if op.ignore_border:
        count = max(0, (whole - size) // stride + 1)
    elif stride >= size:
        count = (whole - 1) // stride + 1
    else:
        count = max(0, (whole - 1 - size + stride) // stride) + 1
    found = []
    for at in range(count):
        low, high = at * stride, min(at * stride + size, whole)
        inside = max(low, pad) - pad, min(high, whole - pad) - pad
        divisor = high - low if op.mode == "average_inc_pad" else inside[1] - inside[0]
        found.append((*inside, divisor))
    return found
