"""The sparse half of an XDL graph: how features become the vectors that the dense network takes.

Operators: `unique_op.cc`, `ps_sparse_pull_op.cc`, `ksum_op.cc`, `take_op.cc` of x-deeplearning 1.x.
The ids of a feature stand in one list for the whole batch; `segments` says where each row of the
batch ends in it; `values` weighs each id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl.reading import Graph, Node, Ref

from deploykit.errors import SourceError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

READERS = ("GetBatch", "_PyFunc", "PyFunc", "MockDense", "MockSparse")
"""Operators that bring in the data: their outputs are the inputs of the model."""
SAME = ("Identity", "IdentityOp")
LONGEST = 1 << 20
"""Numbers in a row that `Tile` makes."""


@dataclass(frozen=True)
class Outside:
    """An input of the model."""

    ref: Ref
    name: str
    dtype: str


@dataclass(frozen=True)
class Fixed:
    """A constant."""

    value: Any


@dataclass(frozen=True)
class Weight:
    """A variable of the parameter servers."""

    name: str


@dataclass(frozen=True)
class Pooled:
    """Rows of a table, weighed, and summed (or averaged) over each segment or laid side by side.

    `index` None means that the ids come one by one; else it says which of (unique) ids each is.
    `length` is None for sums; else the rows of a segment follow one another (the last one first where
    `reverse`), cut or filled with zeros to `length` numbers.
    """

    table: str
    ids: Outside
    index: Outside | None
    values: Outside | None
    segments: Outside
    average: bool
    length: int | None = None
    reverse: bool = False

    def width(self, table: int) -> int:
        """Return the length of the result's vectors, for a table with vectors of `table`."""
        return table if self.length is None else self.length


@dataclass(frozen=True)
class Taken:
    """Rows of what was pooled, repeated: a user's row for each candidate."""

    of: Pooled
    indicator: Outside


Source = Outside | Fixed | Weight | Pooled | Taken


def trace(graph: Graph, ref: Ref, stem: str) -> Source:
    """Return where the output `ref` of a node comes from; `stem` names inputs that have no tag.

    Raises UnsupportedError, naming the operator, for what is no lookup as XDL builds it.
    """
    node = _node(graph, ref)
    if node.op in READERS:
        return _outside(graph, ref, stem, "float32")
    if node.op in SAME:
        return trace(graph, node.inputs[0], stem)
    if node.op == "_Constant":
        return Fixed(constant(node))
    if node.op == "PsPullOp":
        return Weight(node.word("var_name"))
    if node.op in ("KSum", "Tile"):
        return _pooled(graph, node, stem)
    if node.op == "TakeOp":
        inner = trace(graph, node.inputs[0], stem)
        if isinstance(inner, Pooled):
            dtype = str(node.attrs.get("itype", "int32"))
            return Taken(inner, _input(graph, node.inputs[1], f"{stem}.indicator", dtype, node))
    raise _unsupported(node, "feeds the dense network in a way that is not known")


def _pooled(graph: Graph, node: Node, stem: str) -> Pooled:
    if len(node.inputs) < 5:
        raise SourceError(f"node `{node.name}` ({node.op}) has {len(node.inputs)} inputs, not 5")
    embed, index, values, segments, group = node.inputs[:5]
    groups = _node(graph, group)
    if groups.op != "_Constant" or constant(groups).size:
        raise _unsupported(node, "pools several features in groups (`merged_embedding`)")
    pull = _node(graph, embed)
    table, ids = _pulled(pull, embed[1])
    whole = str(node.attrs.get("itype", "int32"))
    places = None
    unique = _node(graph, ids)
    if unique.op == "Unique":
        if index != (unique.name, 1) or ids[1] != 0:
            raise _unsupported(node, "takes an index that is not of its own ids")
        ids = unique.inputs[0]
    else:
        places = _input(graph, index, f"{stem}.indices", whole, node)
    return Pooled(
        table=table,
        ids=_input(graph, ids, f"{stem}.ids", "int64", pull),
        index=places,
        values=_values(graph, values, stem, node),
        segments=_input(graph, segments, f"{stem}.segments", whole, node),
        average=node.op == "KSum" and bool(node.attrs.get("average", False)),
        length=_length(node) if node.op == "Tile" else None,
        reverse=node.op == "Tile" and bool(node.attrs.get("reverse", False)),
    )


