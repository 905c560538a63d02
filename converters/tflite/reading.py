"""A TensorFlow Lite model read without TensorFlow: tensors, their contents, operators, graphs.

Schema: `tensorflow/compiler/mlir/lite/schema/schema.fbs` of TensorFlow, versions 3 and 3a to 3c.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deploykit._plugins.converters.tflite.options import options
from deploykit._plugins.converters.tflite.sparsity import dense

from deploykit.errors import SourceError, UnsupportedError
from deploykit.formats.content import open_content
from deploykit.formats.flatbuffer import Buffer, Table
from deploykit.formats.reading import MOST_DIMENSIONS, FormatError
from deploykit.formats.tflite import DTYPES, OUTSIDE
from deploykit.formats.tflite_operators import BUILTIN

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CUSTOM = BUILTIN.index("CUSTOM")
MOST_ELEMENTS = 1 << 32
PACKED = {"int4": 4, "uint4": 4, "int2": 2}
NUMERIC = frozenset(DTYPES) - {"string", "resource", "variant", *PACKED}
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """real = scale * (stored - zero_point), one for all or one for each place on axis `axis`."""

    scale: Array
    zero_point: Array
    axis: int

    @property
    def per_channel(self) -> bool:
        """Whether there is more than one scale."""
        return len(self.scale) > 1


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of a graph; `constant` is its content where the file has it.

    `signature` is its shape with -1 for dynamic axes. `kind` is the dtype as the file has it: int4
    is unpacked to int8.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    constant: Array | None
    quantization: Quantization | None
    variable: bool

    @property
    def quantized(self) -> bool:
        """Whether its numbers stand for real ones: int8, uint8 or int16 with a scale."""
        return self.quantization is not None and self.dtype in ("int8", "uint8", "int16", "int32")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator; an input of -1 is left out. `label` names it in messages and in the graph."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]
    intermediates: tuple[int, ...]
    custom: bytes
    label: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A subgraph."""

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model; its first graph is the one that runs."""

    path: Path
    graphs: tuple[Graph, ...]


def read(path: Path) -> Model:
    """Read the model at `path`.

    Raises SourceError where it is damaged, UnsupportedError for a tensor of a kind that ONNX lacks.
    """
    try:
        content = open_content(path)
        if bytes(content.view[4:8]) != b"TFL3":
            raise FormatError("it lacks the mark TFL3")
        root = Buffer(content.view).root()
        codes = [_kind(code) for code in root.tables(1)]
        places = [_place(one, content.size) for one in root.tables(4)]
        held = [content.view[start : start + size] for start, size in places]
        graphs = tuple(_graph(one, codes, held) for one in root.tables(2))
        if not graphs:
            raise FormatError("it has no graph")
        if not graphs[0].inputs or not graphs[0].outputs:
            raise FormatError("its graph has no inputs or no outputs")
    except (ValueError, LookupError, struct.error, OverflowError) as error:
        raise SourceError(
            f"`{path}` is a damaged TensorFlow Lite model: {error}"[:400],
            hint="copy or download it again",
        ) from error
    return Model(path=path, graphs=graphs)


def _kind(code: Table) -> str:
    # the first field is one byte, and full: newer operators are in the fourth
    number = max(code.number(0, 1), code.number(3, 4))
    if number == CUSTOM:
        return f"custom.{code.text(1)}"
    return BUILTIN[number] if 0 <= number < len(BUILTIN) else f"builtin.{number}"


def _place(buffer: Table, end: int) -> tuple[int, int]:
    """Return where a buffer's bytes are: in the FlatBuffer, or after it in models above 2 GB."""
    offset, size = buffer.number(1, 8), buffer.number(2, 8)
    if offset > OUTSIDE:
        if size < 0 or offset + size > end:
            raise FormatError(f"a buffer of {size} bytes at byte {offset} reaches beyond the end")
        return offset, size
    return buffer.vector(0, 1)


def _graph(table: Table, codes: Sequence[str], held: Sequence[memoryview]) -> Graph:
    tensors = tuple(_tensor(at, one, held) for at, one in enumerate(table.tables(0)))

    def known(places: list[int], what: str, least: int = 0) -> tuple[int, ...]:
        for at in places:
            if not least <= at < len(tensors):
                raise FormatError(f"{what} {at} of {len(tensors)} tensors")
        return tuple(places)

    operators = []
    for one in table.tables(3):
        kind = _pick(codes, one.number(0, 4), "operator code")
        outputs = known(one.numbers(2), "an operator makes")
        start, size = one.vector(5, 1)
        operators.append(
            Operator(
                kind=kind,
                inputs=known(one.numbers(1), "an operator reads", -1),
                outputs=outputs,
                options=options(kind, one.table(12 if kind.startswith("STABLEHLO") else 4)),
                intermediates=known(one.numbers(8), "an operator holds", -1),
                custom=bytes(one.buffer.view[start : start + size]),
                label=tensors[outputs[0]].name if outputs else kind,
            )
        )
    return Graph(
        tensors=tensors,
        inputs=known(table.numbers(1), "the graph reads"),
        outputs=known(table.numbers(2), "the graph gives"),
        operators=tuple(operators),
    )


