"""What each kind of CNTK v1 node keeps in the file, by model version.

Every function reads the payload of one node and returns its fields; a node whose payload is not
known ends the reading, because nodes have no length. Source: the `Load` functions of CNTK's nodes;
what changed with which model version stands in CNTK's `Constants.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deploykit._plugins.converters.cntk.v1_file import Cursor

from deploykit.formats.reading import FormatError

Fields = dict[str, Any]
Payload = Callable[[Cursor, str], Fields]

LAYOUTS = ("HWC", "CHW")
POOLINGS = ("none", "max", "average")


def nothing(_: Cursor, __: str) -> Fields:
    """Of the many nodes that keep nothing."""
    return {}


def parameter(cursor: Cursor, _: str) -> Fields:
    """LearnableParameter: before version 3, rows and columns stand where the shape is now."""
    if cursor.version >= 3:
        rate, shape = cursor.float32(), cursor.shape()
    else:
        rate = float(cursor.boolean())
        rows, columns = cursor.size(), cursor.size()
        if rows:
            shape = (rows, columns)
        else:
            shape = cursor.shape(legacy=True)
            shape += (columns,) if columns > 1 else ()
    return {"rate": rate, "shape": shape, "value": cursor.matrix()}


def given(cursor: Cursor, _: str) -> Fields:
    """InputValue and SparseInputValue."""
    rows, _columns = cursor.size(), cursor.size()
    shape = cursor.shape(legacy=True)
    elements = 1
    for size in shape:
        elements *= size
    if rows and rows != elements:
        shape = (rows,)
    axis = ""
    if cursor.version >= 8:
        axes = cursor.uint32()
        if axes > 1:
            raise FormatError(f"an input with {axes} dynamic axes")
        axis = cursor.text() if axes else ""
    if cursor.version >= 10:
        cursor.float32()
    return {"shape": shape, "axis": axis}


def times(cursor: Cursor, _: str) -> Fields:
    """Times and TransposeTimes."""
    rank = cursor.size() if cursor.version >= 3 else 1
    mapped = cursor.int32() if cursor.version >= 12 else -1
    return {"output_rank": rank, "map_rank": mapped}


def quantized_times(cursor: Cursor, dtype: str) -> Fields:
    """QuantizedTimes: how far its operands are shifted besides."""
    return {**times(cursor, dtype), "shifts": (cursor.size(), cursor.size())}


def generator(cursor: Cursor, _: str) -> Fields:
    """Return the state of a random generator: its seed had the size of the platform in version 16."""
    if cursor.version == 16:
        begun = cursor.at
        cursor.take(4 + 8)
        if not cursor.node_ends():
            cursor.at = begun
            cursor.take(8 + 8)
    elif cursor.version > 16:
        cursor.take(8 + 8)
    return {}


def sample(cursor: Cursor, dtype: str) -> Fields:
    """RandomSample and RandomSampleInclusionFrequency."""
    cursor.boolean()
    cursor.size()
    return generator(cursor, dtype)


def _window(cursor: Cursor) -> Fields:
    if cursor.version < 5:
        return {}
    found: Fields = {
        "kernel": cursor.shape(),
        "maps": cursor.shape(),
        "strides": cursor.shape(),
        "sharing": cursor.booleans(),
        "auto_padding": cursor.booleans(),
        "lower_pad": cursor.shape(),
        "upper_pad": cursor.shape(),
        "pooling": _one_of(POOLINGS, cursor.int32()),
        "layout": _one_of(LAYOUTS, cursor.int32()),
    }
    cursor.size()  # memory that the convolution may use
    found["transpose"] = cursor.boolean() if cursor.version >= 9 else False
    found["output_shape"] = cursor.shape() if cursor.version >= 20 else ()
    found["ceiling"] = cursor.boolean() if cursor.version >= 21 else False
    found["include_pad"] = cursor.boolean() if cursor.version >= 23 else False
    return found


def convolution(cursor: Cursor, _: str) -> Fields:
    """Convolution: before version 5 of two axes only, since 29 with groups."""
    if cursor.version < 5:
        width, height, right, down = (cursor.size() for _ in range(4))
        maps, layout = cursor.uint32(), cursor.int32()
        padding = cursor.boolean()
        cursor.size()
        return {
            "kernel": (width, height, 1),
            "maps": (maps,),
            "strides": (right, down, 1),
            "sharing": (True,),
            "auto_padding": (padding,),
            "lower_pad": (),
            "upper_pad": (),
            "layout": _one_of(LAYOUTS, layout),
            "transpose": False,
            "two_axes": True,
            "dilation": (),
            "groups": 1,
        }
    found = _window(cursor)
    found["two_axes"] = cursor.boolean()
    found["dilation"] = cursor.shape() if cursor.version >= 18 else ()
    # which version brought the groups is not known for sure: the node's end tells
    later = cursor.version > 25 and not cursor.node_ends()
    found["groups"] = cursor.size() if later else 1
    return found


def pooling(cursor: Cursor, _: str) -> Fields:
    """Pooling and MaxUnpooling."""
    if cursor.version < 5:
        raise FormatError("a Pooling node in a model version that has none")
    return _window(cursor)


def old_pooling(cursor: Cursor, _: str) -> Fields:
    """MaxPooling and AveragePooling: two axes, no padding."""
    width, layout = cursor.uint32(), cursor.int32()
    height, right, down = cursor.size(), cursor.size(), cursor.size()
    return {
        "kernel": (width, height),
        "strides": (right, down),
        "layout": _one_of(LAYOUTS, layout),
    }


def roi_pooling(cursor: Cursor, _: str) -> Fields:
    """ROIPooling: since version 26 with a kind and a scale."""
    shape = cursor.shape()
    kind, scale = "max", 1 / 16
    if cursor.version >= 26:
        kind, scale = _one_of(POOLINGS, cursor.int32()), cursor.float64()
    return {"output_shape": shape, "pooling": kind, "scale": scale}


def batch_normalization(cursor: Cursor, _: str) -> Fields:
    """BatchNormalization: before version 6 it had a version of its own."""
    found: Fields = {"epsilon": 1e-5, "layout": "CHW"}
    version = cursor.version
    if version >= 6:
        found["spatial"] = cursor.boolean()
        found["time_constants"] = (cursor.float64(), cursor.float64())
        found["layout"] = _one_of(LAYOUTS, cursor.int32())
        found["epsilon"] = _after_the_count(cursor)
    else:
        written, readable = cursor.int32(), cursor.int32()
        if not 0x10001 <= readable <= written <= 0x10004:
            raise FormatError(f"batch normalization of version {written:#x}, {readable:#x}")
        cursor.boolean()
        found["spatial"] = cursor.boolean()
        cursor.float64()
        if written >= 0x10002:
            found["layout"] = _one_of(LAYOUTS, cursor.int32())
            cursor.size()
        if written >= 0x10003:
            found["epsilon"] = cursor.float64()
            cursor.boolean()
    found["inverse_deviation"] = version < 13
    return found


def _after_the_count(cursor: Cursor) -> float:
    """Go past the count of samples, and return the epsilon behind it.

    Since 19 there may be a flag in its place, later one more flag at the end: the node's end tells.
    """
    begun, version = cursor.at, cursor.version
    epsilon: float
    if version < 19:
        cursor.size()
        epsilon = cursor.float64()
        cursor.boolean()
        return epsilon
    for width, more in ((8, 0), (1, 0), (8, 1), (1, 1)):
        cursor.at = begun
        if len(cursor.view) - begun < width + 9 + more:
            continue
        cursor.take(width)
        epsilon = cursor.float64()
        cursor.take(1 + more)
        if cursor.node_ends() and 0 <= epsilon < 1:
            return epsilon
    raise FormatError(f"a batch normalization without its end at byte {begun}")


def reshape(cursor: Cursor, dtype: str) -> Fields:
    """Reshape: before version 3 it was what LegacyReshape is now."""
    if cursor.version < 3:
        return old_reshape(cursor, dtype)
    return {"begin": cursor.int32(), "end": cursor.int32(), "shape": cursor.shape()}


def old_reshape(cursor: Cursor, _: str) -> Fields:
    """LegacyReshape: a number of rows, and an image's sizes."""
    return {"rows": cursor.size(), "image": cursor.shape(legacy=True)}


