"""TensorFlow's MetaGraphDef and GraphDef, read without TensorFlow: nodes with their attributes.

Format: `tensorflow/core/framework/{graph,node_def,attr_value,tensor}.proto` of TensorFlow 1.x.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnsupportedError
from deploykit.formats.protobuf_wire import (
    Value,
    fields,
    message,
    number,
    numbers,
    pair,
    text,
    varint,
)
from deploykit.formats.reading import FormatError
from deploykit.formats.tensorflow_graph import dtype_name
from deploykit.formats.tensorflow_graph import shape as read_shape
from deploykit.protocol import Dimension

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Shape = tuple[int | None, ...]
Ref = tuple[str, int]

MOST_ELEMENTS = 1 << 28
FILLED = 1 << 24
"""Elements of a constant that one stored value may fill."""
PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
VARIABLES = ("VariableV2", "Variable", "VarHandleOp")
# number fields of a TensorProto by dtype
_TYPED = {"float32": 5, "float64": 6, "int32": 7, "int16": 7, "int8": 7, "uint8": 7}
_TYPED |= {"int64": 10, "bool": 11, "float16": 13}


@dataclass(frozen=True, kw_only=True)
class TensorNode:
    """One operator: data inputs, and attributes as texts, numbers, dtypes, shapes, arrays, lists."""

    name: str
    op: str
    inputs: tuple[Ref, ...]
    attrs: Mapping[str, Any]

    def integer(self, key: str, default: int) -> int:
        """Return a number."""
        value = self.attrs.get(key, default)
        return value if isinstance(value, int) else default

    def real(self, key: str, default: float) -> float:
        """Return a floating-point number."""
        value = self.attrs.get(key, default)
        return float(value) if isinstance(value, (int, float)) else default

    def flag(self, key: str) -> bool:
        """Return a truth value, False where there is none."""
        return bool(self.attrs.get(key, False))

    def dtype(self, key: str, default: str = "float32") -> str:
        """Return numpy's name of a dtype."""
        value = self.attrs.get(key, default)
        return value if isinstance(value, str) else default

    def word(self, key: str, default: str = "") -> str:
        """Return a text."""
        value = self.attrs.get(key)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else default

    def shape(self, output: int = 0) -> Shape | None:
        """Return the shape that the exporter inferred for an output; None where it knew no rank."""
        inferred = self.attrs.get("_output_shapes")
        if isinstance(inferred, list) and output < len(inferred):
            found = inferred[output]
        else:
            found = self.attrs.get("shape") if self.op in (*PLACEHOLDERS, *VARIABLES) else None
        return tuple(found) if isinstance(found, tuple) else None


@dataclass(frozen=True, kw_only=True)
class TensorGraph:
    """A TensorFlow graph by the names of its nodes."""

    nodes: Mapping[str, TensorNode] = field(default_factory=dict)

    def walk(self, wanted: list[Ref], known: Mapping[Ref, Any]) -> Iterator[TensorNode]:
        """Yield the nodes that `wanted` depends on, inputs first; `known` values need no nodes.

        Raises SourceError where a node is missing, or the graph runs in a circle.
        """
        done: set[str] = set()
        entered: set[str] = set()
        stack: list[tuple[str, bool]] = [
            (name, False) for name, at in wanted if (name, at) not in known
        ]
        while stack:
            name, finished = stack.pop()
            if finished:
                done.add(name)
                yield self.nodes[name]
                continue
            if name in done:
                continue
            if name not in self.nodes:
                raise SourceError(f"the TensorFlow graph has no node `{name}`")
            if name in entered:
                raise UnsupportedError(
                    f"the TensorFlow graph runs in a circle at node `{name}`", operators=("while",)
                )
            entered.add(name)
            stack.append((name, True))
            stack += [
                (one, False)
                for one, at in reversed(self.nodes[name].inputs)
                if (one, at) not in known and one not in done
            ]


def read_meta_graph(data: bytes) -> TensorGraph:
    """Return the graph of a MetaGraphDef. Raises SourceError where it is damaged."""
    try:
        for key, value in fields(memoryview(data)):
            if key == 2:
                return read_graph(message(value))
        raise FormatError("it holds no graph")
    except (ValueError, struct.error, OverflowError) as error:
        raise SourceError(
            f"the TensorFlow graph inside is damaged: {error}"[:300], hint="export the graph again"
        ) from error


def read_graph(view: memoryview) -> TensorGraph:
    """Return the nodes of a GraphDef. Raises ValueError where it is damaged."""
    nodes: dict[str, TensorNode] = {}
    for key, value in fields(view):
        if key == 1:
            node = _node(message(value))
            nodes[node.name] = node
    return TensorGraph(nodes=nodes)


def tensor_reference(name: str) -> Ref:
    """Return node and output of `name:1`. Raises ValueError where the number is none."""
    node, colon, output = name.rpartition(":")
    return (node, int(output)) if colon else (name, 0)


