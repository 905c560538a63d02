"""The files of a Paddle model on disk: graph and parameters, found and checked before Paddle sees them.

Paddle's own readers crash or read past the end of damaged parameter files, so their framing is
walked here first (format: `paddle/fluid/framework/lod_tensor.cc`, `SerializeToStream`). Nothing here
can execute code: graphs are protobuf or JSON, parameters are raw numbers.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

GRAPH_SUFFIXES = {"paddle/program": ".pdmodel", "paddle/pir": ".json"}
COMBINED_FLUID_NAMES = ("__params__", "params", "__param__", "model.pdiparams")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model's graph file, its parameters (one combined file, a folder of files, or neither).

    `scratch` is a folder for intermediate files; it vanishes with the context.
    """

    format: str
    graph: Path
    combined: Path | None
    folder: Path
    scratch: Path

    def parameters(self, stored: list[str], needed: list[str]) -> Path | None:
        """Return one file with the parameters `needed` in Paddle's order, checked whole.

        `stored` are those that the model's own files hold. None where nothing is needed. Raises
        SourceError where a file is missing, damaged, or of another model.
        """
        stored, needed = sorted(stored), sorted(needed)
        if not needed:
            return None
        if self.combined is None and self.format == "paddle/fluid":
            pieces = [(name, self._separate(name)) for name in needed]
            return self._pack(pieces)
        path = self.combined or self.graph.with_suffix(".pdiparams")
        if not path.is_file():
            raise SourceError(
                f"the parameters of `{self.graph.name}` are missing: there is no `{path}`",
                hint=f"put `{path.name}` beside `{self.graph.name}`",
            )
        data = path.read_bytes()
        offset = 0
        pieces = []
        for number, name in enumerate(stored):
            if offset >= len(data):
                raise SourceError(
                    f"`{path}` holds {number} parameters, the graph needs {len(stored)}",
                    hint="the file is truncated, or belongs to another graph",
                )
            start, offset = offset, _after_tensor(data, offset, path, name)
            pieces.append((name, data[start:offset]))
        if offset != len(data):
            raise SourceError(
                f"`{path}` holds more than the {len(stored)} parameters of the graph",
                hint="graph and parameters belong to different models",
            )
        if stored == needed:
            return path
        return self._pack([piece for piece in pieces if piece[0] in set(needed)])

    def arrays(self, stored: list[str]) -> dict[str, Array]:
        """Return the parameters `stored`, all that the model's files hold, by name.

        Raises SourceError as `parameters` does, UnsupportedError for a dtype that numpy lacks.
        """
        path = self.parameters(stored, stored)
        data = path.read_bytes() if path is not None else b""
        found, at = {}, 0
        for name in sorted(stored):
            after = _after_tensor(data, at, path or self.graph, name)
            found[name] = _array(data[at:after], name)
            at = after
        return found

    def _separate(self, name: str) -> bytes:
        path = self.folder / name
        if not path.is_file():
            raise SourceError(
                f"parameter `{name}` is missing: there is no `{path}`",
                hint="a fluid model keeps one file per parameter beside `__model__`",
            )
        data = path.read_bytes()
        if _after_tensor(data, 0, path, name) != len(data):
            raise SourceError(f"`{path}` holds more than the parameter `{name}`")
        return data

    def _pack(self, pieces: list[tuple[str, bytes]]) -> Path:
        packed = self.scratch / "packed.pdiparams"
        packed.write_bytes(b"".join(data for _, data in pieces))
        return packed


