"""Paddle 3's programs in PIR: a `.json` with `.pdiparams` beside it.

https://github.com/PaddlePaddle/Paddle/tree/develop/paddle/fluid/pir/serialize_deserialize
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged, open_content
from deploykit.formats.json_document import parse
from deploykit.formats.paddle_parameters import check_parameters
from deploykit.formats.reading import UNKNOWN_DTYPE, FormatError, Reading, counted, elements
from deploykit.protocol import Dimension, Signature, TensorSpec

KIND = "Paddle PIR program"
DTYPES = {
    "t_bool": "bool",
    "t_i1": "bool",
    "t_ui8": "uint8",
    "t_i8": "int8",
    "t_i16": "int16",
    "t_i32": "int32",
    "t_i64": "int64",
    "t_f16": "float16",
    "t_bf16": "bfloat16",
    "t_f32": "float32",
    "t_f64": "float64",
    "t_c64": "complex64",
    "t_c128": "complex128",
    "t_f8e4m3fn": "float8_e4m3fn",
    "t_f8e5m2": "float8_e5m2",
}
PARAMETER = "p"
NOT_OPERATORS = frozenset({PARAMETER, "1.data", "1.feed", "1.fetch", "0.combine", "0.split"})


@dataclass
class _Found:
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[tuple[int, TensorSpec]] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)


def recognises(content: Content) -> bool:
    """Whether the file begins as the JSON of a PIR program does."""
    head = bytes(content.view[:256]).replace(b" ", b"").replace(b"\n", b"")
    return head.startswith(b'{"base_code"') and b'"magic":"pir"' in head


def read(content: Content) -> Reading:
    """Read a PIR program and check its parameters. Raises SourceError."""
    path = content.path
    program = parse(content, KIND)
    found = _Found()
    try:
        _walk(program["program"]["regions"], found)
        version = program["base_code"].get("version", "unknown")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise damaged(path, KIND, f"its structure breaks off ({error!r})") from error
    weights = path.with_suffix(".pdiparams")
    files = [path]
    if found.parameters:
        if not weights.is_file():
            raise SourceError(
                f"the weights of `{path}` are missing: there is no `{weights.name}` beside it",
                hint=f"copy `{weights.name}` into `{path.parent}`",
            )
        check_parameters(open_content(weights), len(found.parameters))
        files.append(weights)
    return Reading(
        format="paddle/pir",
        location=path,
        files=tuple(files),
        signature=Signature(
            inputs=tuple(found.inputs),
            outputs=tuple(spec for _, spec in sorted(found.outputs, key=lambda item: item[0])),
        ),
        operators=counted(found.operators),
        parameters=sum(found.parameters),
        details={"PIR version": str(version)},
    )


def _walk(regions: list[Any], found: _Found) -> None:
    """Visit every operation, those in the regions of other operations too (branches, loops)."""
    waiting = [(region, True) for region in reversed(regions)]
    while waiting:
        region, outermost = waiting.pop()
        for block in region["blocks"]:
            for operation in block["ops"]:
                _operation(operation, found, outermost)
                waiting += [(inner, False) for inner in operation.get("regions", ())]


def _operation(operation: dict[str, Any], found: _Found, outermost: bool) -> None:
    name = str(operation["#"])
    if name == PARAMETER:
        if not (operation.get("OA") or [1])[0]:
            return  # not persistable, as the dropout state of an LSTM: it is in no file
        _, shape = _type(operation["O"])
        found.parameters.append(elements(shape or ()))
    elif name in ("1.data", "1.feed") and outermost:
        dtype, shape = _type(operation["O"][0])
        found.inputs.append(
            TensorSpec(name=str(_attribute(operation, "name")), dtype=dtype, shape=shape)
        )
    elif name == "1.fetch" and outermost:
        dtype, shape = _type(operation["O"][0])
        spec = TensorSpec(name=str(_attribute(operation, "name")), dtype=dtype, shape=shape)
        found.outputs.append((int(_attribute(operation, "col")), spec))
    if name not in NOT_OPERATORS:
        # "1.conv2d": the dialect's number, then the operator
        found.operators.append(name.split(".", 1)[-1])


def _attribute(operation: dict[str, Any], name: str) -> Any:
    for attribute in operation["A"]:
        if attribute["N"] == name:
            return attribute["AT"]["D"]
    raise FormatError(f"`{operation['#']}` has no attribute `{name}`")


def _type(value: dict[str, Any]) -> tuple[str, tuple[Dimension, ...] | None]:
    kind = value["TT"]
    if "dtensor" not in str(kind["#"]):
        return UNKNOWN_DTYPE, None
    dtype = str(kind["D"][0]["#"]).split(".", 1)[-1]
    shape = tuple(int(size) if int(size) >= 0 else None for size in kind["D"][1])
    return DTYPES.get(dtype, UNKNOWN_DTYPE), shape
