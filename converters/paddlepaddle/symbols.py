"""Reading the shapes that Paddle's symbolic inference writes on operations.

They come as text, for example `shape[S0, 200, Add(S1, -1)], data[NULL]`, once per result.
"""

from __future__ import annotations


def parse_shapes(text: str) -> list[list[int | str]] | None:
    """Return the shapes in `text`, each a list of sizes and expressions; None for none.

    >>> parse_shapes("shape[S0, 200, Div(S1, 2)], data[NULL], shape[], data[4]")
    [['S0', 200, 'Div(S1, 2)'], []]
    """
    shapes: list[list[int | str]] = []
    at = text.find("shape[")
    while at >= 0:
        start = at + len("shape[")
        end = _closing(text, start)
        if end < 0:
            return None
        shapes.append([_size(item) for item in _split(text[start:end])])
        at = text.find("shape[", end)
    return shapes or None


def name_of(expression: str, names: dict[str, str]) -> str | None:
    """Return the axis name that `expression` equals, given those of plain symbols.

    >>> name_of("Broadcast(S0, S3)", {"S0": "batch", "S3": "batch"})
    'batch'
    """
    if expression.startswith("Broadcast(") and expression.endswith(")"):
        found = {name_of(item, names) for item in _split(expression[len("Broadcast(") : -1])}
        return found.pop() if len(found) == 1 else None
    return names.get(expression)


def _size(item: str) -> int | str:
    return int(item) if item.lstrip("-").isdigit() else item


def _closing(text: str, start: int) -> int:
    depth = 1
    for at in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return -1


def _split(text: str) -> list[str]:
    """Split at the commas outside of parentheses."""
    items, depth, current = [], 0, ""
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            items.append(current.strip())
            current = ""
        else:
            current += letter
    return [*items, current.strip()] if current.strip() else items
