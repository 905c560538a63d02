"""safetensors: weights by name, and nothing that could run.

Eight bytes with the length of a JSON header, the header, then the tensors without gaps.
https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged, shown
from deploykit.formats.reading import MOST_DIMENSIONS, FormatError, Reading, listed

KIND = "safetensors"
LARGEST_HEADER = 16 << 20
"""Of a hundred thousand tensors; a hostile one takes thirty times its size as python objects."""
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}
"""Dtypes by the format's names, with their bytes per element."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies: `begin` and `end` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def recognises(content: Content) -> bool:
    """Whether the file begins as safetensors does: a plausible length, then a JSON object."""
    head = bytes(content.view[:10])
    if len(head) < 10 or head[8:9] != b"{" or head[9:10] not in b'" }\n\t':
        return False
    return int.from_bytes(head[:8], "little") <= min(LARGEST_HEADER, content.size)


def tensors(content: Content) -> dict[str, StoredTensor]:
    """Return every tensor by name. Raises FormatError where the header is damaged or lies."""
    length = int.from_bytes(content.view[:8], "little")
    if content.size < 8 or length > min(LARGEST_HEADER, content.size - 8):
        raise FormatError(f"a header of {length} bytes does not fit into {content.size}")
    text = bytes(content.view[8 : 8 + length])
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise FormatError("its header is no JSON object")
    start = 8 + length
    found = {
        name: _tensor(name, entry, start, content.size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    spans = sorted((one.begin, one.end) for one in found.values())
    if any(after[0] < before[1] for before, after in itertools.pairwise(spans)):
        raise FormatError("its tensors overlap")
    return found


def _tensor(name: str, entry: object, start: int, size: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise FormatError(f"`{shown(name)}` is no tensor")
    dtype = entry.get("dtype")
    shape, offsets = _whole(entry.get("shape")), _whole(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"`{shown(name)}` has an unknown dtype {shown(str(dtype))}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise FormatError(f"`{shown(name)}` has no shape or no place")
    if len(shape) > MOST_DIMENSIONS:
        raise FormatError(f"`{shown(name)}` has {len(shape)} axes")
    meaning, width = DTYPES[dtype]
    begin, end = start + offsets[0], start + offsets[1]
    if begin > end or end > size or math.prod(shape) * width != end - begin:
        raise FormatError(
            f"`{shown(name)}` lies at {offsets}, which does not fit its shape {shape}"
        )
    return StoredTensor(dtype=meaning, shape=tuple(shape), begin=begin, end=end)


def _whole(value: object) -> list[int] | None:
    """Return a list of whole numbers as it is, and None for anything else."""
    if not isinstance(value, list):
        return None
    whole = all(type(item) is int and 0 <= item < 2**63 for item in value)
    return value if whole else None


def read(content: Content) -> Reading:
    """Read names and shapes. Raises SourceError where the file is damaged or empty."""
    try:
        found = tensors(content)
    except FormatError as error:
        raise damaged(content.path, KIND, error) from error
    if not found:
        raise SourceError(f"`{content.path}` is a safetensors file without any tensor")
    names = [shown(name) for name in found]
    return Reading(
        format="pytorch/state_dict",
        location=content.path,
        files=(content.path,),
        parameters=sum(math.prod(one.shape) for one in found.values()),
        details={
            "container": "safetensors",
            "tensors": f"{len(found)}: {listed(names, 4)}",
            "graph": "none: weights only; name the code that builds the model:"
            " `--set module=FILE.py:callable`",
        },
    )
