"""Hugging Face folders: config.json beside weights as transformers saves them.

Weights are `model.safetensors`, or shards that an index names, or the older `pytorch_model.bin`
(https://huggingface.co/docs/safetensors: 8 bytes little-endian length, then a JSON header).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError
from deploykit.formats import json_document
from deploykit.formats.content import Content, damaged, open_content, shown
from deploykit.formats.reading import Reading, listed

FORMAT = "hugging-face/folder"
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
LARGEST_CONFIG = 16 << 20
LARGEST_HEADER = 100 << 20
"""Bytes: what the safetensors library itself allows."""


def recognises(folder: Path) -> bool:
    """Whether `folder` holds a configuration of transformers and weights that belong to it."""
    config = folder / "config.json"
    if not config.is_file() or not any((folder / name).is_file() for name in (*SINGLE, *INDEXES)):
        return False
    try:
        described = _object(config)
    except SourceError:
        return False
    return isinstance(described.get("model_type"), str) or "architectures" in described


def read(folder: Path) -> Reading:
    """Read configuration and headers. Raises SourceError where a part is missing or damaged."""
    config = _object(folder / "config.json")
    weights = _weights(folder)
    counts = [_parameters(path) for path in weights if path.suffix == ".safetensors"]
    named = config.get("architectures")
    classes = [str(one) for one in named] if isinstance(named, list) else []
    details = {
        "model type": shown(str(config.get("model_type", "not said"))),
        "class": shown(listed(classes)) if classes else "not said",
    }
    if isinstance(config.get("transformers_version"), str):
        details["saved by"] = f"transformers {shown(config['transformers_version'], 40)}"
    if "auto_map" in config:
        details["code"] = "the model's class is code in this folder: --trust runs it"
    extra = [folder / name for name in ("preprocessor_config.json", *INDEXES)]
    return Reading(
        format=FORMAT,
        location=folder,
        files=(folder / "config.json", *weights, *(path for path in extra if path.is_file())),
        parameters=sum(counts) if len(counts) == len(weights) else None,
        details=details,
    )


def _object(path: Path) -> dict[str, Any]:
    content = open_content(path)
    if content.size > LARGEST_CONFIG:
        raise SourceError(f"`{path}` is too large for a configuration: {content.size} bytes")
    return json_document.parse(content, "configuration")


def _weights(folder: Path) -> list[Path]:
    # in the order in which transformers looks for them
    for single, index in zip(SINGLE, INDEXES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    raise SourceError(f"`{folder}` holds no weights beside config.json")


def _shards(folder: Path, index: Path) -> list[Path]:
    content = open_content(index)
    mapped = json_document.parse(content, "index of weights").get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise damaged(index, "index of weights", "it has no weight_map")
    names = sorted({str(name) for name in mapped.values()})
    for name in names:
        if Path(name).name != name:
            raise damaged(index, "index of weights", f"it names a file elsewhere: {name!r}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise SourceError(
            f"`{folder}` lacks {shown(listed(missing, 3))}, which `{index.name}` names",
            hint="copy or download the missing files too",
        )
    return [folder / name for name in names]


def _parameters(path: Path) -> int:
    """Return the number of elements in a safetensors file. Raises SourceError where it is damaged."""
    content = open_content(path)
    size = int.from_bytes(content.view[:8], "little") if content.size >= 8 else -1
    if not 2 <= size <= min(LARGEST_HEADER, content.size - 8):
        raise damaged(path, "safetensors file", f"its header cannot have {size} bytes")
    total = 0
    for name, tensor in _header(content, size).items():
        if name == "__metadata__":
            continue
        try:
            shape, (begin, end) = [int(one) for one in tensor["shape"]], tensor["data_offsets"]
            whole = 0 <= begin <= end <= content.size - 8 - size
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise damaged(path, "safetensors file", f"tensor `{shown(name)}`: {error}") from error
        if not whole or min(shape, default=1) < 0 or len(shape) > 64:
            raise damaged(path, "safetensors file", f"tensor `{shown(name)}` lies outside the file")
        total += math.prod(shape)
    return total


def _header(content: Content, size: int) -> dict[str, Any]:
    try:
        header = json.loads(bytes(content.view[8 : 8 + size]))
    except (ValueError, RecursionError) as error:
        raise damaged(content.path, "safetensors file", error) from error
    if not isinstance(header, dict):
        raise damaged(content.path, "safetensors file", "its header is no object")
    return header
