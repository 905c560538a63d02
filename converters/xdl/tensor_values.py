"""A TensorFlow tensor while its graph becomes ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.xdl.graph_def import Shape, TensorNode

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """Its name in the ONNX graph, its dtype, its shape and what it holds, where these are known."""

    name: str
    dtype: str
    shape: Shape | None = None
    constant: Array | None = None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")


Emit = Callable[[GraphBuilder, TensorNode, list[Value]], "list[Value]"]


def unsupported(node: TensorNode, what: str) -> UnsupportedError:
    """Return the error for a node that is used in a way that has no ONNX form."""
    return UnsupportedError(
        f"the TensorFlow node `{node.name}` ({node.op}) {what}",
        operators=(node.op,),
        hint="cut the graph before it: `--set outputs=NAME:0`",
    )


def known(node: TensorNode, value: Value, what: str) -> list[int]:
    """Return the whole numbers that `value` holds. Raises UnsupportedError where it is computed."""
    if value.constant is None:
        raise unsupported(node, f"computes its {what}, which must be fixed")
    return [int(one) for one in value.constant.reshape(-1)]


def ranked(node: TensorNode, value: Value) -> int:
    """Return the number of axes. Raises UnsupportedError where the graph does not say it."""
    if value.rank is None:
        raise unsupported(node, "takes a tensor whose number of axes is unknown")
    return value.rank


def as_int64(build: GraphBuilder, value: Value) -> str:
    """Return `value` as the int64 that ONNX takes for sizes."""
    if value.constant is not None:
        return build.constant(value.constant, dtype="int64")
    return value.name if value.dtype == "int64" else build.add("Cast", value.name, to=7)


def onnx_dtype(dtype: str) -> int:
    """Return ONNX's number of a dtype by numpy's name."""
    import numpy as np
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """Return the shape of an elementwise operation; sizes that nobody knows are None."""
    if any(shape is None for shape in shapes):
        return None
    several = [shape for shape in shapes if shape is not None]
    rank = max(len(shape) for shape in several)
    padded = [(1,) * (rank - len(shape)) + shape for shape in several]
    return tuple(
        next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True)
    )
