"""Files of a payload: written whole, and what a target noted in one of them.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from deploykit.errors import BundleError
from deploykit.protocol import from_json, to_json

T = TypeVar("T")


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write `content` under another name and rename: the file is there whole, or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
    temporary.replace(path)


def write_record(path: Path, value: object) -> None:
    """Write a dataclass of plain values as JSON; the same value gives the same bytes."""
    text = json.dumps(to_json(value), indent=1, sort_keys=True)
    write_whole(path, f"{text}\n".encode())


def read_record(path: Path, kind: type[T]) -> T:
    """Return what `write_record` wrote. Raises BundleError where the file is not that."""
    try:
        return from_json(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(f"`{path}` is damaged: {error}") from error
