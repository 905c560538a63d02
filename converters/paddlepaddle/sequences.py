"""Ragged tensors in ONNX: packed rows, and how many of them belong to each sequence.

Paddle 1 keeps the borders of sequences beside a tensor (its level of detail, LoD). Here they are a
second input, `NAME.lengths` (int64 [batch]), whose sum is the number of rows of `NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A variable: its name in the graph, its rank, its sequences, and what it holds where known."""

    name: str
    rank: int
    dtype: str = "float32"
    lengths: str = ""
    constant: Array | None = None

    def on(self, name: str, **changes: Any) -> Value:
        """Return a value named `name` that is otherwise this one, no longer constant."""
        return replace(self, name=name, constant=None, **changes)


class Sequences:
    """The borders of one set of sequences as values of the graph, each made when it is asked for."""

    def __init__(self, build: GraphBuilder, value: Value) -> None:
        self.build = build
        self.lengths = value.lengths
        self._x = value.name
        self._made: dict[str, str] = {}

    def _once(self, key: str, make: Any) -> str:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def number(self, value: int) -> str:
        """Return a whole number as a constant."""
        return self._once(f"number {value}", lambda: self.build.constant(value, dtype="int64"))

    def axes(self, *axes: int) -> str:
        """Return a list of axes as a constant."""
        return self._once(f"axes {axes}", lambda: self.build.shape_constant(axes))

    @property
    def ends(self) -> str:
        """Behind the last row of each sequence, [batch]."""
        return self._once("ends", lambda: self.build.add("CumSum", self.lengths, self.number(0)))

    @property
    def starts(self) -> str:
        """The first row of each sequence, [batch]."""
        return self._once("starts", lambda: self.build.add("Sub", self.ends, self.lengths))

    @property
    def count(self) -> str:
        """The number of rows, a scalar."""

        def make() -> str:
            shape = self.build.add("Shape", self._x, start=0, end=1)
            return self.build.add("Squeeze", shape, self.axes(0))

        return self._once("count", make)

    @property
    def rows(self) -> str:
        """0, 1, 2, … for each row, [rows]."""
        return self._once(
            "rows",
            lambda: self.build.add("Range", self.number(0), self.count, self.number(1)),
        )

    @property
    def members(self) -> str:
        """Whether a row belongs to a sequence, bool [batch, rows]."""

        def make() -> str:
            row = self.build.add("Unsqueeze", self.rows, self.axes(0))
            start = self.build.add("Unsqueeze", self.starts, self.axes(1))
            end = self.build.add("Unsqueeze", self.ends, self.axes(1))
            begun = self.build.add("GreaterOrEqual", row, start)
            return self.build.add("And", begun, self.build.add("Less", row, end))

        return self._once("members", make)

    @property
    def owners(self) -> str:
        """The number of the sequence that each row belongs to, [rows]."""

        def make() -> str:
            row = self.build.add("Unsqueeze", self.rows, self.axes(0))
            end = self.build.add("Unsqueeze", self.ends, self.axes(1))
            past = self.build.add("GreaterOrEqual", row, end)
            past = self.build.add("Cast", past, to=7)
            return self.build.add("ReduceSum", past, self.axes(0), keepdims=0)

        return self._once("owners", make)

    @property
    def places(self) -> str:
        """The place of each row within its sequence, [rows]."""
        return self._once(
            "places",
            lambda: self.build.add(
                "Sub", self.rows, self.build.add("Gather", self.starts, self.owners)
            ),
        )

    @property
    def longest(self) -> str:
        """The length of the longest sequence, a scalar."""
        return self._once("longest", lambda: self.build.add("ReduceMax", self.lengths, keepdims=0))

    def within(self, index: str) -> str:
        """Return the row numbers `index`, those outside moved to the nearest row."""
        last = self.build.add("Sub", self.count, self.number(1))
        return self.build.add("Max", self.build.add("Min", index, last), self.number(0))

    def padded(self, x: str) -> str:
        """Return `x` [rows, width] as [batch, longest, width]; what lies behind the end is any row."""
        build = self.build
        steps = build.add("Range", self.number(0), self.longest, self.number(1))
        steps = build.add("Unsqueeze", steps, self.axes(0))
        index = build.add("Add", build.add("Unsqueeze", self.starts, self.axes(1)), steps)
        return build.add("Gather", x, self.within(index), axis=0)

    def packed(self, padded: str, width: int) -> str:
        """Undo `padded`: [batch, longest, width] to [rows, width]."""
        build = self.build
        flat = build.add("Reshape", padded, build.shape_constant([-1, width]))
        index = build.add("Add", build.add("Mul", self.owners, self.longest), self.places)
        return build.add("Gather", flat, index, axis=0)
