"""Caffe (`.caffemodel` with `.prototxt`) and Caffe2 (`predict_net.pb` with `init_net.pb`).

https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto
https://github.com/pytorch/pytorch/blob/v1.8.1/caffe2/proto/caffe2.proto
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged, open_content
from deploykit.formats.protobuf_wire import (
    Value,
    beginning,
    fields,
    is_name,
    message,
    number,
    numbers,
    text,
)
from deploykit.formats.reading import FormatError, MissingWeightsError, Reading, counted, elements

LAYER, OLD_LAYER = 100, 2
PROTOTXT = re.compile(rb"^\s*layers?\s*\{", re.MULTILINE)
FILL = re.compile(r"\w*Fill")
OLD_TYPES = [
    "NONE",
    "ACCURACY",
    "BNLL",
    "CONCAT",
    "CONVOLUTION",
    "DATA",
    "DROPOUT",
    "EUCLIDEAN_LOSS",
    "FLATTEN",
    "HDF5_DATA",
    "HDF5_OUTPUT",
    "IM2COL",
    "IMAGE_DATA",
    "INFOGAIN_LOSS",
    "INNER_PRODUCT",
    "LRN",
    "MULTINOMIAL_LOGISTIC_LOSS",
    "POOLING",
    "RELU",
    "SIGMOID",
    "SOFTMAX",
    "SOFTMAX_LOSS",
    "SPLIT",
    "TANH",
    "WINDOW_DATA",
    "ELTWISE",
    "POWER",
    "SIGMOID_CROSS_ENTROPY_LOSS",
    "HINGE_LOSS",
    "MEMORY_DATA",
    "ARGMAX",
    "THRESHOLD",
    "DUMMY_DATA",
    "SLICE",
    "MVN",
    "ABSVAL",
    "SILENCE",
    "CONTRASTIVE_LOSS",
    "EXP",
    "DECONVOLUTION",
]


def recognises_caffe(content: Content) -> bool:
    """Whether the file begins as a NetParameter does: a name, then layers."""
    found = beginning(content.view, 8)
    if not found or any(key not in (1, 2, 3, 4, 5, 6, 7, 8, LAYER) for key, _ in found):
        return False
    if any(isinstance(value, int) != (key in (4, 5, 7)) for key, value in found):
        return False
    return any(
        (key == LAYER and _begins_layer(value)) or (key == OLD_LAYER and _begins_old_layer(value))
        for key, value in found
    )


def _begins_layer(value: Value) -> bool:
    inner = beginning(message(value), 2)
    return (
        bool(inner)
        and len(inner or ()) == 2
        and all(key in (1, 2) and is_name(part) for key, part in inner or ())
    )


def _begins_old_layer(value: Value) -> bool:
    inner = beginning(message(value), 64)
    if not inner:
        return False
    # the type of an old layer is a number in field 5, which Caffe2's operators have as a message
    return any(key == 5 and isinstance(part, int) for key, part in inner) and any(
        key == 4 and is_name(part) for key, part in inner
    )


def recognises_prototxt(content: Content) -> bool:
    """Whether the file is the text of a Caffe network."""
    head = bytes(content.view[: 64 << 10])
    return b"\0" not in head and PROTOTXT.search(head) is not None and b"type" in head


def read_caffe(content: Content) -> Reading:
    """Read a caffemodel, or the one that belongs to a prototxt.

    Raises SourceError where it is damaged or missing.
    """
    if recognises_prototxt(content):
        return _read_prototxt(content)
    path = content.path
    operators: list[str] = []
    parameters = 0
    try:
        for key, value in fields(content.view):
            if key in (LAYER, OLD_LAYER):
                kind, count = _layer(message(value), old=key == OLD_LAYER)
                operators.append(kind)
                parameters += count
        if not operators:
            raise FormatError("it has no layer")
    except FormatError as error:
        raise damaged(path, "Caffe model", error) from error
    beside = _prototxt_beside(path)
    details = (
        {} if beside else {"network": "no prototxt beside it: the layers as they were trained"}
    )
    return Reading(
        format="caffe/caffemodel",
        location=path,
        files=(path, beside) if beside else (path,),
        operators=counted(operators),
        parameters=parameters,
        details=details,
    )


def _layer(view: memoryview, *, old: bool) -> tuple[str, int]:
    kind, total = "", 0
    for key, value in fields(view):
        if key == 5 and old:
            code = number(value)
            kind = OLD_TYPES[code] if 0 <= code < len(OLD_TYPES) else str(code)
        elif key == 2 and not old:
            kind = text(value)
        elif key == (6 if old else 7):
            total += _blob(message(value))
    return kind, total


def _blob(view: memoryview) -> int:
    shape: list[int] = []
    old_shape: list[int] = []
    for key, value in fields(view):
        if key <= 4:
            old_shape.append(number(value))
        elif key == 7:
            for inner, part in fields(message(value)):
                if inner == 1:
                    shape += numbers(part)
    return elements(shape or old_shape) if shape or old_shape else 0


def _prototxt_beside(path: Path) -> Path | None:
    named = path.with_suffix(".prototxt")
    every = sorted(path.parent.glob("*.prototxt"))
    return named if named in every else every[0] if len(every) == 1 else None


def _read_prototxt(content: Content) -> Reading:
    path = content.path
    every = sorted(path.parent.glob("*.caffemodel"))
    named = path.with_suffix(".caffemodel")
    if named not in every and len(every) != 1:
        raise SourceError(
            f"the weights of `{path}` are missing: there is no `{named.name}` beside it",
            hint=f"copy it into `{path.parent}`",
        )
    return read_caffe(open_content(named if named in every else every[0]))


def recognises_caffe2(content: Content) -> bool:
    """Whether the file begins as a NetDef does: with operators that have a type and arguments."""
    found = beginning(content.view, 8)
    if not found or any(not 1 <= key <= 9 for key, _ in found):
        return False
    operators = [value for key, value in found if key == 2]
    if not operators or any(isinstance(value, int) for value in operators):
        return False
    inner = beginning(message(operators[0]), 256)
    if not inner or any(key > 10 or isinstance(part, int) for key, part in inner):
        return False
    kinds = [part for key, part in inner if key == 4]
    return len(kinds) == 1 and is_name(kinds[0]) and any(key == 2 for key, _ in inner)


def read_caffe2(content: Content) -> Reading:
    """Read a Caffe2 network and its weights. Raises SourceError where one is missing."""
    net = _net(content)
    if _only_fills(net):
        other = _partner(content.path, "init", "predict", fills=False)
        if other is None:
            raise SourceError(
                f"`{content.path}` only fills weights; the Caffe2 network that uses them is missing",
                hint=f"copy `predict_net.pb` into `{content.path.parent}`",
            )
        return read_caffe2(open_content(other))
    reading = Reading(
        format="caffe2/net",
        location=content.path,
        files=(content.path,),
        operators=counted(kind for kind, _ in net),
    )
    weights = _partner(content.path, "predict", "init", fills=True)
    if weights is None:
        raise MissingWeightsError(
            f"the weights of `{content.path}` are missing: there is no `init_net.pb` beside it",
            hint=f"copy it into `{content.path.parent}`, or name it: `--set init=FILE`",
            reading=reading,
        )
    filled = _net(open_content(weights))
    return replace(
        reading, files=(content.path, weights), parameters=sum(count for _, count in filled)
    )


def _net(content: Content) -> list[tuple[str, int]]:
    """Return type and number of elements (of fills) of each operator. Raises SourceError."""
    try:
        return [_operator(message(value)) for key, value in fields(content.view) if key == 2]
    except FormatError as error:
        raise damaged(content.path, "Caffe2 network", error) from error


def _operator(view: memoryview) -> tuple[str, int]:
    kind = ""
    shape: list[int] | None = None
    for key, value in fields(view):
        if key == 4:
            kind = text(value)
        elif key == 5:
            shape = _shape(message(value)) or shape
    return kind, elements(shape) if shape is not None and kind != "GivenTensorInt64Fill" else 0


def _shape(argument: memoryview) -> list[int] | None:
    """Return the numbers of an argument called `shape`, None for any other."""
    sizes: list[int] = []
    for key, value in fields(argument):
        if key == 1 and text(value) != "shape":
            # the values of the weights, one field each: not to be walked over
            return None
        if key == 6:
            sizes += numbers(value)
    return sizes


def _only_fills(net: list[tuple[str, int]]) -> bool:
    return bool(net) and all(FILL.fullmatch(kind) for kind, _ in net)


def _partner(path: Path, own: str, other: str, *, fills: bool) -> Path | None:
    """Return the other half of a Caffe2 model: by its name, else the only one in the folder."""
    named = path.with_name(path.name.replace(own, other))
    if named != path and named.is_file():
        return named
    found = []
    for candidate in sorted(path.parent.glob("*.pb")):
        if candidate == path:
            continue
        content = open_content(candidate)
        if recognises_caffe2(content) and _only_fills(_net(content)) == fills:
            found.append(candidate)
    return found[0] if len(found) == 1 else None