def row_stack(cursor: Cursor, _: str) -> Fields:
    """RowStack: axes count from 1."""
    return {"axis": cursor.int32() if cursor.version >= 3 else 1}


def slices(cursor: Cursor, _: str) -> Fields:
    """Slice and RowSlice: begin, length, axis (from 1) and stride of each axis."""
    count = cursor.int32() if cursor.version >= 22 else 1
    if count < 1 or count > 32:
        raise FormatError(f"a slice of {count} axes")
    found = []
    for _number in range(count):
        begin, length = cursor.int64(), cursor.int64()
        axis = cursor.int32() if cursor.version >= 3 else 1
        stride = cursor.int32() if cursor.version >= 27 else 1
        found.append((axis, begin, begin + length, stride))
    return {"slices": tuple(found)}


def transpose(cursor: Cursor, _: str) -> Fields:
    """TransposeDimensions: two axes (from 1), or since version 25 a permutation."""
    if cursor.version < 3:
        return {"axes": (1, 2), "permutation": ()}
    axes = (cursor.int32(), cursor.int32())
    permuted = cursor.version >= 25 and axes == (0, 0)
    return {"axes": axes, "permutation": cursor.sizes() if permuted else ()}


def reduction(cursor: Cursor, _: str) -> Fields:
    """ReduceElements: axes from 1, 0 all static ones, -1 all, -2 the sequence, -3 the batch."""
    count = cursor.int32() if cursor.version >= 27 else 1
    if count < 1 or count > 32:
        raise FormatError(f"a reduction over {count} axes")
    axes = tuple(cursor.int32() for _ in range(count))
    operation = cursor.text()
    keeps = cursor.boolean() if cursor.version >= 24 else all(axis > 0 for axis in axes)
    return {"axes": axes, "operation": operation, "keeps": keeps}


