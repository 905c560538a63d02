"""Paddle's ProgramDesc: `.pdmodel` with `.pdiparams` (2.x) and `__model__` folders (1.x, "fluid").

https://github.com/PaddlePaddle/Paddle/blob/release/2.6/paddle/fluid/framework/framework.proto
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged, open_content
from deploykit.formats.paddle_parameters import check_parameters
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
from deploykit.formats.reading import (
    MOST_DIMENSIONS,
    UNKNOWN_DTYPE,
    FormatError,
    Reading,
    counted,
    elements,
    listed,
)
from deploykit.protocol import Dimension, Signature, TensorSpec

DTYPES = {
    0: "bool",
    1: "int16",
    2: "int32",
    3: "int64",
    4: "float16",
    5: "float32",
    6: "float64",
    20: "uint8",
    21: "int8",
    22: "bfloat16",
    23: "complex64",
    24: "complex128",
    32: "float8_e4m3fn",
    33: "float8_e5m2",
}
LOD_TENSOR = 7
SELECTED_ROWS = 8


@dataclass
class _Variable:
    name: str = ""
    kind: int = -1
    dtype: str = UNKNOWN_DTYPE
    shape: tuple[Dimension, ...] | None = None
    lod_level: int = 0
    persistable: bool = False

    @property
    def is_parameter(self) -> bool:
        # feed and fetch holders are persistable too, and have no tensor
        return self.persistable and self.kind in (LOD_TENSOR, SELECTED_ROWS)

    def spec(self) -> TensorSpec:
        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)


@dataclass
class _Program:
    variables: dict[str, _Variable] = field(default_factory=dict)
    operators: list[str] = field(default_factory=list)
    feeds: list[tuple[int, str]] = field(default_factory=list)
    fetches: list[tuple[int, str]] = field(default_factory=list)
    blocks: int = 0
    version: int = 0


def recognises(content: Content) -> bool:
    """Whether the file begins as a ProgramDesc does: with a block that has variables."""
    found = beginning(content.view, 16)
    if not found or any(key not in (1, 3, 4, 5) or isinstance(v, int) for key, v in found):
        return False
    if found[0][0] != 1 or isinstance(found[0][1], int):
        return False
    block = beginning(found[0][1], 4)
    if not block or len(block) < 3:
        return False
    numbered = [key for key, value in block[:2] if isinstance(value, int)] == [1, 2]
    kind, part = block[2]
    if not numbered or kind not in (3, 4) or isinstance(part, int):
        return False
    inner = beginning(part, 8)
    # a variable begins with its name, an operator with its inputs
    if not inner or isinstance(inner[0][1], int):
        return False
    return kind == 4 or (inner[0][0] == 1 and is_name(inner[0][1]))


def read(content: Content) -> Reading:
    """Read a program and find its parameters. Raises SourceError where it or they are not whole."""
    path = content.path
    try:
        program = _read_program(content.view)
        signature = _signature(program)
    except FormatError as error:
        raise damaged(path, "Paddle program", error) from error
    parameters = sorted(
        (one for one in program.variables.values() if one.is_parameter), key=lambda one: one.name
    )
    files = _find_parameters(path, [one.name for one in parameters])
    details = {}
    if program.version:
        details["producer"] = f"Paddle {version_name(program.version)}"
    ragged = [spec.name for spec in signature.inputs if program.variables[spec.name].lod_level]
    if ragged:
        details["ragged inputs (LoD)"] = listed(ragged)
    if program.blocks > 1:
        details["blocks"] = str(program.blocks)
    return Reading(
        format="paddle/fluid" if path.name == "__model__" else "paddle/program",
        location=path,
        files=(path, *files),
        signature=signature,
        operators=counted(name for name in program.operators if name not in ("feed", "fetch")),
        parameters=sum(elements(one.shape or ()) for one in parameters),
        details=details,
    )


def version_name(code: int) -> str:
    """Return the version that Paddle encodes as major * 1000000 + minor * 1000 + patch."""
    return f"{code // 1_000_000}.{code // 1000 % 1000}.{code % 1000}"


def _read_program(view: memoryview) -> _Program:
    program = _Program()
    for key, value in fields(view):
        if key == 1:
            program.blocks += 1
            _read_block(message(value), program)
        elif key == 4:
            for inner, part in fields(message(value)):
                if inner == 1:
                    program.version = number(part)
    if not program.blocks:
        raise FormatError("it has no block")
    return program


def _read_block(view: memoryview, program: _Program) -> None:
    main = program.blocks == 1
    for key, value in fields(view):
        if key == 3:
            variable = _read_variable(message(value))
            program.variables.setdefault(variable.name, variable)
        elif key == 4:
            _read_operator(message(value), program, main)


def _read_variable(view: memoryview) -> _Variable:
    variable = _Variable()
    for key, value in fields(view):
        if key == 1:
            variable.name = text(value)
        elif key == 2:
            _read_type(message(value), variable)
        elif key == 3:
            variable.persistable = bool(number(value))
    return variable


def _read_type(view: memoryview, variable: _Variable) -> None:
    for key, value in fields(view):
        if key == 1:
            variable.kind = number(value)
        elif key == 2:
            _read_tensor(message(value), variable)
        elif key == 3:
            for inner, part in fields(message(value)):
                if inner == 1:
                    _read_tensor(message(part), variable)
                elif inner == 2:
                    variable.lod_level = number(part)


def _read_tensor(view: memoryview, variable: _Variable) -> None:
    variable.dtype, sizes = tensor_description(view)
    variable.shape = tuple(size if size >= 0 else None for size in sizes)


def tensor_description(view: memoryview) -> tuple[str, list[int]]:
    """Return dtype and sizes of a TensorDesc, -1 for a size that is not fixed. Raises FormatError."""
    dtype = UNKNOWN_DTYPE
    sizes: list[int] = []
    for key, value in fields(view):
        if key == 1:
            dtype = DTYPES.get(number(value), UNKNOWN_DTYPE)
        elif key == 2:
            sizes += numbers(value)
            if len(sizes) > MOST_DIMENSIONS:
                raise FormatError(f"a tensor of more than {MOST_DIMENSIONS} dimensions")
    return dtype, sizes


def _read_operator(view: memoryview, program: _Program, main: bool) -> None:
    kind = ""
    sources: list[str] = []
    results: list[str] = []
    column = 0
    for key, value in fields(view):
        if key == 1:
            sources += _arguments(value)
        elif key == 2:
            results += _arguments(value)
        elif key == 3:
            kind = text(value)
        elif key == 4:
            column = _column(message(value), column)
    program.operators.append(kind)
    if main and kind == "feed":
        program.feeds += [(column, name) for name in results]
    elif main and kind == "fetch":
        program.fetches += [(column, name) for name in sources]


def _arguments(value: Value) -> list[str]:
    return [text(part) for key, part in fields(message(value)) if key == 2]


def _column(attribute: memoryview, otherwise: int) -> int:
    name, found = "", otherwise
    for key, value in fields(attribute):
        if key == 1:
            name = text(value)
        elif key == 3:
            found = number(value)
    return found if name == "col" else otherwise


def _signature(program: _Program) -> Signature:
    for _, name in (*program.feeds, *program.fetches):
        if name not in program.variables:
            raise FormatError(f"`{name}` goes in or out and is not declared")
    return Signature(
        inputs=tuple(program.variables[name].spec() for _, name in sorted(program.feeds)),
        outputs=tuple(program.variables[name].spec() for _, name in sorted(program.fetches)),
    )


def _find_parameters(model: Path, names: list[str]) -> list[Path]:
    """Return the files of the parameters, one for all or one for each. Raises SourceError."""
    if not names:
        return []
    folder = model.parent
    together = [model.with_suffix(".pdiparams")]
    if model.name == "__model__":
        together = [folder / "__params__", folder / "params", folder / "__params"]
    found = next((path for path in together if path.is_file()), None)
    others = sorted(folder.glob("*.pdiparams"))
    if found is None and model.name != "__model__" and len(others) == 1:
        found = others[0]
    if found is not None:
        check_parameters(open_content(found), len(names))
        return [found]
    apart = [folder / name for name in names if _is_plain(name)]
    missing = [path.name for path in apart if not path.is_file()]
    if not missing and len(apart) == len(names):
        for path in apart:
            check_parameters(open_content(path), 1)
        return apart
    if len(missing) == len(names) or model.name != "__model__":
        raise SourceError(
            f"the weights of `{model}` are missing: there is no `{together[0].name}` beside it",
            hint=f"copy `{together[0].name}` into `{folder}`",
        )
    raise SourceError(
        f"{len(missing)} of {len(names)} weight files of `{model}` are missing: {listed(missing, 3)}",
        hint=f"copy the whole folder `{folder}`",
    )


def _is_plain(name: str) -> bool:
    """Whether a variable's name can be a file's name within the folder."""
    return (
        "\0" not in name
        and name not in ("", ".", "..")
        and ".." not in name.split("/")
        and name[0] != "/"
    )
