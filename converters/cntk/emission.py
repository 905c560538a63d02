"""Values of a CNTK network in an ONNX graph, and what brings several of them to one layout.

A value is laid out [batch, sequence, *static axes slowest first]; either dynamic axis may be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.graph import FREE, Axis, Node, Shape

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """A value: its name in the graph, CNTK's shape, and its dynamic axes.

    `positional` says that it depends on the place in the sequence only, not on data. `mask` names,
    for what a Where made, the condition; nothing but a gathering can use such a value. `index` names,
    for what a OneHot made, the indices: up to the number of classes, which stands for none of them.
    """

    name: str
    shape: Shape
    batch: bool = False
    sequence: str = ""
    constant: Array | None = None
    positional: bool = False
    mask: str = ""
    index: str = ""

    @property
    def dynamic(self) -> int:
        """How many dynamic axes stand before the static ones."""
        return int(self.batch) + int(bool(self.sequence))

    @property
    def rank(self) -> int:
        return self.dynamic + len(self.shape)

    def place(self, index: int) -> int:
        """Return the ONNX axis of CNTK's static axis `index`."""
        return self.rank - 1 - index


class Emission:
    """The graph in the making; `dtype` is that of all its floating-point values.

    `layout` is a value that has batch and sequence axes, where the network has any. `alone` says
    that one sequence is computed at a time.
    """

    def __init__(self, build: GraphBuilder, dtype: str, *, alone: bool = True) -> None:
        self.build = build
        self.dtype = dtype
        self.alone = alone

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        return self.build.add(operator, *inputs, **attributes)

    def real(self, value: Any) -> str:
        """Hold numbers in the graph's own dtype."""
        return self.build.constant(value, dtype=self.dtype)

    def sizes(self, *sizes: int) -> str:
        return self.build.shape_constant(sizes)

    def cast(self, name: str) -> str:
        """Turn booleans or indices to the graph's dtype."""
        import numpy as np
        from onnx import helper

        return self.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def reshape(self, value: Value, shape: Shape) -> str:
        """Return the value with other static axes, `FREE` at most once among them."""
        if shape == value.shape:
            return value.name
        if sum(size == FREE for size in shape) > 1:
            raise UnsupportedError(
                "a Reshape has several sizes that are known only at run time",
                operators=("Reshape",),
                hint="fix the sizes of the inputs: `--input 'NAME:float32[batch,...]'`",
            )
        sizes = [0] * value.dynamic + [-1 if size == FREE else size for size in shape[::-1]]
        return self.add("Reshape", value.name, self.sizes(*sizes))

    def lead(self, value: Value, count: int | None = None) -> str:
        """Return the sizes of the first `count` dynamic axes, all by default, as an int64 tensor."""
        shape = self.add("Shape", value.name)
        end = value.dynamic if count is None else count
        return self.add("Slice", shape, self.sizes(0), self.sizes(end), self.sizes(0))

    def aligned(self, values: Sequence[Value], *, rank: int = 0) -> tuple[list[str], Value]:
        """Return names that broadcast against each other, and a value with all their axes."""
        known = [one for one in values if one.dynamic]
        batch = any(one.batch for one in known)
        sequence = same_sequence(values)
        rank = max([rank, *(len(one.shape) for one in values)])
        names = []
        for one in values:
            missing = []
            if one.dynamic:
                if batch and not one.batch:
                    missing.append(0)
                if sequence and not one.sequence:
                    missing.append(int(batch))
                lead = int(batch) + int(bool(sequence))
                missing += [lead + at for at in range(rank - len(one.shape))]
            names.append(
                self.add("Unsqueeze", one.name, self.sizes(*missing)) if missing else one.name
            )
        shape = broadcast([one.shape for one in values])
        whole = Value(
            "",
            shape,
            batch=batch,
            sequence=sequence,
            positional=all(one.positional for one in values),
        )
        return names, whole

    def expanded(self, value: Value, whole: Value, like: Value) -> Value:
        """Return `value` with every axis of `whole`, dynamic sizes taken from `like`."""
        same = (value.batch, value.sequence, value.shape) == (
            whole.batch,
            whole.sequence,
            whole.shape,
        )
        if same and value.dynamic:
            return value
        if not whole.dynamic and value.shape == whole.shape:
            return value
        names, _ = self.aligned([value, replace(whole, name="")])
        static = list(whole.shape[::-1])
        if FREE in static:
            raise UnsupportedError(
                "a value is repeated along an axis whose size is known only at run time",
                operators=("Expand",),
                hint="fix the sizes of the inputs: `--input 'NAME:float32[batch,...]'`",
            )
        if not whole.dynamic:
            target = self.sizes(*static)
        else:
            target = self.lead(like, whole.dynamic)
            if static:
                target = self.add("Concat", target, self.sizes(*static), axis=0)
        return replace(
            whole,
            name=self.add("Expand", names[0], target),
            constant=None,
            positional=value.positional,
        )

    def folded(self, value: Value) -> tuple[str, Callable[[str], str]]:
        """Return the value as [samples, *static], and what turns such a tensor back."""
        if value.dynamic == 1:
            return value.name, lambda name: name
        if value.dynamic == 0:
            axis = self.sizes(0)
            return (
                self.add("Unsqueeze", value.name, axis),
                lambda name: self.add("Squeeze", name, axis),
            )
        lead = self.lead(value)
        one = self.sizes(-1)

        def rest(name: str, start: int) -> str:
            shape = self.add("Shape", name)
            return self.add("Slice", shape, self.sizes(start), self.sizes(2**31), self.sizes(0))

        flat = self.add("Reshape", value.name, self.add("Concat", one, rest(value.name, 2), axis=0))
        return flat, lambda name: self.add(
            "Reshape", name, self.add("Concat", lead, rest(name, 1), axis=0)
        )


