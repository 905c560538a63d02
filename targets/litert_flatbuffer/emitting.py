"""The TensorFlow Lite graph in the making: operators, constants, and what many of them are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.writing import (
    Dim,
    Operator,
    Quantization,
    Tensor,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Shape = tuple[Dim, ...]
Permutation = tuple[int, ...]

# the activation that a TensorFlow Lite operator can apply to its result by itself
FUSED = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
FUSES = frozenset(
    [
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
    ]
)


# Kernels take integers of 8 and 16 bits as quantised, and some end the process where they are not;
# these only move them. Wider integers and floats are numbers to all.
NARROW = frozenset({"int8", "uint8", "int16", "uint16", "uint32"})
MOVES = frozenset(
    [
        "CAST",
        "RESHAPE",
        "TRANSPOSE",
        "SLICE",
        "STRIDED_SLICE",
        "GATHER",
        "GATHER_ND",
        "SPLIT",
        "SPLIT_V",
        "EXPAND_DIMS",
        "SQUEEZE",
        "SHAPE",
        "TILE",
        "BROADCAST_TO",
        "SELECT_V2",
        "EQUAL",
        "NOT_EQUAL",
        "PAD",
        "FILL",
    ]
)


class NeedsSizeError(UnsupportedError):
    """An operator must know a size that the model leaves open."""


class Emitter:
    """Writes operators; a tensor is what an operator gives, or a constant."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.node = ""
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}
        self._count = 0

    def name(self, stem: str) -> str:
        """Return a name that no other tensor has."""
        self._count += 1
        return f"{stem};{self._count}"

    def constant(
        self, value: Any, dtype: str | None = None, quantization: Quantization | None = None
    ) -> Tensor:
        """Return a constant tensor; small equal ones are one."""
        import numpy as np

        array = np.asarray(value, dtype)
        if array.nbytes > 1024 or quantization is not None:
            return Tensor(self.name("weights"), array.shape, array.dtype.name, array, quantization)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = Tensor(
                self.name("constant"), array.shape, array.dtype.name, array
            )
        return self._constants[key]

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[Dim],
        dtype: str | None = None,
        table: str = "",
        quantization: Quantization | None = None,
        **options: Any,
    ) -> Tensor:
        """Write an operator with one result of `shape`; its dtype is the first input's by default."""
        first = next(each for each in inputs if each is not None)
        result = Tensor(
            self.name(self.node or kind),
            tuple(shape),
            dtype or first.dtype,
            quantization=quantization,
        )
        self.write(kind, inputs, [result], table, **options)
        return result

    def write(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        table: str = "",
        **options: Any,
    ) -> None:
        """Write an operator with the results `outputs`."""
        for tensor in inputs:
            if tensor is None:
                continue
            tensor.readers += 1
            if 0 in tensor.shape and tensor.data is None:
                raise UnsupportedError(f"{kind} of a tensor without elements")
            if tensor.dtype in NARROW and tensor.quantization is None and kind not in MOVES:
                raise UnsupportedError(f"{kind} of {tensor.dtype} numbers that are not quantised")
        operator = Operator(kind, list(inputs), list(outputs), table, options, self.node)
        self.operators.append(operator)

    def producer(self, tensor: Tensor) -> Operator | None:
        """Return the operator that made `tensor`, looked for among the last few."""
        for operator in reversed(self.operators[-8:]):
            if any(each is tensor for each in operator.outputs):
                return operator
        return None

    def fused(self, tensor: Tensor, activation: str) -> bool:
        """Let the operator that made `tensor` apply `activation` too; return whether it can."""
        operator = self.producer(tensor)
        if operator is None or operator.kind not in FUSES or tensor.dtype != "float32":
            return False
        if tensor.readers or tensor.holders != 1:
            return False
        if operator.options.get("fusedActivationFunction", 0):
            return False
        operator.options["fusedActivationFunction"] = FUSED[activation]
        return True

    # what many operators are made of

    def binary(self, kind: str, a: Tensor, b: Tensor, dtype: str | None = None) -> Tensor:
        """Write an operator of two tensors that broadcasts as numpy does."""
        shape = broadcast(a.shape, b.shape)
        if len(shape) > 4 and a.shape != b.shape:
            return self._collapsed(kind, [a, b], shape, dtype)
        return self.add(kind, [a, b], shape, dtype, TABLES.get(kind, ""))

    def select(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Write `a` where `condition` holds, else `b`; the three broadcast."""
        shape = broadcast(broadcast(condition.shape, a.shape), b.shape)
        if len(shape) > 4 and not condition.shape == a.shape == b.shape:
            return self._collapsed("SELECT_V2", [condition, a, b], shape, a.dtype)
        return self.add("SELECT_V2", [condition, a, b], shape, a.dtype, "SelectV2Options")

    def unary(self, kind: str, a: Tensor, **options: Any) -> Tensor:
        """Write an operator that works on each element."""
        table = TABLES.get(kind, "")
        return self.add(kind, [a], a.shape, None, table, **options)

    def scalar(self, value: float, like: Tensor) -> Tensor:
        """Return the constant `value` in the dtype of `like`."""
        return self.constant(value, like.dtype)

    def reshape(self, a: Tensor, shape: Sequence[Dim], sizes: Tensor | None = None) -> Tensor:
        """Write a RESHAPE; `sizes` are its sizes at run time where more than one is open."""
        shape = tuple(shape)
        if shape == a.shape:
            return a
        if a.data is not None and a.quantization is None and all(isinstance(s, int) for s in shape):
            return self.constant(a.data.reshape([int(s) for s in shape]))
        open_sizes = [size for size in shape if not isinstance(size, int)]
        if sizes is None:
            if len(open_sizes) > 1 or (open_sizes and 0 in shape):
                raise NeedsSizeError(f"sizes {', '.join(map(str, open_sizes))} are open")
            numbers = [size if isinstance(size, int) else -1 for size in shape]
            sizes = self.constant(numbers, "int32")
            return self.add(
                "RESHAPE",
                [a, sizes],
                shape,
                None,
                "ReshapeOptions",
                a.quantization,
                newShape=numbers,
            )
        return self.add("RESHAPE", [a, sizes], shape, None, "", a.quantization)

    def transpose(self, a: Tensor, permutation: Permutation) -> Tensor:
        """Write a TRANSPOSE, or less where less will do."""
        if permutation == tuple(range(len(permutation))):
            return a
        shape = tuple(a.shape[axis] for axis in permutation)
        if a.data is not None and a.quantization is None:
            return self.constant(a.data.transpose(permutation))
        moved = [axis for axis in permutation if a.shape[axis] != 1]
        if moved == sorted(moved) and sum(not isinstance(s, int) for s in shape) <= 1:
            return self.reshape(a, shape)
        order = self.constant(permutation, "int32")
        return self.add("TRANSPOSE", [a, order], shape, None, "TransposeOptions", a.quantization)

    def reduce(self, kind: str, a: Tensor, axes: Sequence[int], *, keep: bool) -> Tensor:
        """Write a reduction over `axes`."""
        if not axes:
            return a
        gone = set(axes)
        shape = [1 if at in gone else size for at, size in enumerate(a.shape)]
        if not keep:
            shape = [size for at, size in enumerate(a.shape) if at not in gone]
        where = self.constant(sorted(gone), "int32")
        return self.add(kind, [a, where], shape, None, "ReducerOptions", keepDims=keep)

    def cast(self, a: Tensor, dtype: str) -> Tensor:
        """Write a CAST where `a` has another dtype."""
        if a.dtype == dtype:
            return a
        if a.data is not None:
            return self.constant(a.data.astype(dtype))
        return self.add("CAST", [a], a.shape, dtype, "CastOptions", **self._cast(a.dtype, dtype))

    def copy(self, a: Tensor) -> Tensor:
        """Write a copy: an output must be a tensor of its own."""
        return self.add("CAST", [a], a.shape, None, "CastOptions", **self._cast(a.dtype, a.dtype))

    @staticmethod
    def _cast(source: str, goal: str) -> dict[str, int]:
        from ai_edge_litert.schema_py_generated import TensorType
        from deploykit._plugins.targets.litert_flatbuffer.writing import DTYPES

        return {
            "inDataType": getattr(TensorType, DTYPES[source]),
            "outDataType": getattr(TensorType, DTYPES[goal]),
        }

    def slice(self, a: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
        """Write a SLICE of known place; a size of -1 reaches to the end."""
        shape = [
            wanted if wanted >= 0 else (own if isinstance(own, str) else own - start)
            for own, start, wanted in zip(a.shape, begin, size, strict=True)
        ]
        if tuple(shape) == a.shape and not any(begin):
            return a
        places = [self.constant(list(begin), "int32"), self.constant(list(size), "int32")]
        return self.add("SLICE", [a, *places], shape, None, "SliceOptions", a.quantization)

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Write a CONCATENATION."""
        shape = list(parts[0].shape)
        shape[axis] = total([part.shape[axis] for part in parts])
        return self.add(
            "CONCATENATION",
            parts,
            shape,
            None,
            "ConcatenationOptions",
            parts[0].quantization,
            axis=axis,
        )

    def _collapsed(
        self, kind: str, tensors: Sequence[Tensor], shape: Shape, dtype: str | None
    ) -> Tensor:
        """Write a broadcast of many axes with neighbours joined: kernels know no more than four."""
        full = [(1,) * (len(shape) - each.rank) + each.shape for each in tensors]
        groups: list[list[int]] = []
        kinds = [tuple(each[at] == 1 for each in full) for at in range(len(shape))]
        for at in range(len(shape)):
            if all(kinds[at]):
                continue
            if groups and kinds[groups[-1][-1]] == kinds[at]:
                groups[-1].append(at)
            else:
                groups.append([at])
        if len(groups) > 4 or any(isinstance(size, str) for each in full for size in each):
            raise NeedsSizeError(f"a broadcast to {len(shape)} axes")
        joined = [
            self.reshape(each, [math.prod(int(sizes[at]) for at in group) for group in groups])
            for each, sizes in zip(tensors, full, strict=True)
        ]
        made = (
            self.select(joined[0], joined[1], joined[2])
            if kind == "SELECT_V2"
            else self.binary(kind, joined[0], joined[1], dtype)
        )
        return self.reshape(made, shape)


TABLES = {
    "ABS": "AbsOptions",
    "ADD": "AddOptions",
    "COS": "CosOptions",
    "DIV": "DivOptions",
    "EQUAL": "EqualOptions",
    "EXP": "ExpOptions",
    "FLOOR_MOD": "FloorModOptions",
    "GELU": "GeluOptions",
    "GREATER": "GreaterOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "HARD_SWISH": "HardSwishOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "LESS": "LessOptions",
    "LESS_EQUAL": "LessEqualOptions",
    "LOGICAL_AND": "LogicalAndOptions",
    "LOGICAL_NOT": "LogicalNotOptions",
    "LOGICAL_OR": "LogicalOrOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MUL": "MulOptions",
    "NEG": "NegOptions",
    "NOT_EQUAL": "NotEqualOptions",
    "POW": "PowOptions",
    "SIGN": "SignOptions",
    "SQUARE": "SquareOptions",
    "SQUARED_DIFFERENCE": "SquaredDifferenceOptions",
    "SUB": "SubOptions",
}


def broadcast(a: Shape, b: Shape) -> Shape:
    """Return the shape of two shapes together, as numpy has it."""
    rank = max(len(a), len(b))
    left = (1,) * (rank - len(a)) + tuple(a)
    right = (1,) * (rank - len(b)) + tuple(b)
    made: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        if x == 1 or x == y:
            made.append(y)
        elif y == 1 or isinstance(y, str):
            made.append(x)
        elif isinstance(x, str):
            made.append(y)
        else:
            raise UnsupportedError(f"shapes {list(a)} and {list(b)} do not broadcast")
    return tuple(made)


def total(sizes: Sequence[Dim]) -> Dim:
    """Return the sum of sizes, a name where one is open."""
    if all(isinstance(size, int) for size in sizes):
        return sum(int(size) for size in sizes)
    return "+".join(map(str, sizes))
