"""The bytes of a TensorFlow Lite model: tensors and operators packed by LiteRT's own schema.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.versions import version_of

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Dim = int | str
"""A fixed size, or the name of a size that is known at run time only."""

DTYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "float64": "FLOAT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "bool": "BOOL",
}
ALIGNMENT = 16
LARGEST = (1 << 31) - (1 << 20)
"""A FlatBuffer's offsets have 31 bits; the graph itself needs some of it."""


@dataclass(frozen=True)
class Quantization:
    """real = scale * (stored - zero_point), one of each per channel along `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0


@dataclass(eq=False)
class Tensor:
    """A tensor of the model; one with `data` is a constant.

    `readers` counts the operators that take it so far, `holders` the ONNX values that it stands for.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str
    data: Array | None = None
    quantization: Quantization | None = None
    readers: int = 0
    holders: int = 0

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


@dataclass(eq=False)
class Operator:
    """One operator; `options` are fields of the schema's table of options, `node` its ONNX node."""

    kind: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    table: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    node: str = ""


def write(
    path: Path,
    operators: Sequence[Operator],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    *,
    description: str,
) -> None:
    """Write the model. `inputs` and `outputs` name the tensors as the signature shall.

    Raises UnsupportedError where the model is larger than the format can say.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tensors: dict[int, Tensor] = {}
    for tensor in (
        *inputs.values(),
        *(t for op in operators for t in (*op.inputs, *op.outputs) if t is not None),
        *outputs.values(),
    ):
        tensors.setdefault(id(tensor), tensor)
    number = {key: at for at, key in enumerate(tensors)}
    total = sum(t.data.nbytes for t in tensors.values() if t.data is not None)
    if total > LARGEST:
        raise UnsupportedError(
            f"target litert: the weights are {total / 2**30:.1f} GiB, a TensorFlow Lite model ends "
            "at 2 GiB",
            hint="set weights=float16, or use a smaller model",
        )
    buffers: list[Any] = [_buffer(schema, None)]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [_tensor(schema, each, buffers) for each in tensors.values()]
    graph.inputs = [number[id(each)] for each in inputs.values()]
    graph.outputs = [number[id(each)] for each in outputs.values()]
    codes: dict[tuple[str, int], int] = {}
    graph.operators = [_operator(schema, each, number, codes) for each in operators]
    model = schema.ModelT()
    model.version = 3
    model.description = description
    model.subgraphs = [graph]
    model.buffers = buffers
    model.operatorCodes = [_code(schema, *each) for each in codes]
    model.signatureDefs = [_signature(schema, inputs, outputs, number)]
    builder = flatbuffers.Builder(total + (1 << 16))
    builder.Finish(model.Pack(builder), b"TFL3")
    with path.open("wb") as stream:
        stream.write(memoryview(builder.Bytes)[builder.Head() :])


def _buffer(schema: Any, data: Array | None) -> Any:
    """Return a buffer whose bytes lie where vector instructions can read them."""
    import numpy as np

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:
            start = None
            if self.data is not None and len(self.data):
                builder.StartVector(1, len(self.data), ALIGNMENT)
                builder.head -= len(self.data)
                builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
                start = builder.EndVector()
            schema.BufferStart(builder)
            if start is not None:
                schema.BufferAddData(builder, start)
            return schema.BufferEnd(builder)

    made = Aligned()
    if data is not None:
        made.data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return made


def _tensor(schema: Any, tensor: Tensor, buffers: list[Any]) -> Any:
    made = schema.TensorT()
    made.name = tensor.name
    made.type = getattr(schema.TensorType, DTYPES[tensor.dtype])
    made.shape = [size if isinstance(size, int) else 1 for size in tensor.shape]
    made.hasRank = True
    if any(not isinstance(size, int) for size in tensor.shape):
        made.shapeSignature = [size if isinstance(size, int) else -1 for size in tensor.shape]
    if tensor.data is not None:
        made.buffer = len(buffers)
        buffers.append(_buffer(schema, tensor.data))
    if tensor.quantization is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = list(tensor.quantization.scale)
        made.quantization.zeroPoint = list(tensor.quantization.zero_point)
        made.quantization.quantizedDimension = tensor.quantization.axis
    return made


def _operator(
    schema: Any, operator: Operator, number: dict[int, int], codes: dict[tuple[str, int], int]
) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = codes.setdefault((operator.kind, version_of(operator)), len(codes))
    made.inputs = [-1 if each is None else number[id(each)] for each in operator.inputs]
    made.outputs = [number[id(each)] for each in operator.outputs]
    if operator.table:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, operator.table)
        made.builtinOptions = getattr(schema, f"{operator.table}T")()
        for name, value in operator.options.items():
            if not hasattr(made.builtinOptions, name):
                raise AttributeError(f"{operator.table} has no field {name}")
            setattr(made.builtinOptions, name, value)
    return made


def _code(schema: Any, kind: str, version: int) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode = getattr(schema.BuiltinOperator, kind)
    # readers of before 2020 look at this field, which has one byte
    made.deprecatedBuiltinCode = min(made.builtinCode, 127)
    made.version = version
    return made


def _signature(
    schema: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], number: dict[int, int]
) -> Any:
    def maps(named: Mapping[str, Tensor]) -> list[Any]:
        made = []
        for name, tensor in named.items():
            one = schema.TensorMapT()
            one.name = name
            one.tensorIndex = number[id(tensor)]
            made.append(one)
        return made

    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.inputs = maps(inputs)
    signature.outputs = maps(outputs)
    return signature
