"""YAML documents as Keras 1 and 2 wrote them, read without running what their tags ask for."""

from __future__ import annotations

from typing import Any

LARGEST_DOCUMENT = 16 << 20
"""Bytes; YAML is parsed slowly, and no architecture comes near."""
MOST_VALUES = 5_000_000
"""Values of a document whose aliases are written out."""


def parse_yaml(document: bytes) -> dict[str, Any]:
    """Return the mapping that `document` holds; Python's tuples become lists, no other tag is known.

    Raises ValueError where it is no YAML, no mapping, too large, or its aliases expand without end.
    """
    import yaml

    if len(document) > LARGEST_DOCUMENT:
        raise ValueError(f"{len(document)} bytes of YAML")

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # ships no types
        """Plain values, and the tuples and texts of Python 2."""

    def listed(loader: Any, node: Any) -> list[Any]:
        found: list[Any] = loader.construct_sequence(node, deep=True)
        return found

    prefix = "tag:yaml.org,2002:python"
    Loader.add_constructor(f"{prefix}/tuple", listed)
    Loader.add_constructor(f"{prefix}/unicode", Loader.construct_scalar)
    Loader.add_constructor(f"{prefix}/str", Loader.construct_scalar)
    try:
        found = yaml.load(document, Loader)  # a subclass of the safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if not isinstance(found, dict):
        raise ValueError("it is no mapping")
    count, waiting = 0, [found]
    while waiting:
        value: Any = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError("its aliases expand to more than any model has")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found
