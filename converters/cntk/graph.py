"""A CNTK network as both readers give it: leaves, operators named as CNTK v2 names them, roots.

Shapes and static axes are CNTK's: column-major, the axis that changes fastest first (index 0).
Arrays are numpy's: row-major, so a leaf of CNTK shape (a, b, c) holds an array of shape (c, b, a),
which is the same bytes. Dynamic axes (the batch, one sequence axis) are no part of a shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Shape = tuple[int, ...]

FREE = -3
"""A size in a shape that is known only when the network runs."""

INFERRED = -1
"""A size in an attribute (`newShape`) that follows from the rest."""

UNKNOWN: Shape = (-2,)
"""The shape of an input whose rank the file does not say."""

SEQUENCE = "sequence"
"""The name of the sequence axis that CNTK calls its default dynamic axis."""

ALL_STATIC = "all static axes"
ALL_AXES = "all axes"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis in an attribute: `index` of a static one, negative from the end; else None and `name`.

    `name` is `batch`, the name of a sequence axis, `ALL_STATIC` or `ALL_AXES`.
    """

    index: int | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """An input, or a parameter or constant with its `values`.

    `sequence` names the sequence axis, empty where there is none (CNTK has at most one that we
    know of); `batch` says whether there is a batch axis: parameters have neither. `values` None
    makes it an input. `dtype` is numpy's name, `sparse` whether CNTK takes it as sparse columns.
    """

    uid: str
    name: str
    shape: Shape
    dtype: str = "float32"
    values: Array | None = None
    batch: bool = False
    sequence: str = ""
    sparse: bool = False


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator.

    `op` is the name in CNTK v2's PrimitiveOpType, `inputs` are uids of leaves or of outputs of
    other nodes in the order of the v2 function (`Times`: weight, then data; `PastValue`: data,
    initial state; `Clip`: data, least, most; `BatchNormalization`: data, scale, bias, running mean,
    running variance, running count). `attributes` are under v2's keys (`strides`, `autoPadding`,
    `lowerPad`, `outputRank`, ...), an NDShape a tuple, an Axis an `Axis`, a Vector a tuple.
    `shape` is that of the output where the file says it.
    """

    uid: str
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape | None = None


@dataclass(frozen=True, kw_only=True)
class Root:
    """A value that the file calls an output: the `name` a user knows it by, and its `uid`."""

    name: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A network. Nodes come in any order, and recurrences are cycles through a PastValue or FutureValue.

    `roots` are the outputs in the file's order, those of training (losses, errors) among them.
    `names` maps each name a user may ask an output by to its uid.
    """

    leaves: Mapping[str, Leaf]
    nodes: tuple[Node, ...]
    roots: tuple[Root, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    version: int = 0
    repairs: tuple[str, ...] = ()
