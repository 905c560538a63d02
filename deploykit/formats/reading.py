"""What the readers of the single formats report, and what they share in reporting it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.protocol import Dimension, Signature

UNKNOWN_DTYPE = "unknown"
"""Of an input or output whose dtype the file does not say."""


MOST_DIMENSIONS = 64
"""Of a tensor; more are a sign of damage."""


class FormatError(ValueError):
    """The bytes break the rules of their format; becomes a SourceError that names the file."""


class RunsCodeError(SourceError):
    """Loading the file at `path` would import and call `names`, which are no framework's data."""

    def __init__(self, message: str, *, hint: str, path: Path, names: tuple[str, ...]) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.names = names


class MissingWeightsError(SourceError):
    """The graph is there and its weights are not beside it; `reading` is what the graph says."""

    def __init__(self, message: str, *, hint: str, reading: Reading) -> None:
        super().__init__(message, hint=hint)
        self.reading = reading


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader found in a model: the parts of an `Inspection` that its format determines.

    `location` is the file or folder to give to a converter; `files` are all that belong to the
    model. `member` follows the location where code is named (`:callable`).
    """

    format: str
    location: Path
    files: tuple[Path, ...]
    signature: Signature | None = None
    operators: dict[str, int] = field(default_factory=dict)
    parameters: int | None = None
    details: dict[str, str] = field(default_factory=dict)
    member: str = ""


def elements(shape: Iterable[Dimension]) -> int:
    """Return the number of elements of a tensor of this shape; 0 where a size is not fixed.

    Raises FormatError where no tensor has so many dimensions.
    """
    sizes = [size if isinstance(size, int) and size >= 0 else 0 for size in shape]
    if len(sizes) > MOST_DIMENSIONS:
        raise FormatError(f"a tensor of more than {MOST_DIMENSIONS} dimensions")
    return math.prod(sizes)


def counted(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Return `names` as one line of text, cut after `limit`."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