def same_sequence(values: Sequence[Value]) -> str:
    """Return the sequence axis of `values`. Raises UnsupportedError where they have several."""
    names = {one.sequence for one in values if one.sequence}
    if len(names) > 1:
        raise UnsupportedError(
            f"an operator joins values along different sequence axes: {', '.join(sorted(names))}",
            operators=("Input(several sequence axes)",),
            hint="bring them to one axis with `sequence.broadcast_as` or `reconcile_dynamic_axes`",
        )
    return next(iter(names), "")


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """Return the shape that `shapes` broadcast to: they begin at the same axis, 1 stretches."""
    found: list[int] = []
    for at in range(max(map(len, shapes), default=0)):
        sizes = {shape[at] for shape in shapes if at < len(shape)} - {1}
        known = sizes - {FREE}
        if len(known) > 1:
            raise ValueError(f"shapes {', '.join(map(str, shapes))} do not fit together")
        found.append(next(iter(known or sizes), 1))
    return tuple(found)


def static_axis(axis: Any, rank: int) -> int:
    """Return the index of a static axis of a value of `rank` axes.

    Raises UnsupportedError for a dynamic axis, ValueError where the axis does not exist.
    """
    if not isinstance(axis, Axis):
        raise ValueError(f"{axis!r} is no axis")
    if axis.index is None:
        raise UnsupportedError(
            f"an operator works along the axis `{axis.name}`, where only static axes can be",
            operators=(f"axis {axis.name}",),
            hint="use the operators of `cntk.sequence` for that",
        )
    index: int = axis.index + rank if axis.index < 0 else axis.index
    if not 0 <= index < rank:
        raise ValueError(f"there is no axis {axis.index} among {rank}")
    return index


def whole_number(node: Node, key: str, default: int | None = None) -> int:
    """Return an integer attribute. Raises ValueError where it is missing and has no default."""
    value = node.attributes.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"its attribute `{key}` is {value!r}")
    return value


def listed(node: Node, key: str, kind: type) -> list[Any]:
    """Return an attribute that is a list, or one item of a list; empty where it is missing."""
    value = node.attributes.get(key, ())
    items = list(value) if isinstance(value, tuple) else [value]
    if not all(isinstance(one, kind) for one in items):
        raise ValueError(f"its attribute `{key}` is {value!r}")
    return items


Emit = Callable[[Emission, Node, list[Value]], Value]
