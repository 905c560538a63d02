"""Adaptive mean pooling whose windows differ in size, which paddle2onnx 2.1 exports with equal ones.

Window `i` of `n` over `size` elements goes from floor(i size / n) to ceil((i + 1) size / n). As a
mean along each axis it is a product with a matrix, so the pooling becomes two products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.paddlepaddle.program import results_of, top_level

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import onnx

Json = dict[str, Any]


def correct(model: onnx.ModelProto, document: Json) -> list[str]:
    """Replace such poolings in place and return what was done; UnsupportedError where they hide."""
    from onnx import helper, numpy_helper

    kinds = {
        result["%"]: result["TT"].get("D")
        for op in top_level(document)
        for result in results_of(op)
    }
    pools = [op for op in top_level(document) if op["#"].endswith(".pool2d")]
    uneven = [op for op in pools if _is_uneven(op, kinds)]
    if not uneven:
        return []
    if any(_attribute(op, "pooling_type") != "avg" for op in uneven):
        raise UnsupportedError(
            "paddle2onnx exports adaptive maximum pooling into unequal windows with equal ones",
            operators=("pd_op.pool2d",),
        )
    means = [
        op
        for op in pools
        if _attribute(op, "pooling_type") == "avg"
        and not _attribute(op, "global_pooling")
        and not (_attribute(op, "adaptive") and op["O"][0]["TT"]["D"][1][2:] == [1, 1])
    ]
    nodes = [node for node in model.graph.node if node.op_type == "AveragePool"]
    if len(nodes) != len(means):
        raise UnsupportedError(
            "paddle2onnx exports adaptive mean pooling into unequal windows with equal ones",
            operators=("pd_op.pool2d",),
        )
    for number, (op, node) in enumerate(zip(means, nodes, strict=True)):
        if not any(op is one for one in uneven):
            continue
        (height, width), (rows, columns) = (
            kinds[op["I"][0]["%"]][1][2:],
            op["O"][0]["TT"]["D"][1][2:],
        )
        short = kinds[op["I"][0]["%"]][0]["#"].rpartition(".t_")[2]
        dtype = {"f16": "float16", "f64": "float64"}.get(short, "float32")
        stem = f"uneven_pool.{number}"
        for name, array in (
            ("rows", _means(height, rows)),
            ("columns", _means(width, columns).T),
        ):
            tensor = numpy_helper.from_array(array.astype(dtype), f"{stem}.{name}")
            model.graph.initializer.append(tensor)
        source, result = node.input[0], node.output[0]
        across = helper.make_node(
            "MatMul", [source, f"{stem}.columns"], [f"{stem}.across"], name=f"{stem}.across"
        )
        at = next(i for i, one in enumerate(model.graph.node) if one.output[0] == result)
        node.CopyFrom(
            helper.make_node("MatMul", [f"{stem}.rows", f"{stem}.across"], [result], name=stem)
        )
        model.graph.node.insert(at, across)
    return [f"{len(uneven)} adaptive poolings into windows of unequal size"]


def _is_uneven(op: Json, kinds: dict[int, Any]) -> bool:
    if not _attribute(op, "adaptive") or _attribute(op, "data_format") != "NCHW":
        return False
    before, after = kinds[op["I"][0]["%"]][1], op["O"][0]["TT"]["D"][1]
    sizes = [*before[2:], *after[2:]]
    if len(sizes) != 4 or min(sizes) < 1:
        return False
    return any(size % wanted for size, wanted in zip(before[2:], after[2:], strict=True))


def _means(size: int, wanted: int) -> np.ndarray[Any, Any]:
    """Return the matrix (wanted, size) that takes the mean of each window."""
    import numpy as np

    matrix = np.zeros((wanted, size))
    for window in range(wanted):
        start, stop = window * size // wanted, -(-(window + 1) * size // wanted)
        matrix[window, start:stop] = 1 / (stop - start)
    return matrix


def _attribute(op: Json, name: str) -> Any:
    return next((item["AT"].get("D") for item in op["A"] if item["N"] == name), None)
