"""The bytes of a CNTK v1 file: numbers, UTF-16 texts, shapes, matrices, and the lists around them.

Format: what `ComputationNetwork::Save` of CNTK 1.x and 2.x writes through `File` in binary. Numbers
are little-endian, a `size_t` has eight bytes, a text is UTF-16 and ends in a zero, and markers are
texts. Files before model version 2 have no version section; before 7, nodes do not say their
precision.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError
from deploykit.formats.content import open_content, shown
from deploykit.formats.reading import FormatError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NEWEST_VERSION = 30
LONGEST_TEXT = 1 << 15
MOST_DIMENSIONS = 32
MOST_OF_SPARSE = 1 << 26
"""Elements that a sparse matrix is expanded to; a dense one is bounded by the file itself."""

DTYPES = {"float": "float32", "double": "float64", "half": "float16", "": "float32"}
ROW_MAJOR, SPARSE_CSC, SPARSE_CSR = 1, 6, 7
GROUPS = {
    "feature": (("FeatureNodes", "FeatureNodes"),),
    "label": (("LabelNodes", "LabelNodes"),),
    "criterion": (("CriterionNodes", "CriterionNodes"), ("CriteriaNodes", "CriteriaNodes")),
    "ignored": (("NodesReqMultiSeqHandling", "NodesReqMultiSeqHandling"),),
    "evaluation": (("EvalNodes", "EvalNodes"),),
    "output": (("OutputNodes", "OutputNodes"),),
    "pair": (("PairNodes", "PairNodes"),),
}
"""The lists of root nodes in the order of the file, with the names of their sections."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of `rows` and `columns`; `values` are its elements column after column."""

    rows: int
    columns: int
    values: Array


