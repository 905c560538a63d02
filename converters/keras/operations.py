"""Functions called within a graph of layers, as ONNX nodes. Their vocabulary: `operation_calls.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.keras import array_operations, operation_values
from deploykit._plugins.converters.keras.emission import Context, Value
from deploykit._plugins.converters.keras.operation_calls import Call, Slot

from deploykit.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BINARY = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "power": "Pow",
    "equal": "Equal",
    "greater": "Greater",
    "less": "Less",
    "greater_equal": "GreaterOrEqual",
    "less_equal": "LessOrEqual",
}

LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}

UNARY = {
    "abs": "Abs",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "negative": "Neg",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "softplus": "Softplus",
    "logical_not": "Not",
    "identity": "Identity",
}

REDUCTIONS = {
    "sum": "ReduceSum",
    "mean": "ReduceMean",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "any": "ReduceMax",
    "all": "ReduceMin",
}

DTYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}

Emit = Callable[["Arguments"], str]


class Arguments:
    """A call at work: its tensors as values of the graph, numbers as constants of their dtype."""

    def __init__(self, context: Context, operation: str, call: Call, inputs: list[Value]) -> None:
        self.build = context.build
        self.operation = operation
        self.version = context.version
        self.settings = call.settings
        self.dtype = inputs[0].dtype
        # `keras.ops.gelu` says so itself; TensorFlow's is exact unless told
        self.approximates = context.version >= 3
        self._call = call
        self._inputs = inputs

    def plain(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that is no tensor."""
        value = self._call.argument(position, name, default)
        if isinstance(value, Slot):
            raise UnsupportedError(
                f"`{name}` of {self.operation} is computed", operators=(self.operation,)
            )
        return value

    def tensor(self, position: int, name: str) -> str:
        """Return a tensor, or a number as a constant of the dtype of the call's first tensor."""
        value = self._call.argument(position, name)
        if isinstance(value, Slot):
            return self._inputs[value.index].name
        if value is None:
            raise UnsupportedError(
                f"{self.operation} is called without `{name}`", operators=(self.operation,)
            )
        dtype = self._inputs[0].dtype
        if isinstance(value, float) and not dtype.startswith("float"):
            raise UnsupportedError(
                f"{self.operation} of whole numbers and {value}", operators=(self.operation,)
            )
        return str(self.build.constant(value, dtype=dtype))

    def tensor_like(self, position: int, name: str) -> str:
        """Return a tensor, or a number as a constant of the dtype of the call's last tensor."""
        value = self._call.argument(position, name)
        if isinstance(value, Slot):
            return self._inputs[value.index].name
        return str(self.build.constant(value, dtype=self._inputs[-1].dtype))

    def rank(self, position: int, name: str) -> int:
        """Return how many axes a tensor has."""
        value = self._call.argument(position, name)
        if not isinstance(value, Slot):
            raise UnsupportedError(
                f"{self.operation} of something that is no tensor", operators=(self.operation,)
            )
        return self._inputs[value.index].rank

    def value(self, position: int = 0, name: str = "x") -> Value:
        """Return the tensor of an argument that must be one."""
        value = self._call.argument(position, name)
        if not isinstance(value, Slot):
            raise UnsupportedError(
                f"{self.operation} of something that is no tensor", operators=(self.operation,)
            )
        return self._inputs[value.index]

    def tensors(self) -> list[str]:
        """Return the tensors of an argument that is a list."""
        values = self._call.argument(0, "xs", self._call.settings.get("values"))
        if not isinstance(values, list) or not all(isinstance(one, Slot) for one in values):
            raise UnsupportedError(
                f"{self.operation} of something that is no list", operators=(self.operation,)
            )
        found = [self._inputs[one.index] for one in values]
        if len({one.dtype == "bool" for one in found}) == 1:
            return [one.name for one in found]
        # bools among numbers count as 0 and 1
        number = next(one.dtype for one in found if one.dtype != "bool")
        if number not in DTYPES:
            raise UnsupportedError(f"{self.operation} of {number} and bools")
        return [
            self.build.add("Cast", one.name, to=DTYPES[number]) if one.dtype == "bool" else one.name
            for one in found
        ]


