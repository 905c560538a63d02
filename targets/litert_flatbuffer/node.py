"""One ONNX node as the operator map reads it, and the state that all of the map works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.emitting import Emitter, NeedsSizeError
from deploykit._plugins.targets.litert_flatbuffer.values import Values

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Permutation, Shape
    from deploykit._plugins.targets.litert_flatbuffer.writing import Dim, Tensor

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Node:
    """A node: `inputs` and `outputs` are names, empty where left out."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute, or what it is where left out."""
        return self.attributes.get(name, default)

    def input(self, at: int) -> str:
        """Return the name of input `at`; empty where left out."""
        return self.inputs[at] if at < len(self.inputs) else ""

    def __str__(self) -> str:
        return f"{self.operator} (node `{self.name}`)"


class Graph:
    """What the operator map reads and writes: the ONNX values and the emitter."""

    def __init__(self, emit: Emitter, values: Values) -> None:
        self.emit = emit
        self.values = values

    def shape(self, name: str) -> Shape:
        """Return the sizes of a value."""
        return self.values.shape(name)

    def rank(self, name: str) -> int:
        """Return the number of axes of a value."""
        return len(self.values.shape(name))

    def dtype(self, name: str) -> str:
        """Return the dtype of a value."""
        return self.values.dtype(name)

    def constant(self, name: str) -> Array | None:
        """Return the value where it is known now."""
        return self.values.constant(name)

    def own(self, name: str) -> Tensor:
        """Return the value with its axes as ONNX has them."""
        return self.values.own(name)

    def form(self, name: str, permutation: Permutation) -> Tensor:
        """Return the value with its axes permuted."""
        return self.values.form(name, permutation)

    def put(self, name: str, tensor: Tensor, permutation: Permutation | None = None) -> None:
        """Say that the value exists as `tensor`, permuted."""
        self.values.put(name, tensor, permutation)

    def known(self, node: Node, at: int) -> Array:
        """Return input `at`, which must be a constant. Raises UnsupportedError where it is not."""
        name = node.input(at)
        found = self.constant(name)
        if found is None:
            raise UnsupportedError(f"its input `{name}` must be a constant")
        return found

    def optional(self, node: Node, at: int) -> Array | None:
        """Return input `at`, a constant or left out."""
        return self.known(node, at) if node.input(at) else None

    def sizes(self, name: str, axes: range | tuple[int, ...] | list[int]) -> list[int]:
        """Return sizes that must be known. Raises NeedsSizeError where one is open."""
        shape = self.shape(name)
        made = []
        for axis in axes:
            size = shape[axis]
            if not isinstance(size, int):
                raise NeedsSizeError(f"axis {axis} of `{name}` must have a known size")
            made.append(size)
        return made

    def axes(self, node: Node, at: int = 1) -> list[int] | None:
        """Return the axes of a node, an attribute in older opsets and an input since; sorted."""
        found = node.attribute("axes", None)
        if found is None:
            known = self.optional(node, at)
            if known is None:
                return None
            found = known.reshape(-1).tolist()
        rank = self.rank(node.input(0))
        return sorted({int(axis) % rank for axis in found})

    def axis(self, node: Node, default: int, rank: int | None = None) -> int:
        """Return the attribute `axis`, counted from the front."""
        rank = self.rank(node.input(0)) if rank is None else rank
        return int(node.attribute("axis", default)) % rank if rank else 0

    def size_tensor(self, sizes: Shape, *, one_free: bool = False) -> Tensor:
        """Return the sizes as an int32 tensor, open ones read from tensors at run time.

        With `one_free` one size may be -1: a reshape works it out. Raises NeedsSizeError where no
        tensor has an open size.
        """
        if one_free:
            unknown = [
                size for size in sizes if isinstance(size, str) and size not in self.values.sources
            ]
            open_sizes = unknown or [size for size in sizes if isinstance(size, str)]
            if open_sizes and 0 not in sizes:
                at = sizes.index(open_sizes[0])
                sizes = (*sizes[:at], -1, *sizes[at + 1 :])
        if all(isinstance(size, int) for size in sizes):
            return self.emit.constant(list(sizes), "int32")
        parts: list[Tensor] = []
        fixed: list[int] = []

        def flush() -> None:
            if fixed:
                parts.append(self.emit.constant(fixed, "int32"))
                fixed.clear()

        for size in sizes:
            if isinstance(size, int):
                fixed.append(size)
            else:
                flush()
                parts.append(self._size_at_run_time(size))
        flush()
        return parts[0] if len(parts) == 1 else self.emit.concat(parts, 0)

    def _size_at_run_time(self, size: Dim) -> Tensor:
        source = self.values.sources.get(str(size))
        if source is None:
            raise NeedsSizeError(f"the size `{size}` is no tensor's")
        tensor, axis = source
        shape = self.emit.add("SHAPE", [tensor], [tensor.rank], "int32", "ShapeOptions", outType=2)
        return self.emit.slice(shape, [axis], [1])

    def reshaped(self, tensor: Tensor, shape: Shape) -> Tensor:
        """Write a RESHAPE, with sizes read at run time where more than one is open."""
        if sum(not isinstance(size, int) for size in shape) <= 1 and 0 not in shape:
            return self.emit.reshape(tensor, shape)
        if shape == tensor.shape:
            return tensor
        return self.emit.reshape(tensor, shape, self.size_tensor(shape, one_free=True))
