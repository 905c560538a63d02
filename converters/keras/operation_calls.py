"""Calls of functions in a graph of layers: `keras.ops` in Keras 3, `tf.…` in the Keras of TensorFlow 2.

Both become one vocabulary, with arguments in which a `Slot` stands for a tensor. Formats: the
`inbound_nodes` of `keras/src/ops/function.py` (Keras 3) and of `TFOpLambda` and `SlicingOpLambda` in
`keras/layers/core/tf_op_layer.py` (2.4 to 2.15).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import UnsupportedError

Ref = tuple[str, int, int]

FUNCTIONS = {
    "__operators__.add": "add",
    "__operators__.getitem": "get_item",
    "cast": "cast",
    "clip_by_value": "clip",
    "compat.v1.pad": "pad",
    "pad": "pad",
    "tile": "tile",
    "where": "where",
    "math.argmax": "argmax",
    "math.argmin": "argmin",
    "math.ceil": "ceil",
    "math.cos": "cos",
    "math.erf": "erf",
    "math.floor": "floor",
    "math.floormod": "mod",
    "math.l2_normalize": "normalize",
    "math.log1p": "log1p",
    "math.reduce_logsumexp": "logsumexp",
    "math.reduce_prod": "prod",
    "math.reduce_std": "std",
    "math.reduce_variance": "var",
    "math.reciprocal": "reciprocal",
    "math.sign": "sign",
    "math.sin": "sin",
    "nn.gelu": "gelu",
    "nn.leaky_relu": "leaky_relu",
    "nn.softplus": "softplus",
    "ones_like": "ones_like",
    "zeros_like": "zeros_like",
    "compat.v1.squeeze": "squeeze",
    "compat.v1.transpose": "transpose",
    "concat": "concatenate",
    "expand_dims": "expand_dims",
    "identity": "identity",
    "linalg.matmul": "matmul",
    "math.abs": "abs",
    "math.add": "add",
    "math.divide": "divide",
    "math.equal": "equal",
    "math.exp": "exp",
    "math.greater": "greater",
    "math.greater_equal": "greater_equal",
    "math.less": "less",
    "math.less_equal": "less_equal",
    "math.log": "log",
    "math.logical_and": "logical_and",
    "math.logical_not": "logical_not",
    "math.logical_or": "logical_or",
    "math.maximum": "maximum",
    "math.minimum": "minimum",
    "math.multiply": "multiply",
    "math.negative": "negative",
    "math.not_equal": "not_equal",
    "math.pow": "power",
    "math.reduce_max": "max",
    "math.reduce_mean": "mean",
    "math.reduce_min": "min",
    "math.reduce_sum": "sum",
    "math.rsqrt": "rsqrt",
    "math.sigmoid": "sigmoid",
    "math.softplus": "softplus",
    "math.sqrt": "sqrt",
    "math.square": "square",
    "math.subtract": "subtract",
    "math.tanh": "tanh",
    "math.truediv": "divide",
    "nn.relu": "relu",
    "nn.relu6": "relu6",
    "nn.sigmoid": "sigmoid",
    "nn.silu": "silu",
    "nn.softmax": "softmax",
    "nn.tanh": "tanh",
    "reshape": "reshape",
    "squeeze": "squeeze",
    "stack": "stack",
    "transpose": "transpose",
}
"""Functions of TensorFlow 2, as `TFOpLambda` has them."""

OPERATIONS = {
    "true_divide": "divide",
    "absolute": "abs",
    "amax": "max",
    "amin": "min",
    "remainder": "mod",
}
"""Operations of Keras 3 that are called otherwise here."""

LAYERS = (
    *("ReLU", "Discretization", "Hashing", "IntegerLookup", "StringLookup", "TextVectorization"),
    *("Pipeline", "CategoryEncoding"),
)
"""Layers, and one activation with the settings of its layer, that do not say `trainable`."""

ALIASES = {
    "perm": "axes",
    "shape": "newshape",
    "input": "x",
    "tensor": "x",
    "keep_dims": "keepdims",
    "clip_value_min": "x_min",
    "clip_value_max": "x_max",
    "slice_spec": "key",
    "paddings": "pad_width",
    "multiples": "repeats",
    "alpha": "negative_slope",
    "features": "x",
}
IGNORED = ("name", "training", "out")
KNOWN = (
    *("x", "x1", "x2", "y", "a", "b", "xs", "values", "axis", "axes", "keepdims", "newshape"),
    *("approximate", "negative_slope", "order", "epsilon", "condition", "x2", "axis1", "axis2"),
    *("repeats", "pad_width", "mode", "constant_values", "indices", "subscripts", "num_classes"),
    *("dtype", "x_min", "x_max", "key", "transpose_a", "transpose_b", "adjoint_a", "adjoint_b"),
)


@dataclass(frozen=True)
class Slot:
    """The place of a tensor among the inputs of a call."""

    index: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call: positional and named arguments, tensors as `Slot`s, all else plain values."""

    args: tuple[Any, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by its name, or by its position, or the default."""
        if name in self.settings:
            return self.settings[name]
        return self.args[position] if position < len(self.args) else default


def is_operation(layer: Mapping[str, Any]) -> bool:
    """Whether the entry of a layer is a call of a function."""
    if layer["class_name"] in ("TFOpLambda", "SlicingOpLambda"):
        return True
    if "module" in layer:
        return str(layer["module"] or "").startswith("keras.src.ops")
    # HDF5 files of Keras 3 leave the module out, but only layers have a policy of dtypes
    if layer["class_name"] in LAYERS:
        return False
    nodes = layer.get("inbound_nodes") or [None]
    return isinstance(nodes[0], dict) and "trainable" not in layer["config"]


def operation_of(layer: Mapping[str, Any], snake: str) -> str:
    """Return the name of the operation; `snake` is its class in the manner of Keras 3's names."""
    if layer["class_name"] in ("TFOpLambda", "SlicingOpLambda"):
        function = str(layer["config"].get("function"))
        return FUNCTIONS.get(function, f"tf.{function}")
    return OPERATIONS.get(snake, snake)


def calls_of(layer: Mapping[str, Any]) -> tuple[list[tuple[Ref, ...]], list[Call]]:
    """Return the tensors of each call, and the calls.

    Raises UnsupportedError for arguments that are no tensors, numbers, texts, slices or lists.
    """
    refs: list[tuple[Ref, ...]] = []
    calls: list[Call] = []
    own = {
        key: value
        for key, value in layer["config"].items()
        if key not in ("name", "function", "trainable", "dtype")
    }
    if "dtype" in layer["config"] and layer["class_name"] == "Cast":
        own["dtype"] = layer["config"]["dtype"]
    for node in layer.get("inbound_nodes") or []:
        found: list[Ref] = []
        if isinstance(node, dict):
            args = [_modern(one, found) for one in node.get("args", [])]
            named = {**own, **{k: _modern(v, found) for k, v in node.get("kwargs", {}).items()}}
        else:
            args, named = _older(layer, node, found)
        settings = {ALIASES.get(k, k): v for k, v in named.items() if k not in IGNORED}
        for key, value in settings.items():
            if key not in KNOWN and value not in (None, False):
                raise UnsupportedError(
                    f"a call of {layer['class_name']} has the argument `{key}`, which is not known",
                    operators=(str(layer["class_name"]),),
                )
        refs.append(tuple(found))
        calls.append(Call(args=tuple(args), settings=settings))
    return refs, calls


def _take(ref: Ref, found: list[Ref]) -> Slot:
    found.append(ref)
    return Slot(len(found) - 1)


def _modern(value: Any, found: list[Ref]) -> Any:
    if isinstance(value, list):
        return [_modern(one, found) for one in value]
    if not isinstance(value, dict):
        return value
    kind, config = value.get("class_name"), value.get("config", {})
    if kind == "__keras_tensor__":
        name, node, tensor = config["keras_history"]
        return _take((str(name), int(node), int(tensor)), found)
    if kind == "__slice__":
        return slice(*(_modern(config.get(key), found) for key in ("start", "stop", "step")))
    if kind == "__ellipsis__":
        return Ellipsis
    if kind == "__tuple__":
        return [_modern(one, found) for one in value.get("items", config.get("value", []))]
    if kind in ("__numpy__", "__tensor__") and isinstance(config, dict):
        return config.get("value")
    raise UnsupportedError(f"an argument of a call is a {kind}", operators=(str(kind),))


def _older(
    layer: Mapping[str, Any], node: Any, found: list[Ref]
) -> tuple[list[Any], dict[str, Any]]:
    entries = [node] if node and isinstance(node[0], str) else list(node)
    tensors: list[Any] = []
    named: dict[str, Any] = {}
    for name, number, third, *rest in entries:
        if name == "_CONSTANT_VALUE":
            tensors.append(third)
        else:
            tensors.append(_take((str(name), int(number), int(third)), found))
        for extra in rest:
            named |= {key: _named(key, value, found) for key, value in (extra or {}).items()}
    is_list = str(layer["config"].get("function")) in ("concat", "stack")
    return ([tensors] if is_list else tensors), named


def _named(key: str, value: Any, found: list[Ref]) -> Any:
    if _is_ref(value):
        return _take((str(value[0]), int(value[1]), int(value[2])), found)
    if key == "slice_spec":
        items = value if isinstance(value, list) else [value]
        return [_spec(item) for item in items]
    if isinstance(value, list):
        return [_named("", one, found) for one in value]
    if isinstance(value, dict):
        raise UnsupportedError(f"the argument `{key}` of a call has a form that is not known")
    return value


def _spec(item: Any) -> Any:
    if isinstance(item, dict) and set(item) <= {"start", "stop", "step"}:
        return slice(item.get("start"), item.get("stop"), item.get("step"))
    if item is None or isinstance(item, int):
        return item
    if item in ("...", {"class_name": "__ellipsis__"}):
        return Ellipsis
    raise UnsupportedError(f"a slice has a form that is not known: {str(item)[:80]}")


def _is_ref(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and all(isinstance(one, int) for one in value[1:3])
    )


def slots(value: Any) -> Iterator[Slot]:
    """Yield the tensors among arguments."""
    if isinstance(value, Slot):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from slots(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from slots(one)
