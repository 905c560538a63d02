"""The shapes of a network's inputs: the user's, the symbol's, or what the weights decide."""

from __future__ import annotations

from collections.abc import Mapping

from deploykit._plugins.converters.mxnet.emission import Sizes
from deploykit._plugins.converters.mxnet.network import Network, needed

from deploykit.errors import UsageError
from deploykit.protocol import TensorSpec

SAME_SHAPE: tuple[str, ...] = (
    *("identity", "_copy", "BlockGrad", "relu", "tanh", "sigmoid", "negative", "square", "sqrt"),
    "Dropout",
    "BatchNorm",
    "BatchNorm_v1",
    "Activation",
    "LeakyReLU",
    "InstanceNorm",
    "LRN",
)
SAME_SHAPE += ("SoftmaxActivation", "softmax", "clip", "Cast", "L2Normalization")


def input_shapes(model: Network, given: Mapping[str, TensorSpec]) -> dict[str, Sizes]:
    """Return the shape of each input: the user's, the symbol's, or what the weights decide.

    Raises UsageError where not even the number of axes can be told, or `--input` names none.
    """
    unknown = [name for name in given if name not in model.inputs]
    if unknown:
        raise UsageError(
            f"the model has no input `{unknown[0]}`", hint=f"its inputs: {', '.join(model.inputs)}"
        )
    found: dict[str, Sizes] = {}
    for number, node in enumerate(model.symbol.nodes):
        if node.op != "null" or node.name not in model.inputs:
            continue
        spec = given.get(node.name)
        declared = node.value("__shape__", None)
        if spec is not None and spec.shape is not None:
            found[node.name] = tuple(s if isinstance(s, int) else None for s in spec.shape)
        elif isinstance(declared, (tuple, list)) and declared:
            found[node.name] = (None, *(int(size) if size else None for size in declared[1:]))
        else:
            found[node.name] = _decided(model, number)
    return found


def _decided(model: Network, number: int) -> Sizes:
    """Return what the weights say of the shape of the variable `number`."""
    nodes = model.symbol.nodes
    same, channels = {number}, None
    used = needed(model.symbol)
    for at, node in enumerate(nodes):
        if at not in used or node.op == "null" or not node.inputs or node.inputs[0][0] not in same:
            continue
        names = [nodes[one].name for one, _ in node.inputs]
        if node.op in SAME_SHAPE or node.op.endswith("_scalar"):
            same.add(at)
            if node.op in ("BatchNorm", "BatchNorm_v1") and node.value("axis", 1) == 1:
                channels = len(model.weights[names[1]])
        elif node.op in ("Convolution", "Deconvolution", "Convolution_v1"):
            weight = model.weights[names[1]]
            groups = node.value("num_group", 1)
            depth = weight.shape[0] if node.op == "Deconvolution" else weight.shape[1] * groups
            return (None, depth, *[None] * (weight.ndim - 2))
        elif node.op == "FullyConnected" and (
            channels is None or channels == model.weights[names[1]].shape[1]
        ):
            return (None, model.weights[names[1]].shape[1])
    name = nodes[number].name
    raise UsageError(
        f"neither symbol nor weights say the shape of the input `{name}`",
        hint=f"give it: `--input '{name}:float32[batch,...]'`",
    )
