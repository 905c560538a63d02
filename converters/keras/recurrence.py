"""Recurrent layers of Keras in ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import activations
from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}

ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}
"""Where ONNX's gates (iofc, zrh) are among Keras' (ifco, zrh)."""


def _gates(kind: str, weights: Array) -> Array:
    """Return weights [.., gates * units] as ONNX's [gates * units, ..]."""
    import numpy as np

    parts = np.split(weights, len(ORDER[kind]), axis=-1)
    return np.ascontiguousarray(np.concatenate([parts[at] for at in ORDER[kind]], axis=-1).T)


def _activations(
    context: Context, layer: Layer, kind: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    gate = "hard_sigmoid" if context.version < 3 else "sigmoid"
    wanted = [config.get("activation", "tanh")]
    if kind != "SimpleRNN":
        wanted.insert(0, config.get("recurrent_activation", gate))
    if kind == "LSTM":
        wanted.append(wanted[-1])
    found = []
    for value in wanted:
        name = activations.name_of(value, layer.name, context.version)
        if name not in activations.RECURRENT:
            raise UnsupportedError(
                f"layer `{layer.name}`: the activation `{name}` within a recurrence is not supported",
                operators=(kind,),
            )
        found.append(activations.RECURRENT[name])
    return {
        "activations": [name for name, _, _ in found],
        # one for each, though most need none: ONNX Runtime reads them in order
        "activation_alpha": [alpha for _, alpha, _ in found],
        "activation_beta": [beta for _, _, beta in found],
    }


def _run(
    context: Context,
    layer: Layer,
    kind: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    x: str,
    *,
    reverse: bool,
) -> tuple[str, str]:
    """Append one direction over `x` [time, batch, features].

    Returns the outputs [time, batch, units], in the order of time, and the last one [batch, units].
    """
    import numpy as np

    build = context.build
    if config.get("return_state"):
        raise UnsupportedError(
            f"layer `{layer.name}` returns its state, which is not supported", operators=(kind,)
        )
    kernel, recurrent = _gates(kind, weights["kernel"]), _gates(kind, weights["recurrent"])
    units = recurrent.shape[1]
    bias = weights.get("bias", np.zeros(kernel.shape[0], kernel.dtype))
    is_double = bias.ndim == 2
    parts = [_gates(kind, one) for one in (bias if is_double else (bias, np.zeros_like(bias)))]
    more: dict[str, Any] = {}
    if kind == "GRU":
        more["linear_before_reset"] = int(bool(config.get("reset_after", is_double)))
    outputs, last, *_ = build.add_many(
        OPERATORS[kind],
        x,
        build.constant(kernel[None]),
        build.constant(recurrent[None]),
        build.constant(np.concatenate(parts)[None]),
        count=2,
        hidden_size=units,
        direction="reverse" if reverse else "forward",
        **_activations(context, layer, kind, config),
        **more,
    )
    axis = build.shape_constant([1])
    return (
        build.add("Squeeze", outputs, axis),
        build.add("Squeeze", last, build.shape_constant([0])),
    )


def _emit(kind: str) -> Emit:
    def emit(context: Context, layer: Layer, inputs: list[Value]) -> Value:
        return _one(context, layer, kind, layer.config, layer.weights, inputs[0])

    return emit


def _one(
    context: Context,
    layer: Layer,
    kind: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    x: Value,
) -> Value:
    build = context.build
    steps = build.add("Transpose", x.name, perm=[1, 0, 2])
    back = bool(config.get("go_backwards"))
    outputs, last = _run(context, layer, kind, config, weights, steps, reverse=back)
    units = weights["recurrent"].shape[0]
    if not config.get("return_sequences"):
        return Value(last, (x.shape[0], units))
    if back:
        outputs = _backwards(context, outputs)  # in the order in which they were computed
    name = build.add("Transpose", outputs, perm=[1, 0, 2])
    return Value(name, (x.shape[0], x.shape[1], units))


def _backwards(context: Context, x: str) -> str:
    build = context.build
    start, end, axis, step = (build.shape_constant([one]) for one in (-1, -(2**31), 0, -1))
    name: str = build.add("Slice", x, start, end, axis, step)
    return name


def _bidirectional(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    build, x = context.build, inputs[0]
    kind = str(layer.config["inner_kind"])
    config = layer.config["inner_config"]
    if kind not in OPERATORS or config.get("go_backwards") or "backward_layer" in layer.config:
        raise UnsupportedError(
            f"layer `{layer.name}`: this kind of Bidirectional is not supported",
            operators=(f"Bidirectional({kind})",),
        )
    steps = build.add("Transpose", x.name, perm=[1, 0, 2])
    sequences = bool(config.get("return_sequences"))
    found = []
    for side in ("forward", "backward"):
        own = {
            name.removeprefix(f"{side}_"): value
            for name, value in layer.weights.items()
            if name.startswith(f"{side}_")
        }
        outputs, last = _run(context, layer, kind, config, own, steps, reverse=side == "backward")
        if sequences:
            found.append(build.add("Transpose", outputs, perm=[1, 0, 2]))
        else:
            found.append(last)
    units = layer.weights["forward_recurrent"].shape[0]
    mode = layer.config.get("merge_mode", "concat")
    if mode == "concat":
        name, units = build.add("Concat", *found, axis=-1), 2 * units
    elif mode in ("sum", "mul", "ave"):
        name = build.add({"sum": "Add", "mul": "Mul", "ave": "Mean"}[mode], *found)
    else:
        raise UnsupportedError(
            f"layer `{layer.name}` gives both directions apart, which is not supported",
            operators=("Bidirectional",),
        )
    shape = (x.shape[0], x.shape[1], units) if sequences else (x.shape[0], units)
    return Value(name, shape)


EMIT: dict[str, Emit] = {
    **{kind: _emit(kind) for kind in OPERATORS},
    "Bidirectional": _bidirectional,
}
