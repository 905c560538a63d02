"""Keras' recurrent layers by definition, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras.reading import Layer

from deploykit import definitions as define

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.converters.keras.evaluation import Compute, Evaluator

    Array = np.ndarray[Any, Any]


def _recurrence(
    evaluator: Evaluator,
    layer: Layer,
    kind: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    x: Array,
    *,
    reverse: bool,
    initial: list[Array] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Return all outputs [batch, time, units] in the order of time, and the last states [batch, units]."""
    import numpy as np

    gate_name = "hard_sigmoid" if evaluator.version < 3 else "sigmoid"
    recurrent = weights["recurrent"].astype(np.float64)
    units = recurrent.shape[0]
    bias = weights.get("bias", np.zeros(recurrent.shape[1])).astype(np.float64)
    inner, outer = (bias[0], bias[1]) if bias.ndim == 2 else (bias, np.zeros_like(bias))
    after = bool(config.get("reset_after", bias.ndim == 2))

    def act(values: Array) -> Array:
        return evaluator.activation(layer, values, config.get("activation", "tanh"))

    def gate(values: Array) -> Array:
        return evaluator.activation(layer, values, config.get("recurrent_activation", gate_name))

    def lstm(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        h, c = state
        i, f, g, o = np.split(x_t @ weights["kernel"] + h @ recurrent + inner, 4, axis=-1)
        c = gate(f) * c + gate(i) * act(g)
        return gate(o) * act(c), c

    def gru(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        (h,) = state
        xz, xr, xh = np.split(x_t @ weights["kernel"] + inner, 3, axis=-1)
        uz, ur, uh = np.split(recurrent, 3, axis=-1)
        bz, br, bh = np.split(outer, 3)
        z, r = gate(xz + h @ uz + bz), gate(xr + h @ ur + br)
        new = act(xh + (r * (h @ uh + bh) if after else (r * h) @ uh))
        return (z * h + (1 - z) * new,)

    def simple(x_t: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        return (act(x_t @ weights["kernel"] + state[0] @ recurrent + inner),)

    step = {"LSTM": lstm, "GRU": gru, "SimpleRNN": simple}[kind]
    zero = np.zeros((len(x), units))
    state: tuple[Array, ...] = (zero, zero) if kind == "LSTM" else (zero,)
    state = tuple(initial) if initial else state
    steps = x.astype(np.float64).swapaxes(0, 1)
    if evaluator.mask is None:
        outputs, last = define.recurrent(steps, state, step, reverse=reverse)
        return outputs.swapaxes(0, 1), last
    counts = evaluator.mask.T[:, :, None]
    given = np.zeros_like(steps[..., :1].repeat(units, axis=-1))
    order = range(len(steps))[::-1] if reverse else range(len(steps))
    for t in order:
        new = step(steps[t], state)
        state = tuple(np.where(counts[t], a, b) for a, b in zip(new, state, strict=True))
        zeroed = config.get("zero_output_for_mask") and not counts[t].all()
        given[t] = np.where(counts[t], state[0], 0) if zeroed else state[0]
    return given.swapaxes(0, 1), state


def _recurrent(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    config = layer.config
    back = bool(config.get("go_backwards"))
    outputs, last = _recurrence(
        evaluator,
        layer,
        layer.kind,
        config,
        layer.weights,
        inputs[0],
        reverse=back,
        initial=inputs[1:],
    )
    if config.get("return_state"):
        evaluator.states = last
    if not config.get("return_sequences"):
        return last[0]
    return outputs[:, ::-1] if back else outputs


def _bidirectional(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    config = layer.config["inner_config"]
    if evaluator.zeroes_masked:
        config = {**config, "zero_output_for_mask": True}
    both: list[Array] = []
    states: tuple[Array, ...] = ()
    half = (len(inputs) - 1) // 2
    for side, initial in (("forward", inputs[1 : 1 + half]), ("backward", inputs[1 + half :])):
        own = {
            name.split("_", 1)[1]: value
            for name, value in layer.weights.items()
            if name.startswith(side)
        }
        outputs, last = _recurrence(
            evaluator,
            layer,
            layer.config["inner_kind"],
            config,
            own,
            inputs[0],
            reverse=side == "backward",
            initial=initial,
        )
        states += last if config.get("return_state") else ()
        both.append(outputs if config.get("return_sequences") else last[0])
    mode = layer.config.get("merge_mode", "concat")
    evaluator.states = states if mode is not None else (both[1], *states)
    if mode is None:
        return both[0]
    if mode == "concat":
        return np.concatenate(both, axis=-1)
    total = both[0] * both[1] if mode == "mul" else both[0] + both[1]
    return total / 2 if mode == "ave" else total


def _distributed(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    """Apply the inner layer or model to every step by itself."""
    import numpy as np

    mask, evaluator.mask = evaluator.mask, None
    steps = []
    for t in range(inputs[0].shape[1]):
        x = inputs[0][:, t]
        if layer.inner is not None:
            ((found, _),) = evaluator.network(layer.inner, [(x, None)])
        else:
            kind, config = layer.config["inner_kind"], layer.config["inner_config"]
            inner = Layer(name=layer.name, kind=kind, config=config, weights=layer.weights)
            found = evaluator.compute(inner, [x])
        steps.append(found)
    evaluator.mask = mask
    return np.stack(steps, axis=1)


def _masked(evaluator: Evaluator, layer: Layer, inputs: list[Array]) -> Array:
    import numpy as np

    x = inputs[0]
    evaluator.mask = np.any(x != np.float32(layer.config.get("mask_value", 0.0)), axis=-1)
    return np.asarray(x * evaluator.mask[..., None])


COMPUTE: dict[str, Compute] = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN"), _recurrent),
    "Bidirectional": _bidirectional,
    "TimeDistributed": _distributed,
    "Masking": _masked,
}
