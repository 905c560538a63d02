"""From what the user typed to the reader that takes it."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from deploykit.errors import SourceError, UsageError
from deploykit.formats import foreign, numpy_pickle, python_reference, tensorflow_checkpoint
from deploykit.formats.content import open_content, shown
from deploykit.formats.folder import read_folder
from deploykit.formats.reading import (
    FormatError,
    MissingWeightsError,
    Reading,
    RunsCodeError,
    listed,
)
from deploykit.formats.recognise import PARTS, READERS, classify, part_alone, reader

FOLDERS_AND_CODE = (
    *python_reference.FORMATS,
    "hugging-face/folder",
    "coreml/mlpackage",
    "xdl/checkpoint",
)
"""Formats that are no single file."""
KERAS_FILES = ("keras/hdf5", "keras/v3")
"""Files whose Lambda layers hold code: with the user's trust they are a model by reference."""


def read(
    location: str | Path, format: str | None, *, trust: bool = False, elsewhere: bool = False
) -> Reading:
    """Read the model at `location`. Raises SourceError, or UsageError for an unknown format.

    With `trust`, a file that runs code is a result and no error; it is not run here either. With
    `elsewhere`, neither is a graph without weights beside it: the user names them.
    """
    try:
        reading = _read(location, format)
        has_code = reading.format in KERAS_FILES and "Lambda" in reading.operators
        if not (trust and has_code):
            return reading
        code = "its Lambda layers are bytecode, which Keras runs"
        details = {**reading.details, "code": code}
        return replace(reading, format="keras/reference", details=details)
    except MissingWeightsError as error:
        if not elsewhere:
            raise
        return error.reading
    except RunsCodeError as error:
        if not trust:
            raise
        is_theano = any(name.startswith(numpy_pickle.THEANO) for name in error.names)
        return Reading(
            format="theano/parameters" if is_theano else "pytorch/state_dict",
            location=error.path,
            files=(error.path,),
            details={"code": f"loading it imports {shown(listed(error.names))}"},
        )


def _read(location: str | Path, format: str | None) -> Reading:
    text = str(location)
    known = (*READERS, *FOLDERS_AND_CODE)
    if format is not None and format not in known:
        near = difflib.get_close_matches(format, known, n=1)
        meant = f" (did you mean `{near[0]}`?)" if near else ""
        raise UsageError(f"no format `{format}`{meant}", hint=f"known: {', '.join(known)}")
    if "\0" in text or not text:
        raise SourceError("a model's location is a path, and this is none")
    path = Path(text)
    reference = python_reference.split(text)
    try:
        if reference is not None and not path.exists():
            if not reference[0].exists():
                raise _missing(reference[0])
            return python_reference.read(*reference, format)
        if path.is_dir():
            return read_folder(path, format)
        if not path.exists():
            return _by_prefix(path)
        if path.suffix == ".py":
            raise python_reference.without_name(path)
        return _read_file(path, format)
    except OSError as error:
        reason = error.strerror or error
        raise SourceError(f"cannot read `{shown(text, 500)}`: {reason}") from error


def _read_file(path: Path, format: str | None) -> Reading:
    if format in FOLDERS_AND_CODE:
        raise SourceError(
            f"`{path}` is a file, and {format} is not",
            hint="leave --from away, or name the folder (of code: `module.py:callable`)",
        )
    if path.name == "checkpoint" and (last := tensorflow_checkpoint.newest(path.parent)):
        path = last
    content = open_content(path)
    kind = format if format in READERS else classify(content)
    if kind is None:
        what = foreign.what_else(content)
        raise SourceError(
            f"`{path}` is {what}, not a model"
            if what
            else f"`{path}` is not a model of any format that deploykit knows",
            hint="if you know its format, name it: `--from FORMAT`" if not what else "",
        )
    if kind in PARTS:
        raise part_alone(content, kind)
    try:
        reading = reader(kind)(content)
    except (FormatError, RecursionError, UnicodeError) as error:
        # a reader's own message is better; this one is the net below all of them
        raise SourceError(f"`{path}` is a damaged {kind} model: {error}") from error
    # program and fluid are one format under two conventions of names
    return replace(reading, format=format) if format == "paddle/fluid" else reading


def _by_prefix(path: Path) -> Reading:
    """Read what frameworks name by the common beginning of its files."""
    for suffix in (".meta", ".index", ".pdmodel"):
        candidate = path.with_name(path.name + suffix)
        if path.name and candidate.is_file():
            return _read_file(candidate, None)
    raise _missing(path)


def _missing(path: Path) -> SourceError:
    folder = path.parent
    names: list[str] = []
    if folder.is_dir():
        names = [one.name for one in folder.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=1) or [
            name for name in sorted(names) if path.name and name.startswith(path.name)
        ]
        if near:
            return SourceError(
                f"`{path}` does not exist", hint=f"did you mean `{folder / near[0]}`?"
            )
        return SourceError(f"`{path}` does not exist")
    return SourceError(f"`{path}` does not exist: nor does the folder `{folder}`")
