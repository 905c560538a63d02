"""What each operator of CNTK v1 is in v2.

Mostly what CNTK 2.7's own loader of v1 models (`BackCompat.cpp`) makes of it; what that refuses and
v1's nodes define is written out: LookupTable, RowRepeat, images with channels first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from deploykit._plugins.converters.cntk import v1_convolutions, v1_normalizations, v1_shapes
from deploykit._plugins.converters.cntk.graph import ALL_AXES, ALL_STATIC, SEQUENCE, Axis, Leaf
from deploykit._plugins.converters.cntk.v1_file import RawNode
from deploykit._plugins.converters.cntk.v1_translation import Translation, shown

DEFAULT_AXES = ("", "*")
NO_SEQUENCE = "__defaultNoSequenceAxis__"

RENAMED = {
    "ColumnElementTimes": "ElementTimes",
    "Cosine": "Cos",
    "DiagTimes": "ElementTimes",
    "ErrorPrediction": "ClassificationError",
    "ExponentialLinearUnit": "ELU",
    "If": "Select",
    "NDCG1Eval": "NDCG",
    "RectifiedLinear": "ReLU",
    "ReconcileMBLayout": "ReconcileDynamicAxis",
    "RowElementTimes": "ElementTimes",
    "Scale": "ElementTimes",
    "SquareError": "SquaredError",
    "SumElements": "SumAll",
}
ALIKE = """
Abs Acos Asin Asinh Atan Atanh ClassificationError CosDistance CosDistanceWithNegativeSamples Cosh
CrossEntropyWithSoftmax EditDistanceError ElementTimes Equal Exp Floor ForwardBackward Greater
GreaterEqual Hardmax LambdaRank Less LessEqual Log LogPlus LogSoftmax Logistic Minus Negate NotEqual
PackedIndex Pass Plus RandomSample RandomSampleInclusionFrequency Reciprocal ReconcileDynamicAxis
ScatterPacked Sigmoid Sin Sinh Softmax Sqrt StableSigmoid StopGradient StraightThrough Tan Tanh
""".split()  # noqa: SIM905
"""Operators with the name and the inputs of v2."""


def translate(made: Translation, node: RawNode) -> None:
    """Add what computes the value of `node`.

    An operator without a counterpart keeps its v1 name, which no mapping knows: it matters only
    where an output needs it.
    """
    special = SPECIAL.get(node.op)
    if special is not None:
        special(made, node)
    elif node.op in ALIKE or node.op in RENAMED:
        made.emit(node, RENAMED.get(node.op, node.op), made.operands(node))
    else:
        made.refuse(node)


def _parameter(made: Translation, node: RawNode) -> None:
    values = made.parameter(node.name)
    shape = made.shapes[node.name]
    if values is None or shape is None:
        raise ValueError(f"the parameter `{node.name}` has no values or no shape")
    if values.size != math.prod(shape):
        raise ValueError(f"`{node.name}` has {values.size} values for the shape {shape}")
    made.constant(node.name, values.reshape(shape[::-1]), shown(node.name))


def _precomputed(made: Translation, node: RawNode) -> None:
    if not node.fields["computed"]:
        made.refuse(node, "not computed yet: train the model first")
        return
    _parameter(made, node)


def _input(made: Translation, node: RawNode) -> None:
    axis = node.fields["axis"]
    sequence = "" if axis == NO_SEQUENCE else SEQUENCE if axis in DEFAULT_AXES else shown(axis)
    made.leaves[node.name] = Leaf(
        uid=node.name,
        name=shown(node.name),
        shape=node.fields["shape"],
        dtype=node.dtype,
        batch=True,
        sequence=sequence if made.sequences else "",
        sparse=node.op == "SparseInputValue",
    )


def _environment(made: Translation, node: RawNode) -> None:
    import numpy as np

    if node.fields["property"] != "isTraining":
        made.refuse(node, node.fields["property"])
        return
    made.constant(node.name, np.zeros((), node.dtype), shown(node.name))


def _times(made: Translation, node: RawNode) -> None:
    shapes = [made.shapes.get(name) for name in node.inputs]
    left, right = shapes
    if left == () or right == ():
        made.emit(node, "ElementTimes", node.inputs)
        return
    inputs = list(node.inputs)
    if left is not None and right is not None:
        wanted = v1_shapes.left_of_times(node, (left, right))
        inputs[0] = made.as_shape(inputs[0], wanted, "left", node)
    mapped = {"inferInputRankToMap": node.fields["map_rank"]} if node.op == "Times" else {}
    made.emit(node, node.op, inputs, outputRank=node.fields["output_rank"], **mapped)


def _delay(made: Translation, node: RawNode) -> None:
    import numpy as np

    inputs = node.inputs
    if not 1 <= len(inputs) <= 2:
        raise ValueError(f"`{node.name}` delays {len(inputs)} values")
    if len(inputs) == 1:
        initial = np.full((), node.fields["initial"], node.dtype)
        inputs = (*inputs, made.constant(f"{node.name}/initial", initial))
    op = "FutureValue" if node.op == "FutureValue" else "PastValue"
    made.emit(node, op, inputs, offset=node.fields["steps"])


def _slice(made: Translation, node: RawNode) -> None:
    slices = node.fields["slices"]
    if any(axis < 1 for axis, *_ in slices):
        made.refuse(node, "along time")
        return
    axes, begins, ends, strides = (list(one) for one in zip(*slices, strict=True))
    if len(slices) == 1:
        made.emit(
            node,
            "Slice",
            made.operands(node),
            axis=static(axes[0]),
            beginIndex=begins[0],
            endIndex=ends[0],
            sliceStrides=strides[0],
        )
        return
    made.emit(
        node,
        "Slice",
        node.inputs,
        axisVec=tuple(static(axis) for axis in axes),
        beginIndexVec=tuple(begins),
        endIndexVec=tuple(ends),
        sliceStridesVec=tuple(strides),
    )


def static(axis: int) -> Axis:
    """Return the static axis that CNTK v1 counts from 1."""
    return Axis(index=axis - 1)


def _stack(made: Translation, node: RawNode) -> None:
    made.emit(node, "Splice", made.operands(node), axis=static(node.fields["axis"]))


def _repeat(made: Translation, node: RawNode) -> None:
    inputs = made.operands(node)
    shape = made.shapes.get(node.name)
    count = node.fields["count"]
    if shape is None or math.prod(shape[1:]) != 1 or not 1 <= count <= 4096:
        made.refuse(node, "of more than a vector")
        return
    made.emit(node, "Splice", inputs * count, axis=static(1))


def _transpose(made: Translation, node: RawNode) -> None:
    if not node.fields["permutation"]:
        first, second = (static(axis) for axis in node.fields["axes"])
        made.emit(node, "TransposeAxes", node.inputs, axis1=first, axis2=second)
        return
    shape = made.shapes.get(node.inputs[0])
    if shape is None:
        made.refuse(node, "of an unknown shape")
        return
    order = v1_shapes.transposition(node, shape)
    made.emit(node, "TransposeAxes", node.inputs, axisVec=tuple(Axis(index=axis) for axis in order))


def _reshape(made: Translation, node: RawNode) -> None:
    shape = made.shapes.get(node.name)
    if shape is None:
        made.refuse(node, "across samples, or of an unknown shape")
        return
    made.emit(node, "Reshape", node.inputs, newShape=shape)


def _reduce(made: Translation, node: RawNode) -> None:
    named = {0: Axis(name=ALL_STATIC), -1: Axis(name=ALL_AXES), -2: Axis(name=SEQUENCE)}
    named[-3] = Axis(name="batch")
    axes = tuple(named.get(axis) or static(axis) for axis in node.fields["axes"])
    which: dict[str, Any] = {"axis": axes[0]} if len(axes) == 1 else {"axisVec": axes}
    made.emit(
        node,
        "ReduceElements",
        node.inputs,
        reductionOpName=node.fields["operation"],
        reductionKeepDimensions=node.fields["keeps"],
        **which,
    )


def _sum_columns(made: Translation, node: RawNode) -> None:
    shape = made.shapes.get(node.inputs[0])
    if shape is None:
        made.refuse(node, "of an unknown shape")
        return
    flat = (math.prod(shape),)
    made.emit(
        node,
        "ReduceElements",
        [made.as_shape(node.inputs[0], flat, "flat", node)],
        axis=static(1),
        reductionOpName="Sum",
        reductionKeepDimensions=True,
    )


def _clip(made: Translation, node: RawNode) -> None:
    least, most, data = node.inputs
    made.emit(node, "Clip", (data, least, most))


def _labels_last(made: Translation, node: RawNode) -> None:
    """Of criteria, whose first input is the label in v1 and the prediction in v2."""
    first, second, *more = node.inputs
    made.emit(node, RENAMED.get(node.op, node.op), (second, first, *more))


def _dropout(made: Translation, node: RawNode) -> None:
    made.emit(node, "Dropout", node.inputs, dropoutRate=0.0)


def _look_up(made: Translation, node: RawNode) -> None:
    table, words = node.inputs
    shape, given = made.shapes.get(table), made.shapes.get(words)
    if shape is None or given is None or len(shape) != 2:
        made.refuse(node, "of an unknown shape")
        return
    size, count = shape[1], math.prod(given) // shape[1]
    columns = made.as_shape(words, (size, count), "words", node)
    found = made.between(node, "found", "Times", [table, columns], (shape[0], count), outputRank=1)
    made.emit(node, "Reshape", [found], newShape=(shape[0] * count,))


def _recurrence(made: Translation, node: RawNode) -> None:
    weights, data = reversed(node.inputs) if node.fields["data_first"] else node.inputs
    cells = {"LSTM": "lstm", "GRU": "gru", "RNN_RELU": "rnnReLU", "RNN_TANH": "rnnTanh"}
    if node.fields["axis"] != -1:
        made.refuse(node, "along a static axis")
        return
    made.emit(
        node,
        "OptimizedRNNStack",
        (data, weights),
        bidirectional=node.fields["bidirectional"],
        numLayers=node.fields["layers"],
        hiddenSize=node.fields["hidden"],
        recurrentOp=cells.get(node.fields["cell"], node.fields["cell"]),
    )


def _gather(made: Translation, node: RawNode) -> None:
    index, data = node.inputs
    made.emit(node, "GatherPacked", (data, index))


def _where(made: Translation, node: RawNode) -> None:
    made.emit(node, "Where", node.inputs, newDynamicAxes=(Axis(name=node.fields["axis"]),))


def _crop(made: Translation, node: RawNode) -> None:
    offsets = node.fields["offsets"]
    known = all(math.isfinite(one) for one in offsets)
    # without offsets they follow from what made the inputs
    made.emit(node, "Crop", node.inputs, offset=tuple(int(one) for one in offsets) if known else ())


def _nothing(_: Translation, __: RawNode) -> None:
    """Of a DynamicAxis, which only names an axis of inputs."""


SPECIAL: dict[str, Callable[[Translation, RawNode], None]] = {
    "AveragePooling": v1_convolutions.old_pooling,
    "BatchNormalization": v1_normalizations.batch_normalization,
    "ClassificationError": _labels_last,
    "Clip": _clip,
    "Convolution": v1_convolutions.convolution,
    "Crop": _crop,
    "CrossEntropyWithSoftmax": _labels_last,
    "Delay": _delay,
    "Dropout": _dropout,
    "DynamicAxis": _nothing,
    "EnvironmentInput": _environment,
    "ErrorPrediction": _labels_last,
    "FutureValue": _delay,
    "GatherPacked": _gather,
    "InputValue": _input,
    "InvStdDev": _precomputed,
    "LearnableParameter": _parameter,
    "LegacyReshape": _reshape,
    "LookupTable": _look_up,
    "MaxPooling": v1_convolutions.old_pooling,
    "MaxUnpooling": v1_convolutions.unpooling,
    "Mean": _precomputed,
    "OptimizedRNNStack": _recurrence,
    "PastValue": _delay,
    "PerDimMeanVarDeNormalization": v1_normalizations.denormalize,
    "PerDimMeanVarDeNormalizationNode": v1_normalizations.denormalize,
    "PerDimMeanVarNormalization": v1_normalizations.normalize,
    "PerDimMeanVarNormalizationNode": v1_normalizations.normalize,
    "Pooling": v1_convolutions.pooling,
    "RNN": _recurrence,
    "ROIPooling": v1_convolutions.roi_pooling,
    "ReduceElements": _reduce,
    "Reshape": _reshape,
    "RowRepeat": _repeat,
    "RowSlice": _slice,
    "RowStack": _stack,
    "Slice": _slice,
    "SparseInputValue": _input,
    "SumColumnElements": _sum_columns,
    "Times": _times,
    "Transpose": _transpose,
    "TransposeDimensions": _transpose,
    "TransposeTimes": _times,
    "Where": _where,
}
