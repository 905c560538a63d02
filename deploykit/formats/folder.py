"""Folders: which one model is inside."""

from __future__ import annotations

from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats import foreign, hugging_face_folder, tensorflow_checkpoint
from deploykit.formats.content import open_content, shown
from deploykit.formats.reading import Reading, listed
from deploykit.formats.recognise import PARTS, READERS, classify, reader

MOST_FILES = 20_000
MAIN_SUFFIXES = (".meta", ".caffemodel", "predict_net.pb")
"""The file to begin with, where several belong to one model."""
BESIDE = (
    ".py",
    ".md",
    ".rst",
    ".sh",
    ".cfg",
    ".toml",
    ".npz",
    ".npy",
    ".pdiparams.info",
)
"""How the names of files end that stand beside models and are none: not worth a look."""
WEIGHTS_ONLY = "pytorch/state_dict"


def read_folder(folder: Path, format: str | None) -> Reading:
    """Read the one model in `folder`, of that format where one is given.

    Raises SourceError where there is none, or more than one.
    """
    entries = _entries(folder)
    if format in (None, hugging_face_folder.FORMAT) and hugging_face_folder.recognises(folder):
        return hugging_face_folder.read(folder)
    if (whole := _whole(folder)) is not None:
        return whole
    found, parts, problem = _classify([path for path in entries if path.is_file()])
    if format is not None:
        found = {path: kind for path, kind in found.items() if _fits(path, kind, format)}
    if any(kind != WEIGHTS_ONLY for kind in found.values()) and format is None:
        # weights that a graph was made from often stay beside it
        found = {path: kind for path, kind in found.items() if kind != WEIGHTS_ONLY}
    models = _distinct(found)
    if not models:
        inside = [path for path in entries if path.is_dir() and _is_whole(path)]
        if len(inside) == 1:
            return read_folder(inside[0], format)
        if inside:
            raise _several(folder, dict.fromkeys(inside, ""))
        if problem is not None:
            raise problem
        raise _none(folder, parts, format)
    if len(models) > 1 and set(models.values()) == {"tensorflow/checkpoint"}:
        last = tensorflow_checkpoint.newest(folder)
        models = {last: "tensorflow/checkpoint"} if last is not None else models
    if len(models) > 1:
        raise _several(folder, models)
    ((path, kind),) = models.items()
    return reader(kind)(open_content(path))


def _entries(folder: Path) -> list[Path]:
    found = []
    try:
        for path in folder.iterdir():
            if not path.name.startswith("."):
                found.append(path)
            if len(found) > MOST_FILES:
                raise SourceError(
                    f"`{folder}` holds more than {MOST_FILES} files",
                    hint="name the model's own file or folder",
                )
    except OSError as error:
        raise SourceError(f"cannot read `{folder}`: {error.strerror or error}") from error
    if not found:
        raise SourceError(f"`{folder}` is an empty folder")
    return sorted(found)


def _is_whole(folder: Path) -> bool:
    """Whether the folder itself is a model, and not a place where a model lies."""
    return (
        (folder / "saved_model.pb").is_file()
        or foreign.is_coreml_package(folder)
        or foreign.is_xdl_checkpoint(folder)
        or hugging_face_folder.recognises(folder)
    )


def _whole(folder: Path) -> Reading | None:
    if (model := folder / "saved_model.pb").is_file():
        return reader("tensorflow/saved_model")(open_content(model))
    if (folder / "saved_model.pbtxt").is_file():
        raise SourceError(
            f"`{folder}` is a TensorFlow SavedModel in text form, which cannot be read",
            hint="load it in TensorFlow and save it again: that writes `saved_model.pb`",
        )
    if foreign.is_coreml_package(folder):
        return foreign.read_coreml_package(folder)
    return foreign.read_xdl_checkpoint(folder) if foreign.is_xdl_checkpoint(folder) else None


def _classify(paths: list[Path]) -> tuple[dict[Path, str], dict[Path, str], SourceError | None]:
    """Return the models, the parts of models, and what is wrong with the first damaged file."""
    models: dict[Path, str] = {}
    parts: dict[Path, str] = {}
    problem: SourceError | None = None
    for path in paths:
        if path.name.endswith(BESIDE) or path.name.startswith("golden."):
            continue
        try:
            kind = classify(open_content(path))
        except SourceError as error:
            # it matters only where nothing else is the model
            problem = problem or error
            continue
        if kind in READERS:
            models[path] = kind
        elif kind is not None:
            parts[path] = kind
    return models, parts, problem


def _fits(path: Path, kind: str, format: str) -> bool:
    is_fluid = format == "paddle/fluid" and kind == "paddle/program" and path.name == "__model__"
    return kind == format or is_fluid


def _distinct(found: dict[Path, str]) -> dict[Path, str]:
    """Return one file for each model: some have several that are recognised."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for path, kind in found.items():
        stem = path.name
        if kind == "tensorflow/checkpoint":
            stem = tensorflow_checkpoint.prefix(path)
        elif kind == "caffe/caffemodel":
            stem = path.stem
        groups.setdefault((kind, stem), []).append(path)
    for kind, main in (("caffe/caffemodel", ".caffemodel"), ("caffe2/net", "")):
        own = [path for path, other in found.items() if other == kind]
        # a net and its weights, under whatever names
        if len(own) == 2 and sum(path.name.endswith(main) for path in own) == (1 if main else 2):
            groups = {key: paths for key, paths in groups.items() if key[0] != kind}
            groups[kind, ""] = own
    return {
        next((path for path in paths if path.name.endswith(MAIN_SUFFIXES)), paths[0]): kind
        for (kind, _), paths in groups.items()
    }


def _several(folder: Path, models: dict[Path, str]) -> SourceError:
    names = [
        shown(path.name) + (f" ({kind})" if kind else "") for path, kind in sorted(models.items())
    ]
    return SourceError(
        f"`{folder}` holds {len(models)} models: {listed(names)}",
        hint=f"name one of them: `{min(models)}`",
    )


def _none(folder: Path, parts: dict[Path, str], format: str | None) -> SourceError:
    if parts and format is None:
        path, kind = next(iter(parts.items()))
        return SourceError(
            f"`{folder}` holds {kind} (`{shown(path.name)}`) and no graph: {PARTS[kind]} is missing",
            hint="copy the graph's file into the folder",
        )
    what = f"no {format} model" if format else "no model of a format that deploykit knows"
    return SourceError(
        f"there is {what} in `{folder}`",
        hint="name the model's file; `deploykit inspect --help` lists the formats",
    )
