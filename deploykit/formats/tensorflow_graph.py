"""TensorFlow's graphs: nodes, functions, constants, and what goes in and out.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/graph.proto
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from deploykit.formats.content import Content, damaged
from deploykit.formats.protobuf_wire import (
    Value,
    beginning,
    fields,
    is_name,
    message,
    number,
    pair,
    text,
)
from deploykit.formats.reading import (
    MOST_DIMENSIONS,
    UNKNOWN_DTYPE,
    FormatError,
    Reading,
    counted,
    elements,
    listed,
)
from deploykit.protocol import Dimension, Signature, TensorSpec

DTYPES = dict(
    enumerate(
        [
            "unknown",
            "float32",
            "float64",
            "int32",
            "uint8",
            "int16",
            "int8",
            "string",
            "complex64",
            "int64",
            "bool",
            "qint8",
            "quint8",
            "qint32",
            "bfloat16",
            "qint16",
            "quint16",
            "uint16",
            "complex128",
            "float16",
            "resource",
            "variant",
            "uint32",
            "uint64",
            "float8_e5m2",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e4m3b11fnuz",
            "float8_e5m2fnuz",
            "int4",
            "uint4",
            "int2",
            "uint2",
        ]
    )
)
PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderWithDefault", "PlaceholderV2"})
VARIABLES = frozenset(
    {"VarHandleOp", "Variable", "VariableV2", "VarIsInitializedOp", "AutoReloadVariable"}
)
SIDE_EFFECTS = frozenset(
    [
        "NoOp",
        "Assert",
        "Print",
        "PrintV2",
        "SaveV2",
        "MergeV2Checkpoints",
        "MergeSummary",
        "ScalarSummary",
        "HistogramSummary",
        "ImageSummary",
        "AudioSummary",
        "Const",
        "VarHandleOp",
        "VariableV2",
        "VarIsInitializedOp",
        "IsVariableInitialized",
        "Variable",
    ]
)
"""Whose results nobody consumes, and which are no outputs."""
GIVES_BOOL = frozenset(
    [
        "Equal",
        "NotEqual",
        "Less",
        "LessEqual",
        "Greater",
        "GreaterEqual",
        "LogicalAnd",
        "LogicalOr",
        "LogicalNot",
        "IsNan",
        "IsInf",
        "IsFinite",
        "Any",
        "All",
    ]
)
GUESSED = "found in the graph, which does not say; --set outputs=a,b names others"
NOT_PARAMETERS = frozenset({"int64", "string", "bool", "resource", "variant"})
Shape = tuple[Dimension, ...] | None


@dataclass
class Node:
    """One operation; `types`, `shapes` and `functions` are its attributes of those kinds."""

    name: str = ""
    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    constant: tuple[str, Shape] | None = None


@dataclass
class Graph:
    """The nodes of a graph by name, and its functions, which are read when they are asked for.

    A SavedModel holds hundreds of functions for training and saving that nobody asks for.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    functions: dict[str, memoryview] = field(default_factory=dict)
    producer: int = 0

    def function(self, name: str) -> list[Node]:
        """Return the nodes of a function, none where there is no such function."""
        body = self.functions.get(name, memoryview(b""))
        return [_node(message(value)) for key, value in fields(body) if key == 3]

    def everything(self) -> Iterable[Node]:
        yield from self.nodes.values()
        for name in self.functions:
            yield from self.function(name)


def recognises(content: Content) -> bool:
    """Whether the file begins as a GraphDef does: with a node that has a name and an operator."""
    return looks_like_graph(content.view)


def looks_like_graph(view: memoryview) -> bool:
    """Whether a message begins as a GraphDef does."""
    found = beginning(view)
    if not found or found[0][0] != 1 or isinstance(found[0][1], int):
        return False
    if any(key > 5 or isinstance(value, int) != (key == 3) for key, value in found):
        return False
    node = beginning(found[0][1], 256)
    if not node or any(key > 8 or isinstance(value, int) for key, value in node):
        return False
    operators = [value for key, value in node if key == 2]
    named = node[0][0] == 1 and is_name(node[0][1])
    return named and len(operators) == 1 and is_name(operators[0]) and _is_operator(operators[0])


def _is_operator(value: Value) -> bool:
    # Placeholder, _Retval, addons>Resampler: an operator's name begins a word
    name = text(value)
    return name[0].isupper() or name[0] == "_" or ">" in name


def read(content: Content) -> Reading:
    """Read a frozen GraphDef. Raises SourceError where it is damaged."""
    try:
        graph = read_graph(content.view)
        signature = guess_signature(graph)
        nodes = list(graph.everything())
    except FormatError as error:
        raise damaged(content.path, "TensorFlow GraphDef", error) from error
    details = {"inputs": GUESSED, "outputs": GUESSED}
    if graph.producer:
        details["producer"] = f"graph version {graph.producer}"
    unfrozen = [node.name for node in graph.nodes.values() if node.operator in VARIABLES]
    if unfrozen:
        details["not frozen"] = f"{len(unfrozen)} variables without values: {listed(unfrozen, 3)}"
    return Reading(
        format="tensorflow/graph_def",
        location=content.path,
        files=(content.path,),
        signature=signature,
        operators=counted(node.operator for node in nodes),
        parameters=constant_elements(nodes),
        details=details,
    )


