"""The model as a browser can take it: one file, or a graph with one file of weights beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from deploykit.errors import SourceError, UnsupportedError
from deploykit.onnx_file import LARGEST_SHAPE
from deploykit.onnx_graph import set_inputs
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import onnx

MODEL = "model.onnx"
WEIGHTS = "weights.bin"

LARGE_BYTES = 1 << 30
"""With this much, weights go to a file of their own: a protobuf message ends at 2 GiB."""

LARGEST_BYTES = (1 << 31) - (1 << 20)
"""WebAssembly of 32 bits has 4 GiB of memory, and a model is there twice while it is loaded."""

ALIGNMENT = 64


def read(path: str) -> onnx.ModelProto:
    """Return the model without what lies beside it. Raises SourceError where it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise SourceError(f"`{path}` is not an ONNX model: it has no graph")
    return model


def write(
    model: onnx.ModelProto, path: str, inputs: tuple[TensorSpec, ...], payload: Path
) -> tuple[str, ...]:
    """Write `model`, which was read from `path`, with exactly `inputs`; return the files' names.

    Weights are copied from file to file, never held in memory a second time. Raises UnsupportedError
    for a model that is too large for a browser, SourceError where a file of weights is missing.
    """
    source = Path(path)
    beside = source.resolve().parent
    apart = [tensor for tensor in _tensors(model.graph) if tensor.data_location == _EXTERNAL]
    size = source.stat().st_size + sum(_range(tensor, beside)[2] for tensor in apart)
    if size > LARGEST_BYTES:
        raise UnsupportedError(
            f"target web takes models below 2 GB, and this one has {size / 1e9:.1f} GB",
            hint="a page has 4 GB of memory at most, for the model and all that it computes; "
            "make it smaller, such as by quantisation",
        )
    edited = set_inputs(model, inputs)
    if not apart and size <= LARGE_BYTES:
        if edited:
            (payload / MODEL).write_bytes(model.SerializeToString(deterministic=True))
        else:
            shutil.copyfile(source, payload / MODEL)
        return (MODEL,)
    with (payload / WEIGHTS).open("wb") as stream:
        for tensor in apart:
            _move(tensor, beside, stream)
        for tensor in model.graph.initializer:
            # small ones stay: they may be shapes, which ONNX Runtime reads before it reads weights
            if len(tensor.raw_data) > LARGEST_SHAPE:
                offset = _aligned(stream)
                stream.write(tensor.raw_data)
                _point(tensor, offset, len(tensor.raw_data))
                tensor.ClearField("raw_data")
    (payload / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    return (MODEL, WEIGHTS)


_EXTERNAL = 1  # TensorProto.EXTERNAL of onnx.proto


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every constant of the graph, and of its branches and loops."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)


def _range(tensor: onnx.TensorProto, folder: Path) -> tuple[Path, int, int]:
    """Return the file of a tensor's data, where it begins there, and its bytes.

    Raises SourceError where the file is missing, too short, or outside the model's folder.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = (folder / location).resolve()
    if not location or not path.is_relative_to(folder):
        raise SourceError(f"the weight `{tensor.name}` lies outside the model's folder: {location}")
    try:
        held = path.stat().st_size
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else held - offset
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read the weight `{tensor.name}`: {error}") from error
    if offset < 0 or length < 0 or offset + length > held:
        raise SourceError(
            f"the weight `{tensor.name}` is to have {length} bytes from {offset} of `{path}`, "
            f"which has {held}"
        )
    return path, offset, length


def _move(tensor: onnx.TensorProto, folder: Path, stream: BinaryIO) -> None:
    path, offset, length = _range(tensor, folder)
    start = _aligned(stream)
    left = length
    with path.open("rb") as source:
        source.seek(offset)
        while left:
            block = source.read(min(left, 1 << 24))
            if not block:
                raise SourceError(f"`{path}` became shorter while it was read")
            stream.write(block)
            left -= len(block)
    _point(tensor, start, length)


def _aligned(stream: BinaryIO) -> int:
    stream.write(bytes(-stream.tell() % ALIGNMENT))
    return stream.tell()


def _point(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    """Say in `tensor` that its data is in the file of weights."""
    tensor.data_location = _EXTERNAL  # type: ignore[assignment]
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
