"""A Caffe2 model read without Caffe2: the operators of `predict_net`, the weights that `init_net` fills.

Format: `caffe2/proto/caffe2.proto` of PyTorch 1.8, in binary (`.pb`) and text (`.pbtxt`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnsupportedError
from deploykit.formats.content import open_content
from deploykit.formats.protobuf_text import Message, messages, parse, strings
from deploykit.formats.protobuf_wire import fields, message, number, numbers, text

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MOST_ELEMENTS = 1 << 32
MOST_CONSTANTS = 1 << 26
FILLS = {
    "GivenTensorFill": "float32",
    "GivenTensorDoubleFill": "float64",
    "GivenTensorIntFill": "int32",
    "GivenTensorInt64Fill": "int64",
    "GivenTensorBoolFill": "bool",
}
CONSTANT_DTYPES = {1: "float32", 2: "int32", 5: "bool", 10: "int64"}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator: `args` by name, each a number, a text or a list of numbers."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    args: Mapping[str, Any]

    def integer(self, name: str, default: int) -> int:
        """Return a number."""
        return int(self.args.get(name, default))

    def real(self, name: str, default: float) -> float:
        """Return a floating-point number."""
        return float(self.args.get(name, default))

    def word(self, name: str, default: str) -> str:
        """Return a text."""
        value = self.args.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def integers(self, name: str) -> list[int]:
        """Return a list of numbers, empty where there is none."""
        value = self.args.get(name, [])
        return [int(one) for one in (value if isinstance(value, (list, tuple)) else [value])]


@dataclass(frozen=True, kw_only=True)
class Net:
    """A NetDef."""

    name: str
    operators: tuple[Operator, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read(path: Path) -> Net:
    """Read a NetDef, binary or text. Raises SourceError where it is damaged."""
    try:
        content = open_content(path)
        if path.suffix in (".pbtxt", ".prototxt"):
            return _from_text(parse(content.document()))
        return _from_wire(content.view)
    except (ValueError, RecursionError, struct.error, OverflowError) as error:
        raise SourceError(
            f"`{path}` is a damaged Caffe2 net: {error}", hint="copy or download it again"
        ) from error


def _from_wire(view: memoryview) -> Net:
    name, operators, inputs, outputs = "", [], [], []
    for key, value in fields(view):
        if key == 1:
            name = text(value)
        elif key == 2:
            operators.append(_operator(message(value)))
        elif key == 7:
            inputs.append(text(value))
        elif key == 8:
            outputs.append(text(value))
    return Net(name=name, operators=tuple(operators), inputs=tuple(inputs), outputs=tuple(outputs))


def _operator(view: memoryview) -> Operator:
    inputs, outputs, name, kind = [], [], "", ""
    args: dict[str, Any] = {}
    for key, value in fields(view):
        if key == 1:
            inputs.append(text(value))
        elif key == 2:
            outputs.append(text(value))
        elif key == 3:
            name = text(value)
        elif key == 4:
            kind = text(value)
        elif key == 5:
            label, item = _argument(message(value))
            args[label] = item
    return Operator(kind=kind, name=name, inputs=tuple(inputs), outputs=tuple(outputs), args=args)


def _argument(view: memoryview) -> tuple[str, Any]:
    import numpy as np

    name, found = "", None
    singles: list[int] = []
    packed: list[Array] = []
    integers: list[int] = []
    for key, value in fields(view):
        if key == 1:
            name = text(value)
        elif key == 2:
            (found,) = struct.unpack("<f", number(value).to_bytes(4, "little"))
        elif key == 3:
            found = _signed(number(value))
        elif key == 4:
            found = bytes(message(value))
        elif key == 5 and isinstance(value, int):
            singles.append(value)
        elif key == 5:
            packed.append(np.frombuffer(message(value), "<f4"))
        elif key == 6:
            integers += numbers(value)
    if singles:
        packed.append(np.array(singles, "<u4").view("<f4"))
    if packed:
        return name, packed[0] if len(packed) == 1 else np.concatenate(packed)
    return name, [_signed(one) for one in integers] if integers else found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _from_text(net: Message) -> Net:
    operators = []
    for entry in messages(net, "op"):
        args: dict[str, Any] = {}
        for one in messages(entry, "arg"):
            label = (strings(one, "name") or [""])[0]
            if "ints" in one:
                args[label] = [int(word) for word in strings(one, "ints")]
            elif "floats" in one:
                args[label] = [float(word) for word in strings(one, "floats")]
            elif "i" in one:
                args[label] = int(strings(one, "i")[0])
            elif "f" in one:
                args[label] = float(strings(one, "f")[0])
            elif "s" in one:
                args[label] = strings(one, "s")[0]
        operators.append(
            Operator(
                kind=(strings(entry, "type") or [""])[0],
                name=(strings(entry, "name") or [""])[0],
                inputs=tuple(strings(entry, "input")),
                outputs=tuple(strings(entry, "output")),
                args=args,
            )
        )
    return Net(
        name=(strings(net, "name") or [""])[0],
        operators=tuple(operators),
        inputs=tuple(strings(net, "external_input")),
        outputs=tuple(strings(net, "external_output")),
    )


def filled(net: Net) -> tuple[dict[str, Array], set[str]]:
    """Return the blobs that `net` fills, and which of them are constant stand-ins for inputs.

    Raises UnsupportedError where weights are drawn at random: the model is not trained.
    """
    found: dict[str, Array] = {}
    stand_ins: set[str] = set()
    for operator in net.operators:
        array = fill(operator)
        if array is None:
            raise UnsupportedError(
                f"`init_net` fills `{', '.join(operator.outputs)}` by {operator.kind}, "
                "which gives no trained weights",
                operators=(operator.kind,),
                hint="export the model after training, with its weights",
            )
        found[operator.outputs[0]] = array
        if operator.kind == "ConstantFill" and array.shape == (1,):
            stand_ins.add(operator.outputs[0])
    return found, stand_ins


def fill(operator: Operator) -> Array | None:
    """Return what a fill operator makes, None where it is none that is known beforehand."""
    import numpy as np

    is_constant = operator.kind == "ConstantFill" and not operator.inputs
    if operator.kind not in FILLS and not is_constant:
        return None
    shape = operator.integers("shape")
    most = MOST_CONSTANTS if is_constant else MOST_ELEMENTS
    if any(size < 0 for size in shape) or math.prod(shape) > most or len(shape) > 32:
        raise SourceError(f"`{', '.join(operator.outputs)}` is filled to the shape {shape[:32]}")
    if operator.kind in FILLS:
        given = operator.args.get("values", [])
        try:
            values = np.asarray(given, FILLS[operator.kind]).reshape(-1)
        except (ValueError, TypeError, OverflowError) as error:
            raise SourceError(
                f"the weights `{operator.outputs}` are no numbers: {error}"
            ) from error
        if values.size != math.prod(shape):
            raise SourceError(
                f"the weights `{', '.join(operator.outputs)}` have {values.size} values "
                f"for the shape {shape}"
            )
        return values.reshape(shape)
    dtype = CONSTANT_DTYPES.get(operator.integer("dtype", 1), "float32")
    return np.full(shape, operator.args.get("value") or 0, dtype)
