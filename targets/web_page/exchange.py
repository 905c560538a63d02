"""Tensors between Python and the page, as bytes: the counterpart of `page/tensors.js`.

4 bytes     length of the header, little-endian
header      JSON: [{"name", "type", "dims", "at", "bytes"}], or {"strings": [...]} for strings
data        of each tensor in C order and little-endian, `at` bytes from the beginning, which is
            a multiple of 16
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ALIGNMENT = 16

DTYPES = frozenset(
    {
        *("float16", "float32", "float64", "bool", "string"),
        *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)),
    }
)
"""What a tensor of onnxruntime-web can hold: `tensor-impl.ts` of onnxruntime-common."""


def pack(tensors: Mapping[str, Array]) -> list[bytes | memoryview]:
    """Return `tensors` as blocks of bytes, their data uncopied where that is possible."""
    import numpy as np

    entries: list[dict[str, Any]] = []
    datas: list[memoryview] = []
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {"name": name, "dims": list(tensor.shape)}
        if tensor.dtype.kind in "OU":
            entry |= {"type": "string", "strings": [str(item) for item in tensor.reshape(-1)]}
        else:
            little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
            datas.append(little.reshape(-1).view(np.uint8).data)
            entry |= {"type": tensor.dtype.name, "bytes": little.nbytes}
        entries.append(entry)
    # the places depend on the header's length, and that on the places: give them room
    room = len(json.dumps(entries)) + 32 * len(entries)
    at = _up(4 + room)
    first = at
    for entry in entries:
        if "bytes" in entry:
            entry["at"] = at
            at = _up(at + entry["bytes"])
    header = json.dumps(entries).encode().ljust(first - 4)
    blocks: list[bytes | memoryview] = [len(header).to_bytes(4, "little") + header]
    for data in datas:
        blocks += [data, bytes(-len(data) % ALIGNMENT)]
    return blocks


def unpack(data: bytes) -> dict[str, Array]:
    """Return the tensors in `data`, each a copy. Strings come as objects, as ONNX Runtime gives them.

    Raises ValueError where the bytes are not what the page sends.
    """
    import numpy as np

    length = int.from_bytes(data[:4], "little")
    if len(data) < 4 + length:
        raise ValueError(f"{len(data)} bytes hold no tensors")
    tensors: dict[str, Array] = {}
    for entry in json.loads(data[4 : 4 + length]):
        shape = tuple(entry["dims"])
        if entry["type"] == "string":
            strings = np.empty(len(entry["strings"]), dtype=object)
            strings[:] = entry["strings"]
            tensors[entry["name"]] = strings.reshape(shape)
            continue
        if entry["type"] not in DTYPES:
            raise ValueError(f"`{entry['name']}` is of the unknown type {entry['type']}")
        dtype = np.dtype(entry["type"]).newbyteorder("<")
        count = entry["bytes"] // dtype.itemsize
        found = np.frombuffer(data, dtype, count, entry["at"]) if count else np.empty(0, dtype)
        tensors[entry["name"]] = found.astype(np.dtype(entry["type"])).reshape(shape)
    return tensors


def _up(number: int) -> int:
    return -(-number // ALIGNMENT) * ALIGNMENT
