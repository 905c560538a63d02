"""ONNX's operators in TensorFlow Lite's: one line where one stands for one, a function where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_activations as activations,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_elementwise as elementwise,
)
from deploykit._plugins.targets.litert_flatbuffer import mapping_integers
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_normalisation as normalisation,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_products as products,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_quantised as quantised,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_recurrent as recurrent,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_reductions as reductions,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_resize as resizing,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_shapes as shapes,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_slices as slices,
)
from deploykit._plugins.targets.litert_flatbuffer import (
    mapping_windows as windows,
)

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.integers import IntegerNode
    from deploykit._plugins.targets.litert_flatbuffer.node import Graph, Node

MAP: dict[str, Callable[[Graph, Node], None]] = {
    **{name: elementwise.unary(kind) for name, kind in elementwise.UNARY.items()},
    **{
        name: elementwise.binary(kind, answer=name in elementwise.ANSWERS)
        for name, kind in elementwise.BINARY.items()
    },
    **{name: elementwise.variadic(kind) for name, kind in elementwise.VARIADIC.items()},
    **{name: reductions.reduction(kind) for name, kind in reductions.REDUCTIONS.items()},
    **{name: reductions.sum_of(*around) for name, around in reductions.SUMS.items()},
    "Acos": elementwise.each(activations.acos),
    "Asin": elementwise.each(activations.asin),
    "Atan": elementwise.each(activations.atan),
    "ArgMax": reductions.arg("ARG_MAX", "ArgMaxOptions"),
    "ArgMin": reductions.arg("ARG_MIN", "ArgMinOptions"),
    "AveragePool": windows.average_pool,
    "BatchNormalization": normalisation.batch_normalization,
    "Cast": elementwise.cast,
    "Celu": elementwise.each(activations.celu),
    "Clip": elementwise.clip,
    "Concat": shapes.concat,
    "ConstantOfShape": shapes.constant_of_shape,
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "CumSum": reductions.cum_sum,
    "DepthToSpace": shapes.depth_to_space,
    "DequantizeLinear": quantised.dequantize,
    "Dropout": elementwise.identity,
    "Einsum": products.einsum,
    "Elu": elementwise.each(activations.elu),
    "Erf": elementwise.each(activations.erf),
    "Expand": shapes.expand,
    "Flatten": shapes.reshape,
    "GRU": recurrent.recurrent,
    "Gather": slices.gather,
    "GatherElements": slices.gather_elements,
    "GatherND": slices.gather_nd,
    "Gelu": elementwise.each(activations.gelu),
    "Gemm": products.gemm,
    "GlobalAveragePool": windows.global_average_pool,
    "GlobalMaxPool": windows.global_max_pool,
    "GroupNormalization": normalisation.group_normalization,
    "HardSigmoid": elementwise.each(activations.hard_sigmoid),
    "Identity": elementwise.identity,
    "InstanceNormalization": normalisation.instance_normalization,
    "IsInf": elementwise.each(elementwise.is_infinite),
    "IsNaN": elementwise.each(activations.is_nan),
    "LRN": normalisation.lrn,
    "LSTM": recurrent.recurrent,
    "LayerNormalization": normalisation.layer_normalization,
    "LeakyRelu": elementwise.each(activations.leaky_relu),
    "LogSoftmax": reductions.softmax("LOG_SOFTMAX", "LogSoftmaxOptions"),
    "LpNormalization": normalisation.lp_normalization,
    "MatMul": products.matmul,
    "MaxPool": windows.max_pool,
    "Mean": elementwise.mean,
    "MeanVarianceNormalization": normalisation.mean_variance_normalization,
    "Mish": elementwise.each(activations.mish),
    "Mod": elementwise.mod,
    "NonZero": shapes.non_zero,
    "OneHot": shapes.one_hot,
    "PRelu": elementwise.prelu,
    "Pad": slices.pad,
    "QuantizeLinear": quantised.quantize,
    "RMSNormalization": normalisation.rms_normalization,
    "RNN": recurrent.recurrent,
    "Range": shapes.range_,
    "Reciprocal": elementwise.each(activations.reciprocal),
    "ReduceLogSumExp": reductions.log_sum_exp,
    "Relu": elementwise.relu,
    "Reshape": shapes.reshape,
    "Resize": resizing.resize,
    "Selu": elementwise.each(activations.selu),
    "Shape": shapes.shape_of,
    "Size": shapes.size_of,
    "Slice": slices.slice_,
    "Softmax": reductions.softmax("SOFTMAX", "SoftmaxOptions"),
    "Softplus": elementwise.each(activations.softplus),
    "Softsign": elementwise.each(activations.softsign),
    "SpaceToDepth": shapes.space_to_depth,
    "Split": slices.split,
    "Squeeze": shapes.reshape,
    "Swish": elementwise.each(activations.swish),
    "Tan": elementwise.each(activations.tan),
    "ThresholdedRelu": elementwise.each(activations.thresholded_relu),
    "Tile": shapes.tile,
    "TopK": reductions.top_k,
    "Transpose": shapes.transpose,
    "Trilu": shapes.trilu,
    "Unsqueeze": shapes.reshape,
    "Upsample": resizing.resize,
    "Where": elementwise.where,
}


STORED = {
    "DequantizeLinear": mapping_integers.dequantize,
    "QuantizeLinear": mapping_integers.quantize,
}
"""Of graphs that are computed in integers."""


def map_node(
    graph: Graph, node: Node, table: Mapping[str, Callable[[Graph, Node], None]] = MAP
) -> None:
    """Write one node. Raises UnsupportedError naming it where it cannot be written as it is."""
    graph.emit.node = node.name
    try:
        table[node.operator](graph, node)
    except UnsupportedError as error:
        raise _named(error, node) from error


def map_integer_node(graph: Graph, found: IntegerNode) -> None:
    """Write a node as an integer kernel. Raises as `map_node` does."""
    try:
        mapping_integers.map_integers(graph, found)
    except UnsupportedError as error:
        raise _named(error, found.node) from error


def _named(error: UnsupportedError, node: Node) -> UnsupportedError:
    if error.operators:
        return error
    return type(error)(
        f"target litert cannot take {node}: {error.message}",
        hint=error.hint,
        operators=(node.operator,),
    )
