"""XDL's files written by hand: graphs in text and binary, tables, and parameter-server checkpoints."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.core.formats.protobuf_writer import field

TYPES = {"int32": 2, "int64": 3, "float32": 4}
NAMES = {"int32": "kInt32", "int64": "kInt64", "float32": "kFloat"}
Node = tuple[str, str, Sequence[str], Mapping[str, Any]]


def quoted(data: bytes | str) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return '"' + "".join(f"\\{byte:03o}" for byte in raw) + '"'


def text_graph(nodes: Sequence[Node], tags: Mapping[str, str], outputs: Sequence[str]) -> str:
    """Return `graph.txt`; a dtype among the attributes is written `type:NAME`."""
    lines = []
    for name, op, inputs, attrs in nodes:
        lines.append(f'node {{\n  name: "{name}"\n  op: "{op}"')
        lines += [f'  input: "{one}"' for one in inputs]
        lines += [f'  attr {{ key: "{key}" value {{ {_text(v)} }} }}' for key, v in attrs.items()]
        lines.append("}")
    lines.append("hash: 7\ntag {")
    lines += [f'  input {{ op_name: "{op}" input_name: "{tag}" }}' for op, tag in tags.items()]
    lines += [f'  output {{ op_name: "{name}" }}' for name in outputs]
    return "\n".join([*lines, "}\n"])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return f"b: {str(value).lower()}"
    if isinstance(value, int):
        return f"i: {value}"
    if isinstance(value, tuple):
        return "shape { " + " ".join(f"dim: {one}" for one in value) + " }"
    if isinstance(value, str) and value.startswith("type:"):
        return f"type: {NAMES[value[5:]]}"
    return f"s: {quoted(value)}"


def binary_graph(nodes: Sequence[Node], tags: Mapping[str, str], outputs: Sequence[str]) -> bytes:
    """Return `graph.pb`."""
    whole = b""
    for name, op, inputs, attrs in nodes:
        node = field(1, name) + field(2, op) + b"".join(field(3, one) for one in inputs)
        node += field(4, field(1, "CPU"))
        for key, value in attrs.items():
            node += field(5, field(1, key) + field(2, _wire(value)))
        whole += field(1, node)
    tag = b"".join(field(1, field(1, op) + field(2, name)) for op, name in tags.items())
    tag += b"".join(field(2, field(3, name)) for name in outputs)
    return whole + field(2, 7) + field(3, tag)


def _wire(value: Any) -> bytes:
    if isinstance(value, bool):
        return field(4, int(value))
    if isinstance(value, int):
        return field(2, value)
    if isinstance(value, tuple):
        return field(6, b"".join(field(1, one) for one in value))
    if isinstance(value, str) and value.startswith("type:"):
        return field(5, TYPES[value[5:]])
    return field(1, value)


def constant(name: str, value: Any) -> Node:
    """Return a `_Constant`."""
    array = np.asarray(value)
    dtype = f"type:{array.dtype.name}"
    return (name, "_Constant", (), {"dtype": dtype, "shape": array.shape, "value": array.tobytes()})


# ---- checkpoints of the parameter servers


def word(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def tensor(array: Any) -> bytes:
    kind = {"int8": 0, "int16": 1, "int32": 2, "int64": 3, "float32": 4, "float64": 5}
    head = struct.pack("<iQ", kind[array.dtype.name], array.ndim)
    head += b"".join(struct.pack("<Q", size) for size in array.shape)
    data: bytes = array.tobytes()
    return head + struct.pack("<Q", 77) + word("init") + data


def part(data: Any, keys: Any = None, rows: Any = None) -> bytes:
    """Return one file of a variable; `keys` [n] or [n, 2] make it a hash table."""
    slots = struct.pack("<Q", 1) + word("accumulation") + struct.pack("<i", 1) + tensor(data)
    if keys is None:
        return struct.pack("<iQ", 0, 0) + tensor(data) + slots
    items = b"".join(
        struct.pack(f"<{keys[0].size}qQ", *np.atleast_1d(key), row)
        for key, row in zip(keys, rows, strict=True)
    )
    slicer = 1 if keys.ndim == 2 else 2
    return struct.pack("<iqQ", slicer, len(keys), len(keys)) + items + tensor(data) + slots


def checkpoint(
    folder: Path, variables: Mapping[str, tuple[int, tuple[int, ...], Sequence[bytes]]]
) -> Path:
    """Write a checkpoint of two versions, of which the newer has `variables`: kind, shape, parts."""
    (folder / "ckpt-2").mkdir(parents=True)
    versions = struct.pack("<Q", 2) + word("ckpt-1") + word("ckpt-2")
    (folder / "checkpoints").write_bytes(versions)
    body = struct.pack("<Q", len(variables))
    for name, (kind, shape, parts) in variables.items():
        body += struct.pack("<i", kind) + word(name) + struct.pack("<Q", len(parts))
        body += b"".join(
            struct.pack("<QQ", at, shape[0] if shape else 1) for at in range(len(parts))
        )
        body += struct.pack("<Q", len(shape)) + b"".join(struct.pack("<q", one) for one in shape)
        body += struct.pack("<iQ", 4, 1) + word("save_ratio") + word("1.0")
        for at, content in enumerate(parts):
            (folder / "ckpt-2" / f"{name.replace('/', '$')}^{at}").write_bytes(content)
    meta = struct.pack("<QQQ", 1, 99, len(body)) + body
    (folder / "ckpt-2" / "__meta__").write_bytes(meta)
    return folder
