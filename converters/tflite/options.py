"""The options of TensorFlow Lite's built-in operators: which field of which table.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
Fields are listed in the order of the schema, which numbers them; `-` skips one.
"""

from __future__ import annotations

import struct
from typing import Any

from deploykit.formats.flatbuffer import Table
from deploykit.formats.reading import FormatError

ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")

_WINDOW = "padding:b stride_w:i=1 stride_h:i=1"
_FUSED = "activation:b"
_LSTM = "activation:b cell_clip:f proj_clip:f"
_FIELDS = {
    "CONV_2D": f"{_WINDOW} activation:b dilation_w:i=1 dilation_h:i=1",
    "DEPTHWISE_CONV_2D": f"{_WINDOW} depth_multiplier:i activation:b dilation_w:i=1 dilation_h:i=1",
    "TRANSPOSE_CONV": f"{_WINDOW} activation:b",
    "CONV_3D": "padding:b stride_d:i stride_w:i stride_h:i activation:b dilation_d:i=1 dilation_w:i=1 "
    "dilation_h:i=1",
    "AVERAGE_POOL_2D": f"{_WINDOW} filter_w:i filter_h:i activation:b",
    "MAX_POOL_2D": f"{_WINDOW} filter_w:i filter_h:i activation:b",
    "L2_POOL_2D": f"{_WINDOW} filter_w:i filter_h:i activation:b",
    "FULLY_CONNECTED": "activation:b weights_format:b keep_num_dims:b asymmetric:b",
    "SVDF": "rank:i activation:b asymmetric:b",
    "RNN": "activation:b asymmetric:b",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "time_major:b activation:b asymmetric:b",
    "BIDIRECTIONAL_SEQUENCE_RNN": "time_major:b activation:b merge_outputs:b asymmetric:b",
    "LSTM": f"{_LSTM} kernel_type:b asymmetric:b",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": f"{_LSTM} time_major:b asymmetric:b diagonal:b",
    "BIDIRECTIONAL_SEQUENCE_LSTM": f"{_LSTM} merge_outputs:b time_major:b=1 asymmetric:b",
    "SOFTMAX": "beta:f",
    "CONCATENATION": "axis:i activation:b",
    "ADD": "activation:b pot_scale:b=1",
    "SUB": "activation:b pot_scale:b=1",
    "MUL": _FUSED,
    "DIV": _FUSED,
    "L2_NORMALIZATION": _FUSED,
    "LOCAL_RESPONSE_NORMALIZATION": "radius:i bias:f alpha:f beta:f",
    "RESIZE_BILINEAR": "- - align_corners:b half_pixel:b",
    "RESIZE_NEAREST_NEIGHBOR": "align_corners:b half_pixel:b",
    "RESHAPE": "new_shape:I",
    "SPACE_TO_DEPTH": "block:i",
    "DEPTH_TO_SPACE": "block:i",
    "GATHER": "axis:i batch_dims:i",
    "SUM": "keep_dims:b",
    "MEAN": "keep_dims:b",
    "REDUCE_MAX": "keep_dims:b",
    "REDUCE_MIN": "keep_dims:b",
    "REDUCE_PROD": "keep_dims:b",
    "REDUCE_ANY": "keep_dims:b",
    "REDUCE_ALL": "keep_dims:b",
    "SQUEEZE": "axes:I",
    "SPLIT": "number:i",
    "SPLIT_V": "number:i",
    "STRIDED_SLICE": "begin_mask:i end_mask:i ellipsis_mask:i new_axis_mask:i shrink_mask:i offset:b",
    "CAST": "from:b to:b",
    "ARG_MAX": "to:b",
    "ARG_MIN": "to:b",
    "SHAPE": "to:b",
    "FAKE_QUANT": "least:f most:f bits:i narrow:b",
    "PACK": "count:i axis:i",
    "UNPACK": "count:i axis:i",
    "ONE_HOT": "axis:i",
    "LEAKY_RELU": "alpha:f",
    "MIRROR_PAD": "mode:b",
    "REVERSE_SEQUENCE": "time_axis:i batch_axis:i",
    "BATCH_MATMUL": "turn_x:b turn_y:b asymmetric:b",
    "CUMSUM": "exclusive:b reverse:b",
    "GELU": "approximate:b",
    "EMBEDDING_LOOKUP_SPARSE": "combiner:b",
    "IF": "then:i other:i",
    "WHILE": "condition:i body:i",
    "CALL_ONCE": "graph:i",
    "CALL": "graph:i",
    "STABLEHLO_COMPOSITE": "- graph:i",
}
WIDTHS = {"b": 1, "i": 4, "f": 4}


def options(kind: str, table: Table | None) -> dict[str, Any]:
    """Return the options of an operator `kind` by name, those absent with the schema's default.

    Raises FormatError where a list of them is out of bounds or a number is none.
    """
    found: dict[str, Any] = {}
    for at, field in enumerate(_FIELDS.get(kind, "").split()):
        if field == "-":
            continue
        name, _, rest = field.partition(":")
        code, _, default = rest.partition("=")
        if code == "I":
            found[name] = tuple(table.numbers(at)) if table is not None else ()
        elif code == "f":
            raw = table.number(at, 4) if table is not None else 0
            (found[name],) = struct.unpack("<f", struct.pack("<i", raw))
            if found[name] != found[name]:
                raise FormatError(f"the option {name} of {kind} is not a number")
        else:
            plain = int(default or 0)
            found[name] = plain if table is None else table.number(at, WIDTHS[code], plain)
    if "activation" in found:
        if not 0 <= found["activation"] < len(ACTIVATIONS):
            raise FormatError(f"activation {found['activation']} of {kind} is unknown")
        found["activation"] = ACTIVATIONS[found["activation"]]
    return found
