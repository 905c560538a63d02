"""Masked steps of a sequence: where masks come from, which layers pass them on, how ONNX skips steps.

A mask is a bool tensor [batch, time], true where a step counts. Keras' recurrent layers leave their
state alone in a masked step and repeat their last output there (zeros before the first step that
counts). ONNX's operators only know lengths, so the steps that count are gathered to the front, run
with their number as the length, and the outputs are spread out again.
"""

from __future__ import annotations

from dataclasses import replace

from deploykit._plugins.converters.keras.emission import Context, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

KEEPS = (
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Activation",
    "Dense",
    "TimeDistributedDense",
    "BatchNormalization",
    "LayerNormalization",
    "LeakyReLU",
    "ELU",
    "PReLU",
    "ReLU",
    "ThresholdedReLU",
    "TimeDistributed",
    *("Identity", "UnitNormalization", "GroupNormalization"),
)
"""Layers that hand the mask of their input on (`supports_masking` in Keras)."""

KEEPS_SINCE_3 = ("Normalization", "Rescaling")

JOINS = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
"""Layers whose output counts where all of their inputs do, those without a mask left out.

Since Keras 3.4 it counts where any of them does, everywhere if one has no mask (`Merge.compute_mask`).
"""

READS = ("LSTM", "GRU", "SimpleRNN", "Bidirectional", "GlobalAveragePooling1D")
"""Layers that compute something else where there is a mask."""

UNSUPPORTED = ("Softmax", "Network")
"""Layers that do something with a mask which is not supported here."""


def follow(context: Context, layer: Layer, inputs: list[Value], output: Value) -> Value:
    """Return `output` of `layer` with the mask that it carries on.

    Raises UnsupportedError where the layer would do something of its own with a mask.
    """
    if output.mask:
        return output
    masks = [one.mask for one in inputs if one.mask]
    if not masks:
        return output
    if layer.kind in UNSUPPORTED:
        raise UnsupportedError(
            f"layer `{layer.name}` ({layer.kind}) reads masked steps, which is not supported",
            operators=(f"{layer.kind}(mask)",),
            hint="where no input is padded, save the model with `mask_zero=False`",
        )
    if layer.kind in JOINS:
        is_any = context.release >= (3, 4)
        if is_any and len(masks) < len(inputs):
            return output
        joined = masks[0]
        for other in masks[1:]:
            joined = context.build.add("Or" if is_any else "And", joined, other)
        return replace(output, mask=joined)
    kept = (
        layer.kind in KEEPS
        or (layer.kind in KEEPS_SINCE_3 and context.version >= 3)
        or (layer.kind in READS and output.rank == 3)
    )
    return replace(output, mask=masks[0]) if kept else output


def masked(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    """Emit a Masking layer: steps of nothing but `mask_value` become zeros and do not count."""
    build, x = context.build, inputs[0]
    value = build.constant(float(layer.config.get("mask_value", 0.0)))
    same = build.add("Cast", build.add("Equal", x.name, value), to=6)
    every = build.add("ReduceMin", same, axes=[-1], keepdims=1)
    counts = build.add("Equal", every, build.constant(0, dtype="int32"))
    name = build.add("Where", counts, x.name, build.constant(0.0))
    mask = build.add("Squeeze", counts, build.shape_constant([-1]))
    return Value(name, x.shape, mask)


class Steps:
    """The steps of a sequence that count, and where each of them was."""

    def __init__(self, context: Context, mask: str) -> None:
        build = context.build
        self._build = build
        zero, one = build.constant(0, dtype="int64"), build.constant(1, dtype="int64")
        self._counts = build.add("Transpose", mask, perm=[1, 0])  # [time, batch]
        numbers = build.add("Cast", self._counts, to=7)
        time = build.add("Shape", numbers, start=0, end=1)
        self._time = build.add("Squeeze", time, build.shape_constant([0]))
        place = build.add("Range", zero, self._time, one)
        place = build.add("Unsqueeze", place, build.shape_constant([1]))
        # those that do not count are sorted behind, and no two keys are the same
        behind = build.add("Mul", build.add("Sub", one, numbers), self._time)
        key = build.add("Add", place, behind)
        _, self._order = build.add_many("TopK", key, time, count=2, axis=0, largest=0, sorted=1)
        total = build.add("ReduceSum", numbers, build.shape_constant([0]), keepdims=0)
        self._total = total
        self._before = build.add("CumSum", numbers, zero, exclusive=1)
        self._until = build.add("CumSum", numbers, zero)
        self.lengths = build.add("Cast", total, to=6)

    def to_front(self, x: str) -> str:
        """Return `x` [time, batch, features] with the steps that count first, in their order."""
        return self._gather(x, self._order)

    def spread(self, x: str, *, reverse: bool) -> str:
        """Return outputs [time, batch, units] of the first steps at the places of the steps."""
        build = self._build
        one, zero = build.constant(1, dtype="int64"), build.constant(0, dtype="int64")
        if reverse:
            # running backwards, the last output before a masked step is that of a later one
            index = self._before
            known = build.add("Less", index, self._total)
        else:
            index = build.add("Sub", self._until, one)
            known = build.add("GreaterOrEqual", index, zero)
        last = build.add("Sub", self._time, one)
        index = build.add("Max", build.add("Min", index, last), zero)
        known = build.add("Unsqueeze", known, build.shape_constant([2]))
        return build.add("Where", known, self._gather(x, index), build.constant(0.0))

    def only(self, x: str) -> str:
        """Return `x` [time, batch, units] with zeros in the steps that do not count."""
        counts = self._build.add("Unsqueeze", self._counts, self._build.shape_constant([2]))
        return self._build.add("Where", counts, x, self._build.constant(0.0))

    def _gather(self, x: str, index: str) -> str:
        build = self._build
        index = build.add("Unsqueeze", index, build.shape_constant([2]))
        index = build.add("Expand", index, build.add("Shape", x))
        return build.add("GatherElements", x, index, axis=0)


def average(context: Context, x: Value) -> Value:
    """Return the mean of `x` [batch, time, features] over the steps that count."""
    build = context.build
    counts = build.add("Cast", build.add("Unsqueeze", x.mask, build.shape_constant([2])), to=1)
    axis = build.shape_constant([1])
    total = build.add("ReduceSum", build.add("Mul", x.name, counts), axis, keepdims=0)
    return Value(
        build.add("Div", total, build.add("ReduceSum", counts, axis, keepdims=0)),
        (x.shape[0], x.shape[2]),
    )