def node_parts(
    view: memoryview,
    is_attribute: Callable[[int, Value], bool],
    read: Callable[[memoryview], Any],
) -> tuple[str, str, list[str], dict[str, Any]]:
    """Return name, operator, inputs and attributes of a node of TensorFlow's or XDL's GraphDef.

    Both number them alike but for the attributes: `is_attribute` knows their fields, `read` their values.
    """
    name = op = ""
    inputs: list[str] = []
    attrs: dict[str, Any] = {}
    for key, value in fields(view):
        if key == 1:
            name = text(value)
        elif key == 2:
            op = text(value)
        elif key == 3:
            inputs.append(text(value))
        elif is_attribute(key, value):
            label, entry = pair(value)
            attrs[label] = read(message(entry))
    return name, op, inputs, attrs


def _node(view: memoryview) -> TensorNode:
    name, op, inputs, attrs = node_parts(view, lambda key, _: key == 5, _value)
    return TensorNode(
        name=name,
        op=op,
        inputs=tuple(tensor_reference(one) for one in inputs if not one.startswith("^")),
        attrs=attrs,
    )


def _value(view: memoryview) -> Any:
    for key, value in fields(view):
        if key == 1:
            return _list(message(value))
        if key == 2:
            return bytes(message(value))
        if key == 3:
            return number(value)
        if key == 4:
            return _float(number(value))
        if key == 5:
            return bool(number(value))
        if key == 6:
            return dtype_name(number(value))
        if key == 7:
            return read_shape(message(value))
        if key == 8:
            # read when it is asked for: training graphs hold constants that nobody needs
            return message(value)
    return None


def _list(view: memoryview) -> list[Any]:
    found: list[Any] = []
    for key, value in fields(view):
        if key == 2:
            found.append(bytes(message(value)))
        elif key in (3, 5):
            found += numbers(value)
        elif key == 4 and isinstance(value, int):
            found.append(_float(value))
        elif key == 4:
            found += [one[0] for one in struct.iter_unpack("<f", message(value))]
        elif key == 6:
            found += [dtype_name(one) for one in numbers(value)]
        elif key == 7:
            found.append(read_shape(message(value)))
    return found


def _float(bits: int) -> float:
    (found,) = struct.unpack("<f", (bits & 0xFFFFFFFF).to_bytes(4, "little"))
    return float(found)


def constant(node: TensorNode) -> Array:
    """Return the value of a Const node. Raises SourceError where it is damaged."""
    view = node.attrs.get("value")
    try:
        if not isinstance(view, memoryview):
            raise FormatError("it has no value")
        return _tensor(view)
    except (ValueError, struct.error, OverflowError, TypeError) as error:
        raise SourceError(f"the constant `{node.name}` is damaged: {error}"[:300]) from error


def _tensor(view: memoryview) -> Array:
    import numpy as np

    dtype = "unknown"
    size: tuple[Dimension, ...] = ()
    content: memoryview | None = None
    typed: dict[int, list[Any]] = {}
    for key, value in fields(view):
        if key == 1:
            dtype = dtype_name(number(value))
        elif key == 2:
            size = read_shape(message(value)) or ()
        elif key == 4:
            content = message(value)
        elif key in (5, 6, 7, 10, 11, 13):
            typed.setdefault(key, []).append(value)
    if dtype not in _TYPED:
        raise FormatError(f"a tensor of dtype {dtype}")
    shape = tuple(one for one in size if isinstance(one, int))
    if len(shape) != len(size):
        raise FormatError("a tensor whose size is not fixed")
    count = math.prod(shape)
    if count > MOST_ELEMENTS:
        raise FormatError(f"a tensor of shape {shape}")
    if content is not None and len(content):
        if len(content) != count * np.dtype(dtype).itemsize:
            raise FormatError(f"{len(content)} bytes for a tensor {dtype}{list(shape)}")
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    values = _numbers(typed.get(_TYPED[dtype], []), dtype)
    if len(values) == count:
        return values.reshape(shape)
    if len(values) > count or count > FILLED:
        raise FormatError(f"{len(values)} values for a tensor of shape {shape}")
    # the last value stands for all that follow, none at all for zeros
    filled = np.full(count, values[-1] if len(values) else 0, dtype)
    filled[: len(values)] = values
    return filled.reshape(shape)


def _numbers(parts: list[Any], dtype: str) -> Array:
    import numpy as np

    width = {"float32": 4, "float64": 8}.get(dtype)
    found: list[Array] = []
    for part in parts:
        if width is not None:
            raw = part.to_bytes(width, "little") if isinstance(part, int) else part
            found.append(np.frombuffer(raw, f"<f{width}"))
            continue
        values = []
        at = 0
        while not isinstance(part, int) and at < len(part):
            one, at = varint(part, at)
            values.append(number(one))
        if isinstance(part, int):
            values = [number(part)]
        if dtype == "float16":  # its bits
            found.append(np.array(values, np.uint16).view(np.float16))
        else:
            found.append(np.array(values, np.int64).astype(dtype))
    return np.concatenate(found).astype(dtype) if found else np.empty(0, dtype)
