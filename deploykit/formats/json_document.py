"""JSON documents, read whole; what is wrong with one becomes a SourceError."""

from __future__ import annotations

import json
from typing import Any

from deploykit.formats.content import Content, damaged


def parse(content: Content, kind: str) -> dict[str, Any]:
    """Return the object that the file holds. Raises SourceError, calling the file a `kind`."""
    try:
        value = json.loads(content.document())
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise damaged(content.path, kind, reason) from error
    if not isinstance(value, dict):
        raise damaged(content.path, kind, "it is no object")
    return value
