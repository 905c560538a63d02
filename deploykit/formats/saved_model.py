"""TensorFlow's SavedModel folders: `saved_model.pb`, signatures, variables.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/protobuf/meta_graph.proto
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.checkpoint_index import Variable, read_index, shards
from deploykit.formats.content import Content, damaged, open_content
from deploykit.formats.protobuf_wire import beginning, fields, message, number, pair, text
from deploykit.formats.reading import UNKNOWN_DTYPE, FormatError, Reading, counted, elements
from deploykit.formats.tensorflow_graph import (
    VARIABLES,
    Graph,
    Node,
    constant_elements,
    dtype_name,
    looks_like_graph,
    read_graph,
    shape,
)
from deploykit.protocol import Signature, TensorSpec

NO_METHOD = "__saved_model_init_op"


@dataclass
class MetaGraph:
    """A graph with its tags and signatures; `tensors` are the graph's names of the outputs."""

    graph: Graph = field(default_factory=Graph)
    tags: list[str] = field(default_factory=list)
    version: str = ""
    signatures: dict[str, Signature] = field(default_factory=dict)
    tensors: dict[str, list[str]] = field(default_factory=dict)

    def chosen(self) -> str | None:
        """Return the name of the signature that serves: the default one, else the first."""
        names = [name for name in self.signatures if name != NO_METHOD]
        return "serving_default" if "serving_default" in names else next(iter(sorted(names)), None)


def recognises(content: Content) -> bool:
    """Whether the file begins as the SavedModel message of `saved_model.pb` does."""
    found = beginning(content.view, 2)
    return (
        bool(found)
        and len(found or []) == 2
        and found is not None
        and found[0] == (1, 1)
        and found[1][0] == 2
        and looks_like_meta_graph(found[1][1])
    )


def looks_like_meta_graph(value: int | memoryview) -> bool:
    """Whether a message begins as a MetaGraphDef does: with information, then a graph."""
    if isinstance(value, int):
        return False
    found = beginning(value, 3)
    if not found or any(isinstance(part, int) or not 1 <= key <= 7 for key, part in found):
        return False
    graph = next((part for key, part in found if key == 2 and not isinstance(part, int)), None)
    return graph is not None and (len(graph) == 0 or looks_like_graph(graph))


def read(content: Content) -> Reading:
    """Read the SavedModel whose `saved_model.pb` this is. Raises SourceError, SavedModel damaged."""
    folder = content.path.parent
    try:
        metas = [read_meta_graph(message(value)) for key, value in fields(content.view) if key == 2]
        if not metas:
            raise FormatError("it has no graph")
        meta = next((one for one in metas if "serve" in one.tags), metas[0])
        name = meta.chosen()
        nodes = reachable(meta.graph, meta.tensors.get(name or "", []))
    except FormatError as error:
        raise damaged(content.path, "TensorFlow SavedModel", error) from error
    variables = _variables(folder, meta.graph)
    details = {"tags": ", ".join(meta.tags)}
    if meta.version:
        details["producer"] = f"TensorFlow {meta.version}"
    details["signatures"] = ", ".join(sorted(one for one in meta.signatures if one != NO_METHOD))
    if name is None:
        details["signatures"] = "none: name inputs and outputs yourself"
    else:
        details["signature"] = name
    return Reading(
        format="tensorflow/saved_model",
        location=folder,
        files=_files(content.path, variables is not None),
        signature=meta.signatures[name] if name is not None else None,
        operators=counted(node.operator for node in nodes),
        parameters=constant_elements(nodes)
        + sum(elements(one.shape) for one in variables or () if one.is_weight),
        details=details,
    )


def read_meta_graph(view: memoryview) -> MetaGraph:
    """Return graph, tags and signatures of a MetaGraphDef. Raises FormatError."""
    meta = MetaGraph()
    for key, value in fields(view):
        if key == 1:
            for inner, part in fields(message(value)):
                if inner == 4:
                    meta.tags.append(text(part))
                elif inner == 5:
                    meta.version = text(part)
        elif key == 2:
            meta.graph = read_graph(message(value))
        elif key == 5:
            name, signature = pair(value)
            meta.signatures[name], meta.tensors[name] = _signature(message(signature))
    return meta


def _signature(view: memoryview) -> tuple[Signature, list[str]]:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    tensors: list[str] = []
    for key, value in fields(view):
        if key in (1, 2):
            name, info = pair(value)
            spec, tensor = _tensor_info(name, message(info))
            (inputs if key == 1 else outputs).append(spec)
            if key == 2:
                tensors.append(tensor)
    # maps have no order; TensorFlow itself sorts them by name
    inputs.sort(key=lambda spec: spec.name)
    outputs.sort(key=lambda spec: spec.name)
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs)), tensors


def _tensor_info(name: str, view: memoryview) -> tuple[TensorSpec, str]:
    tensor, dtype, size = "", UNKNOWN_DTYPE, None
    for key, value in fields(view):
        if key == 1:
            tensor = text(value)
        elif key == 2:
            dtype = dtype_name(number(value))
        elif key == 3:
            size = shape(message(value))
    return TensorSpec(name=name, dtype=dtype, shape=size), tensor


def reachable(graph: Graph, tensors: list[str]) -> list[Node]:
    """Return the nodes that the tensors depend on, those of called functions included.

    All nodes where no tensor is given. A SavedModel also holds training and saving.
    """
    if not tensors:
        return list(graph.everything())
    found: list[Node] = []
    seen = {tensor.removeprefix("^").split(":", 1)[0] for tensor in tensors}
    waiting = list(seen)
    called: list[str] = []
    while waiting:
        node = graph.nodes.get(waiting.pop())
        if node is None:
            continue
        found.append(node)
        called += node.functions
        for name in node.inputs:
            source = name.removeprefix("^").split(":", 1)[0]
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    entered: set[str] = set()
    while called:
        name = called.pop()
        if name in entered:
            continue
        entered.add(name)
        for node in graph.function(name):
            found.append(node)
            called += node.functions
    return found


def _variables(folder: Path, graph: Graph) -> tuple[Variable, ...] | None:
    """Return the variables on disk, None where the model has none. Raises SourceError."""
    index = folder / "variables" / "variables.index"
    if not index.is_file():
        stored = sorted(node.name for node in graph.nodes.values() if node.operator in VARIABLES)
        if not stored:
            return None
        raise SourceError(
            f"`{folder}` has a graph with {len(stored)} variables, and their file is missing: `{index}`",
            hint="copy the whole folder, `variables` included",
        )
    return read_index(open_content(index))


def _files(model: Path, has_variables: bool) -> tuple[Path, ...]:
    folder = model.parent
    found = [model]
    if has_variables:
        index = folder / "variables" / "variables.index"
        found += [index, *shards(index)]
    found += [
        path
        for name in ("assets", "assets.extra")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    ]
    found += [
        path for path in (folder / "fingerprint.pb", folder / "keras_metadata.pb") if path.is_file()
    ]
    return tuple(found)