def _pulled(pull: Node, output: int) -> tuple[str, Ref]:
    """Return table and ids of one output of a pull. Raises UnsupportedError where it is none."""
    if pull.op == "PsSparsePullOp" and pull.inputs:
        return pull.word("var_name"), pull.inputs[0]
    if pull.op == "PsMergedSparsePullOp":
        # the ids of all tables come first, then as many ratios of the training
        names = pull.words("var_names")
        if output < len(names) <= len(pull.inputs):
            return names[output], pull.inputs[output]
    raise _unsupported(pull, "gives the rows that are pooled")


def _length(node: Node) -> int:
    length = node.attrs.get("length")
    if not isinstance(length, int) or not 0 < length <= LONGEST:
        raise SourceError(f"node `{node.name}` (Tile) has no length: {length}")
    return length


def _values(graph: Graph, ref: Ref, stem: str, node: Node) -> Outside | None:
    source = _node(graph, ref)
    if source.op == "_Constant" and not constant(source).size:
        return None
    return _input(graph, ref, f"{stem}.values", str(node.attrs.get("dtype", "float32")), node)


def _input(graph: Graph, ref: Ref, name: str, dtype: str, user: Node) -> Outside:
    node = _node(graph, ref)
    while node.op in SAME:
        ref = node.inputs[0]
        node = _node(graph, ref)
    if node.op not in READERS:
        raise _unsupported(node, f"lies between the data and `{user.name}`")
    return _outside(graph, ref, name, dtype)


def _outside(graph: Graph, ref: Ref, name: str, dtype: str) -> Outside:
    types = graph.nodes[ref[0]].attrs.get("output_type")
    if isinstance(types, tuple) and ref[1] < len(types):
        dtype = types[ref[1]]
    return Outside(ref, graph.features.get(ref, name), dtype)


def _node(graph: Graph, ref: Ref) -> Node:
    found = graph.nodes.get(ref[0])
    if found is None:
        raise SourceError(f"the XDL graph has no node `{ref[0]}`")
    if found.op in SAME and not found.inputs:
        raise SourceError(f"node `{found.name}` ({found.op}) has no input")
    return found


def _unsupported(node: Node, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the XDL node `{node.name}` ({node.op}) {what}",
        operators=(node.op,),
        hint="convert the dense network alone, with its vectors as inputs: `--set sparse=pooled`",
    )


def registered_width(graph: Graph, variable: str) -> int | None:
    """Return the length of a table's vectors as the graph declares it, None where it does not."""
    for node in graph.nodes.values():
        if node.op == "PsRegisterVariableOp" and node.word("var_name") == variable:
            shape = node.attrs.get("shape")
            if isinstance(shape, tuple) and len(shape) == 2:
                return int(shape[1])
    return None


def constant(node: Node) -> Array:
    """Return the value of a `_Constant`. Raises SourceError where bytes and shape do not fit."""
    import math

    import numpy as np

    dtype = np.dtype(str(node.attrs.get("dtype", "float32"))).newbyteorder("<")
    shape = node.attrs.get("shape") or ()
    data = node.attrs.get("value") or b""
    if (
        not isinstance(data, bytes)
        or any(size < 0 for size in shape)
        or len(data) != math.prod(shape) * dtype.itemsize
    ):
        raise SourceError(f"the constant `{node.name}` does not fit its shape {list(shape)[:32]}")
    return np.frombuffer(data, dtype).reshape(shape)