def delay(cursor: Cursor, dtype: str) -> Fields:
    """PastValue and FutureValue: steps, shape, and the value before the beginning."""
    steps = cursor.int32()
    if cursor.version >= 4:
        shape = cursor.shape()
    else:
        shape = (cursor.size(),)
        cursor.size()
    initial = cursor.element(dtype) if cursor.version >= 2 else 0.1
    return {"steps": steps, "shape": shape, "initial": initial}


def precomputed(cursor: Cursor, _: str) -> Fields:
    """Mean and InvStdDev."""
    return {"computed": cursor.boolean(), "value": cursor.matrix()}


def contrastive(cursor: Cursor, _: str) -> Fields:
    """NoiseContrastiveEstimation: files of its first days lack the mode."""
    if cursor.uint32() > 2:
        cursor.at -= 4
    return {}


def edit_distance(cursor: Cursor, _: str) -> Fields:
    """EditDistanceError: three penalties, whether repetitions count, what is left out."""
    cursor.take(12)
    cursor.boolean()
    cursor.sizes()
    return {}


def forward_backward(cursor: Cursor, _: str) -> Fields:
    """ForwardBackward: the delay and the blank token."""
    cursor.int32()
    cursor.size()
    return {}


def rnn_stack(cursor: Cursor, _: str) -> Fields:
    """OptimizedRNNStack: before version 14 the data came before the weights."""
    found: Fields = {
        "bidirectional": cursor.size() != 0,
        "layers": cursor.size(),
        "hidden": cursor.size(),
        "cell": cursor.text(),
        "data_first": cursor.version < 14,
    }
    found["axis"] = cursor.int32() if cursor.version >= 14 else -1
    return found


def crop(cursor: Cursor, _: str) -> Fields:
    """Crop: offsets in elements."""
    return {"offsets": (cursor.float64(), cursor.float64())}


def where(cursor: Cursor, _: str) -> Fields:
    """Where: the name of the axis that it makes."""
    return {"axis": cursor.text() if cursor.version >= 11 else ""}


def _one_of(names: tuple[str, ...], number: int) -> str:
    if not 0 <= number < len(names):
        raise FormatError(f"{number} is none of {', '.join(names)}")
    return names[number]


EMPTY = """
Abs Acos Asin Asinh Atan Atanh Ceil ClassBasedCrossEntropyWithSoftmax ClassificationError Clip
ColumnElementTimes CosDistance CosDistanceWithNegativeSamples Cosh Cosine CrossEntropy
CrossEntropyWithSoftmax DiagTimes Diagonal DummyCriterion DynamicAxis ElementTimes Equal
ErrorPrediction Exp ExponentialLinearUnit Floor GatherPacked Greater GreaterEqual Hardmax If
KhatriRaoProduct LambdaRank Less LessEqual Log LogPlus LogSoftmax Logistic LookupTable MatrixL1Reg
MatrixL2Reg Minus NDCG1Eval Negate NotEqual PackedIndex Pass PerDimMeanVarDeNormalization
PerDimMeanVarDeNormalizationNode PerDimMeanVarNormalization PerDimMeanVarNormalizationNode Plus
Reciprocal ReconcileDynamicAxis ReconcileMBLayout RectifiedLinear RowElementTimes Scale
ScatterPacked SequenceWithSoftmax Sigmoid Sin Sinh Softmax Sqrt SquareError StableSigmoid
StopGradient StraightThrough SumColumnElements SumElements Tan Tanh
""".split()  # noqa: SIM905

PAYLOADS: dict[str, Payload] = {
    **dict.fromkeys(EMPTY, nothing),
    "AveragePooling": old_pooling,
    "BatchNormalization": batch_normalization,
    "Convolution": convolution,
    "Crop": crop,
    "Delay": delay,
    "Dropout": generator,
    "EditDistanceError": edit_distance,
    "EnvironmentInput": lambda cursor, _: {"property": cursor.text()},
    "ForwardBackward": forward_backward,
    "FutureValue": delay,
    "InputValue": given,
    "InvStdDev": precomputed,
    "LearnableParameter": parameter,
    "LegacyReshape": old_reshape,
    "MaxPooling": old_pooling,
    "MaxUnpooling": pooling,
    "Mean": precomputed,
    "NoiseContrastiveEstimation": contrastive,
    "OptimizedRNNStack": rnn_stack,
    "PastValue": delay,
    "Pooling": pooling,
    "QuantizedTimes": quantized_times,
    "RNN": rnn_stack,
    "ROIPooling": roi_pooling,
    "RandomSample": sample,
    "RandomSampleInclusionFrequency": sample,
    "ReduceElements": reduction,
    "Reshape": reshape,
    "RowRepeat": lambda cursor, _: {"count": cursor.size()},
    "RowSlice": slices,
    "RowStack": row_stack,
    "Slice": slices,
    "SparseInputValue": given,
    "Times": times,
    "Transpose": transpose,
    "TransposeDimensions": transpose,
    "TransposeTimes": times,
    "Where": where,
}