@dataclass(frozen=True, kw_only=True)
class RawNode:
    """A node as the file has it: CNTK v1's operation, its fields by name, the names of its inputs."""

    op: str
    name: str
    dtype: str
    fields: Mapping[str, Any]
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Network:
    """A whole file. `groups` has the names of the nodes in each list of roots."""

    version: int
    nodes: Mapping[str, RawNode]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Cursor:
    """Reads on from a place in the bytes of a file. All methods raise FormatError at its end."""

    def __init__(self, view: memoryview, version: int = 0) -> None:
        self.view = view
        self.at = 0
        self.version = version

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes."""
        if size < 0 or size > len(self.view) - self.at:
            raise FormatError(f"it ends {size} bytes after byte {self.at}")
        self.at += size
        return self.view[self.at - size : self.at]

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def int32(self) -> int:
        """Return a signed number of four bytes."""
        return int(self._number("i"))

    def uint32(self) -> int:
        """Return an unsigned number of four bytes."""
        return int(self._number("I"))

    def int64(self) -> int:
        """Return a signed number of eight bytes."""
        return int(self._number("q"))

    def size(self) -> int:
        """Return an unsigned number of eight bytes."""
        return int(self._number("Q"))

    def float32(self) -> float:
        """Return a floating-point number of four bytes."""
        return float(self._number("f"))

    def float64(self) -> float:
        """Return a floating-point number of eight bytes."""
        return float(self._number("d"))

    def element(self, dtype: str) -> float:
        """Return a floating-point number of the node's own precision."""
        return float(self._number({"float32": "f", "float64": "d", "float16": "e"}[dtype]))

    def boolean(self) -> bool:
        """Return a truth value of one byte."""
        value = self.take(1)[0]
        if value > 1:
            raise FormatError(f"byte {self.at - 1} is {value} where 0 or 1 is due")
        return value == 1

    def text(self) -> str:
        """Return a text."""
        # most are short: look at little before at much
        for most in (256, 2 * LONGEST_TEXT):
            window = bytes(self.view[self.at : self.at + most])
            end = window.find(b"\0\0")
            while end >= 0 and end % 2:
                end = window.find(b"\0\0", end + 1)
            if end >= 0:
                self.at += end + 2
                return window[:end].decode("utf-16-le")
        raise FormatError(f"the text at byte {self.at} has no end")

    def texts(self) -> tuple[str, ...]:
        """Return a counted list of texts."""
        count = self.size()
        if count > (len(self.view) - self.at) // 2:
            raise FormatError(f"a list of {count} texts at byte {self.at} is longer than the file")
        return tuple(self.text() for _ in range(count))

    def booleans(self) -> tuple[bool, ...]:
        """Return a counted list of truth values."""
        count = self.size()
        if count > MOST_DIMENSIONS:
            raise FormatError(f"{count} axes at byte {self.at}")
        return tuple(self.boolean() for _ in range(count))

    def sizes(self) -> tuple[int, ...]:
        """Return a counted list of sizes."""
        count = self.size()
        if count > (len(self.view) - self.at) // 8:
            raise FormatError(
                f"a list of {count} numbers at byte {self.at} is longer than the file"
            )
        return tuple(self.size() for _ in range(count))

    def found(self, marker: str) -> bool:
        """Go past `marker` where it comes next, and say whether it did."""
        due = (marker + "\0").encode("utf-16-le")
        if self.view[self.at : self.at + len(due)] != due:
            return False
        self.at += len(due)
        return True

    def expect(self, marker: str) -> None:
        """Go past `marker`. Raises FormatError where something else comes next."""
        if not self.found(marker):
            raise FormatError(f"`{marker}` is missing at byte {self.at}")

    def shape(self, *, legacy: bool = False) -> tuple[int, ...]:
        """Return a tensor shape; `legacy` accepts the old width, height, channels too.

        The old form has three `size_t`, so its second four bytes are zero, which no shape begins with.
        """
        rank = self.uint32()
        if rank == 0 and not legacy:
            return ()
        if rank == 0 and not self._legacy_shape_follows():
            return ()
        first = self.uint32()
        if legacy and first == 0:
            width, height, channels = rank, self.size(), self.size()
            return (channels, width, height)
        if rank > MOST_DIMENSIONS:
            raise FormatError(f"a shape of {rank} axes at byte {self.at}")
        return (first, *(self.uint32() for _ in range(rank - 1)))

    def _legacy_shape_follows(self) -> bool:
        """Whether a rank of 0 is the width 0 of an old shape: such files are older than version 3."""
        return self.version < 3

    def matrix(self) -> Matrix:
        """Return a matrix, dense or sparse."""
        kind = bytes(self.take(1))
        self.expect("BMAT")
        width = self.size()
        dtype = {2: "<f2", 4: "<f4", 8: "<f8"}.get(width)
        if kind not in (b"d", b"s") or dtype is None:
            raise FormatError(f"a matrix of kind {kind!r} with elements of {width} bytes")
        self.text()
        form = self.int32()
        found = self._dense(form, dtype) if kind == b"d" else self._sparse(form, dtype)
        self.expect("EMAT")
        return found

    def _array(self, count: int, dtype: str) -> Array:
        import numpy as np

        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def _dense(self, form: int, dtype: str) -> Matrix:
        rows, columns = self.size(), self.size()
        if form & ROW_MAJOR:
            raise UnsupportedError(f"a dense matrix in CNTK's row-major format {form}")
        return Matrix(rows=rows, columns=columns, values=self._array(rows * columns, dtype))

    def _sparse(self, form: int, dtype: str) -> Matrix:
        import numpy as np

        count, columns, rows = self.size(), self.size(), self.size()
        if form not in (SPARSE_CSC, SPARSE_CSR):
            raise UnsupportedError(f"a sparse matrix in CNTK's format {form}")
        if rows * columns > MOST_OF_SPARSE:
            raise UnsupportedError(f"a sparse matrix of {rows} by {columns} elements")
        dense = np.zeros((columns, rows), dtype)
        if count == 0:
            return Matrix(rows=rows, columns=columns, values=dense.reshape(-1))
        lines = columns if form == SPARSE_CSC else rows
        values = self._array(count, dtype)
        along, starts = self._indices(count, lines + 1)
        lengths: Array = np.diff(starts.astype(np.int64))
        across = rows if form == SPARSE_CSC else columns
        if starts[0] != 0 or starts[-1] != count or lengths.min(initial=0) < 0:
            raise FormatError("a sparse matrix whose lines do not add up")
        if along.min(initial=0) < 0 or along.max(initial=0) >= across:
            raise FormatError("a sparse matrix with an index outside of it")
        line = np.repeat(np.arange(lines), lengths)
        dense[(line, along) if form == SPARSE_CSC else (along, line)] = values
        return Matrix(rows=rows, columns=columns, values=dense.reshape(-1))

    def _indices(self, count: int, lines: int) -> tuple[Array, Array]:
        """Return the indices and where each line starts: of four bytes, in the oldest files of eight."""
        begun = self.at
        for dtype in ("<i4", "<i8"):
            self.at = begun
            if (count + lines) * int(dtype[2]) > len(self.view) - self.at:
                continue
            found = self._array(count, dtype), self._array(lines, dtype)
            here = self.at
            if self.found("EMAT"):
                self.at = here
                return found
        raise FormatError("a sparse matrix without its end")

    def node_ends(self) -> bool:
        """Whether a node may end here: the next one, or the end of the list, begins.

        Only files since version 7 can tell, where each node begins with its precision.
        """
        here = self.at
        follows = any(self.found(one) for one in ("float", "double", "half", "ENodeList"))
        self.at = here
        return follows


