"""An MXNet network computed operator by operator by definition, in numpy and float64.

Written from MXNet's operator documentation, apart from the mapping to ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.mxnet import (
    arrays_evaluation,
    attention_evaluation,
    choosing_evaluation,
    creation_evaluation,
    elementwise_evaluation,
    recurrent_evaluation,
    resizing_evaluation,
    spatial_evaluation,
)
from deploykit._plugins.converters.mxnet.network import Network, data_inputs, output_name
from deploykit._plugins.converters.mxnet.reading import Node

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Compute = Callable[[Node, list[Array]], Any]


def evaluate(model: Network, feed: dict[str, Array]) -> dict[str, Array]:
    """Return the outputs of `model` by the names that MXNet gives them."""
    nodes = model.symbol.nodes
    values: dict[tuple[int, int], Array] = {}
    for number, node in enumerate(nodes):
        if node.op == "null" and (node.name in feed or node.name in model.weights):
            values[number, 0] = feed.get(node.name, model.weights.get(node.name))
    counts = {}
    for number, node in model.walk():
        given = [values[ref] for ref in data_inputs(node)]
        if node.op.startswith("BatchNorm") and len(given) == 3:
            given += [model.weights[f"{node.name}_{one}"] for one in ("moving_mean", "moving_var")]
        found = COMPUTE[node.op](node, given)
        several = found if isinstance(found, list) else [found]
        counts[number] = len(several)
        values.update({(number, at): one for at, one in enumerate(several)})
    return {
        output_name(model.symbol, head, counts.get(head[0], 1)): values[head]
        for head in model.symbol.heads
    }


def _fully_connected(node: Node, ins: list[Array]) -> Array:
    x = ins[0]
    if node.value("flatten", True):
        x = x.reshape(len(x), -1)
    found: Array = x @ ins[1].astype("float64").T
    return found + ins[2] if len(ins) > 2 else found


def _activation(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0].astype(np.float64)
    functions: dict[str, Callable[[], Any]] = {
        "relu": lambda: np.maximum(x, 0),
        "sigmoid": lambda: define.sigmoid(x),
        "tanh": lambda: np.tanh(x),
        "softrelu": lambda: np.logaddexp(0, x),
        "softsign": lambda: x / (1 + np.abs(x)),
    }
    return np.asarray(functions[node.value("act_type", "relu")]())


def _leaky(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0].astype(np.float64)
    kind, slope = node.value("act_type", "leaky"), node.value("slope", 0.25)
    if kind == "gelu":
        erf = np.vectorize(math.erf, otypes=[float])
        return np.asarray(x * 0.5 * (1 + erf(x / math.sqrt(2))))
    if kind in ("elu", "selu"):
        alpha = slope if kind == "elu" else 1.6732632423543772
        scale = 1.0 if kind == "elu" else 1.0507009873554805
        return np.asarray(scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))
    if kind == "prelu":
        slope = ins[1].reshape(1, -1, *[1] * (x.ndim - 2))
    elif kind == "rrelu":
        slope = (node.value("lower_bound", 0.125) + node.value("upper_bound", 0.334)) / 2
    return np.where(x > 0, x, slope * x)


def _batch_norm(node: Node, ins: list[Array]) -> Array:
    x, gamma, beta, mean, variance = ins
    scale = None if node.value("fix_gamma", True) else gamma
    return define.batch_normalisation(
        x,
        scale,
        beta,
        mean,
        variance,
        epsilon=node.value("eps", 1e-3),
        axis=node.value("axis", 1),
    )


def _softmax_head(node: Node, ins: list[Array]) -> Array:
    x = ins[0]
    if node.value("multi_output", False):
        return define.softmax(x, axis=1)
    if node.value("preserve_shape", False):
        return define.softmax(x)
    return define.softmax(x.reshape(len(x), -1)).reshape(x.shape)


def _softmax_activation(node: Node, ins: list[Array]) -> Array:
    """Its documentation says that an instance is everything but the batch; it is the last axis."""
    is_channel = node.value("mode", "instance") == "channel"
    return define.softmax(ins[0], axis=1 if is_channel else -1)


def _softmax(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x, axis = ins[0] / node.value("temperature", 1.0), node.value("axis", -1)
    if len(ins) > 1:  # of each row only the first so many
        places = np.arange(x.shape[axis]).reshape(
            [-1 if at == axis % x.ndim else 1 for at in range(x.ndim)]
        )
        inside = places < np.expand_dims(ins[1], axis)
        with np.errstate(invalid="ignore"):
            found = define.softmax(np.where(inside, x, -np.inf), axis=axis)
        return np.where(inside, found, 0.0)
    found = define.softmax(-x if node.op == "softmin" else x, axis=axis)
    return np.log(found) if node.op == "log_softmax" else found


def _split(node: Node, ins: list[Array]) -> list[Array]:
    import numpy as np

    axis = node.value("axis", 1)
    parts = np.split(ins[0], node.value("num_outputs", 1), axis=axis)
    return [one.squeeze(axis) if node.value("squeeze_axis", False) else one for one in parts]


def _split_at(node: Node, ins: list[Array]) -> list[Array]:
    import numpy as np

    axis, count = node.value("axis", 1), node.value("sections", 0)
    parts = np.split(ins[0], count or node.value("indices", ())[1:], axis=axis)
    return [one.squeeze(axis) if node.value("squeeze_axis", False) else one for one in parts]


def _reshape(node: Node, ins: list[Array]) -> Array:
    x, codes, sizes, left = ins[0], list(node.value("shape", ())), [], list(ins[0].shape)
    if not codes:  # the form of before 0.9, in which a zero is inferred
        old = [size or -1 for size in node.value("target_shape", ())]
        return x.reshape([len(x), *old[1:]] if node.value("keep_highest", False) else old)
    from_behind = node.value("reverse", False)
    if from_behind:
        codes, left = codes[::-1], left[::-1]
    while codes:
        code = codes.pop(0)
        if code == 0:
            sizes.append(left.pop(0))
        elif code == -2:
            sizes += left
            left = []
        elif code == -3:
            sizes.append(left.pop(0) * left.pop(0))
        elif code == -4:
            whole, first, second = left.pop(0), codes.pop(0), codes.pop(0)
            sizes += [
                whole // second if first == -1 else first,
                whole // first if second == -1 else second,
            ]
        else:
            sizes.append(code)
            if left:
                left.pop(0)
    return x.reshape(sizes[::-1] if from_behind else sizes)


def _reduction(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0].astype(np.float64)
    axes = {axis % x.ndim for axis in node.value("axis", ())} or set(range(x.ndim))
    if node.value("exclude", False):
        axes = set(range(x.ndim)) - axes
    function = getattr(np, node.op.removesuffix("_axis"))
    found = np.asarray(function(x, axis=tuple(axes), keepdims=node.value("keepdims", False)))
    return found.reshape(found.shape or (1,))  # MXNet has no arrays without axes


def _binary(name: str) -> Compute:
    def compute(_node: Node, ins: list[Array]) -> Any:
        import numpy as np

        return getattr(np, name)(ins[0].astype(np.float64), ins[1])

    return compute


def _scalar(name: str, reverse: bool = False) -> Compute:
    def compute(node: Node, ins: list[Array]) -> Any:
        import numpy as np

        pair = (ins[0].astype(np.float64), node.value("scalar", 1.0))
        return getattr(np, name)(*(pair[::-1] if reverse else pair))

    return compute


def _unary(name: str) -> Compute:
    def compute(_node: Node, ins: list[Array]) -> Any:
        import numpy as np

        x = ins[0].astype(np.float64)
        special: dict[str, Callable[[], Any]] = {
            "same": lambda: x,
            "sigmoid": lambda: define.sigmoid(x),
            "relu": lambda: x * (x > 0),
            "softsign": lambda: x / (1 + np.abs(x)),
            "erf": lambda: np.vectorize(math.erf, otypes=[float])(x),
            "reciprocal": lambda: 1 / x,
        }
        return special[name]() if name in special else getattr(np, name)(x)

    return compute


def _concat(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    return np.concatenate(ins, axis=node.value("dim", 1))


def _transpose(node: Node, ins: list[Array]) -> Array:
    axes = node.value("axes", ())
    return ins[0].transpose(axes) if axes else ins[0].T


def _squeeze(node: Node, ins: list[Array]) -> Array:
    axes = node.value("axis", ())
    return ins[0].squeeze(axes or None)


def _expand(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    return np.expand_dims(ins[0], node.value("axis", 0))


def _slice_axis(node: Node, ins: list[Array]) -> Array:
    place = [slice(None)] * ins[0].ndim
    place[node.value("axis", 0)] = slice(node.value("begin", 0), node.value("end", None))
    return ins[0][tuple(place)]


def _pad(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    width = node.value("pad_width", ())
    pairs = list(zip(width[0::2], width[1::2], strict=True))
    mode = node.value("mode", "constant")
    if mode == "constant":
        return np.pad(ins[0], pairs, constant_values=node.value("constant_value", 0.0))
    return np.pad(ins[0], pairs, mode=mode)


def _normalise(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x = ins[0].astype(np.float64)
    axes = {
        "instance": tuple(range(1, x.ndim)),
        "channel": (1,),
        "spatial": tuple(range(2, x.ndim)),
    }
    norm = (x**2).sum(axis=axes[node.value("mode", "instance")], keepdims=True)
    return np.asarray(x / np.sqrt(norm + node.value("eps", 1e-10)))


def _instance_norm(node: Node, ins: list[Array]) -> Array:
    import numpy as np

    x, gamma, beta = (one.astype(np.float64) for one in ins)
    space = tuple(range(2, x.ndim))
    spread = np.sqrt(x.var(axis=space, keepdims=True) + node.value("eps", 1e-3))
    along = (1, -1, *[1] * (x.ndim - 2))
    normal = (x - x.mean(axis=space, keepdims=True)) / spread
    return np.asarray(normal * gamma.reshape(along) + beta.reshape(along))


def _lrn(node: Node, ins: list[Array]) -> Array:
    return define.local_response_normalisation(
        ins[0],
        size=node.value("nsize", 5),
        alpha=node.value("alpha", 1e-4),
        beta=node.value("beta", 0.75),
        bias=node.value("knorm", 2.0),
    )


BINARIES = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}
COMPUTE: dict[str, Compute] = {
    **arrays_evaluation.COMPUTE,
    **spatial_evaluation.COMPUTE,
    **resizing_evaluation.COMPUTE,
    **recurrent_evaluation.COMPUTE,
    **choosing_evaluation.COMPUTE,
    **creation_evaluation.COMPUTE,
    **elementwise_evaluation.COMPUTE,
    **{f"elemwise_{op}": _binary(name) for op, name in BINARIES.items()},
    **{f"broadcast_{op}": _binary(name) for op, name in BINARIES.items()},
    **dict.fromkeys(("_plus", "_Plus", "broadcast_plus"), _binary("add")),
    **dict.fromkeys(("_minus", "_Minus", "broadcast_minus"), _binary("subtract")),
    **dict.fromkeys(("_mul", "_Mul"), _binary("multiply")),
    **dict.fromkeys(("_div", "_Div"), _binary("divide")),
    **dict.fromkeys(("_maximum", "broadcast_maximum"), _binary("maximum")),
    **dict.fromkeys(("_minimum", "broadcast_minimum"), _binary("minimum")),
    **dict.fromkeys(("_power", "broadcast_power"), _binary("power")),
    **dict.fromkeys(("_plus_scalar", "_PlusScalar"), _scalar("add")),
    **dict.fromkeys(("_minus_scalar", "_MinusScalar"), _scalar("subtract")),
    **dict.fromkeys(("_rminus_scalar", "_RminusScalar"), _scalar("subtract", reverse=True)),
    **dict.fromkeys(("_mul_scalar", "_MulScalar"), _scalar("multiply")),
    **dict.fromkeys(("_div_scalar", "_DivScalar"), _scalar("divide")),
    **dict.fromkeys(("_rdiv_scalar", "_RdivScalar"), _scalar("divide", reverse=True)),
    **dict.fromkeys(("_power_scalar", "_PowerScalar"), _scalar("power")),
    **dict.fromkeys(("_rpower_scalar", "_RpowerScalar"), _scalar("power", reverse=True)),
    **dict.fromkeys(("_maximum_scalar", "_MaximumScalar"), _scalar("maximum")),
    **dict.fromkeys(("_minimum_scalar", "_MinimumScalar"), _scalar("minimum")),
    **dict.fromkeys(("BlockGrad", "stop_gradient", "identity", "_copy", "Dropout"), _unary("same")),
    **dict.fromkeys(("MakeLoss", "make_loss", "IdentityAttachKLSparseReg"), _unary("same")),
    **dict.fromkeys(("LinearRegressionOutput", "MAERegressionOutput", "SVMOutput"), _unary("same")),
    **dict.fromkeys(("LogisticRegressionOutput", "sigmoid"), _unary("sigmoid")),
    **{name: _unary(name) for name in ("relu", "tanh", "softsign", "exp", "log", "sqrt", "abs")},
    **{name: _unary(name) for name in ("floor", "ceil", "erf", "sin", "cos", "reciprocal", "sign")},
    "negative": _unary("negative"),
    **dict.fromkeys(
        ("sum", "sum_axis", "mean", "max", "max_axis", "min", "min_axis", "prod"), _reduction
    ),
    "FullyConnected": _fully_connected,
    "Activation": _activation,
    "LeakyReLU": _leaky,
    **dict.fromkeys(("BatchNorm", "BatchNorm_v1", "_contrib_SyncBatchNorm"), _batch_norm),
    **dict.fromkeys(("SoftmaxOutput", "Softmax"), _softmax_head),
    "SoftmaxActivation": _softmax_activation,
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), _softmax),
    **dict.fromkeys(("Concat", "concat"), _concat),
    **dict.fromkeys(("SliceChannel", "split"), _split),
    **dict.fromkeys(("Flatten", "flatten"), lambda _node, ins: ins[0].reshape(len(ins[0]), -1)),
    **dict.fromkeys(("Reshape", "reshape"), _reshape),
    "_split_v2": _split_at,
    "transpose": _transpose,
    **dict.fromkeys(
        ("SwapAxis", "swapaxes"),
        lambda node, ins: ins[0].swapaxes(node.value("dim1", 0), node.value("dim2", 0)),
    ),
    "expand_dims": _expand,
    "squeeze": _squeeze,
    "slice_axis": _slice_axis,
    "clip": lambda node, ins: ins[0].clip(node.value("a_min", 0.0), node.value("a_max", 0.0)),
    "Embedding": lambda _node, ins: ins[1][ins[0].astype("int64").clip(0, len(ins[1]) - 1)],
    "LRN": _lrn,
    **dict.fromkeys(("Pad", "pad"), _pad),
    "L2Normalization": _normalise,
    "InstanceNorm": _instance_norm,
    **dict.fromkeys(("add_n", "ElementWiseSum", "_sum"), lambda _node, ins: sum(ins)),
    **attention_evaluation.COMPUTE,
}
