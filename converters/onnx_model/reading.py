"""An ONNX file read without trusting it: its format, its age, and where it says its weights are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    import onnx

FIRST_RELEASE = 3
"""The IR version of ONNX 1.0; before it, operators had no versions and other attributes."""


@dataclass(kw_only=True)
class OnnxModel:
    """A model whose external tensors are still in their files, relative to `folder`."""

    path: Path
    proto: onnx.ModelProto

    @property
    def folder(self) -> Path:
        """The folder that holds the file and all of its external data."""
        return self.path.parent

    @property
    def external(self) -> bool:
        """Whether any weights lie in other files."""
        return any(_is_external(tensor) for tensor in tensors(self.proto))


def read(location: str) -> OnnxModel:
    """Return the model at `location` (a file, or a folder with one `.onnx` in it).

    Raises SourceError where it is empty, damaged, ambiguous, or its external data are missing, too
    short or outside of its folder; UnsupportedError where it is older than ONNX 1.0.
    """
    import onnx

    path = _find(Path(location))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error
    if not content:
        raise SourceError(f"`{path}` is empty")
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's DecodeError, whose module depends on its version
        raise SourceError(
            f"`{path}` is no ONNX model: it cannot be parsed",
            hint="the file is damaged or truncated",
        ) from error
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise SourceError(
            f"`{path}` is no ONNX model: it has no graph", hint="the file is damaged or truncated"
        )
    _check_age(path, proto)
    model = OnnxModel(path=path, proto=proto)
    for tensor in tensors(proto):
        if _is_external(tensor):
            _check_external(model, tensor)
    return model


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers and attributes, also of subgraphs and functions."""
    graphs = [model.graph]
    nodes = [list(function.node) for function in model.functions]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield sparse.values
                yield sparse.indices
            nodes.append(list(graph.node))
            continue
        for node in nodes.pop():
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                graphs.extend(attribute.graphs)
                if attribute.HasField("g"):
                    graphs.append(attribute.g)


def _find(location: Path) -> Path:
    if location.is_dir():
        found = sorted(location.glob("*.onnx"))
        if not found:
            raise SourceError(f"`{location}` holds no .onnx file")
        if len(found) > 1:
            names = ", ".join(f"`{path.name}`" for path in found)
            raise SourceError(
                f"`{location}` holds several models: {names}", hint="name one of them"
            )
        return found[0]
    if not location.is_file():
        raise SourceError(f"there is no `{location}`")
    return location


def _check_age(path: Path, proto: onnx.ModelProto) -> None:
    versions = [item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")]
    if proto.ir_version >= FIRST_RELEASE and (versions or proto.opset_import):
        return
    writer = " ".join(filter(None, (proto.producer_name, proto.producer_version)))
    what = f"IR version {proto.ir_version}" + ("" if versions else ", no operator set")
    raise UnsupportedError(
        f"`{path}` is older than ONNX 1.0 ({what}{f', written by {writer}' if writer else ''}): "
        "its operators have no versions, so their meaning cannot be known",
        hint="export the model again from its framework with a release of this decade",
    )


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _check_external(model: OnnxModel, tensor: onnx.TensorProto) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    where = f"tensor `{tensor.name}` of `{model.path}`"
    folder = model.folder.resolve()
    # resolved: a symbolic link that leads outside is outside
    path = (folder / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(folder):
        raise SourceError(
            f"{where} keeps its data at `{location}`, which is outside of the model's folder",
            hint="external data must lie beside the model; this file may have been made to read others",
        )
    if not path.is_file():
        raise SourceError(
            f"{where} keeps its data in `{location}`, which is missing",
            hint=f"put `{location}` into `{model.folder}`",
        )
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0))
    except ValueError:
        raise SourceError(f"{where} has external data without a readable place") from None
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise SourceError(
            f"{where} needs bytes {offset} to {offset + length} of `{location}`, "
            f"which has {path.stat().st_size}",
            hint="the data file is truncated or belongs to another model",
        )
