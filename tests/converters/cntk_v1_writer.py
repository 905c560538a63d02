"""Writes CNTK v1 files as CNTK's `ComputationNetwork::Save` does, for any model version.

Written apart from the reader, after CNTK's `Save` functions; only what the tests need.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTHS = {"float": ("<f4", "f"), "double": ("<f8", "d"), "half": ("<f2", "e")}


def text(value: str) -> bytes:
    return value.encode("utf-16-le") + b"\0\0"


def u4(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def i4(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def u8(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def i8(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def f4(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def f8(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def truth(*values: bool) -> bytes:
    return bytes(values)


def truths(*values: bool) -> bytes:
    return u8(len(values)) + bytes(values)


def shape(*sizes: int) -> bytes:
    return u4(len(sizes), *sizes)


def texts(*values: str) -> bytes:
    return u8(len(values)) + b"".join(text(one) for one in values)


def matrix(values: Any, precision: str = "float") -> bytes:
    """Write a dense matrix; `values` are rows of columns."""
    array = np.asarray(values, WIDTHS[precision][0])
    rows, columns = array.shape
    head = u8(array.itemsize) + text("unnamed") + i4(0) + u8(rows, columns)
    return b"d" + text("BMAT") + head + array.T.tobytes() + text("EMAT")


def sparse(values: Any, *, by_column: bool = True, index: str = "<i4") -> bytes:
    """Write a sparse matrix in CSC or CSR; `values` are rows of columns."""
    array = np.asarray(values, "<f4")
    rows, columns = array.shape
    lines = array.T if by_column else array
    found = [(line, at) for line in range(len(lines)) for at in np.flatnonzero(lines[line])]
    starts = np.cumsum([0, *(np.count_nonzero(line) for line in lines)])
    head = u8(4) + text("nnmatrix") + i4(6 if by_column else 7) + u8(len(found), columns, rows)
    body = b""
    if found:
        body += np.array([lines[line][at] for line, at in found], "<f4").tobytes()
        body += np.array([at for _, at in found], index).tobytes()
        body += starts.astype(index).tobytes()
    return b"s" + text("BMAT") + head + body + text("EMAT")


class File:
    """A CNTK v1 file in the making."""

    def __init__(self, version: int, precision: str = "float") -> None:
        self.version = version
        self.precision = precision
        self.nodes: list[bytes] = []
        self.inputs: list[tuple[str, Sequence[str]]] = []

    def node(self, op: str, name: str, *inputs: str, payload: bytes = b"") -> str:
        """Add a node and return its name."""
        before = text(self.precision) if self.version >= 7 else b""
        self.nodes.append(before + text(op) + text(name) + payload)
        self.inputs.append((name, inputs))
        return name

    def input(self, name: str, *sizes: int, axis: str = "", op: str = "InputValue") -> str:
        if self.version < 3:
            # rows and columns, then an image's width, height and channels
            width, height, channels = sizes if len(sizes) == 3 else (1, sizes[0], 1)
            payload = u8(width * height * channels, 1) + u8(width, height, channels)
        else:
            payload = u8(0, 0) + shape(*sizes)
        if self.version >= 8:
            payload += u4(1) + text(axis)
        if self.version >= 10:
            payload += f4(0)
        return self.node(op, name, payload=payload)

    def parameter(self, name: str, values: Any, *sizes: int) -> str:
        """Add a parameter of CNTK shape `sizes`; `values` in numpy's order, the last axis fastest."""
        array = np.asarray(values)
        sizes = sizes or array.shape[::-1]
        rows = sizes[0]
        flat = array.reshape(-1, rows)  # memory of a column-major matrix, a column a line
        if self.version >= 3:
            head = f4(1) + shape(*sizes)
        elif len(sizes) <= 2:
            head = truth(True) + u8(*(sizes if len(sizes) == 2 else (rows, 1)))
        else:
            raise ValueError("parameters of old files are matrices")
        return self.node("LearnableParameter", name, payload=head + matrix(flat.T, self.precision))

    def times(self, name: str, left: str, right: str, rank: int = 1, mapped: int = -1) -> str:
        payload = u8(rank) if self.version >= 3 else b""
        payload += i4(mapped) if self.version >= 12 else b""
        return self.node("Times", name, left, right, payload=payload)

    def delay(self, op: str, name: str, source: str, size: int, initial: float = 0.1) -> str:
        payload = i4(1)
        payload += shape(size) if self.version >= 4 else u8(size, 0)
        if self.version >= 2:
            payload += struct.pack("<" + WIDTHS[self.precision][1], initial)
        return self.node(op, name, source, payload=payload)

    def window(
        self,
        kernel: Sequence[int],
        maps: Sequence[int],
        strides: Sequence[int],
        *,
        auto: bool = False,
        pool: int = 0,
        layout: int = 1,
        transpose: bool = False,
        ceiling: bool = False,
        include_pad: bool = False,
    ) -> bytes:
        """Write what Convolution and Pooling have in common since version 5."""
        zeros = shape(*(0 for _ in kernel))
        payload = shape(*kernel) + shape(*maps) + shape(*strides)
        payload += truths(*(True for _ in kernel))
        payload += truths(*(auto and at < len(kernel) - 1 for at in range(len(kernel))))
        payload += zeros + zeros + i4(pool, layout) + u8(0)
        payload += truth(transpose) if self.version >= 9 else b""
        payload += shape(0) if self.version >= 20 else b""
        payload += truth(ceiling) if self.version >= 21 else b""
        payload += truth(include_pad) if self.version >= 23 else b""
        return payload

    def convolution(
        self,
        name: str,
        kernel: str,
        data: str,
        window: bytes,
        *,
        two_axes: bool = False,
        dilation: Sequence[int] = (1,),
    ) -> str:
        payload = window + truth(two_axes)
        payload += shape(*dilation) if self.version >= 18 else b""
        return self.node("Convolution", name, kernel, data, payload=payload)

    def old_convolution(
        self,
        name: str,
        kernel: str,
        data: str,
        size: int,
        maps: int,
        *,
        stride: int,
        pad: bool,
        layout: int = 0,
    ) -> str:
        """Add a convolution as before version 5; layout 0 is HWC, 1 CHW."""
        payload = u8(size, size, stride, stride) + u4(maps, layout) + truth(pad) + u8(0)
        return self.node("Convolution", name, kernel, data, payload=payload)

    def old_pooling(
        self, op: str, name: str, data: str, size: int, stride: int, layout: int
    ) -> str:
        payload = u4(size, layout) + u8(size, stride, stride)
        return self.node(op, name, data, payload=payload)

    def normalization(
        self,
        name: str,
        *inputs: str,
        spatial: bool,
        epsilon: float = 1e-5,
        inner: int = 0x10004,
        flag: bool = False,
        more: bytes = b"",
    ) -> str:
        """Add a batch normalization; `flag` in place of the count, `more` behind the payload."""
        if self.version >= 6:
            payload = truth(spatial) + f8(5000, 0) + i4(1)
            payload += truth(False) if flag else u8(7)
            payload += f8(epsilon) + truth(True) + more
        else:
            payload = i4(inner, inner) + truth(False, spatial) + f8(5000)
            payload += i4(1) + u8(7) if inner >= 0x10002 else b""
            payload += f8(epsilon) + truth(True) if inner >= 0x10003 else b""
        return self.node("BatchNormalization", name, *inputs, payload=payload)

    def bytes(
        self,
        *,
        feature: Sequence[str] = (),
        label: Sequence[str] = (),
        criterion: Sequence[str] = (),
        evaluation: Sequence[str] = (),
        output: Sequence[str] = (),
        legacy_names: bool = False,
    ) -> bytes:
        """Return the whole file."""
        data = text("BCN")
        if self.version >= 2:
            data += text("BVersion") + u8(self.version) + text("EVersion")
        data += u8(len(self.nodes)) + text("BNodeList") + b"".join(self.nodes) + text("ENodeList")
        data += text("BRelation")
        for name, inputs in self.inputs:
            data += text(name) + texts(*inputs)
        data += text("ERelation") + text("BRootNodes")
        judged = "CriteriaNodes" if legacy_names else "CriterionNodes"
        for section, names in (
            ("FeatureNodes", feature),
            ("LabelNodes", label),
            (judged, criterion),
            ("EvalNodes", evaluation),
            ("OutputNodes", output),
        ):
            data += text("B" + section) + texts(*names) + text("E" + section)
        return data + text("ERootNodes") + text("ECN")
