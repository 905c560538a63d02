"""Recurrent layers of Keras in ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import activations
from deploykit._plugins.converters.keras.emission import Context, Emit, EmitSeveral, Value
from deploykit._plugins.converters.keras.masking import Steps
from deploykit._plugins.converters.keras.reading import Layer

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

STATES = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}
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
    steps: Steps | None,
    states: list[Value] | None = None,
) -> tuple[str, list[str]]:
    """Append one direction over `x` [time, batch, features], over those `steps` only that count.

    Returns the outputs [time, batch, units], in the order of time, and the states after the last
    step [batch, units], of which the first is the last output.
    """
    import numpy as np

    build = context.build
    kernel, recurrent = _gates(kind, weights["kernel"]), _gates(kind, weights["recurrent"])
    units = recurrent.shape[1]
    bias = weights.get("bias", np.zeros(kernel.shape[0], kernel.dtype))
    is_double = bias.ndim == 2
    parts = [_gates(kind, one) for one in (bias if is_double else (bias, np.zeros_like(bias)))]
    more: dict[str, Any] = {}
    if kind == "GRU":
        more["linear_before_reset"] = int(bool(config.get("reset_after", is_double)))
    first = [build.add("Unsqueeze", one.name, build.shape_constant([0])) for one in states or []]
    outputs, *last = build.add_many(
        OPERATORS[kind],
        x if steps is None else steps.to_front(x),
        build.constant(kernel[None]),
        build.constant(recurrent[None]),
        build.constant(np.concatenate(parts)[None]),
        "" if steps is None else steps.lengths,
        *first,
        count=1 + STATES[kind],
        hidden_size=units,
        direction="reverse" if reverse else "forward",
        **_activations(context, layer, kind, config),
        **more,
    )
    outputs = build.add("Squeeze", outputs, build.shape_constant([1]))
    if steps is not None and config.get("return_sequences"):
        outputs = steps.spread(outputs, reverse=reverse)
        if config.get("zero_output_for_mask"):
            outputs = steps.only(outputs)
    axis = build.shape_constant([0])
    return outputs, [build.add("Squeeze", one, axis) for one in last]


def _alone(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    """Emit a recurrent layer within another, which passes no states."""
    return _recurrent(context, layer, inputs)[0]


def _recurrent(context: Context, layer: Layer, inputs: list[Value]) -> list[Value]:
    """Emit a recurrent layer: its output, and its states where it returns them."""
    x, *states = inputs
    build, kind, config, weights = context.build, layer.kind, layer.config, layer.weights
    over_time = build.add("Transpose", x.name, perm=[1, 0, 2])
    steps = Steps(context, x.mask) if x.mask else None
    back = bool(config.get("go_backwards"))
    outputs, last = _run(
        context, layer, kind, config, weights, over_time, reverse=back, steps=steps, states=states
    )
    units = weights["recurrent"].shape[0]
    ends = [Value(name, (x.shape[0], units)) for name in last]
    if not config.get("return_sequences"):
        return [ends[0], *ends] if config.get("return_state") else ends[:1]
    if back:
        outputs = _backwards(context, outputs)  # in the order in which they were computed
    name = build.add("Transpose", outputs, perm=[1, 0, 2])
    every = Value(name, (x.shape[0], x.shape[1], units))
    return [every, *ends] if config.get("return_state") else [every]


def _backwards(context: Context, x: str) -> str:
    build = context.build
    start, end, axis, step = (build.shape_constant([one]) for one in (-1, -(2**31), 0, -1))
    name: str = build.add("Slice", x, start, end, axis, step)
    return name


def _is_mirrored(layer: Layer) -> bool:
    """Whether the layer that runs backwards is otherwise the one that runs forwards."""
    back = layer.config.get("backward_layer")
    if back is None:
        return True
    one, other = (
        # what matters of an RNN are the settings of its cell
        {
            **side,
            "config": {**side["config"], **(side["config"].get("cell") or {}).get("config", {})},
        }
        for side in (layer.config["layer"], back)
    )
    keys = ("units", "activation", "recurrent_activation", "use_bias", "reset_after")
    return (
        bool(one["class_name"] == other["class_name"])
        and bool(other["config"].get("go_backwards"))
        and all(
            one["config"].get(key) == other["config"].get(key)
            for key in (*keys, "return_sequences", "return_state", "zero_output_for_mask")
        )
    )


def _both_alone(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    """Emit a Bidirectional within another layer, which passes one tensor."""
    found = _bidirectional(context, layer, inputs)
    if len(found) > 1:
        raise UnsupportedError(
            f"layer `{layer.name}` gives several tensors within another layer",
            operators=("Bidirectional",),
        )
    return found[0]


def _bidirectional(context: Context, layer: Layer, inputs: list[Value]) -> list[Value]:
    """Emit both directions: what they give, joined or apart, and the states of each if asked for."""
    build, (x, *states) = context.build, inputs
    kind = str(layer.config["inner_kind"])
    config = layer.config["inner_config"]
    if kind not in OPERATORS or config.get("go_backwards") or not _is_mirrored(layer):
        raise UnsupportedError(
            f"layer `{layer.name}`: this kind of Bidirectional is not supported",
            operators=(f"Bidirectional({kind})",),
        )
    over_time = build.add("Transpose", x.name, perm=[1, 0, 2])
    steps = Steps(context, x.mask) if x.mask else None
    sequences = bool(config.get("return_sequences"))
    if steps is not None and sequences:
        if context.zeroes_masked is None:
            raise UnsupportedError(
                f"layer `{layer.name}`: what it gives in masked steps depends on the version of "
                "TensorFlow, which the file does not say",
                operators=("Bidirectional(mask)",),
                hint="load it in the TensorFlow that made it, and save it again with 2.2 or newer",
            )
        config = {**config, "zero_output_for_mask": context.zeroes_masked}
    found, ends, half = [], [], len(states) // 2
    for side, first in (("forward", states[:half]), ("backward", states[half:])):
        own = {
            name.removeprefix(f"{side}_"): value
            for name, value in layer.weights.items()
            if name.startswith(f"{side}_")
        }
        back = side == "backward"
        outputs, last = _run(
            context, layer, kind, config, own, over_time, reverse=back, steps=steps, states=first
        )
        ends += [Value(name, (x.shape[0], own["recurrent"].shape[0])) for name in last]
        if sequences:
            found.append(build.add("Transpose", outputs, perm=[1, 0, 2]))
        else:
            found.append(last[0])
    ends = ends if config.get("return_state") else []
    units = layer.weights["forward_recurrent"].shape[0]
    mode = layer.config.get("merge_mode", "concat")
    if mode == "concat":
        name, units = build.add("Concat", *found, axis=-1), 2 * units
    elif mode in ("sum", "mul", "ave"):
        name = build.add({"sum": "Add", "mul": "Mul", "ave": "Mean"}[mode], *found)
    elif mode is not None:
        raise UnsupportedError(
            f"layer `{layer.name}` joins both directions in a way called `{mode}`",
            operators=("Bidirectional",),
        )
    shape = (x.shape[0], x.shape[1], units) if sequences else (x.shape[0], units)
    joined = found if mode is None else [name]
    return [*(Value(one, shape) for one in joined), *ends]


EMIT: dict[str, Emit] = {
    **dict.fromkeys(OPERATORS, _alone),
    "Bidirectional": _both_alone,
}

EMIT_SEVERAL: dict[str, EmitSeveral] = {
    **dict.fromkeys(OPERATORS, _recurrent),
    "Bidirectional": _bidirectional,
}
"""Layers that may give several tensors."""
