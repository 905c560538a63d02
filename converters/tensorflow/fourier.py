"""Discrete Fourier transforms over the last axis as products with matrices of cosines and sines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGEST = 8192
"""Points of a transform; its matrices grow with the square (two of 134 MB here)."""


def _waves(rows: int, columns: int, size: int) -> tuple[Array, Array]:
    """Return cos and sin of 2 pi j k / size, [rows, columns], exact where they are 0 or 1."""
    import numpy as np

    turns = np.outer(np.arange(rows), np.arange(columns)) % size
    angle = 2 * np.pi * turns / size
    cosine, sine = np.cos(angle), np.sin(angle)
    # the sign of zero decides between a phase of pi and of -pi
    sine[(2 * turns) % size == 0] = 0.0
    cosine[(4 * turns) % size == 0] = np.round(cosine[(4 * turns) % size == 0])
    sine[(4 * turns) % size == 0] = np.round(sine[(4 * turns) % size == 0])
    return cosine + 0.0, sine + 0.0


def _times(data: Any, matrix: Array, rank: int) -> Any:
    import tensorflow as tf

    weights = tf.constant(matrix.astype(data.dtype.as_numpy_dtype) + 0.0)
    if rank == 1:
        return tf.squeeze(tf.matmul(tf.expand_dims(data, 0), weights), 0)
    return tf.matmul(data, weights)


def _fitted(data: Any, size: int, rank: int) -> Any:
    """Cut the last axis to `size`, or fill it up with zeros."""
    import tensorflow as tf

    known = data.shape[-1]
    if known == size:
        return data
    if known is None or known < size:
        missing = size if known is None else size - known
        data = tf.pad(data, [[0, 0]] * (rank - 1) + [[0, missing]])
    return data[..., :size]


def rfft(data: Any, size: int, rank: int) -> tuple[Any, Any]:
    """Return the first size // 2 + 1 values of the transform of real `data`."""
    cosine, sine = _waves(size, size // 2 + 1, size)
    data = _fitted(data, size, rank)
    return _times(data, cosine, rank), _times(data, -sine, rank)


def irfft(data: tuple[Any, Any], size: int, rank: int) -> Any:
    """Return `size` real values; the imaginary parts at 0 and at size / 2 do not count."""
    half = size // 2 + 1
    real, imaginary = (_fitted(part, half, rank) for part in data)
    cosine, sine = _waves(half, size, size)
    weight = _mirrored(half, size)
    return _times(real, cosine * weight, rank) + _times(imaginary, -sine * weight, rank)


def _mirrored(half: int, size: int) -> Array:
    """Return how often each value counts, divided by `size`: those that have a mirror image twice."""
    import numpy as np

    weight = np.full((half, 1), 2.0 / size)
    weight[0] = 1.0 / size
    if size % 2 == 0:
        weight[-1] = 1.0 / size
    return weight


def fft(data: tuple[Any, Any], size: int, rank: int) -> tuple[Any, Any]:
    """Return the transform of complex `data`."""
    cosine, sine = _waves(size, size, size)
    real, imaginary = data
    return (
        _times(real, cosine, rank) + _times(imaginary, sine, rank),
        _times(imaginary, cosine, rank) - _times(real, sine, rank),
    )


def ifft(data: tuple[Any, Any], size: int, rank: int) -> tuple[Any, Any]:
    """Return the inverse of `fft`."""
    cosine, sine = _waves(size, size, size)
    real, imaginary = data
    return (
        _times(real, cosine / size, rank) - _times(imaginary, sine / size, rank),
        _times(imaginary, cosine / size, rank) + _times(real, sine / size, rank),
    )


TRANSFORMS: dict[str, Callable[..., Any]] = {"RFFT": rfft, "IRFFT": irfft, "FFT": fft, "IFFT": ifft}
