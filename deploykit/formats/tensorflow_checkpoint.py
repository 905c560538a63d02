"""TensorFlow checkpoints: a graph (`.meta`), an index of variables (`.index`), shards of data."""

from __future__ import annotations

from deploykit.errors import SourceError
from deploykit.formats import checkpoint_index
from deploykit.formats.checkpoint_index import read_index, shards
from deploykit.formats.content import Content, damaged, open_content
from deploykit.formats.reading import FormatError, Reading, counted, elements
from deploykit.formats.saved_model import looks_like_meta_graph, reachable, read_meta_graph
from deploykit.formats.tensorflow_graph import guess_signature


def recognises(content: Content) -> bool:
    """Whether the file is the MetaGraphDef of a checkpoint."""
    return looks_like_meta_graph(content.view)


def read(content: Content) -> Reading:
    """Read a checkpoint by its `.meta` or `.index` file.

    Raises SourceError where a part is missing or damaged.
    """
    if checkpoint_index.recognises(content):
        return _read_from_index(content)
    path = content.path
    index = path.with_suffix(".index")
    try:
        meta = read_meta_graph(content.view)
        name = meta.chosen()
        signature = guess_signature(meta.graph) if name is None else meta.signatures[name]
        tensors = [spec.name for spec in signature.outputs] if name is None else meta.tensors[name]
        operators = counted(node.operator for node in reachable(meta.graph, tensors))
    except FormatError as error:
        raise damaged(path, "TensorFlow MetaGraph", error) from error
    if not index.is_file():
        raise SourceError(
            f"the weights of `{path}` are missing: there is no `{index.name}` beside it",
            hint=f"copy `{index.name}` and its data files into `{path.parent}`",
        )
    variables = read_index(open_content(index))
    details = {"producer": f"TensorFlow {meta.version}"} if meta.version else {}
    if name is None:
        details["inputs"] = "every placeholder"
        details["outputs"] = "every node that no other consumes"
    else:
        details["signature"] = name
    details["variables"] = str(len(variables))
    return Reading(
        format="tensorflow/checkpoint",
        location=path,
        files=(path, index, *shards(index)),
        signature=signature,
        operators=operators,
        parameters=sum(elements(one.shape) for one in variables if one.is_weight),
        details=details,
    )


def _read_from_index(content: Content) -> Reading:
    """Read a checkpoint by its `.index` file; without a graph beside it there is no signature."""
    meta = content.path.with_suffix(".meta")
    if meta.is_file():
        return read(open_content(meta))
    variables = read_index(content)
    return Reading(
        format="tensorflow/checkpoint",
        location=content.path,
        files=(content.path, *shards(content.path)),
        parameters=sum(elements(one.shape) for one in variables if one.is_weight),
        details={
            "graph": "none: these are weights only, which need the code that saved them",
            "variables": str(len(variables)),
        },
    )
