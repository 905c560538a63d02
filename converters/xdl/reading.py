"""An XDL graph read without XDL: `graph.txt` and `graph.pb`, the operators around a dense network.

Format: `xdl/core/proto/graph_def.proto` of x-deeplearning 1.x, as `Saver.export_graph` writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.xdl import graph_def

from deploykit.errors import SourceError
from deploykit.formats.content import open_content
from deploykit.formats.protobuf_text import Message, messages, parse, strings
from deploykit.formats.protobuf_wire import Value, fields, message, number, numbers, text

DTYPES = ("int8", "int16", "int32", "int64", "float32", "float64", "bool")
"""numpy's names of XDL's types, by their number."""

NAMES = ("kInt8", "kInt16", "kInt32", "kInt64", "kFloat", "kDouble", "kBool")
LARGEST_TYPE_LIST = 1 << 20

Ref = tuple[str, int]
"""An output of a node: the node's name, and which of its outputs."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator. `attrs` are texts (bytes), numbers, truth values, dtypes (numpy's names), shapes."""

    name: str
    op: str
    inputs: tuple[Ref, ...]
    attrs: Mapping[str, Any]

    def word(self, key: str, default: str = "") -> str:
        """Return the attribute `key` as text."""
        value = self.attrs.get(key, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def words(self, key: str) -> tuple[str, ...]:
        """Return the parts of a text with commas; none where it is empty."""
        whole = self.word(key)
        return tuple(whole.split(",")) if whole else ()


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An XDL graph: nodes by name, the features' names by output of a node, and the tagged outputs."""

    path: Path
    nodes: Mapping[str, Node]
    features: Mapping[Ref, str]
    outputs: tuple[str, ...]


def read(path: Path) -> Graph:
    """Read a graph, text or binary. Raises SourceError where it is damaged."""
    try:
        content = open_content(path)
        # binary begins with a tag byte (newline) and a length, text with the word `node`
        is_text = bytes(content.view[:64]).lstrip().startswith((b"node", b"hash", b"tag", b"#"))
        graph = _from_text(path, content.document()) if is_text else _from_wire(path, content.view)
        if not graph.nodes:
            raise ValueError("it has no nodes")
    except (ValueError, RecursionError, struct.error, OverflowError, IndexError) as error:
        raise SourceError(
            f"`{path}` is a damaged XDL graph: {error}"[:400], hint="copy or download it again"
        ) from error
    return graph


def reference(name: str) -> Ref:
    """Return what `/Name:1` means. Raises ValueError where the number is none."""
    node, colon, output = name.rpartition(":")
    return (node, int(output)) if colon else (name, 0)


def _build(path: Path, nodes: list[Node], tags: list[tuple[str, str]], outputs: list[str]) -> Graph:
    named = {node.name: node for node in nodes}
    if len(named) != len(nodes):
        raise ValueError("two nodes have one name")
    return Graph(
        path=path,
        nodes=named,
        features={reference(op): name for op, name in tags if name},
        outputs=tuple(outputs),
    )


def _inputs(names: list[str]) -> tuple[Ref, ...]:
    # a name with `^` before it only says what must run earlier
    return tuple(reference(name) for name in names if not name.startswith("^"))


# ---- binary


def _from_wire(path: Path, view: memoryview) -> Graph:
    nodes: list[Node] = []
    tags: list[tuple[str, str]] = []
    outputs: list[str] = []
    for key, value in fields(view):
        if key == 1:
            nodes.append(_node_from_wire(message(value)))
        elif key == 3:
            for inner, part in fields(message(value)):
                words = {at: one for at, one in fields(message(part)) if not isinstance(one, int)}
                if inner == 1 and 1 in words:
                    tags.append((text(words[1]), text(words[2]) if 2 in words else ""))
                elif inner == 2 and 3 in words:
                    outputs.append(text(words[3]))
    return _build(path, nodes, tags, outputs)


def _is_attribute(key: int, value: Value) -> bool:
    # field 5 is the device in some versions: only an entry of a map begins with its key
    return key in (5, 6) and not isinstance(value, int) and bytes(value[:1]) == b"\n"


def _node_from_wire(view: memoryview) -> Node:
    name, op, inputs, attrs = graph_def.node_parts(view, _is_attribute, _value_from_wire)
    return Node(name=name, op=op, inputs=_inputs(inputs), attrs=attrs)


def _value_from_wire(view: memoryview) -> Any:
    for key, value in fields(view):
        if key == 1:
            return bytes(message(value))
        if key == 2:
            return number(value)
        if key == 3:
            return struct.unpack("<f", number(value).to_bytes(4, "little"))[0]
        if key == 4:
            return bool(number(value))
        if key == 5:
            return DTYPES[number(value)]
        if key in (6, 7):
            found: list[int] = []
            for _, part in fields(message(value)):
                found += numbers(part)
                if len(found) > LARGEST_TYPE_LIST:
                    raise ValueError("a list of types or sizes without end")
            return tuple(found) if key == 6 else tuple(DTYPES[one] for one in found)
    return None


# ---- text


def _from_text(path: Path, document: bytes) -> Graph:
    whole = parse(document)
    nodes = [_node_from_text(one) for one in messages(whole, "node")]
    tags: list[tuple[str, str]] = []
    outputs: list[str] = []
    for tag in messages(whole, "tag"):
        tags += [
            (_first(one, "op_name"), _first(one, "input_name")) for one in messages(tag, "input")
        ]
        outputs += [_first(one, "op_name") for one in messages(tag, "output")]
    return _build(path, nodes, tags, [name for name in outputs if name])


def _first(entry: Message, key: str) -> str:
    return (strings(entry, key) or [""])[0]


def _node_from_text(entry: Message) -> Node:
    attrs = {}
    for one in messages(entry, "attr"):
        for value in messages(one, "value"):
            attrs[_first(one, "key")] = _value_from_text(value)
    return Node(
        name=_first(entry, "name"),
        op=_first(entry, "op"),
        inputs=_inputs(strings(entry, "input")),
        attrs=attrs,
    )


def _value_from_text(value: Message) -> Any:
    if "s" in value:
        whole = value["s"][0]
        return whole if isinstance(whole, bytes) else b""
    if "i" in value:
        return int(strings(value, "i")[0])
    if "f" in value:
        return float(strings(value, "f")[0])
    if "b" in value:
        return strings(value, "b")[0] in ("true", "1", "t", "True")
    if "type" in value:
        return DTYPES[NAMES.index(strings(value, "type")[0])]
    for shape in messages(value, "shape"):
        return tuple(int(one) for one in strings(shape, "dim"))
    for types in messages(value, "type_list"):
        return tuple(DTYPES[NAMES.index(one)] for one in strings(types, "type"))
    return None
