"""CNTK v2 models written by hand, as `CompositeFunction::Serialize` of CNTK 2.7 writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from deploykit._plugins.converters.cntk.graph import Axis
from deploykit._plugins.converters.cntk.reading_v2 import OPERATORS

from tests.core.formats.protobuf_writer import field as wire
from tests.core.formats.protobuf_writer import varint

BATCH = Axis(name="defaultBatchAxis")
SEQUENCE = Axis(name="defaultDynamicAxis")
ALL_STATIC = Axis(index=2**31 - 2)
INPUT, PARAMETER, CONSTANT, PLACEHOLDER = 0, 2, 3, 4
KINDS = {"float32": 1, "float64": 2, "float16": 4, "int8": 5}


class Int(int):
    """A signed number, where a plain int is written as unsigned."""


class Shape(tuple[int, ...]):
    """An NDShape."""


def shape(sizes: Any) -> bytes:
    return wire(1, b"".join(varint(size) for size in sizes)) if sizes else b""


def axis(one: Axis) -> bytes:
    index = 2**31 - 1 if one.index is None else one.index
    # of the dynamic axes only the batch has no order
    ordered = one.index is None and one.name != BATCH.name
    return (
        (wire(1, index) if index else b"")
        + (wire(2, one.name) if one.name else b"")
        + (wire(3, 1) if ordered else b"")
    )


def array(value: Any, *, apart: bool = False) -> bytes:
    """Return an NDArrayView; half precision is written as single, as CNTK does it."""
    kind, place = KINDS[value.dtype.name], {"float64": 5, "int8": 6}.get(value.dtype.name, 4)
    content = wire(1, kind) + wire(3, shape(value.shape[::-1]))
    stored = np.ascontiguousarray(value, np.float32 if kind == 4 else value.dtype)
    return content if apart else content + wire(place, wire(1, stored.tobytes()))


def value(one: Any, *, apart: bool = False) -> bytes:
    """Return a DictionaryValue; with `apart`, arrays are left for behind the message."""
    if isinstance(one, bool):
        kind, content = 1, varint(3 << 3) + varint(one)
    elif isinstance(one, Int):
        kind, content = 2, varint(4 << 3) + varint(int(one))
    elif isinstance(one, int):
        kind, content = 3, varint(5 << 3) + varint(one)
    elif isinstance(one, float):
        kind, content = 5, varint(7 << 3 | 1) + struct.pack("<d", one)
    elif isinstance(one, str):
        kind, content = 6, wire(8, one)
    elif isinstance(one, Shape):
        kind, content = 7, wire(9, shape(one))
    elif isinstance(one, Axis):
        kind, content = 8, wire(10, axis(one))
    elif isinstance(one, (list, tuple)):
        kind, content = 9, wire(11, b"".join(wire(1, value(item, apart=apart)) for item in one))
    elif isinstance(one, dict):
        kind, content = 10, wire(12, dictionary(one, apart=apart))
    else:
        kind, content = 11, wire(13, array(one, apart=apart))
    return wire(1, 1) + wire(2, kind) + content


def dictionary(values: dict[str, Any], *, apart: bool = False) -> bytes:
    entries = (wire(1, name) + wire(2, value(one, apart=apart)) for name, one in values.items())
    return wire(1, 1) + b"".join(wire(2, entry) for entry in entries)


# what CNTK 2.7 writes beside the attributes that a test is about
ALWAYS: dict[str, dict[str, Any]] = {
    "Convolution": {
        "maxTempMemSizeInSamples": 0,
        "outputShape": Shape((0,)),
        "dilation": Shape((1,)),
        "groups": 1,
        "transpose": False,
        "sequential": False,
    },
    "BatchNormalization": {
        "normalizationTimeConstant": 0.0,
        "blendTimeConstant": 0.0,
        "useCuDNNEngine": False,
        "disableRegularization": False,
    },
    "Dropout": {"dropoutRate": 0.5, "rngSeed": 1, "rngOffset": 0},
    "ELU": {"alpha": 1.0},
    "OneHot": {"oneHotOutputSparse": False},
    "Pad": {"paddingMode": 0, "paddingConstantValue": 0.0},
    "Times": {"inferInputRankToMap": Int(-1)},
    "UnpackSequence": {
        "sequenceUnpackPaddingValue": 0.0,
        "sequenceUnpackSuppressMaskOutput": True,
    },
}


@dataclass
class Model:
    """A function in the making; arrays are numpy's, the reverse of CNTK's axes."""

    variables: list[dict[str, Any]] = field(default_factory=list)
    functions: list[dict[str, Any]] = field(default_factory=list)

    def variable(self, uid: str, kind: int, sizes: Any, **more: Any) -> str:
        given = {
            "version": 1,
            "type": "Variable",
            "uid": uid,
            **({"name": uid} if kind == INPUT else {}),
            "kind": kind,
            "data_type": 1,
            "dynamic_axis": [],
            "is_sparse": False,
            "needs_gradient": False,
            "shape": Shape(sizes),
        }
        self.variables.append({**given, **more})
        return uid

    def input(self, uid: str, *sizes: int, sequence: bool = False, **more: Any) -> str:
        axes = [SEQUENCE, BATCH] if sequence else [BATCH]
        return self.variable(uid, INPUT, sizes[::-1], **{"dynamic_axis": axes, **more})

    def parameter(self, uid: str, values: Any, kind: int = PARAMETER) -> str:
        stored = np.asarray(values)
        data_type = KINDS[stored.dtype.name]
        return self.variable(uid, kind, stored.shape[::-1], value=stored, data_type=data_type)

    def function(self, op: str, uid: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        made = {
            "version": 7,
            "type": "PrimitiveFunction",
            "uid": uid,
            "op": OPERATORS.index(op),
            "attributes": {**ALWAYS.get(op, {}), **attributes},
            "inputs": list(inputs),
        }
        self.functions.append({**made, **({"name": name} if name else {})})
        return f"{uid}_Output_0"

    def block(self, uid: str, root: str, arguments: dict[str, str], name: str = "") -> str:
        self.function("Block", uid, *arguments.values(), name=name)
        self.functions[-1] |= {
            "block_function_op_name": "Dense",
            "block_function_composite": {
                "version": 3,
                "type": "CompositeFunction",
                "root": root,
                "uid": f"{uid}_inner",
            },
            "block_function_composite_arguments_map_keys": list(arguments),
            "block_function_composite_arguments_map_values": list(arguments.values()),
        }
        return f"{uid}_Output_0"

    def values(self, root: str) -> dict[str, Any]:
        return {
            "version": 3,
            "type": "CompositeFunction",
            "uid": "composite",
            "root": root,
            "inputs": self.variables,
            "primitive_functions": self.functions,
            "state": {},
        }

    def file(self, root: str = "") -> bytes:
        return dictionary(self.values(root or self.functions[-1]["uid"]))

    def large(self, root: str = "") -> bytes:
        """Return the form of files over 2 GB: arrays behind the message."""
        described = dictionary(self.values(root or self.functions[-1]["uid"]), apart=True)
        arrays = b"".join(one["value"].tobytes() for one in self.variables if "value" in one)
        return struct.pack("<II", 0x636E746B, len(described)) + described + arrays

    def write(self, folder: Path, root: str = "") -> Path:
        path = folder / "model.dnn"
        path.write_bytes(self.file(root))
        return path
