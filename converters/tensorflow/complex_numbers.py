"""Complex numbers as pairs of real ones: ONNX operators take no complex tensors.

Every node whose tensors are complex is replaced, in a flat frozen graph, by nodes over the real and the
imaginary part. Discrete Fourier transforms become products with their matrices:
X[k] = sum_j x[j] exp(-2 pi i j k / n).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tensorflow import fourier

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Pair = tuple[Any, Any]

_PARTWISE = frozenset(
    [
        *("Identity", "Reshape", "Transpose", "StridedSlice", "Slice", "ConcatV2", "Pack"),
        *("Unpack", "ExpandDims", "Squeeze", "GatherV2", "Tile", "Pad", "Sum", "Mean", "Neg"),
        *("BroadcastTo", "Split", "SplitV", "ZerosLike", "ReverseV2", "Add", "AddV2", "Sub"),
        *("AddN", "GatherNd", "Roll", "StopGradient", "MirrorPad"),
    ]
)
"""Linear operators over real coefficients: the same on either part."""


def lowered(graph_def: Any) -> tuple[Any, tuple[str, ...]]:
    """Return `graph_def` without complex tensors, and what was done.

    Raises UnsupportedError for an operator on complex numbers that is not known here.
    """
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    touched = [
        operation
        for operation in graph.get_operations()
        if any(t.dtype.base_dtype.is_complex for t in (*operation.inputs, *operation.outputs))
    ]
    if not touched:
        return graph_def, ()
    names = {operation.name for operation in touched}
    result = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    result.node.extend(node for node in graph_def.node if node.name not in names)
    lowering = _Lowering(result, graph)
    for operation in _in_order(touched):
        lowering.replace(operation)
    kinds = sorted({operation.type for operation in touched if "FFT" in operation.type})
    what = f"{', '.join(kinds)} as products with Fourier matrices" if kinds else "as pairs"
    return result, (f"complex numbers are written as pairs of real ones, {what}",)


def _in_order(operations: list[Any]) -> list[Any]:
    names = {operation.name for operation in operations}
    done: set[str] = set()
    found: list[Any] = []
    while len(found) < len(operations):
        ready = [
            one
            for one in operations
            if one.name not in done
            and all(t.op.name in done or t.op.name not in names for t in one.inputs)
        ]
        if not ready:
            raise _refusal(next(one for one in operations if one.name not in done))
        found += ready
        done.update(one.name for one in ready)
    return found


def _refusal(operation: Any) -> UnsupportedError:
    return UnsupportedError(
        f"node `{operation.name}` ({operation.type}) computes with complex numbers, which ONNX "
        "operators do not take",
        hint="name outputs before it (`--set outputs=...`), or rewrite it with real numbers",
        operators=(operation.type,),
    )


class _Lowering:
    """Adds nodes to `result`; `pairs` has the two real tensors of every complex one."""

    def __init__(self, result: Any, graph: Any) -> None:
        self.result = result
        self.graph = graph
        self.pairs: dict[str, tuple[str, str]] = {}
        self.taken = {operation.name for operation in graph.get_operations()}

    def replace(self, operation: Any) -> None:
        """Replace one operation."""
        import tensorflow as tf

        kind = operation.type
        if kind == "Const":
            value = tf.make_ndarray(operation.node_def.attr["value"].tensor)
            self._emit(operation, lambda: [(tf.constant(value.real), tf.constant(value.imag))])
        elif kind in _PARTWISE:
            self._partwise(operation)
        elif kind in _RULES:
            rule = _RULES[kind]
            self._emit(operation, lambda *parts: [rule(*parts)])
        elif kind in ("RFFT", "IRFFT", "FFT", "IFFT"):
            self._transform(operation)
        else:
            raise _refusal(operation)

    def _transform(self, operation: Any) -> None:
        import tensorflow as tf

        shape = operation.inputs[0].shape
        if shape.rank is None:
            raise _refusal(operation)
        if operation.type in ("FFT", "IFFT"):
            size = shape[-1]
        else:
            constant = tf.get_static_value(operation.inputs[1])
            size = None if constant is None else int(constant.reshape(-1)[0])
        if size is None or size > fourier.LARGEST:
            raise _refusal(operation)
        transform = fourier.TRANSFORMS[operation.type]
        self._emit(operation, lambda data, *_: [transform(data, size, shape.rank)])

    def _partwise(self, operation: Any) -> None:
        """Copy the node twice, once over the real and once over the imaginary parts."""
        import tensorflow as tf

        node = operation.node_def
        for number, part in enumerate(("real", "imag")):
            copy = self.result.node.add()
            copy.CopyFrom(node)
            copy.name = f"{node.name}/{part}"
            copy.attr.pop("_output_shapes", None)
            for name, attribute in node.attr.items():
                if attribute.type and tf.dtypes.as_dtype(attribute.type).is_complex:
                    copy.attr[name].type = tf.dtypes.as_dtype(
                        attribute.type
                    ).real_dtype.as_datatype_enum
            for at, tensor in enumerate(operation.inputs):
                if tensor.name in self.pairs:
                    copy.input[at] = self.pairs[tensor.name][number]
        for tensor in operation.outputs:
            end = tensor.name.rpartition(":")[2]
            self.pairs[tensor.name] = (f"{node.name}/real:{end}", f"{node.name}/imag:{end}")

    def _emit(self, operation: Any, rule: Callable[..., list[Any]]) -> None:
        """Let `rule` build nodes over parts, and put them into the graph in the operation's place."""
        import tensorflow as tf

        feeds: dict[str, str] = {}

        def part(name: str, tensor: Any) -> Any:
            dtype = tensor.dtype.base_dtype
            kind = dtype.real_dtype if dtype.is_complex else dtype
            made = tf.compat.v1.placeholder(kind, tensor.shape)
            feeds[made.op.name] = name
            return made

        with tf.Graph().as_default() as scratch:
            parts = [
                tuple(part(name, tensor) for name in self.pairs[tensor.name])
                if tensor.name in self.pairs
                else part(tensor.name, tensor)
                for tensor in operation.inputs
            ]
            results = rule(*parts)
        prefix = operation.name
        while any(name.startswith(f"{prefix}/") for name in self.taken):
            prefix += "_"

        def moved(source: str) -> str:
            control = "^" if source.startswith("^") else ""
            name, colon, number = source.lstrip("^").partition(":")
            return feeds.get(name) or f"{control}{prefix}/{name}{colon}{number}"

        for node in scratch.as_graph_def().node:
            if node.name in feeds:
                continue
            inputs = [moved(source) for source in node.input]
            node.name = f"{prefix}/{node.name}"
            del node.input[:]
            node.input.extend(inputs)
            self.result.node.append(node)
        for tensor, value in zip(operation.outputs, results, strict=True):
            if isinstance(value, tuple):
                real, imaginary = (moved(one.name) for one in value)
                self.pairs[tensor.name] = (real, imaginary)
            else:  # whoever read the operation reads this
                same = self.result.node.add(name=operation.name, op="Identity")
                same.input.append(moved(value.name))
                same.attr["T"].type = value.dtype.as_datatype_enum


