"""The version of each operator: an older runtime must refuse what it would compute otherwise.

The numbers are TensorFlow Lite's own, by element type, number of axes and option in use.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/tools/versioning/op_version.cc
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.writing import Operator

# of the first operand that is data
DTYPES: Mapping[str, Mapping[str, int]] = {
    "ABS": {"int32": 5},
    "ADD": {"int8": 2, "int64": 4},
    "ARG_MAX": {"bool": 3},
    "ARG_MIN": {"bool": 3},
    "AVERAGE_POOL_2D": {"int8": 2},
    "BROADCAST_TO": {"int8": 3, "int16": 3},
    "CONCATENATION": {"int8": 2, "int16": 3, "uint32": 4},
    "CONV_2D": {"int8": 3},
    "DEPTHWISE_CONV_2D": {"int8": 3},
    "DEQUANTIZE": {"int8": 2, "float16": 3},
    "FULLY_CONNECTED": {"int8": 4},
    "GATHER": {"int8": 2, "bool": 3, "int16": 4},
    "GATHER_ND": {"int16": 3, "bool": 5},
    "MAX_POOL_2D": {"int8": 2},
    "MEAN": {"int8": 2},
    "MUL": {"int8": 2, "int64": 5},
    "PAD": {"int8": 2, "int16": 3},
    "RANGE": {"int64": 2},
    "SIGN": {"int32": 2},
    "SLICE": {"int8": 2, "int16": 4, "uint32": 6},
    "SPLIT": {"int8": 2, "int32": 3, "int16": 4},
    "SPLIT_V": {"int8": 2},
    "STRIDED_SLICE": {"int8": 2, "bool": 3, "uint32": 7},
    "SUB": {"int8": 2, "int64": 4},
    "TILE": {"int8": 3},
    "TRANSPOSE": {"int8": 2, "bool": 3, "int16": 5},
}
CAST_DTYPES = {"uint32": 2, "int8": 3, "uint16": 4, "float16": 5, "float64": 5}
# from so many axes on
AXES: Mapping[str, Mapping[int, int]] = {
    "PAD": {5: 4},
    "PADV2": {5: 4},
    "SLICE": {5: 5},
    "STRIDED_SLICE": {5: 4},
    "TRANSPOSE": {5: 4, 6: 6},
}


def _sampled(operator: Operator) -> int:
    options = operator.options
    nearest = operator.kind == "RESIZE_NEAREST_NEIGHBOR"
    newer = options.get("halfPixelCenters") or (nearest and options.get("alignCorners"))
    return 3 if newer else 1


def _grouped(operator: Operator) -> int:
    x, weight = operator.inputs[0], operator.inputs[1]
    assert x is not None
    assert weight is not None
    return 6 if x.shape[3] != weight.shape[3] else 1


def _rescaled(operator: Operator) -> int:
    """A product of stored numbers whose scale grows."""
    stored = [each.quantization for each in (*operator.inputs, *operator.outputs) if each]
    if len(stored) != 3 or not all(stored):
        return 1
    a, b, out = (each.scale[0] for each in stored if each)
    return 3 if a * b / out >= 1 else 1


OPTIONS: Mapping[str, Callable[[Any], int]] = {
    "BROADCAST_TO": lambda _: 2,
    "CONV_2D": _grouped,
    "DEPTHWISE_CONV_2D": lambda each: (
        2 if {each.options["dilationHFactor"], each.options["dilationWFactor"]} != {1} else 1
    ),
    "FILL": lambda each: {"bool": 2, "int8": 3, "int16": 3}.get(each.outputs[0].dtype, 1),
    "FULLY_CONNECTED": lambda each: 5 if each.options.get("keepNumDims") else 1,
    "MUL": _rescaled,
    "RESIZE_BILINEAR": _sampled,
    "RESIZE_NEAREST_NEIGHBOR": _sampled,
    "TRANSPOSE_CONV": lambda each: 3 if len(each.inputs) > 3 else 1,
}


def version_of(operator: Operator) -> int:
    """Return the lowest version that computes the operator as it is written."""
    kind = operator.kind
    data = operator.inputs[1 if kind == "SPLIT" else 0]
    assert data is not None
    found = [1, DTYPES.get(kind, {}).get(data.dtype, 1)]
    if kind == "CAST":
        found += [CAST_DTYPES.get(each, 1) for each in (data.dtype, operator.outputs[0].dtype)]
    found += [version for axes, version in AXES.get(kind, {}).items() if data.rank >= axes]
    if kind in OPTIONS:
        found.append(OPTIONS[kind](operator))
    return max(found)
