"""A TensorFlow Lite graph on its way to ONNX: values in either layout, stored or real, batch or not.

A quantised tensor exists twice: *stored* (its integers) and *real* (what they stand for). Operators
compute on real ones, between DequantizeLinear and QuantizeLinear, which is the form that runtimes
turn into integer kernels. Pictures exist in TensorFlow's order (channels last) and in ONNX's
(*first*); each form is made when something asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tflite.reading import Operator, Tensor

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

FIRST, LAST = [0, 3, 1, 2], [0, 2, 3, 1]
LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}
CLAMPS = {"RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


MOST_ELEMENTS = 1 << 30
"""Of a tensor between operators; more are a sign of damage."""


class FixedBatchError(Exception):
    """The batch cannot grow: the message says which operator mixes or fixes it."""


@dataclass(kw_only=True)
class Value:
    """A tensor in the making.

    `shape` is for a batch of one. Axis `batch`, of that many places per member of the batch, grows
    with the batch, members apart from each other. `constant` is the stored content where it is
    known; `doubled` the same for a batch of two, where they differ: sizes that are computed with.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    batch: int | None = None
    constant: Array | None = None
    doubled: Array | None = None
    stored: str = ""
    first: str = ""
    real: str = ""
    real_first: str = ""

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it stands for real numbers."""
        return self.tensor.quantized or self.tensor.dtype in ("float32", "float16", "float64")

    @property
    def has_first(self) -> bool:
        """Whether the channels-first form costs no transposition."""
        return bool(self.first or self.real_first)


class Emitter:
    """Makes nodes for the operators of one graph."""

    def __init__(self, build: GraphBuilder) -> None:
        self.build = build
        self.op: Operator | None = None
        self.notes: dict[str, None] = {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output."""
        return self.build.add(kind, *inputs, **attributes)

    def number(self, value: Any, dtype: str = "float32") -> str:
        """Return a constant."""
        return self.build.constant(value, dtype=dtype)

    def sizes(self, values: Sequence[int]) -> str:
        """Return a constant of int64."""
        return self.build.shape_constant([int(one) for one in values])

    def refuse(self, why: str, hint: str = "") -> UnsupportedError:
        """Return the error that names the operator at hand."""
        kind, label = (self.op.kind, self.op.label) if self.op else ("graph", "")
        return UnsupportedError(
            f"no ONNX form for {kind} (makes `{label}`): {why}",
            operators=(kind,),
            hint=hint or "convert the model that it was made from",
        )

    def fixed(self, why: str) -> FixedBatchError:
        """Return the error that says why the batch cannot grow."""
        kind, label = (self.op.kind, self.op.label) if self.op else ("graph", "")
        return FixedBatchError(f"{kind} (makes `{label}`) {why}")

    def forgets(self) -> None:
        """Note that the operator's state is zero at every run."""
        self.notes[
            "every run begins with a state of zeros, as the first one does; TensorFlow Lite keeps the "
            f"state of {self.op.kind if self.op else 'such operators'} between runs"
        ] = None

    # ---- forms of a value

    def _known(self, value: Value) -> Array:
        assert value.constant is not None
        if value.doubled is not None and not _repeats(value.doubled, value.constant):
            raise self.fixed("computes with the size of the batch")
        return value.constant

    def stored(self, value: Value) -> str:
        """Return the tensor as the file stores it."""
        if not value.stored:
            if value.constant is not None:
                value.stored = self.build.constant(self._known(value), value.tensor.name)
            elif value.first:
                value.stored = self.add("Transpose", value.first, perm=LAST)
            else:
                raise self.refuse(f"nothing makes its input `{value.tensor.name}`")
        return value.stored

    def stored_first(self, value: Value) -> str:
        """Return the tensor as it is stored, with channels first."""
        if not value.first:
            if value.constant is not None:
                value.first = self.build.constant(
                    self._known(value).transpose(FIRST), f"{value.tensor.name}/first"
                )
            else:
                value.first = self.add("Transpose", self.stored(value), perm=FIRST)
        return value.first

    def real(self, value: Value, *, first: bool = False) -> str:
        """Return the float32 numbers that a tensor stands for, with channels first where asked."""
        found = value.real_first if first else value.real
        if not found:
            stored = self.stored_first(value) if first else self.stored(value)
            if value.tensor.quantized:
                found = self.dequantized(stored, value.tensor, first=first)
            elif value.tensor.dtype == "float32":
                found = stored
            else:
                found = self.add("Cast", stored, to=1)
            if first:
                value.real_first = found
            else:
                value.real = found
        return found

    def dequantized(self, stored: str, tensor: Tensor, *, first: bool = False) -> str:
        """Return what the integers `stored` stand for."""
        import numpy as np

        about = tensor.quantization
        assert about is not None
        if tensor.dtype == "int16" or (about.zero_point.any() and tensor.dtype == "int32"):
            if about.per_channel:
                raise self.refuse(f"`{tensor.name}` has several scales")
            plain = self.add("Cast", stored, to=1)
            if about.zero_point.any():
                plain = self.add("Sub", plain, self.number(float(about.zero_point[0])))
            return self.add("Mul", plain, self.number(about.scale[0]))
        scale, zero = about.scale, about.zero_point.astype(tensor.dtype)
        axis = None
        if about.per_channel:
            axis = FIRST.index(about.axis) if first else about.axis
        else:
            scale, zero = scale[0], zero[0]
        return self.add(
            "DequantizeLinear",
            stored,
            self.build.constant(np.asarray(scale, np.float32)),
            self.build.constant(np.asarray(zero)),
            axis=axis,
        )

    def unfused(self, stored: str, tensor: Tensor, axis: int, rank: int) -> str:
        """Return what the integers `stored` of weights stand for, without DequantizeLinear.

        Runtimes turn DequantizeLinear before a product into integer kernels that round the
        activations in their own way, where TensorFlow Lite has one.
        """
        about = tensor.quantization
        assert about is not None
        scale, zero = about.scale, about.zero_point.astype("float32")
        shape = [1] * rank
        if about.per_channel:
            shape[axis] = -1
        plain = self.add("Cast", stored, to=1)
        if zero.any():
            plain = self.add("Sub", plain, self.build.constant(zero.reshape(shape)))
        return self.add("Mul", plain, self.build.constant(scale.reshape(shape)))

    def weight(self, value: Value) -> str:
        """Return the real numbers of weights that meet real activations."""
        about = value.tensor.quantization
        if value.tensor.quantized and about is not None:
            return self.unfused(self.stored(value), value.tensor, about.axis, value.rank)
        return self.real(value)

    def quantized(self, real: str, tensor: Tensor) -> str:
        """Return `real` as the integers of `tensor`."""
        import numpy as np

        about = tensor.quantization
        assert about is not None
        if about.per_channel:
            raise self.refuse(f"its output `{tensor.name}` has several scales")
        if tensor.dtype in ("int8", "uint8"):
            zero = np.asarray(about.zero_point[0], tensor.dtype)
            return self.add(
                "QuantizeLinear", real, self.number(about.scale[0]), self.build.constant(zero)
            )
        # int16 and int32: QuantizeLinear has them from opset 21 on, and without kernels
        plain = self.add("Round", self.add("Div", real, self.number(about.scale[0])))
        if about.zero_point.any():
            plain = self.add("Add", plain, self.number(float(about.zero_point[0])))
        if tensor.dtype == "int32":
            return self.add("Cast", plain, to=6)
        low, high = LIMITS[tensor.dtype]
        limited = self.add("Clip", plain, self.number(float(low)), self.number(float(high)))
        return self.add("Cast", limited, to=5)

    # ---- results

    def made(
        self,
        tensor: Tensor,
        name: str,
        *,
        batch: int | None,
        shape: Sequence[int],
        first: bool = False,
    ) -> Value:
        """Return the result `name`: real numbers where `tensor` stands for them, else stored ones.

        `shape` follows from the operator: files are often wrong about it.
        """
        if math.prod(shape) > MOST_ELEMENTS or min(shape, default=0) < 0:
            raise ValueError(f"{tensor.name} would be {list(shape)}")
        value = Value(tensor=tensor, shape=tuple(shape), batch=batch)
        if tensor.quantized:
            name = self.quantized(name, tensor)
        elif tensor.dtype == "float16":
            name = self.add("Cast", name, to=10)
        if first:
            value.first = name
        else:
            value.stored = name
        return value

    def moved(
        self, value: Value, tensor: Tensor, name: str, *, batch: int | None, shape: Sequence[int]
    ) -> Value:
        """Return `name`, which moved what `movable` gave, as the result `tensor`."""
        if value.tensor.quantized and same_scale(value.tensor, tensor):
            return Value(tensor=tensor, shape=tuple(shape), batch=batch, stored=name)
        return self.made(tensor, name, batch=batch, shape=shape)

    def movable(self, value: Value, tensor: Tensor) -> str:
        """Return what can be moved about: integers where `tensor` has the same scale, else real ones."""
        if value.is_float and not (value.tensor.quantized and same_scale(value.tensor, tensor)):
            return self.real(value)
        return self.stored(value)

    def activated(self, name: str, activation: str, tensor: Tensor) -> str:
        """Return `name` after an operator's fused activation; what saturation does is left to it."""
        if activation == "NONE":
            return name
        if activation == "TANH":
            return self.add("Tanh", name)
        if activation not in CLAMPS:
            raise self.refuse(f"its activation is {activation}")
        low, high = CLAMPS[activation]
        about = tensor.quantization
        if tensor.quantized and tensor.dtype in LIMITS and about is not None:
            least, most = LIMITS[tensor.dtype]
            zero, scale = int(about.zero_point[0]), float(about.scale[0])
            if zero + round(low / scale) <= least and (
                high is None or zero + round(high / scale) >= most
            ):
                return name
        if activation == "RELU":
            return self.add("Relu", name)
        return self.add("Clip", name, self.number(low), self.number(high))

    # ---- the batch

    def together(self, values: Sequence[Value], rank: int) -> int | None:
        """Return the batch axis of operands that are broadcast to `rank` axes.

        Raises FixedBatchError where one grows with the batch and another has a size of its own there.
        """
        axes = {one.batch - one.rank for one in values if one.batch is not None}
        if not axes:
            return None
        if len(axes) > 1:
            raise self.fixed("has the batch on different axes")
        (axis,) = axes
        sizes = {one.shape[axis] for one in values if one.batch is not None}
        others = {one.shape[axis] for one in values if one.batch is None and one.rank >= -axis}
        if len(sizes) > 1 or others - {1}:
            raise self.fixed("joins the batch with a fixed size")
        return rank + axis

    def apart(self, value: Value, axes: Sequence[int]) -> int | None:
        """Return the batch axis of `value`. Raises FixedBatchError where it is one of `axes`."""
        if value.batch is not None and value.batch in [axis % max(value.rank, 1) for axis in axes]:
            raise self.fixed("works along the batch")
        return value.batch

    def outermost(self, value: Value, shape: Sequence[int]) -> int | None:
        """Return the batch axis after a reshape to `shape` (as it is for a batch of one)."""
        if value.batch is None:
            return None
        if math.prod(value.shape[: value.batch]) != 1 or not shape:
            raise self.fixed("reshapes across the batch")
        return 0

    def reshaped(self, name: str, value: Value, shape: Sequence[int]) -> tuple[str, int | None]:
        """Return `name`, a form of `value`, in the shape that `shape` is for a batch of one."""
        batch = self.outermost(value, shape)
        target = list(shape)
        if batch is not None:
            target[0] = -1
        return self.add("Reshape", name, self.sizes(target)), batch


def _equal(a: Array, b: Array) -> bool:
    import numpy as np

    return a.shape == b.shape and bool(np.array_equal(a, b))


def _repeats(doubled: Array, once: Array) -> bool:
    """Whether the content for a batch of two is that for one, twice: zeros of the batch's size."""
    import numpy as np

    if doubled.ndim != once.ndim:
        return False
    grown = [at for at in range(once.ndim) if doubled.shape[at] != once.shape[at]]
    alike = not grown or (len(grown) == 1 and once.shape[grown[0]] == 1)
    return alike and bool((doubled == np.broadcast_to(once, doubled.shape)).all())


def same_scale(one: Tensor, other: Tensor) -> bool:
    """Whether the same integers of two tensors stand for the same numbers, one scale for all."""
    a, b = one.quantization, other.quantization
    if a is None or b is None or one.dtype != other.dtype or a.per_channel:
        return False
    return _equal(a.scale, b.scale) and _equal(a.zero_point, b.zero_point)
