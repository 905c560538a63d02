"""MXNet: a symbol as JSON (`NAME-symbol.json`) with parameters (`NAME-0000.params`).

https://github.com/apache/mxnet/blob/1.9.1/src/ndarray/ndarray.cc
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploykit.formats.content import Content, damaged, open_content, shown
from deploykit.formats.json_document import parse
from deploykit.formats.reading import FormatError, MissingWeightsError, Reading, counted, elements

MAGIC = (0x112).to_bytes(8, "little")
KIND = "MXNet parameter file"
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 7: 1, 8: 2, 9: 2, 10: 4, 11: 8, 12: 2}
"""Bytes per element by the number of the dtype."""
MOST_DIMENSIONS = 32


def recognises_parameters(content: Content) -> bool:
    """Whether the file is a list of NDArrays."""
    return content.starts_with(MAGIC)


def recognises_symbol(content: Content) -> bool:
    """Whether the file begins as the JSON of a symbol does: with the list of nodes."""
    head = bytes(content.view[:256]).translate(None, b" \r\n\t")
    return head.startswith(b'{"nodes":[{"op":')


def read(content: Content) -> Reading:
    """Read a symbol and its parameters. Raises SourceError where they are missing or damaged."""
    path = content.path
    symbol = parse(content, "MXNet symbol")
    nodes = symbol.get("nodes")
    if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
        raise damaged(path, "MXNet symbol", "it has no list of nodes")
    details = {}
    attributes = symbol.get("attrs")
    version = attributes.get("mxnet_version") if isinstance(attributes, dict) else None
    if isinstance(version, list) and len(version) == 2 and isinstance(version[1], int):
        number = version[1]
        details["producer"] = f"MXNet {number // 10000}.{number // 100 % 100}.{number % 100}"
    reading = Reading(
        format="mxnet/symbol",
        location=path,
        files=(path,),
        operators=counted(shown(str(node.get("op"))) for node in nodes if node.get("op") != "null"),
        details=details,
    )
    weights = _parameters_beside(path, reading)
    try:
        parameters = count_parameters(open_content(weights))
    except FormatError as error:
        raise damaged(weights, KIND, error) from error
    return replace(reading, files=(path, weights), parameters=parameters)


def _parameters_beside(symbol: Path, reading: Reading) -> Path:
    prefix = symbol.name.removesuffix(".json").removesuffix("-symbol")
    every = sorted(symbol.parent.glob("*.params"))
    # the last epoch that was saved, where there are several
    own = [path for path in every if path.name.startswith(f"{prefix}-")]
    if own:
        return own[-1]
    if len(every) == 1:
        return every[0]
    raise MissingWeightsError(
        f"the weights of `{symbol}` are missing: there is no `{prefix}-0000.params` beside it",
        hint=f"copy it into `{symbol.parent}`, or name it: `--set params=FILE.params`",
        reading=reading,
    )


def count_parameters(content: Content) -> int:
    """Return the number of elements of all arrays. Raises FormatError where they are not whole."""
    view = content.view
    if not content.starts_with(MAGIC):
        raise FormatError("it is no list of arrays")
    at = 24
    total = 0
    for _ in range(int.from_bytes(view[16:24], "little")):
        count, at = _array(view, at)
        total += count
    return total


def _array(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number of elements of the array at `at`, and the place after it."""

    def unsigned(width: int) -> int:
        nonlocal at
        at += width
        if at > len(view):
            raise FormatError(f"it ends at byte {len(view)}, within an array")
        return int.from_bytes(view[at - width : at], "little")

    magic = unsigned(4)
    width = 8
    if magic in (V2, V3):
        if unsigned(4) != 0:
            raise FormatError("it holds a sparse array")
        dimensions = unsigned(4)
    elif magic == V1:
        dimensions = unsigned(4)
    else:
        # the oldest form has no magic number, and short sizes
        dimensions, width = magic, 4
    if dimensions > MOST_DIMENSIONS:
        raise FormatError(f"an array of {dimensions} dimensions at byte {at}")
    shape = [unsigned(width) for _ in range(dimensions)]
    if not shape:
        return 0, at
    unsigned(8)  # device kind and number
    dtype = unsigned(4)
    if dtype not in SIZES:
        raise FormatError(f"an array of unknown dtype {dtype} at byte {at}")
    count = elements(shape)
    at += count * SIZES[dtype]
    if at > len(view):
        raise FormatError(f"it ends at byte {len(view)}, within an array")
    return count, at