def _logical(operator: str) -> Emit:
    def emit(a: Arguments) -> str:
        parts = [a.tensor(at, name) for at, name in ((0, "x1"), (1, "y"))]
        return a.build.add(operator, *(a.build.add("Cast", one, to=9) for one in parts))

    return emit


def _binary(operator: str) -> Emit:
    return lambda a: a.build.add(operator, a.tensor(0, "x1"), a.tensor(1, "y"))


def _different(a: Arguments) -> str:
    return a.build.add("Not", a.build.add("Equal", a.tensor(0, "x1"), a.tensor(1, "y")))


def _unary(operator: str) -> Emit:
    return lambda a: a.build.add(operator, a.value().name)


def _square(a: Arguments) -> str:
    return a.build.add("Mul", a.value().name, a.value().name)


def _inverse_root(a: Arguments) -> str:
    return a.build.add("Reciprocal", a.build.add("Sqrt", a.value().name))


def _silu(a: Arguments) -> str:
    return a.build.add("Mul", a.value().name, a.build.add("Sigmoid", a.value().name))


def _six(a: Arguments) -> str:
    low, high = (a.build.constant(one, dtype=a.value().dtype) for one in (0.0, 6.0))
    return a.build.add("Clip", a.value().name, low, high)


def _reduce(operator: str) -> Emit:
    def emit(a: Arguments) -> str:
        x, keep = a.value(), int(bool(a.plain(2, "keepdims", False)))
        axis = a.plain(1, "axis")
        axes = list(range(x.rank)) if axis is None else axis
        axes = [int(axes)] if isinstance(axes, int) else [int(one) for one in axes]
        name = x.name
        if a.operation in ("any", "all"):
            found = a.build.add(operator, a.build.add("Cast", name, to=6), axes=axes, keepdims=keep)
            return a.build.add("Cast", found, to=9)
        if operator == "ReduceSum":
            return a.build.add(operator, name, a.build.shape_constant(axes), keepdims=keep)
        return a.build.add(operator, name, axes=axes, keepdims=keep)

    return emit


def _reshape(a: Arguments) -> str:
    sizes = [int(size) for size in a.plain(1, "newshape")]
    if 0 in sizes:
        raise UnsupportedError("reshape to a size of zero", operators=("reshape",))
    return a.build.add("Reshape", a.value().name, a.build.shape_constant(sizes))


def _transpose(a: Arguments) -> str:
    axes = a.plain(1, "axes")
    order = None if axes is None else [int(one) % a.value().rank for one in axes]
    return a.build.add("Transpose", a.value().name, perm=order)


def _expand(a: Arguments) -> str:
    return a.build.add(
        "Unsqueeze", a.value().name, a.build.shape_constant([int(a.plain(1, "axis"))])
    )


def _squeeze(a: Arguments) -> str:
    axis = a.plain(1, "axis")
    if axis is None or axis == []:
        raise UnsupportedError("squeeze without an axis", operators=("squeeze",))
    axes = [axis] if isinstance(axis, int) else axis
    return a.build.add("Squeeze", a.value().name, a.build.shape_constant(axes))


def _concatenate(a: Arguments) -> str:
    return a.build.add("Concat", *a.tensors(), axis=int(a.plain(1, "axis", 0)))


def _stack(a: Arguments) -> str:
    axis = int(a.plain(1, "axis", 0))
    parts = [a.build.add("Unsqueeze", one, a.build.shape_constant([axis])) for one in a.tensors()]
    return a.build.add("Concat", *parts, axis=axis)


