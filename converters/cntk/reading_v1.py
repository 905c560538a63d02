"""A CNTK v1 model as a graph of v2's operators.

The binary is read by `v1_file.py`, shapes follow in `v1_shapes.py`, `v1_operators.py` says what each
operator is in v2, and `v1_roots.py` which values are outputs.
"""

from __future__ import annotations

import struct
from pathlib import Path

from deploykit._plugins.converters.cntk import v1_file, v1_operators, v1_roots
from deploykit._plugins.converters.cntk.graph import Graph, Root
from deploykit._plugins.converters.cntk.v1_file import Network
from deploykit._plugins.converters.cntk.v1_translation import Translation, shown

from deploykit.errors import SourceError
from deploykit.formats.content import damaged


def read(path: Path) -> Graph:
    """Read a CNTK v1 model.

    Raises SourceError where it is damaged, UnsupportedError where a node in it cannot be read. An
    operator that is read but has no counterpart becomes a node with its v1 name.
    """
    try:
        network = v1_file.read(path)
        return graph(network)
    except (ValueError, KeyError, IndexError, struct.error, ArithmeticError) as error:
        raise damaged(path, "CNTK v1 model", error) from error


def graph(network: Network) -> Graph:
    """Return `network` in v2's operators. Raises as `read` does, damage as ValueError."""
    made = Translation(network)
    for node in network.nodes.values():
        v1_operators.translate(made, node)
    outputs, repairs = v1_roots.outputs(network)
    if not outputs:
        raise SourceError(
            "the CNTK v1 model names no output, and no criterion shows one",
            hint="save it with an `outputNodes` section",
        )
    return Graph(
        leaves=made.leaves,
        nodes=tuple(made.nodes),
        roots=tuple(Root(name=shown(name), uid=name) for name in outputs),
        names={shown(name): name for name in network.nodes},
        version=network.version,
        repairs=repairs,
    )