def _pick(items: Sequence[Item], at: int, what: str) -> Item:
    if not 0 <= at < len(items):
        raise FormatError(f"{what} {at} of {len(items)} is used")
    return items[at]


def _tensor(index: int, table: Table, held: Sequence[memoryview]) -> Tensor:
    shape, signature = table.numbers(0), table.numbers(7)
    if max(len(shape), len(signature)) > MOST_DIMENSIONS:
        raise FormatError(f"a tensor of more than {MOST_DIMENSIONS} dimensions")
    dtype = _pick(DTYPES, table.number(1, 1), "dtype")
    name = table.text(3) or f"tensor_{index}"
    content = _pick(held, table.number(2, 4), "buffer")
    if table.number(10, 4):
        raise UnsupportedError(
            f"the tensor `{name}` lies in a file of its own beside the model",
            hint="convert the model that it was made from",
        )
    negative = [size for size in shape if size < 0]
    if negative and len(content):
        raise FormatError(f"the tensor `{name}` has a size of {negative[0]}")
    constant = None
    if len(content) and not table.number(5, 1):
        constant = _content(name, dtype, shape, content, table.table(6))
    return Tensor(
        index=index,
        name=name,
        dtype="int8" if dtype in ("int4", "int2") else "uint8" if dtype == "uint4" else dtype,
        shape=tuple(shape),
        signature=tuple(signature or shape),
        constant=constant,
        quantization=_quantization(name, dtype, table.table(4), shape),
        variable=bool(table.number(5, 1)),
    )


def _content(
    name: str, dtype: str, shape: Sequence[int], content: memoryview, sparsity: Table | None
) -> Array | None:
    import numpy as np

    count = math.prod(shape)
    if count > MOST_ELEMENTS:
        raise FormatError(f"the tensor `{name}` has {count} elements")
    if dtype in ("resource", "variant", "string"):
        return None
    if dtype in PACKED:
        if sparsity is not None:
            raise UnsupportedError(f"the tensor `{name}` is sparse and of {PACKED[dtype]} bits")
        return _unpacked(name, dtype, shape, content)
    if dtype == "bfloat16":
        wide = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        values: Array = wide.view(np.float32)
    else:
        width = np.dtype(dtype).itemsize
        if len(content) % width:
            raise FormatError(f"the tensor `{name}` has {len(content)} bytes of {dtype}")
        values = np.frombuffer(content, np.dtype(dtype).newbyteorder("<"))
    if sparsity is not None:
        found: Array | None = dense(name, values, shape, sparsity)
        return found
    if len(values) != count:
        raise FormatError(f"the tensor `{name}` has {len(values)} elements, not {count}")
    return values.reshape(shape)


def _unpacked(name: str, dtype: str, shape: Sequence[int], content: memoryview) -> Array:
    """Return numbers of two or four bits, the first in the lowest bits of a byte, as bytes."""
    import numpy as np

    bits, count = PACKED[dtype], math.prod(shape)
    if len(content) != -(-count * bits // 8):
        raise FormatError(f"the tensor `{name}` has {len(content)} bytes for {count} of {dtype}")
    whole = np.frombuffer(content, np.uint8)
    parts = [(whole >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    values = np.stack(parts, axis=-1).reshape(-1)[:count].reshape(shape)
    if dtype.startswith("u"):
        return values
    signed = values.astype(np.int8)
    return np.where(signed >= 1 << (bits - 1), signed - (1 << bits), signed).astype(np.int8)


def _quantization(
    name: str, dtype: str, table: Table | None, shape: Sequence[int]
) -> Quantization | None:
    import numpy as np

    if table is None:
        return None
    at, count = table.vector(2, 4)
    zeros, zero_count = table.vector(3, 8)
    if not count:
        return None
    if table.number(4, 1):
        raise UnsupportedError(f"the tensor `{name}` is quantised in a way of its own")
    view = table.buffer.view
    table.buffer.spend(4 * count + 8 * zero_count)
    scale = np.frombuffer(view[at : at + 4 * count], "<f4").copy()
    zero = np.frombuffer(view[zeros : zeros + 8 * zero_count], "<i8").copy()
    if not zero_count:
        zero = np.zeros(count, np.int64)
    elif zero_count == 1:
        zero = np.repeat(zero, count)
    axis = table.number(6, 4)
    if not np.isfinite(scale).all():
        if dtype in ("int32", "int64"):
            return None  # of a bias: its scale is that of the product, and converters write any
        raise FormatError(f"the tensor `{name}` has a scale that is no number")
    if (scale < 0).any() or len(zero) != count:
        raise FormatError(f"the tensor `{name}` has an odd quantisation")
    if count > 1 and not (0 <= axis < len(shape) and shape[axis] == count):
        raise FormatError(f"the tensor `{name}` has {count} scales on axis {axis} of {list(shape)}")
    if not (scale > 0).all():
        if count == 1:
            return None  # converters write a scale of zero for "none"
        scale = np.where(scale > 0, scale, np.float32(1))  # of channels that are all zero
    if np.abs(zero).max(initial=0) > 1 << 31:
        raise FormatError(f"the tensor `{name}` has a zero point of {zero.max()}")
    return Quantization(scale=scale, zero_point=zero, axis=axis)
