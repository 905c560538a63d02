"""TensorFlow Lite models: a FlatBuffer with the identifier `TFL3`.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from deploykit.formats.content import Content, damaged
from deploykit.formats.flatbuffer import Buffer, Table
from deploykit.formats.reading import (
    MOST_DIMENSIONS,
    UNKNOWN_DTYPE,
    FormatError,
    Reading,
    counted,
    elements,
)
from deploykit.formats.tflite_operators import BUILTIN
from deploykit.protocol import Dimension, Signature, TensorSpec

CUSTOM = BUILTIN.index("CUSTOM")
DTYPES = [
    "float32",
    "float16",
    "int32",
    "uint8",
    "int64",
    "string",
    "bool",
    "int16",
    "complex64",
    "int8",
    "float64",
    "complex128",
    "uint64",
    "resource",
    "variant",
    "uint32",
    "uint16",
    "int4",
    "bfloat16",
    "int2",
    "uint4",
]
NOT_PARAMETERS = frozenset({"int64", "string", "bool", "resource", "variant"})
Item = TypeVar("Item")
OUTSIDE = 1
"""A buffer's offset up to this means: the data are inside the FlatBuffer."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    buffer: int
    quantized: bool
    variable: bool

    def spec(self) -> TensorSpec:
        sizes: tuple[Dimension, ...] = self.shape
        if self.signature:
            sizes = tuple(None if size < 0 else size for size in self.signature)
        return TensorSpec(name=self.name, dtype=self.dtype, shape=sizes)


def recognises(content: Content) -> bool:
    """Whether the file has the identifier of a TensorFlow Lite model."""
    return bytes(content.view[4:8]) == b"TFL3"


def read(content: Content) -> Reading:
    """Read a TensorFlow Lite model. Raises SourceError where it is damaged."""
    try:
        return _read(content)
    except FormatError as error:
        raise damaged(content.path, "TensorFlow Lite model", error) from error


def _read(content: Content) -> Reading:
    model = Buffer(content.view).root()
    codes = [_operator_name(code) for code in model.tables(1)]
    graphs = [(graph, [_tensor(one) for one in graph.tables(0)]) for graph in model.tables(2)]
    if not graphs:
        raise FormatError("it has no graph")
    buffers = [_buffer_size(buffer, content.size) for buffer in model.tables(4)]
    operators: list[str] = []
    for graph, _ in graphs:
        for operator in graph.tables(3):
            operators.append(_pick(codes, operator.number(0, 4), "operator code"))
    main, tensors = graphs[0]
    signature = Signature(
        inputs=tuple(_pick(tensors, at, "tensor").spec() for at in main.numbers(1)),
        outputs=tuple(_pick(tensors, at, "tensor").spec() for at in main.numbers(2)),
    )
    parameters = 0
    seen: set[int] = set()
    for _, members in graphs:
        for tensor in members:
            has_data = _pick(buffers, tensor.buffer, "buffer") > 0 and tensor.buffer not in seen
            if has_data and not tensor.variable and tensor.dtype not in NOT_PARAMETERS:
                seen.add(tensor.buffer)
                parameters += elements(tensor.shape)
    details = {"schema": f"version {model.number(0, 4)}"}
    if description := model.text(3):
        details["description"] = description
    if len(graphs) > 1:
        details["graphs"] = str(len(graphs))
    if keys := [one.text(2) for one in model.tables(7)]:
        details["signatures"] = ", ".join(keys)
    if any(tensor.quantized for tensor in tensors):
        details["quantized"] = "yes"
    return Reading(
        format="tensorflow/tflite",
        location=content.path,
        files=(content.path,),
        signature=signature,
        operators=counted(operators),
        parameters=parameters,
        details=details,
    )


def _pick(items: Sequence[Item], at: int, what: str) -> Item:
    if not 0 <= at < len(items):
        raise FormatError(f"{what} {at} of {len(items)} is used")
    return items[at]


def _operator_name(code: Table) -> str:
    # the first field is one byte, and full: newer operators are in the fourth
    number = max(code.number(0, 1), code.number(3, 4))
    if number == CUSTOM:
        return f"custom.{code.text(1)}"
    return BUILTIN[number] if 0 <= number < len(BUILTIN) else f"builtin.{number}"


def _tensor(table: Table) -> _Tensor:
    shape = table.numbers(0)
    signature = table.numbers(7)
    if max(len(shape), len(signature)) > MOST_DIMENSIONS:
        raise FormatError(f"a tensor of more than {MOST_DIMENSIONS} dimensions")
    code = table.number(1, 1)
    quantization = table.table(4)
    return _Tensor(
        name=table.text(3),
        dtype=DTYPES[code] if 0 <= code < len(DTYPES) else UNKNOWN_DTYPE,
        shape=tuple(shape),
        signature=tuple(signature),
        buffer=table.number(2, 4),
        quantized=quantization is not None and quantization.vector(2, 4)[1] > 0,
        variable=bool(table.number(5, 1)),
    )


def _buffer_size(buffer: Table, end: int) -> int:
    """Return the bytes of a buffer, inside the FlatBuffer or after it (models above 2 GB)."""
    _, length = buffer.vector(0, 1)
    offset, size = buffer.number(1, 8), buffer.number(2, 8)
    if offset > OUTSIDE:
        if size < 0 or offset + size > end:
            raise FormatError(f"a buffer of {size} bytes at byte {offset} reaches beyond the end")
        return size
    return length
