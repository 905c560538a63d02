"""ONNX models: the graph's signature, its operators, its parameters and its external data.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged, shown, size_of
from deploykit.formats.protobuf_wire import (
    DEEPEST,
    beginning,
    fields,
    is_name,
    message,
    number,
    numbers,
    text,
)
from deploykit.formats.reading import MOST_DIMENSIONS, FormatError, Reading, counted, elements
from deploykit.protocol import Dimension, Signature, TensorSpec

DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1",
    24: "float8_e8m0",
}
NOT_PARAMETERS = frozenset({"int64", "string", "bool"})
"""Constants of these dtypes are shapes, axes and indices, not what was learnt."""


@dataclass
class _Found:
    """What a walk over a graph, its subgraphs and functions gathers."""

    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    initializers: set[str] = field(default_factory=set)
    operators: list[str] = field(default_factory=list)
    parameters: int = 0
    external: dict[str, int] = field(default_factory=dict)


def recognises(content: Content) -> bool:
    """Whether the file begins as an ONNX ModelProto does."""
    found = beginning(content.view)
    if not found:
        return False
    graph = next((value for key, value in found if key == 7 and not isinstance(value, int)), None)
    allowed = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
    plain = all(
        key in allowed and isinstance(value, int) == (key in (1, 5)) for key, value in found
    )
    if graph is None or not plain:
        return False
    inner = beginning(graph, 8)
    if not inner or any(key > 16 or isinstance(value, int) for key, value in inner):
        return False
    kind, part = inner[0]
    if kind != 1 or isinstance(part, int):
        # a graph may begin with its name, its tensors, its inputs (and hold no node at all)
        return kind in (2, 5, 10, 11, 12, 13) and (kind != 2 or is_name(part))
    node = beginning(part, 64)
    return bool(node) and all(key <= 9 and not isinstance(value, int) for key, value in node or [])


def read(content: Content) -> Reading:
    """Read an ONNX file. Raises SourceError where it, or data beside it, is damaged or missing."""
    found = _Found()
    opsets: dict[str, int] = {}
    details: dict[str, str] = {}
    functions = 0
    graph: memoryview | None = None
    try:
        for key, value in fields(content.view):
            if key == 1:
                details["ir_version"] = str(number(value))
            elif key == 2:
                details["producer"] = text(value)
            elif key == 3 and text(value):
                details["producer"] = f"{details.get('producer', '')} {text(value)}".strip()
            elif key == 7:
                graph = message(value)
            elif key == 8:
                domain, version = _opset(message(value))
                opsets[domain] = version
            elif key == 25:
                functions += 1
                _walk_function(message(value), found)
        if graph is None:
            raise FormatError("it has no graph")
        if not opsets and int(details.get("ir_version", 0)) < 3:
            # the field came with IR version 3
            opsets[""] = 1
        if not opsets:
            raise FormatError("it declares no opset: the end is missing")
        _walk_graph(graph, found, 0)
    except FormatError as error:
        raise damaged(content.path, "ONNX model", error) from error
    details["opset"] = str(opsets.get("", opsets.get("ai.onnx", "none")))
    others = {name: version for name, version in opsets.items() if name not in ("", "ai.onnx")}
    if others:
        details["domains"] = ", ".join(f"{name} {version}" for name, version in others.items())
    if functions:
        details["functions"] = str(functions)
    files = (content.path, *_external_files(content.path, found.external))
    inputs = tuple(one for one in found.inputs if one.name not in found.initializers)
    return Reading(
        format="onnx",
        location=content.path,
        files=files,
        signature=Signature(inputs=inputs, outputs=tuple(found.outputs)),
        operators=counted(found.operators),
        parameters=found.parameters,
        details=details,
    )


def _opset(entry: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for key, value in fields(entry):
        if key == 1:
            domain = text(value)
        elif key == 2:
            version = number(value)
    return domain, version


def _walk_graph(graph: memoryview, found: _Found, depth: int) -> None:
    if depth > DEEPEST:
        raise FormatError(f"graphs are nested deeper than {DEEPEST}")
    for key, value in fields(graph):
        if key == 1:
            _walk_node(message(value), found, depth)
        elif key == 5:
            name = _walk_tensor(message(value), found)
            if depth == 0:
                found.initializers.add(name)
        elif key == 15:
            for inner, part in fields(message(value)):
                if inner == 1:
                    name = _walk_tensor(message(part), found)
                    found.initializers.add(name)
        elif key == 11 and depth == 0:
            found.inputs.append(_value_info(message(value)))
        elif key == 12 and depth == 0:
            found.outputs.append(_value_info(message(value)))


def _walk_function(function: memoryview, found: _Found) -> None:
    for key, value in fields(function):
        if key == 7:
            _walk_node(message(value), found, 1)


def _walk_node(node: memoryview, found: _Found, depth: int) -> None:
    operator = domain = ""
    for key, value in fields(node):
        if key == 4:
            operator = text(value)
        elif key == 7:
            domain = text(value)
        elif key == 5:
            for inner, part in fields(message(value)):
                if inner in (5, 10):
                    _walk_tensor(message(part), found)
                elif inner in (6, 11):
                    _walk_graph(message(part), found, depth + 1)
    found.operators.append(operator if domain in ("", "ai.onnx") else f"{domain}.{operator}")


def _walk_tensor(tensor: memoryview, found: _Found) -> str:
    """Count a constant tensor and note where its data are; return its name."""
    shape: list[int] = []
    dtype, name, location = 0, "", ""
    place = {"offset": 0, "length": 0}
    for key, value in fields(tensor):
        if key == 1:
            shape += numbers(value)
            if len(shape) > MOST_DIMENSIONS:
                raise FormatError(f"a tensor of more than {MOST_DIMENSIONS} dimensions")
        elif key == 2:
            dtype = number(value)
        elif key == 8:
            name = text(value)
        elif key == 13:
            entry = {inner: text(part) for inner, part in fields(message(value))}
            if entry.get(1) == "location":
                location = entry.get(2, "")
            elif entry.get(1) in place and entry.get(2, "").isdecimal():
                place[entry[1]] = int(entry[2][:20])
    if DTYPES.get(dtype, "") not in NOT_PARAMETERS:
        found.parameters += elements(shape)
    if location:
        end = place["offset"] + place["length"]
        found.external[location] = max(found.external.get(location, 0), end)
    return name


def _value_info(value_info: memoryview) -> TensorSpec:
    name = ""
    spec: tuple[str, tuple[Dimension, ...] | None] = ("unknown", None)
    for key, value in fields(value_info):
        if key == 1:
            name = text(value)
        elif key == 2:
            spec = _type(message(value), 0)
    return TensorSpec(name=name, dtype=spec[0], shape=spec[1])


def _type(kind: memoryview, depth: int) -> tuple[str, tuple[Dimension, ...] | None]:
    if depth > DEEPEST:
        raise FormatError(f"types are nested deeper than {DEEPEST}")
    for key, value in fields(kind):
        if key in (1, 8):
            dtype: str = "unknown"
            shape: tuple[Dimension, ...] | None = None
            for inner, part in fields(message(value)):
                if inner == 1:
                    dtype = DTYPES.get(number(part), "unknown")
                elif inner == 2:
                    shape = tuple(
                        _dimension(message(one)) for tag, one in fields(message(part)) if tag == 1
                    )
            return (dtype if key == 1 else f"sparse({dtype})"), shape
        if key in (4, 9):
            for inner, part in fields(message(value)):
                if inner == 1:
                    element, _ = _type(message(part), depth + 1)
                    return f"{'sequence' if key == 4 else 'optional'}({element})", None
        if key == 5:
            return "map", None
    return "unknown", None


def _dimension(dimension: memoryview) -> Dimension:
    found: Dimension = None
    for key, value in fields(dimension):
        if key == 1:
            size = number(value)
            found = size if size >= 0 else None
        elif key == 2:
            found = text(value) or None
    return found


def _external_files(model: Path, external: dict[str, int]) -> list[Path]:
    """Return the files of external data, each checked to be inside the folder, there and whole."""
    found = []
    folder = model.parent
    for location, end in sorted(external.items()):
        path = folder / location
        where = f"`{model}` keeps weights in `{shown(location)}`"
        if "\0" in location:
            raise damaged(model, "ONNX model", "the name of its weights file has a null character")
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
            exists = path.is_file()
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its links go in a circle"
            raise SourceError(f"{where}, which cannot be followed: {reason}") from error
        if not inside or Path(location).is_absolute() or ".." in Path(location).parts:
            raise SourceError(
                f"{where}, outside its own folder: refused, for it may read any file",
                hint="put the weights beside the model and save it again with a relative location",
            )
        if not exists:
            raise SourceError(
                f"{where}, and that file is missing",
                hint=f"put `{shown(Path(location).name)}` into `{folder}`",
            )
        if (size := size_of(path)) < end:
            raise SourceError(
                f"{where}, which is truncated: {size} bytes where the model needs {end}",
                hint="copy or download it again",
            )
        found.append(path)
    return found