def _mul(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _div(a: Pair, b: Pair) -> Pair:
    scale = b[0] * b[0] + b[1] * b[1]
    real, imaginary = _mul(a, (b[0], -b[1]))
    return real / scale, imaginary / scale


def _exp(a: Pair) -> Pair:
    import tensorflow as tf

    size = tf.exp(a[0])
    return size * tf.cos(a[1]), size * tf.sin(a[1])


def _abs(a: Pair) -> Any:
    import tensorflow as tf

    return tf.sqrt(a[0] * a[0] + a[1] * a[1])


def _angle(a: Pair) -> Any:
    import tensorflow as tf

    return tf.atan2(a[1], a[0])


def _cast(a: Any) -> Any:
    import tensorflow as tf

    if isinstance(a, tuple):
        return a[0]
    real = tf.cast(a, tf.float32)
    return real, tf.zeros_like(real)


_RULES: dict[str, Callable[..., Any]] = {
    "Complex": lambda real, imaginary: (real, imaginary),
    "Real": lambda a: a[0] + 0,
    "Imag": lambda a: a[1] + 0,
    "ComplexAbs": _abs,
    "Angle": _angle,
    "Conj": lambda a: (a[0] + 0, -a[1]),
    "Mul": _mul,
    "RealDiv": _div,
    "Square": lambda a: _mul(a, a),
    "Exp": _exp,
    "Cast": _cast,
}
