"""TensorFlow checkpoints: a graph (`.meta`), an index of variables (`.index`), shards of data.

Those before TensorFlow 0.12 (V1), and the session bundles made of them, have no index: their data
files (`model.ckpt-100`, `export-00000-of-00001`) are tables of slices of tensors themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats import checkpoint_index
from deploykit.formats.checkpoint_index import read_index, shards
from deploykit.formats.content import Content, damaged, open_content
from deploykit.formats.reading import FormatError, Reading, counted, elements
from deploykit.formats.saved_model import looks_like_meta_graph, reachable, read_meta_graph
from deploykit.formats.tensorflow_graph import GUESSED, guess_signature

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_NEWEST = re.compile(rb'^model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
MOST_BYTES_OF_STATE = 1 << 20


def prefix(path: Path) -> str:
    """Return what the names of all files of a checkpoint begin with, as TensorFlow's own calls take it."""
    name = path.name.removesuffix(".meta").removesuffix(".index")
    return _SHARD.sub("", name)


def newest(folder: Path) -> Path | None:
    """Return the `.meta` (else `.index`) that the file `checkpoint` in `folder` names as the newest.

    None where there is no such file, or what it names is not in the folder.
    """
    state = folder / "checkpoint"
    if not state.is_file() or state.stat().st_size > MOST_BYTES_OF_STATE:
        return None
    found = _NEWEST.search(state.read_bytes())
    if found is None:
        return None
    # often an absolute path of the machine that trained: only the last part says something here
    name = found[1].decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    if not name or "\0" in name:
        return None
    paths = [folder / f"{name}{end}" for end in (".meta", ".index")]
    return next((path for path in paths if path.is_file()), None)


def first_version(path: Path) -> tuple[Path, ...]:
    """Return the data files of a V1 checkpoint whose `.meta` is `path`, none where there are none."""
    stem = prefix(path)
    found = [
        one
        for one in sorted(path.parent.glob(f"{glob_escaped(stem)}*"))
        if one != path and prefix(one) == stem and one.suffix not in (".meta", ".index")
    ]
    return tuple(one for one in found if checkpoint_index.recognises(open_content(one)))


def glob_escaped(name: str) -> str:
    """Return `name` as a pattern that fits nothing but itself."""
    return re.sub(r"([*?\[])", r"[\1]", name)


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
    first = () if index.is_file() else first_version(path)
    if not index.is_file() and not first:
        raise SourceError(
            f"the weights of `{path}` are missing: there is no `{index.name}` beside it",
            hint=f"copy `{index.name}` and its data files into `{path.parent}`",
        )
    variables = () if first else read_index(open_content(index))
    details = {"producer": f"TensorFlow {meta.version}"} if meta.version else {}
    if name is None:
        details["inputs"] = details["outputs"] = GUESSED
    else:
        details["signature"] = name
    if first:
        details["version"] = "1: the data files have no index"
    else:
        details["variables"] = str(len(variables))
    return Reading(
        format="tensorflow/checkpoint",
        location=path,
        files=(path, *first) if first else (path, index, *shards(index)),
        signature=signature,
        operators=operators,
        parameters=sum(elements(one.shape) for one in variables if one.is_weight),
        details=details,
    )


def _read_from_index(content: Content) -> Reading:
    """Read a checkpoint by its `.index` file; without a graph beside it there is no signature."""
    meta = content.path.with_name(f"{prefix(content.path)}.meta")
    if meta.is_file():
        return read(open_content(meta))
    if content.path.suffix != ".index":
        raise SourceError(
            f"`{content.path}` holds weights of a TensorFlow checkpoint, and there is no "
            f"`{meta.name}` with its graph beside it",
            hint=f"copy `{meta.name}` into `{content.path.parent}`",
        )
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
