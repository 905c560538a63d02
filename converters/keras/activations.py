"""Keras' activation functions in ONNX, and by their definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit import definitions as define
from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}

ONE_TO_ONE: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "softplus": ("Softplus", {}),
    "softsign": ("Softsign", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "selu": ("Selu", SELU),
    "exponential": ("Exp", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    "hard_sigmoid_v3": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.2}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
    "hard_silu": ("HardSwish", {}),
}
"""Name to operator and attributes."""

RECURRENT = {
    "relu": ("Relu", 0.0, 0.0),
    "sigmoid": ("Sigmoid", 0.0, 0.0),
    "tanh": ("Tanh", 0.0, 0.0),
    "linear": ("Affine", 1.0, 0.0),
    "softsign": ("Softsign", 0.0, 0.0),
    "softplus": ("Softplus", 0.0, 0.0),
    "elu": ("Elu", 1.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 0.2, 0.5),
    "hard_sigmoid_v3": ("HardSigmoid", 1 / 6, 0.5),
}
"""Name to what ONNX's recurrent operators call it, with alpha and beta."""


LAYERS = ("ELU", "LeakyReLU", "ReLU", "Softmax", "ThresholdedReLU")
"""Layers without weights that may stand where an activation's name does."""


def layer_of(value: Any) -> tuple[str, dict[str, Any]] | None:
    """Return class and settings of a layer in the place of an activation, None for a function."""
    if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
        return None
    kind = str(value.get("class_name"))
    return (kind, value["config"]) if kind in LAYERS else None


def name_of(value: Any, layer: str, version: int) -> str:
    """Return the name of the activation that a configuration holds.

    Raises UnsupportedError, naming the layer, for a function of the user's own.
    """
    if isinstance(value, dict):
        inner = value.get("config")
        value = inner if isinstance(inner, str) else f"{value.get('class_name')} (a layer)"
    name = {None: "linear", "swish": "silu", "hard_swish": "hard_silu"}.get(value, str(value))
    if name == "hard_sigmoid" and version >= 3:
        return "hard_sigmoid_v3"
    if (
        name != "linear"
        and name not in ONE_TO_ONE
        and name not in ("silu", "gelu", "relu6", "mish")
    ):
        raise UnsupportedError(
            f"layer `{layer}` has the activation `{name}`, which is none of Keras' own",
            operators=(name,),
            hint="custom functions cannot be converted; save the model with a known one",
        )
    return name


def emit(build: GraphBuilder, name: str, x: str) -> str:
    """Append the activation `name` of `x` and return its output."""
    if name == "linear":
        return x
    if name in ONE_TO_ONE:
        operator, attributes = ONE_TO_ONE[name]
        return build.add(operator, x, **attributes)
    if name == "silu":
        return build.add("Mul", x, build.add("Sigmoid", x))
    if name == "relu6":
        return build.add("Clip", x, build.constant(0.0), build.constant(6.0))
    if name == "mish":
        return build.add("Mul", x, build.add("Tanh", build.add("Softplus", x)))
    inner = build.add("Erf", build.add("Div", x, build.constant(math.sqrt(2.0))))
    half = build.add("Mul", x, build.constant(0.5))
    return build.add("Mul", half, build.add("Add", inner, build.constant(1.0)))


def compute(name: str, x: Array) -> Array:
    """Return the activation `name` of `x` by its definition, in float64."""
    import numpy as np

    x = x.astype(np.float64)
    if name == "linear":
        return x
    if name in ("softmax", "log_softmax"):
        found = define.softmax(x)
        return np.log(found) if name == "log_softmax" else found
    table: dict[str, Callable[[], Any]] = {
        "relu": lambda: np.maximum(x, 0),
        "sigmoid": lambda: define.sigmoid(x),
        "tanh": lambda: np.tanh(x),
        "softplus": lambda: np.logaddexp(x, 0),
        "softsign": lambda: x / (1 + np.abs(x)),
        "elu": lambda: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        "selu": lambda: (
            SELU["gamma"] * np.where(x > 0, x, SELU["alpha"] * np.expm1(np.minimum(x, 0)))
        ),
        "exponential": lambda: np.exp(x),
        "hard_sigmoid": lambda: np.clip(0.2 * x + 0.5, 0, 1),
        "hard_sigmoid_v3": lambda: np.clip(x / 6 + 0.5, 0, 1),
        "leaky_relu": lambda: np.where(x > 0, x, 0.2 * x),
        "silu": lambda: x * define.sigmoid(x),
        "hard_silu": lambda: x * np.clip(x / 6 + 0.5, 0, 1),
        "relu6": lambda: np.clip(x, 0, 6),
        "mish": lambda: x * np.tanh(np.logaddexp(x, 0)),
        "gelu": lambda: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))),
    }
    return np.asarray(table[name]())