def read_graph(view: memoryview) -> Graph:
    """Return the nodes and functions of a GraphDef. Raises FormatError."""
    graph = Graph()
    for key, value in fields(view):
        if key == 1:
            node = _node(message(value))
            graph.nodes[node.name] = node
        elif key == 2:
            for inner, part in fields(message(value)):
                if inner == 1:
                    graph.functions[_function_name(message(part))] = message(part)
        elif key == 3:
            graph.producer = graph.producer or number(value)
        elif key == 4:
            for inner, part in fields(message(value)):
                if inner == 1:
                    graph.producer = number(part)
    return graph


def _function_name(view: memoryview) -> str:
    for key, value in fields(view):
        if key == 1:
            for inner, part in fields(message(value)):
                if inner == 1:
                    return text(part)
    return ""


def _node(view: memoryview) -> Node:
    node = Node()
    for key, value in fields(view):
        if key == 1:
            node.name = text(value)
        elif key == 2:
            node.operator = text(value)
        elif key == 3:
            node.inputs.append(text(value))
        elif key == 5:
            name, attribute = pair(value)
            _attribute(node, name, message(attribute))
    if not node.operator:
        raise FormatError(f"node `{node.name}` has no operator")
    return node


def _attribute(node: Node, name: str, attribute: memoryview) -> None:
    for key, value in fields(attribute):
        if key == 6:
            node.types[name] = dtype_name(number(value))
        elif key == 7:
            node.shapes[name] = shape(message(value))
        elif key == 8 and name == "value":
            node.constant = _tensor(message(value))
        elif key == 10:
            node.functions += [text(part) for inner, part in fields(message(value)) if inner == 1]
        elif key == 1:
            for inner, part in fields(message(value)):
                if inner == 9:
                    node.functions += [text(one) for tag, one in fields(message(part)) if tag == 1]
                elif inner == 7 and name not in node.shapes:
                    node.shapes[name] = shape(message(part))


def _tensor(view: memoryview) -> tuple[str, Shape]:
    dtype, size = UNKNOWN_DTYPE, None
    for key, value in fields(view):
        if key == 1:
            dtype = dtype_name(number(value))
        elif key == 2:
            size = shape(message(value))
    return dtype, () if size is None else size


def dtype_name(code: int) -> str:
    """Return numpy's name of a TensorFlow dtype; reference types are those 100 above."""
    return DTYPES.get(code - 100 if code > 100 else code, UNKNOWN_DTYPE)


def shape(view: memoryview) -> Shape:
    """Return the sizes of a TensorShapeProto, None where the rank is unknown."""
    sizes: list[Dimension] = []
    for key, value in fields(view):
        if key == 3 and number(value):
            return None
        if key == 2:
            size = 0
            for inner, part in fields(message(value)):
                if inner == 1:
                    size = number(part)
            sizes.append(size if size >= 0 else None)
        if len(sizes) > MOST_DIMENSIONS:
            raise FormatError(f"a shape of more than {MOST_DIMENSIONS} dimensions")
    return tuple(sizes)


def constant_elements(nodes: Iterable[Node]) -> int:
    """Return the number of elements of all constants that can be weights."""
    return sum(
        elements(node.constant[1] or ())
        for node in nodes
        if node.constant and node.operator == "Const" and node.constant[0] not in NOT_PARAMETERS
    )


def guess_signature(graph: Graph) -> Signature:
    """Return inputs and outputs of a graph, which a GraphDef does not say: see `find_endpoints`."""
    # that module is built on this one
    from deploykit.formats.tensorflow_endpoints import find_endpoints

    found = find_endpoints(graph)
    inputs = [graph.nodes[name] for name in found.inputs]
    outputs = [graph.nodes[name] for name in found.outputs]
    return Signature(
        inputs=tuple(
            TensorSpec(
                name=f"{node.name}:0",
                dtype=node.types.get("dtype", UNKNOWN_DTYPE),
                shape=node.shapes.get("shape"),
            )
            for node in inputs
        ),
        outputs=tuple(
            TensorSpec(
                name=f"{node.name}:0",
                dtype=_output_dtype(node),
                shape=node.shapes.get("_output_shapes"),
            )
            for node in outputs
        ),
    )


def _output_dtype(node: Node) -> str:
    if node.operator in GIVES_BOOL:
        return "bool"
    if node.operator in ("ArgMax", "ArgMin"):
        # before graph version 23 there was no choice
        return node.types.get("output_type", "int64")
    for attribute in ("DstT", "out_type", "output_dtype", "dtype", "T"):
        if attribute in node.types:
            return node.types[attribute]
    return UNKNOWN_DTYPE
