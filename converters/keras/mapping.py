"""Keras layers as ONNX nodes: a network is walked in the order of its calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deploykit._plugins.converters.keras import (
    attention,
    backends,
    convolutions,
    locally,
    masking,
    merging,
    normalisation,
    operations,
    preprocessing,
    recurrence,
    shaping,
)
from deploykit._plugins.converters.keras.emission import Context, Emit, Value
from deploykit._plugins.converters.keras.reading import KerasModel, Layer, Network, Ref

from deploykit.errors import SourceError, UnsupportedError
from deploykit.protocol import Dimension

AUGMENTS = (
    *("RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast"),
    *("RandomBrightness", "RandomGrayscale", "RandomColorJitter", "RandomHue", "RandomShear"),
    *("RandomSaturation", "RandomSharpness", "RandomPosterization", "RandomErasing"),
    *("RandomGaussianBlur", "RandomInvert", "RandomPerspective", "RandomElasticTransform"),
    "RandomColorDegeneration",
)
IDENTITY = (
    "Dropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
    "Identity",
    "StochasticDepth",
    *AUGMENTS,
)
"""Layers that do nothing at inference."""


def layers() -> dict[str, Emit]:
    """Return the function of every layer that can be converted, by class."""
    return {
        **dict.fromkeys(IDENTITY, _identity),
        **convolutions.EMIT,
        **merging.EMIT,
        **normalisation.EMIT,
        **preprocessing.EMIT,
        **recurrence.EMIT,
        **shaping.EMIT,
        **locally.EMIT,
        **dict.fromkeys(attention.EMIT_CALLS, _uncalled),
        "Masking": masking.masked,
        "TimeDistributed": _unreachable,
    }


def emit_network(context: Context, network: Network, inputs: list[Value]) -> list[Value]:
    """Append the layers of `network` and return its outputs."""
    known = layers()
    values: dict[Ref, Value] = dict(zip(network.inputs, inputs, strict=True))
    waiting = [(layer, node) for layer in network.layers for node in range(len(layer.calls))]
    while waiting:
        rest = []
        for layer, node in waiting:
            call = layer.calls[node]
            if (layer.name, node, 0) in values:
                continue
            if not all(ref in values for ref in call):
                rest.append((layer, node))
                continue
            mask = layer.masks[node] if node < len(layer.masks) else None
            if mask is not None and mask not in values:
                rest.append((layer, node))
                continue
            given = [values[ref] for ref in call]
            if mask is not None:
                given = [replace(one, mask=values[mask].name) for one in given]
            _check_count(layer, given)
            with context.build.layer(layer.name):
                if layer.kind == "operation":
                    called = layer.config["calls"][node]
                    operation = str(layer.config["operation"])
                    found = [operations.emit(context, operation, called, given)]
                elif layer.kind == "TimeDistributed":
                    found = [_over_time(context, layer, given)]
                elif layer.kind in attention.EMIT_CALLS:
                    found = attention.EMIT_CALLS[layer.kind](context, layer, node, given)
                elif layer.inner is not None:
                    found = emit_network(context, layer.inner, given)
                elif layer.kind in recurrence.EMIT_SEVERAL:
                    made, *states = recurrence.EMIT_SEVERAL[layer.kind](context, layer, given)
                    apart = layer.config.get("merge_mode", "concat") is None
                    other = [masking.follow(context, layer, given, one) for one in states[:1]]
                    states = [*other, *states[1:]] if apart else states
                    found = [masking.follow(context, layer, given, made), *states]
                else:
                    made = known[layer.kind](context, layer, given)
                    found = [masking.follow(context, layer, given, made)]
            values |= {(layer.name, node, at): value for at, value in enumerate(found)}
        if len(rest) == len(waiting):
            names = ", ".join(f"`{layer.name}`" for layer, _ in rest[:5])
            if all(ref in values for ref in network.outputs):
                break  # a shared layer's other calls belong to another model
            raise SourceError(f"the layers {names} read what no layer makes")
        waiting = rest
    missing = [ref for ref in network.outputs if ref not in values]
    if missing:
        raise SourceError(f"nothing makes the output {missing[0]}")
    return [values[ref] for ref in network.outputs]


def _check_count(layer: Layer, given: list[Value]) -> None:
    """Raise UnsupportedError where a layer of one input gets several: initial states, for one."""
    kinds = ("operation", *merging.EMIT, *attention.EMIT_CALLS)
    several = layer.inner is not None or layer.kind in kinds
    states = recurrence.STATES.get(layer.kind, 0)
    if layer.kind == "Bidirectional":
        states = 2 * recurrence.STATES.get(str(layer.config["inner_kind"]), 0)
    if len(given) not in (1, 1 + states) and not several:
        raise UnsupportedError(
            f"layer `{layer.name}` ({layer.kind}) is called with {len(given)} tensors",
            operators=(layer.kind,),
            hint="initial states are supported for LSTM, GRU and SimpleRNN",
        )


def refuse(model: KerasModel) -> None:
    """Raise UnsupportedError that names every layer that cannot be converted."""
    known = layers()
    wrong: dict[str, str] = {}
    stack = [model.network]
    while stack:
        for layer in stack.pop().layers:
            kinds = [layer.kind] if layer.inner is None else []
            if layer.kind == "operation":
                name = str(layer.config["operation"])
                kinds = [] if name in operations.EMIT else [name]
            if "inner_kind" in layer.config:
                kinds.append(str(layer.config["inner_kind"]))
            for kind in kinds:
                if kind not in known and kind != "InputLayer":
                    wrong[layer.name] = kind
            if layer.inner is not None:
                stack.append(layer.inner)
    if wrong:
        named = ", ".join(f"{kind} (`{name}`)" for name, kind in wrong.items())
        hint = "replace them by layers of Keras' own and save the model again"
        if "Lambda" in wrong.values():
            hint = "a Lambda layer is Python code: with `--trust` Keras runs it; or " + hint
        raise UnsupportedError(
            f"no ONNX form for the layers {named}",
            operators=tuple(dict.fromkeys(wrong.values())),
            hint=hint,
        )


def check_backend(model: KerasModel) -> None:
    """Raise UnsupportedError where the result depends on a backend that the file does not say."""
    if model.backend is not None:
        return
    stack = [model.network]
    while stack:
        for layer in stack.pop().layers:
            if layer.inner is not None:
                stack.append(layer.inner)
            kinds = (layer.kind, layer.config.get("inner_kind"))
            config = layer.config.get("inner_config", layer.config)
            padded = config.get("padding") == "same"
            if any(k in backends.DIFFERING or (k in backends.PADDED and padded) for k in kinds):
                raise UnsupportedError(
                    f"`{model.path.name}` does not say which backend it was trained with, and the "
                    f"result of `{layer.name}` ({layer.kind}) depends on it",
                    hint="say it: `--keras-backend theano`, `tensorflow` or `cntk`",
                )


def input_specs(network: Network) -> list[tuple[str, str, tuple[Dimension, ...]]]:
    """Return name, dtype and shape of the inputs. Raises UnsupportedError where a rank is unknown."""
    found = []
    by_name = {layer.name: layer for layer in network.layers}
    for name, _, _ in network.inputs:
        layer = by_name[name]
        while layer.inner is not None:
            layer = {one.name: one for one in layer.inner.layers}[layer.inner.inputs[0][0]]
        shape = layer.config.get("batch_input_shape") or layer.config.get("batch_shape")
        if shape is None:
            raise UnsupportedError(
                f"the file does not say the shape of the input `{name}`",
                hint=f"give it: `--input '{name}:float32[batch,...]'`",
            )
        dtype = layer.config.get("dtype") or layer.config.get("input_dtype") or "float32"
        if not isinstance(dtype, str):
            dtype = "float32"
        sizes: list[Dimension] = [None if size is None else int(size) for size in shape]
        found.append((name, dtype, tuple(sizes)))
    return found


def _over_time(context: Context, layer: Layer, inputs: list[Value]) -> Value:
    """Apply the inner layer or model to every step: batch and time become one axis, and two again."""
    build, x = context.build, inputs[0]
    time = x.shape[1]
    step = tuple(x.shape[2:])
    if any(size is None for size in step):
        raise UnsupportedError(
            f"layer `{layer.name}` repeats over steps of unknown size {step}",
            operators=("TimeDistributed",),
            hint="give the sizes of the input with `--input`",
        )
    flat = build.add("Reshape", x.name, build.shape_constant([-1, *(n or 0 for n in step)]))
    one = Value(flat, (None, *step))
    if layer.inner is not None:
        (found,) = emit_network(context, layer.inner, [one])
    else:
        kind = str(layer.config["inner_kind"])
        config = layer.config["inner_config"]
        inner = Layer(name=layer.name, kind=kind, config=config, weights=layer.weights)
        found = layers()[kind](context, inner, [one])
    sizes = build.add("Shape", found.name, start=1)
    outer = build.add("Shape", x.name, start=0, end=2)
    name = build.add("Reshape", found.name, build.add("Concat", outer, sizes, axis=0))
    return Value(name, (x.shape[0], time, *found.shape[1:]), x.mask)


def _unreachable(_context: Context, layer: Layer, _inputs: list[Value]) -> Value:
    raise UnsupportedError(
        f"layer `{layer.name}` repeats a TimeDistributed over time", operators=(layer.kind,)
    )


def _uncalled(_context: Context, layer: Layer, _inputs: list[Value]) -> Value:
    raise UnsupportedError(
        f"layer `{layer.name}` attends within another layer", operators=(layer.kind,)
    )


def _identity(_context: Context, _layer: Layer, inputs: list[Any]) -> Any:
    return inputs[0]