def read(path: Path) -> Network:
    """Read the file `path`.

    Raises FormatError or ValueError where it is damaged, UnsupportedError where a node's payload is
    not known, so that nothing behind it can be read either.
    """
    return parse(open_content(path).view)


def parse(view: memoryview) -> Network:
    """Return the network in the bytes `view`. Raises as `read` does."""
    from deploykit._plugins.converters.cntk import v1_nodes

    cursor = Cursor(view)
    cursor.expect("BCN")
    version = 1
    if cursor.found("BVersion"):
        version = cursor.size()
        cursor.expect("EVersion")
    if version > NEWEST_VERSION:
        raise UnsupportedError(
            f"CNTK model version {version}; the newest that is known is {NEWEST_VERSION}",
            hint="save the model in CNTK's v2 format: `cntk.Function.save`",
        )
    cursor.version = version
    old = _old_dtype(view) if version < 7 else ""
    count = cursor.size()
    cursor.expect("BNodeList")
    nodes: dict[str, RawNode] = {}
    for _ in range(count):
        precision = cursor.text() if version >= 7 else ""
        if precision not in DTYPES:
            raise FormatError(f"the precision `{shown(precision, 40)}` before byte {cursor.at}")
        op, name, dtype = cursor.text(), cursor.text(), DTYPES[precision]
        if name in nodes:
            raise FormatError(f"two nodes are named `{shown(name)}`")
        payload = v1_nodes.PAYLOADS.get(op)
        if payload is None:
            raise _unknown(op, name)
        if version < 7:
            dtype = old
        nodes[name] = RawNode(op=op, name=name, dtype=dtype, fields=payload(cursor, dtype))
    cursor.expect("ENodeList")
    inputs = _relations(cursor, nodes)
    groups = _groups(cursor, nodes)
    cursor.expect("ECN")
    connected = {
        name: RawNode(
            op=node.op,
            name=name,
            dtype=node.dtype,
            fields=node.fields,
            inputs=inputs.get(name, ()),
        )
        for name, node in nodes.items()
    }
    return Network(version=version, nodes=connected, groups=groups)


def _unknown(op: str, name: str) -> UnsupportedError:
    shown_op = shown(op, 60)
    return UnsupportedError(
        f"the CNTK v1 operator {shown_op} (`{shown(name, 60)}`) has a payload that is not known, "
        "and what follows it in the file cannot be found without it",
        operators=(shown_op,),
        hint="remove the node with CNTK's `edit` command, or save the model with CNTK 2 "
        "(`Function.load`, then `Function.save`)",
    )


def _old_dtype(content: memoryview) -> str:
    """Return the dtype of a file that does not say it: that of its first matrix, as CNTK does."""
    marker = "BMAT\0".encode("utf-16-le")
    window, step = 1 << 20, 1 << 19
    for start in range(0, len(content), step):
        at = bytes(content[start : start + window]).find(marker)
        if at >= 0:
            width = bytes(content[start + at + len(marker) :][:8])
            return "float64" if width == struct.pack("<Q", 8) else "float32"
    return "float32"


def _relations(cursor: Cursor, nodes: Mapping[str, RawNode]) -> dict[str, tuple[str, ...]]:
    cursor.expect("BRelation")
    found: dict[str, tuple[str, ...]] = {}
    for _ in range(len(nodes)):
        name = cursor.text()
        inputs = cursor.texts()
        for one in (name, *inputs):
            if one not in nodes:
                raise FormatError(f"there is no node `{shown(one)}`")
        found[name] = inputs
    cursor.expect("ERelation")
    return found


def _groups(cursor: Cursor, nodes: Mapping[str, RawNode]) -> dict[str, tuple[str, ...]]:
    cursor.expect("BRootNodes")
    groups: dict[str, tuple[str, ...]] = {}
    for group, sections in GROUPS.items():
        for begin, end in sections:
            if not cursor.found(f"B{begin}"):
                continue
            names = cursor.texts()
            # the end of a legacy section may carry the newer name
            if not any(cursor.found(f"E{one}") for one, _ in sections):
                cursor.expect(f"E{end}")
            if group != "ignored" and (missing := [one for one in names if one not in nodes]):
                raise FormatError(f"there is no node `{shown(missing[0])}`")
            groups[group] = names
    cursor.expect("ERootNodes")
    if groups.get("pair"):
        raise UnsupportedError("pair nodes, which CNTK itself no longer reads")
    return groups
