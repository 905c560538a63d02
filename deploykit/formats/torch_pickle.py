"""PyTorch's pickles: the tensors in them, and whether loading them would run foreign code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError
from deploykit.formats import numpy_pickle, safetensors_file
from deploykit.formats.content import LARGEST_DOCUMENT, Content, damaged, shown
from deploykit.formats.pickle_scan import Call, Global, Mapping, Persistent, Pickle, scan, walk
from deploykit.formats.reading import (
    UNKNOWN_DTYPE,
    FormatError,
    Reading,
    RunsCodeError,
    elements,
    listed,
)

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How `torch.save` of PyTorch before 1.6 begins: a pickle of its magic number."""
KIND = "PyTorch checkpoint"
DATA_ONLY = re.compile(
    r"collections\.(OrderedDict|defaultdict)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.(storage\.)?\w+Storage|torch\.(Tensor|Size|device|dtype)|torch\.q?u?int\d+(x\d)?"
    r"|torch\.(bfloat16|float\w+|complex\w+|half|double|bool|strided|per_\w+_affine)"
    r"|torch\.nn\.parameter\.\w*Parameter|torch\.serialization\._get_layout"
    r"|torch\.jit\._pickle\.\w+|__torch__\..*"
    r"|numpy\.(_?core\.multiarray\.(_reconstruct|scalar)|ndarray|dtype|float\d+|u?int\d+|bool_?)"
    r"|numpy\.dtypes\.\w+|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|frozenset|slice|complex|dict|list|tuple|int|float|bool|str"
    r"|bytes|bytearray|object|range)"
)
"""Names that make data and run nothing of the file's own choice."""
NOT_PARAMETERS = frozenset({"int64", "bool"})
STORAGES = {
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
    "QInt8Storage": ("int8", 1),
    "QUInt8Storage": ("uint8", 1),
    "QInt32Storage": ("int32", 4),
    "UntypedStorage": (UNKNOWN_DTYPE, 1),
}
WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
"""Under which of these keys a training checkpoint keeps the model, beside its optimizer."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor that a pickle describes."""

    dtype: str
    shape: tuple[int, ...]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in what a pickle describes, each once."""
    for item in walk(value):
        if not isinstance(item, Call) or not isinstance(item.function, Global):
            continue
        if not re.fullmatch(r"torch\._utils\._rebuild_q?tensor(_v\d)?", item.function.name):
            continue
        arguments = item.arguments if isinstance(item.arguments, tuple) else ()
        if len(arguments) < 3 or not isinstance(arguments[2], tuple):
            raise FormatError("a tensor has no shape")
        shape = tuple(size for size in arguments[2] if isinstance(size, int))
        yield Tensor(dtype=storage(arguments[0])[0], shape=shape)


def storage(value: Any) -> tuple[str, int, str, int]:
    """Return dtype, bytes per element, key and number of elements of a tensor's storage."""
    parts = value.key if isinstance(value, Persistent) else ()
    if not isinstance(parts, tuple) or len(parts) < 5 or not isinstance(parts[1], Global):
        return UNKNOWN_DTYPE, 0, "", 0
    dtype, width = STORAGES.get(parts[1].name.rsplit(".", 1)[-1], (UNKNOWN_DTYPE, 0))
    # a key is a short text; anything else is not to be put into words: it may never end
    key = parts[2] if isinstance(parts[2], str) else ""
    return dtype, width, key, parts[4] if isinstance(parts[4], int) else 0


def parameter_count(found: Iterator[Tensor]) -> int:
    """Return the number of elements of the tensors that can be weights."""
    return sum(elements(one.shape) for one in found if one.dtype not in NOT_PARAMETERS)


def refuse_code(path: Path, names: list[str]) -> None:
    """Raise RunsCodeError where unpickling would import and run more than PyTorch's own data."""
    foreign = [name for name in names if not DATA_ONLY.fullmatch(name)]
    if not foreign:
        return
    for name in foreign:
        last = name.rsplit(".", 1)[-1].lstrip("_")
        if name.split(".", 1)[0] in sys.stdlib_module_names or not last[:1].isupper():
            raise RunsCodeError(
                f"`{path}` is a pickle that runs code when it is loaded: it calls `{shown(name)}`"
                " (deploykit has not run it)",
                hint="load it nowhere; ask its author for a state_dict, ONNX or ExportedProgram",
                path=path,
                names=tuple(foreign),
            )
    raise RunsCodeError(
        f"`{path}` is a pickle of whole Python objects ({shown(listed(foreign, 3))}), which only"
        " the code that defines them can load",
        hint="with that code at hand, write a function that loads and returns the model, and name"
        " it: `module.py:function`; or convert with --trust if you know where it comes from",
        path=path,
        names=tuple(foreign),
    )