@contextlib.contextmanager
def open_model(location: str, format: str) -> Iterator[ModelFiles]:
    """Find the files of the model at `location` (a file, or a folder with one model in it).

    Raises SourceError where there is none, or more than one, or the graph is empty.
    """
    scratch = Path(tempfile.mkdtemp(prefix="deploykit-paddle-"))
    try:
        graph = _find_graph(Path(location), format)
        if graph.stat().st_size == 0:
            raise SourceError(f"`{graph}` is empty")
        combined = None
        if format == "paddle/fluid":
            found = [graph.parent / name for name in COMBINED_FLUID_NAMES]
            combined = next((path for path in found if path.is_file()), None)
        yield ModelFiles(
            format=format, graph=graph, combined=combined, folder=graph.parent, scratch=scratch
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _find_graph(location: Path, format: str) -> Path:
    if location.is_file():
        if location.suffix == ".pdiparams":
            return _find_graph(location.with_suffix(GRAPH_SUFFIXES[format]), format)
        return location
    if not location.is_dir():
        raise SourceError(f"there is no `{location}`")
    if format == "paddle/fluid":
        graphs = [location / "__model__"] if (location / "__model__").is_file() else []
    else:
        graphs = sorted(location.glob(f"*{GRAPH_SUFFIXES[format]}"))
        if format == "paddle/pir":
            graphs = [path for path in graphs if path.with_suffix(".pdiparams").is_file()] or graphs
    if not graphs:
        raise SourceError(f"`{location}` holds no {format} model")
    if len(graphs) > 1:
        names = ", ".join(f"`{path.name}`" for path in graphs)
        raise SourceError(
            f"`{location}` holds several models: {names}", hint="name one of the files"
        )
    return graphs[0]


def _after_tensor(data: bytes, offset: int, path: Path, name: str) -> int:
    """Return the offset behind the tensor at `offset`; SourceError where the framing is broken."""
    try:
        version, levels = struct.unpack_from("<IQ", data, offset)
        offset += 12
        if version != 0 or levels > 16:
            raise ValueError
        for _ in range(levels):
            (size,) = struct.unpack_from("<Q", data, offset)
            offset += 8 + size
        version, description = struct.unpack_from("<Ii", data, offset)
        offset += 8
        if version != 0 or not 0 < description < 1024:
            raise ValueError
        size = _tensor_bytes(data[offset : offset + description])
    except (struct.error, ValueError, IndexError, KeyError):
        raise SourceError(
            f"`{path}` is damaged at parameter `{name}`",
            hint="the file is truncated, is no Paddle parameter file, or belongs to another graph",
        ) from None
    offset += description + size
    if offset > len(data):
        raise SourceError(
            f"`{path}` is truncated: parameter `{name}` needs {offset - len(data)} more bytes",
            hint="copy the file again",
        )
    return offset


# bytes per element by VarType.Type of framework.proto: bool, int16/32/64, fp16/32/64, uint8, int8,
# bf16, complex64/128
_ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16}


_NUMPY = {0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1"}


def _tensor_bytes(description: bytes) -> int:
    """Return the size of the raw data behind a `TensorDesc` message."""
    kind, sizes = _description(description)
    return _ELEMENT_BYTES[kind] * math.prod(sizes)


def _description(description: bytes) -> tuple[int, list[int]]:
    """Return dtype and sizes of a `TensorDesc` message (field 1 type, field 2 dims)."""
    kind, at = -1, 0
    sizes: list[int] = []
    while at < len(description):
        key, at = _varint(description, at)
        if key == 8:
            kind, at = _varint(description, at)
        elif key == 16:
            size, at = _varint(description, at)
            sizes.append(size)
        elif key == 18:
            length, at = _varint(description, at)
            end = at + length
            while at < end:
                size, at = _varint(description, at)
                sizes.append(size)
        else:
            raise ValueError
    return kind, sizes


def _array(tensor: bytes, name: str) -> Array:
    """Return a tensor whose framing has been checked."""
    import numpy as np

    (levels,) = struct.unpack_from("<Q", tensor, 4)
    at = 12
    for _ in range(levels):
        (size,) = struct.unpack_from("<Q", tensor, at)
        at += 8 + size
    (length,) = struct.unpack_from("<i", tensor, at + 4)
    at += 8 + length
    kind, sizes = _description(tensor[at - length : at])
    if kind not in _NUMPY:
        raise UnsupportedError(f"the parameter `{name}` has Paddle's dtype {kind}")
    return np.frombuffer(tensor, _NUMPY[kind], offset=at).reshape(sizes)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