def _cast(a: Arguments) -> str:
    dtype = str(a.plain(1, "dtype"))
    if dtype not in DTYPES:
        raise UnsupportedError(f"a cast to {dtype}", operators=("cast",))
    return a.build.add("Cast", a.value().name, to=DTYPES[dtype])


def _softmax(a: Arguments) -> str:
    return a.build.add("Softmax", a.value().name, axis=int(a.plain(1, "axis", -1)))


def _clip(a: Arguments) -> str:
    bounds = [
        a.build.constant(a.plain(at, name), dtype=a.value().dtype)
        for at, name in ((1, "x_min"), (2, "x_max"))
    ]
    return a.build.add("Clip", a.value().name, *bounds)


def _matmul(a: Arguments) -> str:
    names = [a.tensor(0, "x1"), a.tensor(1, "b")]
    for at, side in enumerate("ab"):
        if a.plain(9, f"transpose_{side}") or a.plain(9, f"adjoint_{side}"):
            rank = a.rank(at, ("x1", "b")[at])
            order = [*range(rank - 2), rank - 1, rank - 2]
            names[at] = a.build.add("Transpose", names[at], perm=order)
    return a.build.add("MatMul", *names)


def _item(a: Arguments) -> str:
    """Slice, with single places and new axes; `...` stands for as many axes as are left."""
    x, key = a.value(), a.plain(1, "key")
    items = list(key) if isinstance(key, list) else [key]
    if any(not (one is None or one is Ellipsis or isinstance(one, (int, slice))) for one in items):
        raise UnsupportedError("an index that is computed", operators=("get_item",))
    used = sum(1 for one in items if one is not None and one is not Ellipsis)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (x.rank - used)
    starts, ends, axes, steps, dropped, added = [], [], [], [], [], []
    axis = place = 0
    for one in items:
        if one is None:
            added.append(place)
            place += 1
            continue
        if isinstance(one, int):
            starts.append(one)
            ends.append(one + 1 if one != -1 else 2**31 - 1)
            axes.append(axis)
            steps.append(1)
            dropped.append(axis)
        else:
            step = one.step or 1
            if one != slice(None):
                first, last = (0, 2**31 - 1) if step > 0 else (2**31 - 1, -(2**31))
                starts.append(first if one.start is None else one.start)
                ends.append(last if one.stop is None else one.stop)
                axes.append(axis)
                steps.append(step)
            place += 1
        axis += 1
    name = x.name
    if axes:
        lists = (a.build.shape_constant(part) for part in (starts, ends, axes, steps))
        name = a.build.add("Slice", name, *lists)
    if dropped:
        name = a.build.add("Squeeze", name, a.build.shape_constant(dropped))
    return a.build.add("Unsqueeze", name, a.build.shape_constant(added)) if added else name


EMIT: dict[str, Emit] = {
    **array_operations.EMIT,
    **{name: _binary(operator) for name, operator in BINARY.items()},
    **{name: _logical(operator) for name, operator in LOGICAL.items()},
    **{name: _unary(operator) for name, operator in UNARY.items()},
    **{name: _reduce(operator) for name, operator in REDUCTIONS.items()},
    "cast": _cast,
    "clip": _clip,
    "concatenate": _concatenate,
    "expand_dims": _expand,
    "get_item": _item,
    "matmul": _matmul,
    "not_equal": _different,
    "relu6": _six,
    "reshape": _reshape,
    "rsqrt": _inverse_root,
    "silu": _silu,
    "softmax": _softmax,
    "square": _square,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}


def emit(context: Context, operation: str, call: Call, inputs: list[Value]) -> Value:
    """Append one call and return its output. Raises UnsupportedError for forms without a mapping."""
    name = EMIT[operation](Arguments(context, operation, call, inputs))
    shape, dtype = operation_values.shape_of(
        operation, call, [(one.shape, one.dtype) for one in inputs]
    )
    return Value(name, shape, dtype=dtype)
