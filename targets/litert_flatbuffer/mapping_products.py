"""Matrix products: a constant right side becomes FULLY_CONNECTED, anything else BATCH_MATMUL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.litert_flatbuffer.emitting import broadcast
from deploykit._plugins.targets.litert_flatbuffer.mapping_activations import times
from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.litert_flatbuffer.emitting import Emitter
    from deploykit._plugins.targets.litert_flatbuffer.writing import Tensor

    Array = np.ndarray[Any, Any]


def fully_connected(emit: Emitter, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias; `weight` is [out, in], `x` [..., in]."""
    return emit.add(
        "FULLY_CONNECTED",
        [x, weight, bias],
        (*x.shape[:-1], weight.shape[0]),
        None,
        "FullyConnectedOptions",
        keepNumDims=True,
    )


def batch_matmul(emit: Emitter, a: Tensor, b: Tensor) -> Tensor:
    """Return the product of the last two axes, those before broadcast."""
    shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    return emit.add(
        "BATCH_MATMUL", [a, b], shape, None, "BatchMatMulOptions", adjX=False, adjY=False
    )


def matmul(graph: Graph, node: Node) -> None:
    """Map MatMul, with numpy's meaning of vectors."""
    left, right = node.inputs
    known = graph.constant(right)
    if graph.dtype(left) != "float32":
        raise UnsupportedError(f"a product of {graph.dtype(left)}")
    a = graph.own(left)
    if known is not None and known.ndim == 2 and a.rank >= 1:
        row = graph.emit.reshape(a, (1, *a.shape)) if a.rank == 1 else a
        made = fully_connected(graph.emit, row, graph.emit.constant(known.T))
        graph.put(
            node.outputs[0], graph.emit.reshape(made, made.shape[1:]) if a.rank == 1 else made
        )
        return
    b = graph.own(right)
    vector_a, vector_b = a.rank == 1, b.rank == 1
    if vector_a:
        a = graph.emit.reshape(a, (1, *a.shape))
    if vector_b:
        b = graph.emit.reshape(b, (*b.shape, 1))
    made = batch_matmul(graph.emit, a, b)
    if vector_b:
        made = graph.reshaped(made, made.shape[:-1])
    if vector_a:
        at = made.rank - (1 if vector_b else 2)
        made = graph.reshaped(made, (*made.shape[:at], *made.shape[at + 1 :]))
    graph.put(node.outputs[0], made)


def gemm(graph: Graph, node: Node) -> None:
    """Map Gemm: alpha A B + beta C, A and B transposed where asked for."""
    import numpy as np

    emit = graph.emit
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    order = (1, 0) if node.attribute("transA", 0) else (0, 1)
    if graph.dtype(node.input(0)) != "float32":
        raise UnsupportedError(f"a product of {graph.dtype(node.input(0))}")
    a = graph.form(node.input(0), order)
    flipped = (0, 1) if node.attribute("transB", 0) else (1, 0)
    weight = graph.form(node.input(1), flipped)
    if weight.data is not None and alpha != 1:
        weight = emit.constant((weight.data * np.float32(alpha)).astype(np.float32))
        alpha = 1
    term = node.input(2)
    known = graph.constant(term) if term else None
    bias = None
    width = weight.shape[0]
    if known is not None and alpha == 1 and (known.size == 1 or known.shape == (width,)):
        row = np.broadcast_to(known.reshape(-1) * np.float32(beta), (int(width),))
        bias, term = emit.constant(row.astype(np.float32)), ""
    if weight.data is not None:
        made = fully_connected(emit, a, weight, bias)
    else:
        made = batch_matmul(emit, a, graph.form(node.input(1), flipped[::-1]))
        if bias is not None:
            made = emit.binary("ADD", made, bias)
    made = times(emit, made, alpha)
    if term:
        made = emit.binary("ADD", made, times(emit, graph.own(term), beta))
    graph.put(node.outputs[0], made)


def einsum(graph: Graph, node: Node) -> None:
    """Map Einsum of two tensors without repeated letters: transposed, joined, multiplied."""
    equation = node.attributes["equation"].replace(" ", "")
    sides, arrow, result = equation.partition("->")
    letters = sides.split(",")
    if not arrow or len(letters) != 2 or "." in equation:
        raise UnsupportedError(f"the equation `{equation}`")
    left, right = letters
    if any(len(set(each)) != len(each) for each in (left, right, result)):
        raise UnsupportedError(f"the equation `{equation}` repeats a letter")
    batch = [c for c in left if c in right and c in result]
    summed = [c for c in left if c in right and c not in result]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    if any(c not in result for c in (*rows, *columns)):
        raise UnsupportedError(f"the equation `{equation}` sums one tensor alone")
    sizes: dict[str, Any] = dict(zip(left, graph.shape(node.input(0)), strict=True))
    sizes |= dict(zip(right, graph.shape(node.input(1)), strict=True))
    import math

    def joined(group: list[str]) -> Any:
        if len(group) == 1:
            return sizes[group[0]]
        if any(isinstance(sizes[c], str) for c in group):
            return "*".join(str(sizes[c]) for c in group)
        return math.prod(sizes[c] for c in group)

    a = graph.form(node.input(0), tuple(left.index(c) for c in (*batch, *rows, *summed)))
    b = graph.form(node.input(1), tuple(right.index(c) for c in (*batch, *summed, *columns)))
    front = tuple(sizes[c] for c in batch)
    a = graph.reshaped(a, (*front, joined(rows), joined(summed)))
    b = graph.reshaped(b, (*front, joined(summed), joined(columns)))
    made = batch_matmul(graph.emit, a, b)
    order = [*batch, *rows, *columns]
    made = graph.reshaped(made, tuple(sizes[c] for c in order))
    # the tensor holds the letters in `order`: axis i of it is the letter's place in the result
    graph.put(node.outputs[0], made, tuple(result.index(c) for c in order))
