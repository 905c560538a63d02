"""`torch.export` programs (`.pt2`): a zip archive with the graph as JSON.

https://github.com/pytorch/pytorch/blob/main/torch/_export/serde/schema.py
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged
from deploykit.formats.reading import UNKNOWN_DTYPE, Reading, counted, elements
from deploykit.formats.zip_archive import Archive
from deploykit.protocol import Dimension, Signature, TensorSpec

KIND = "PyTorch ExportedProgram"
DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    34: "uint32",
    35: "uint64",
}
NOT_PARAMETERS = frozenset({"int64", "bool"})
SCALARS = {"as_int": "int64", "as_float": "float32", "as_bool": "bool", "as_sym_int": "int64"}
SYMBOL = re.compile(r"(?:Symbol\(')?(\w+)(?:',[^()]*\))?")
STORED = {"parameter", "buffer", "tensor_constant"}


def read_program(content: Content, archive: Archive) -> Reading:
    """Read the program in a `.pt2` archive. Raises SourceError."""
    name = _member(content, archive)
    try:
        document = json.loads(archive.read(name))
        return _read(content, document, archive.under("models/", ".json"))
    except RecursionError as error:
        raise damaged(content.path, KIND, "it is nested too deeply") from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        StopIteration,
    ) as error:
        raise damaged(content.path, KIND, f"`{name}`: {error!r}") from error


def _member(content: Content, archive: Archive) -> str:
    models = archive.under("models/", ".json")
    if "models/model.json" in models:
        return "models/model.json"
    if models:
        return models[0]
    if "serialized_exported_program.json" in archive:
        return "serialized_exported_program.json"
    if archive.under("data/aotinductor/"):
        raise SourceError(
            f"`{content.path}` was compiled by AOTInductor and holds no graph to convert",
            hint="save the program itself: torch.export.save(program, FILE)",
        )
    raise damaged(content.path, KIND, "it holds no program")


def _read(content: Content, document: dict[str, Any], models: list[str]) -> Reading:
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    values = graph["tensor_values"]
    inputs: list[TensorSpec] = []
    parameters = 0
    for spec in signature["input_specs"]:
        kind, body = next(iter(spec.items()))
        if kind == "user_input":
            inputs += _argument(body["arg"], values)
        elif kind in STORED:
            tensor = _tensor(str(body["arg"]["name"]), values)
            if tensor.dtype not in NOT_PARAMETERS:
                parameters += elements(tensor.shape or ())
    outputs: list[TensorSpec] = []
    for spec in signature["output_specs"]:
        kind, body = next(iter(spec.items()))
        if kind == "user_output":
            outputs += _argument(body["arg"], values)
    outputs = _named(outputs, module)
    details = {}
    if version := document.get("torch_version"):
        details["producer"] = f"PyTorch {version}"
    opsets = document.get("opset_version") or {}
    details["opset"] = ", ".join(f"{name} {number}" for name, number in opsets.items())
    schema = document.get("schema_version") or {}
    details["schema"] = f"{schema.get('major', '?')}.{schema.get('minor', '?')}"
    for symbol, bounds in (document.get("range_constraints") or {}).items():
        details[f"axis {symbol}"] = f"{bounds.get('min_val')} to {bounds.get('max_val')}"
    if len(models) > 1:
        details["programs"] = ", ".join(models)
    return Reading(
        format="pytorch/exported_program",
        location=content.path,
        files=(content.path,),
        signature=Signature(inputs=tuple(inputs), outputs=tuple(outputs)),
        operators=counted(_operator(str(node["target"])) for node in graph["nodes"]),
        parameters=parameters,
        details=details,
    )


def _named(outputs: list[TensorSpec], module: dict[str, Any]) -> list[TensorSpec]:
    """Name the outputs after their keys and places in what the model returns, as the converter does.

    The graph itself names them after the operators that compute them.
    """
    try:
        structure = json.loads(module["module_call_graph"][0]["signature"]["out_spec"])[1]
        paths = _paths(structure, ())
    except (LookupError, TypeError, ValueError, RecursionError):
        return outputs
    if len(paths) != len(outputs):
        return outputs
    return [
        replace(spec, name="_".join(path if path and not path[0].isdigit() else ("output", *path)))
        for spec, path in zip(outputs, paths, strict=True)
    ]


def _paths(structure: dict[str, Any], above: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the path of every leaf of a serialised pytree of dicts, tuples and lists."""
    kind, children = structure["type"], structure["children_spec"]
    if kind is None:
        return [above]
    if kind == "builtins.dict":
        keys = [str(key) for key in json.loads(structure["context"])]
    elif kind in ("builtins.tuple", "builtins.list"):
        keys = [str(number) for number in range(len(children))]
    else:
        raise ValueError(f"{kind} is no container that we know")
    return [
        path
        for key, child in zip(keys, children, strict=True)
        for path in _paths(child, (*above, key))
    ]


def _operator(target: str) -> str:
    """Return `aten.conv2d` of `torch.ops.aten.conv2d.default`."""
    parts = target.removeprefix("torch.ops.").split(".")
    return ".".join(parts[:-1] if len(parts) > 2 else parts)


def _argument(argument: dict[str, Any], values: dict[str, Any]) -> list[TensorSpec]:
    kind, body = next(iter(argument.items()))
    if kind == "as_tensor":
        return [_tensor(str(body["name"]), values)]
    if kind == "as_tensors":
        return [_tensor(str(one["name"]), values) for one in body]
    if kind in SCALARS:
        name = str(body.get("as_name", kind)) if isinstance(body, dict) else str(body)
        return [TensorSpec(name=name, dtype=SCALARS[kind], shape=())]
    # None and strings are fixed in the program and are no inputs
    return []


def _tensor(name: str, values: dict[str, Any]) -> TensorSpec:
    meta = values[name]
    shape = tuple(_size(size) for size in meta["sizes"])
    return TensorSpec(name=name, dtype=DTYPES.get(meta["dtype"], UNKNOWN_DTYPE), shape=shape)


def _size(size: dict[str, Any]) -> Dimension:
    if "as_int" in size:
        return int(size["as_int"])
    expression = size.get("as_expr") or {}
    # a name alone is an axis of an input; sums and products of names are not worth a name
    symbol = SYMBOL.fullmatch(str(expression.get("expr_str")))
    return symbol[1] if symbol else None
