"""One vocabulary for all ages of Keras: classes, settings and weights of Keras 1 in the words of Keras 2.

Source: `keras/legacy/interfaces.py` and `keras/engine/topology.py`
(`preprocess_weights_for_loading`) of Keras 2.2, which document what was renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

CLASSES = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "AtrousConv1D": "Conv1D",
    "AtrousConv2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "Deconvolution3D": "Conv3DTranspose",
    "SeparableConvolution1D": "SeparableConv1D",
    "SeparableConvolution2D": "SeparableConv2D",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "CuDNNLSTM": "LSTM",
    "CuDNNGRU": "GRU",
}

SETTINGS = {
    "nb_filter": "filters",
    "subsample": "strides",
    "subsample_length": "strides",
    "stride": "strides",
    "pool_length": "pool_size",
    "border_mode": "padding",
    "atrous_rate": "dilation_rate",
    "bias": "use_bias",
    "inner_activation": "recurrent_activation",
    "filter_length": "kernel_size",
    "p": "rate",
    "length": "size",
}

ORDERINGS = {"th": "channels_first", "tf": "channels_last"}

GATES = {"LSTM": "ifco", "GRU": "zrh", "SimpleRNN": ""}
"""The gates of recurrent layers, in the order in which Keras 2 concatenates them."""

CELLS = {"LSTMCell": "LSTM", "GRUCell": "GRU", "SimpleRNNCell": "SimpleRNN"}
"""Cells that an RNN layer runs, and the layers that are the same."""

MERGES = {
    "sum": "Add",
    "mul": "Multiply",
    "concat": "Concatenate",
    "ave": "Average",
    "max": "Maximum",
    "min": "Minimum",
    "dot": "Dot",
}


def modern(
    kind: str, config: dict[str, Any], weights: Mapping[str, Array], version: int
) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """Return class, settings and weights of a layer in the words of Keras 2.

    Weights get short names (`kernel`, `bias`, `gamma`); those of recurrent layers within a
    Bidirectional begin with `forward_` and `backward_`.
    """
    old = kind
    is_old = version == 1
    kind = CLASSES.get(kind, kind)
    if is_old:
        config = _settings(old, config)
        if kind == "Merge":
            mode = str(config.get("mode"))
            kind = MERGES.get(mode, f"Merge({mode})")
            config["axis"] = config.get("concat_axis", -1)
    if old in ("CuDNNLSTM", "CuDNNGRU"):
        config = {"recurrent_activation": "sigmoid", "activation": "tanh", **config}
        config["reset_after"] = kind == "GRU"
        config["cudnn"] = True
    cell = config.get("cell")
    if kind == "RNN" and isinstance(cell, dict) and cell.get("class_name") in CELLS:
        own = {key: value for key, value in cell["config"].items() if key not in ("name", "dtype")}
        kind, config = CELLS[str(cell["class_name"])], {**config, **own}
        old = kind
    if kind == "SpectralNormalization" and isinstance(config.get("layer"), dict):
        # at inference the layer within, whose kernel training has normalised already
        inner = {k: v for k, v in weights.items() if not re.search(r"^vars/|/(vector|sn)_u", k)}
        layer = config["layer"]
        return modern(str(layer["class_name"]), dict(layer["config"]), inner, version)
    if kind in ("Bidirectional", "TimeDistributed") and isinstance(config.get("layer"), dict):
        return kind, *_wrapper(kind, config, weights, version)
    return kind, config, _weights(kind, config, list(weights.values()), list(weights), is_old)


def _settings(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    found = {SETTINGS.get(key, key): value for key, value in config.items()}
    if "dim_ordering" in found:
        ordering = found.pop("dim_ordering")
        found["data_format"] = ORDERINGS.get(ordering)
    if "nb_row" in found:
        found["kernel_size"] = [found.pop("nb_row"), found.pop("nb_col")]
    if "kernel_dim1" in found:
        found["kernel_size"] = [found.pop(f"kernel_dim{axis}") for axis in (1, 2, 3)]
    if "output_dim" in found and kind != "Embedding":
        found["units"] = found.pop("output_dim")
    if kind == "RepeatVector":
        found["n"] = found.get("n", config.get("n"))
    if kind == "UpSampling1D":
        found["size"] = config.get("length", config.get("size"))
    return found


def _wrapper(
    kind: str, config: dict[str, Any], weights: Mapping[str, Array], version: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    layer = config["layer"]
    names, values = list(weights), list(weights.values())
    if kind == "TimeDistributed":
        inner, settings, own = modern(layer["class_name"], dict(layer["config"]), weights, version)
        return {**config, "inner_kind": inner, "inner_config": settings}, own
    half = len(values) // 2
    result: dict[str, Array] = {}
    inner, settings = "", {}
    for side, part in (("forward", slice(0, half)), ("backward", slice(half, None))):
        inner, settings, own = modern(
            layer["class_name"],
            dict(layer["config"]),
            dict(zip(names[part], values[part], strict=True)),
            version,
        )
        result |= {f"{side}_{name}": value for name, value in own.items()}
    return {**config, "inner_kind": inner, "inner_config": settings}, result


def _weights(
    kind: str, config: dict[str, Any], values: list[Array], names: list[str], is_old: bool
) -> dict[str, Array]:
    import numpy as np

    if kind in GATES:
        return _recurrent(kind, config, values, names, is_old)
    if kind == "BatchNormalization":
        order = ["gamma"] * bool(config.get("scale", True))
        order += ["beta"] * bool(config.get("center", True))
        return dict(zip([*order, "mean", "variance"], values, strict=True)) if values else {}
    if kind.startswith(("SeparableConv",)):
        if is_old and config.get("data_format") == "channels_first":
            values = [np.transpose(one, (2, 3, 1, 0)) if one.ndim == 4 else one for one in values]
        return dict(zip(("depthwise", "pointwise", "bias"), values, strict=False))
    if is_old and kind in ("Conv2D", "Conv3D", "Conv2DTranspose"):
        values = [_old_kernel(config, one) for one in values]
    if is_old and kind == "Conv1D" and values and values[0].ndim == 4:
        values = [values[0][:, 0], *values[1:]]
    if kind in ("RMSNormalization", "LayerScale"):
        return dict(
            zip(("scale" if kind == "RMSNormalization" else "gamma",), values, strict=False)
        )
    if kind in ("LayerNormalization", "GroupNormalization"):
        order = ["gamma"] * bool(config.get("scale", True))
        order += ["beta"] * bool(config.get("center", True))
        return dict(zip(order, values, strict=False))
    if kind == "MultiHeadAttention":
        return _heads(names, values)
    if kind in ("Attention", "AdditiveAttention"):
        order = ["scale"] * bool(config.get("use_scale", kind == "AdditiveAttention"))
        order += ["concat"] * (config.get("score_mode") == "concat")
        return dict(zip(order, values, strict=False))
    if kind == "Normalization":
        return dict(zip(("mean", "variance", "count"), values, strict=False))
    if kind in ("Embedding", "PReLU"):
        return dict(zip(("table" if kind == "Embedding" else "alpha",), values, strict=False))
    return dict(zip(("kernel", "bias"), values, strict=False))


def _heads(names: list[str], values: list[Array]) -> dict[str, Array]:
    """Return the weights of a MultiHeadAttention: `query/kernel:0`, or `query_dense/vars/0`."""
    found = {}
    for name, value in zip(names, values, strict=True):
        *_, role, last = name.replace("/vars/", "/").split(":")[0].split("/")
        role = role.strip("_").removesuffix("_dense").removeprefix("attention_")
        part = {"0": "kernel", "1": "bias"}.get(last, last)
        found[f"{role}_{part}"] = value
    return found


def _old_kernel(config: Mapping[str, Any], value: Array) -> Array:
    """Return a kernel of Keras 1 as Keras 2 stores it: space, then inputs, then outputs."""
    import numpy as np

    rank = value.ndim - 2
    if value.ndim < 4:
        return value
    if config.get("data_format") == "channels_first":
        space = tuple(range(2, 2 + rank))
        # (outputs, inputs, *space), or for the transposed kind (inputs, outputs, *space)
        return np.transpose(value, (*space, 1, 0))
    return value


def _recurrent(
    kind: str, config: Mapping[str, Any], values: list[Array], names: list[str], is_old: bool
) -> dict[str, Array]:
    import numpy as np

    gates = GATES[kind]
    if is_old and gates and len(values) == 3 * len(gates):
        short = [name.rpartition("/")[2].split(":")[0] for name in names]
        by_gate: dict[str, list[Array]] = {}
        order = "icfo" if kind == "LSTM" else gates
        for number, value in enumerate(values):
            letter = short[number][-1] if short[number][-2:-1] == "_" else ""
            by_gate.setdefault(letter if letter in gates else order[number // 3], []).append(value)
        parts = [by_gate[gate] for gate in gates]
        return {
            name: np.concatenate([part[at] for part in parts], axis=-1)
            for at, name in enumerate(("kernel", "recurrent", "bias"))
        }
    found = dict(zip(("kernel", "recurrent", "bias"), values, strict=False))
    if config.get("cudnn"):
        return _from_cudnn(kind, found)
    return found


def _from_cudnn(kind: str, weights: dict[str, Array]) -> dict[str, Array]:
    """Return cuDNN's weights as the plain layer has them (`_convert_rnn_weights` in Keras 2.2)."""
    import numpy as np

    gates = len(GATES[kind])
    units = weights["recurrent"].shape[0]

    def unpacked(kernel: Array) -> Array:
        pieces = np.split(kernel, gates, axis=1)
        return np.concatenate([p.reshape(units, p.shape[0]).T for p in pieces], axis=1)

    bias = weights["bias"]
    halves = bias.reshape(2, -1)
    bias = halves.sum(axis=0) if kind == "LSTM" else halves
    return {
        "kernel": unpacked(weights["kernel"]),
        "recurrent": np.concatenate(
            [piece.T for piece in np.split(weights["recurrent"], gates, axis=1)], axis=1
        ),
        "bias": bias,
    }
