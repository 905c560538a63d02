"""By how much the outputs of a model may differ: as far as TensorFlow Lite's own kernels do.

Its reference kernels round a product and then its shift, its fast ones once, and so does a runtime
that multiplies in float. One step here and there is harmless until a softmax or a steep scale makes
more of it. And where activations are rounded at run time, the last digit of a sum decides now and
then which way. So a model is computed in both ways, on noise and on smooth inputs (of which pictures
and spectra have more), and the largest difference of its outputs is allowed, never less than a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite import evaluation
from deploykit._plugins.converters.tflite.reading import Graph, Tensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

INTEGERS = ("int8", "uint8", "int16")
MANY, FEW = 16, 4
MARGIN = 2
LARGE = 1 << 21
"""Weights of a model that is tried on few inputs: it takes seconds to compute."""


def allowance(graph: Graph) -> tuple[int, float]:
    """Return steps of the quantised outputs of `graph`, and the share of the scale of real ones.

    Both are 0 where nothing is rounded. Raises ValueError where the parts of the graph do not fit
    together.
    """
    import numpy as np

    if not any(_is_quantised(tensor) for tensor in graph.tensors):
        return 0, 0.0
    weights = sum(one.constant.size for one in graph.tensors if one.constant is not None)
    steps, share = 0, 0.0
    for seed in range(FEW if weights > LARGE else MANY):
        random = np.random.default_rng(seed)
        feed = {at: _draw(graph.tensors[at], random, smooth=seed % 2 == 1) for at in graph.inputs}
        twice = evaluation.evaluate(graph, feed)
        once = evaluation.evaluate(graph, feed, once=True, shaken=True)
        for at in graph.outputs:
            least = _last_step(graph, at)
            apart = np.abs(twice[at].astype(np.float64) - once[at].astype(np.float64))
            if _is_quantised(graph.tensors[at]):
                steps = max(steps, int(apart.max(initial=0)), 1)
            elif apart.dtype.kind == "f":
                scale = max(float(np.abs(twice[at]).max(initial=0)), 1e-2)
                share = max(share, (float(apart.max(initial=0)) + least) / scale)
    return steps, min(MARGIN * share, 1.0)


def _last_step(graph: Graph, at: int) -> float:
    """Return the step of the integers from which a real output comes, 0 where it does not."""
    for op in graph.operators:
        if at in op.outputs and op.kind == "DEQUANTIZE":
            about = graph.tensors[op.inputs[0]].quantization
            return 0.0 if about is None else float(about.scale[0])
    return 0.0


def _is_quantised(tensor: Tensor) -> bool:
    return tensor.quantized and tensor.dtype in INTEGERS


def _draw(tensor: Tensor, random: Any, *, smooth: bool) -> Array:
    """Return noise, or a walk along the inner axes scaled to the whole range."""
    import numpy as np

    if tensor.dtype == "bool":
        return np.asarray(random.integers(0, 2, tensor.shape)).astype(bool)
    if tensor.dtype in ("int32", "int64") or ("uint" in tensor.dtype and not tensor.quantized):
        return np.asarray(random.integers(0, 2, tensor.shape)).astype(tensor.dtype)
    values = np.asarray(random.standard_normal(tensor.shape))
    if smooth:
        for axis in range(1, max(values.ndim - 1, min(values.ndim, 2))):
            values = np.cumsum(values, axis=axis)
    if tensor.dtype not in INTEGERS:
        return values.astype(tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    middle, reach = (limits.max + limits.min + 1) / 2, (limits.max - limits.min) / 2
    if smooth:
        values = values / max(float(np.abs(values).max(initial=0)), 1e-9) * reach
    else:
        values = random.uniform(-reach, reach, tensor.shape)
    found: Array = np.clip(np.round(values + middle), limits.min, limits.max).astype(tensor.dtype)
    return found
