"""OptimizedRNNStack, CNTK's name for cuDNN's recurrent layers, as ONNX's LSTM, GRU and RNN."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.cntk.emission import Emission, Value, whole_number
from deploykit._plugins.converters.cntk.graph import Node

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# the operator, and cuDNN's gates in ONNX's order
KINDS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "lstm": ("LSTM", [0, 3, 1, 2], {}),
    "gru": ("GRU", [1, 0, 2], {"linear_before_reset": 1}),
    "rnnTanh": ("RNN", [0], {"activations": ["Tanh"]}),
    "rnnReLU": ("RNN", [0], {"activations": ["Relu"]}),
}
MOST_LAYERS = 64


def stack(to: Emission, node: Node, ins: list[Value]) -> Value:
    """Emit an OptimizedRNNStack: inputs are the data and all weights in one parameter.

    Their order is cuDNN's: for each layer and direction W, then R, gate after gate; behind those of
    all layers the biases of W and R in the same order.
    """
    data, parameter = ins
    kind = node.attributes.get("recurrentOp")
    if kind not in KINDS or parameter.constant is None:
        raise UnsupportedError(
            f"`{node.name or node.uid}` is a stack of {kind}",
            operators=(f"OptimizedRNNStack({kind})",),
        )
    if not data.sequence or not data.batch or len(data.shape) != 1:
        raise ValueError(
            f"it runs over a value of shape {data.shape}, which is no sequence of vectors"
        )
    operator, order, attributes = KINDS[kind]
    hidden, layers = whole_number(node, "hiddenSize"), whole_number(node, "numLayers")
    ways = 2 if node.attributes.get("bidirectional") else 1
    if hidden < 1 or not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"it has {layers} layers of {hidden}")
    widths = [data.shape[0]] + [ways * hidden] * (layers - 1)
    matrices = _matrices(parameter.constant, len(order), hidden, widths, ways)
    if ways == 2 and "activations" in attributes:
        attributes = {"activations": attributes["activations"] * 2}
    # [batch, step, input] to [step, batch, input]
    name = to.add("Transpose", data.name, perm=[1, 0, 2])
    for w, r, bias in matrices:
        made, *_ = to.build.add_many(
            operator,
            name,
            *(to.real(one[:, order].reshape(ways, -1, one.shape[3])) for one in (w, r)),
            to.real(bias[:, :, order].reshape(ways, -1)),
            count=1,
            hidden_size=hidden,
            direction="bidirectional" if ways == 2 else "forward",
            **attributes,
        )
        turned = to.add("Transpose", made, perm=[0, 2, 1, 3])
        name = to.add("Reshape", turned, to.sizes(0, 0, -1))
    back = to.add("Transpose", name, perm=[1, 0, 2])
    return replace(data, name=back, shape=(ways * hidden,), constant=None, positional=False)


def _matrices(
    parameter: Array, gates: int, hidden: int, widths: list[int], ways: int
) -> list[tuple[Array, Array, Array]]:
    """Return for each layer W [ways, gates, hidden, input], R [.., hidden] and biases [ways, 2, gates, hidden]."""
    import numpy as np

    flat = np.asarray(parameter).reshape(-1)
    expected = sum(ways * gates * hidden * (width + hidden + 2) for width in widths)
    if flat.size != expected:
        raise ValueError(f"it has {flat.size} weights, where {expected} are needed")
    found = []
    at, behind = 0, expected - len(widths) * ways * 2 * gates * hidden
    for width in widths:
        sides = []
        for _ in range(ways):
            sizes = (gates * hidden * width, gates * hidden * hidden)
            w = flat[at : at + sizes[0]].reshape(gates, hidden, width)
            r = flat[at + sizes[0] : at + sum(sizes)].reshape(gates, hidden, hidden)
            sides.append((w, r))
            at += sum(sizes)
        count = ways * 2 * gates * hidden
        bias = flat[behind : behind + count].reshape(ways, 2, gates, hidden)
        behind += count
        found.append((np.stack([w for w, _ in sides]), np.stack([r for _, r in sides]), bias))
    return found