def state_dict(content: Content, pickle: Pickle) -> Reading:
    """Return what a pickle of tensors holds. Raises SourceError where it would run code."""
    path = content.path
    if numpy_pickle.is_arrays(pickle.globals):
        return numpy_pickle.reading(content, pickle)
    refuse_code(path, pickle.globals)
    weights = _weights(pickle.value)
    try:
        found = list(tensors(weights))
    except FormatError as error:
        raise damaged(path, KIND, error) from error
    if not found:
        raise SourceError(
            f"`{path}` is a Python pickle without any tensor: no model that deploykit knows",
            hint="save the model with torch.save, torch.export.save or torch.onnx.export",
        )
    names = [shown(key) for key, _ in _pairs(weights) if isinstance(key, str)]
    return Reading(
        format="pytorch/state_dict",
        location=path,
        files=(path,),
        parameters=parameter_count(iter(found)),
        details={
            "tensors": f"{len(found)}: {listed(names, 4)}" if names else str(len(found)),
            "graph": "none: weights only; name the code that builds the model:"
            " `--set module=FILE.py:callable`",
        },
    )


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Call):
        value = value.state
    return value.pairs if isinstance(value, Mapping) else []


def _weights(value: Any) -> Any:
    """Return the part of a training checkpoint that is the model."""
    inner = {key: part for key, part in _pairs(value) if isinstance(key, str)}
    return next((inner[key] for key in WEIGHTS if len(_pairs(inner.get(key))) > 0), value)


def recognises(content: Content) -> bool:
    """Whether the file is a pickle, PyTorch's of old or any other."""
    head = content.view[:3]
    if len(head) < 3:
        return False
    if head[0] == 0x80:
        # a protocol, then an instruction that a pickle can begin with
        return 2 <= head[1] <= 5 and head[2] in b"\x95}c(])\x8a\x8cXKMJNUh"
    if content.view[-1] != ord("."):
        return False
    try:
        # protocols 0 and 1 have no beginning of their own
        return bool(scan(content.document()).globals)
    except FormatError:
        return False


def read(content: Content) -> Reading:
    """Read weights in a pickle, an archive or safetensors.

    Raises SourceError where the file is damaged or loading it would run code.
    """
    if safetensors_file.recognises(content):
        return safetensors_file.read(content)
    if content.starts_with(b"PK\x03\x04"):
        from deploykit.formats import torch_archive

        return torch_archive.read(content)
    try:
        if not content.starts_with(MAGIC):
            if content.size > LARGEST_DOCUMENT:
                # PyTorch's own keep their tensors apart; arrays lie within the pickle
                return numpy_pickle.read(content)
            return state_dict(content, scan(content.document()))
        data = _head(content)
        at = 0
        for _ in range(3):
            # magic number, protocol version, system information
            at += scan(data, at).size
        model = scan(data, at)
        reading = state_dict(content, model)
        keys = scan(data, at + model.size)
        _check_storages(content, model, keys, at + model.size + keys.size)
    except FormatError as error:
        raise damaged(content.path, KIND, error) from error
    return reading


def _head(content: Content) -> bytes:
    """Return the file's beginning with all its pickles: the raw storages come after them."""
    return bytes(content.view[: 64 << 20])


def _check_storages(content: Content, model: Pickle, keys: Pickle, at: int) -> None:
    """Walk over the raw storages: i64 number of elements, then these. Raises FormatError."""
    widths: dict[str, int] = {}
    for item in walk(model.value):
        if isinstance(item, Persistent):
            _, width, key, _ = storage(item)
            widths[key] = width
    named = keys.value if isinstance(keys.value, list) else []
    for key in (one for one in named if isinstance(one, str)):
        if at + 8 > content.size:
            raise FormatError(f"it ends at byte {content.size}, before storage `{shown(key)}`")
        count = int.from_bytes(content.view[at : at + 8], "little")
        at += 8 + count * widths.get(key, 0)
        if at > content.size:
            raise FormatError(f"storage `{shown(key)}` needs {at - content.size} more bytes")
