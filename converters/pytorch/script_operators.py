"""TorchScript's operators on numbers, lists, dicts and strings, as python computes them.

What works on tensors is torch's own; TorchScript has these besides, and they run nowhere else than
in its interpreter. https://pytorch.org/docs/stable/jit_builtin_functions.html
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any


def _divide_ints(a: Any, b: Any) -> Any:
    return a / b


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _extend(items: list[Any], more: list[Any]) -> None:
    items.extend(more)


def _insert(items: list[Any], place: int, item: Any) -> None:
    items.insert(place, item)


def _set_item(items: Any, key: Any, item: Any) -> Any:
    items[key] = item
    return items


def _slice(items: Any, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    return items[start:end:step]


def _format(text: str, *values: Any) -> str:
    """Fill the braces of a text: plain ones only, as in TorchScript, whatever a file may hold."""
    for value in values:
        text = text.replace("{}", str(value), 1)
    return text


def _range_length(low: int, high: int, step: int) -> int:
    return len(range(low, high, step))


def _derive_index(number: int, start: int, step: int) -> int:
    return start + number * step


def _round(value: float, *digits: int) -> float:
    return float(round(value, *digits))


def _pop(items: Any, *key: Any) -> Any:
    return items.pop(*key)


def _is(a: Any, b: Any) -> bool:
    return a is b


def _is_not(a: Any, b: Any) -> bool:
    return a is not b


PYTHON: Mapping[str, Callable[..., Any]] = {
    # numbers; symbolic sizes of torch.export take part in them
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": _divide_ints,
    "true_divide": _divide_ints,
    "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__lshift__": operator.lshift,
    "__rshift__": operator.rshift,
    "__not__": operator.not_,
    "neg": operator.neg,
    "abs": abs,
    "pow": operator.pow,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "__is__": _is,
    "__isnot__": _is_not,
    "Int": int,
    "Float": float,
    "Bool": bool,
    "str": str,
    "round": _round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "tanh": math.tanh,
    "fmod": math.fmod,
    "gcd": math.gcd,
    "isinf": math.isinf,
    "isnan": math.isnan,
    # lists, dicts and strings
    "len": len,
    "append": _append,
    "extend": _extend,
    "insert": _insert,
    "pop": _pop,
    "list": list,
    "copy": list,
    "reverse": list.reverse,
    "clear": lambda items: items.clear(),
    "remove": lambda items, item: items.remove(item),
    "count": lambda items, item: items.count(item),
    "index": lambda items, item: items.index(item),
    "slice": _slice,
    "__getitem__": operator.getitem,
    "__contains__": operator.contains,
    "_set_item": _set_item,
    "__range_length": _range_length,
    "__derive_index": _derive_index,
    "keys": lambda items: list(items.keys()),
    "values": lambda items: list(items.values()),
    "items": lambda items: list(items.items()),
    "get": lambda items, key, *default: items.get(key, *default),
    "format": _format,
    "lower": str.lower,
    "upper": str.upper,
    "startswith": str.startswith,
    "endswith": str.endswith,
    "join": str.join,
    "split": lambda text, *rest: text.split(*rest),
    "warn": lambda *_: None,
    "is_scripting": lambda: True,
    "wait": lambda value: value,
    "sorted": sorted,
    "sum": sum,
    "all": all,
    "any": any,
    "manual_seed": lambda *_: None,
}
"""By the name behind `aten::`, for calls in which no argument is a tensor."""


def extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    """Return `prim::min` or `prim::max`: of a list, or of two numbers."""

    def of(*values: Any) -> Any:
        if len(values) == 1:
            return choose(values[0])
        if all(isinstance(value, list) for value in values):
            return choose(*values)
        import torch

        symbolic = torch.sym_min if choose is min else torch.sym_max
        return symbolic(*values)

    return of


PRIM: Mapping[str, Callable[..., Any]] = {
    "min": extreme(min),
    "max": extreme(max),
    "abs": abs,
    "unchecked_cast": lambda value: value,
    "unchecked_unwrap_optional": lambda value: value,
    "dtype": lambda tensor: tensor.dtype,
    "device": lambda tensor: tensor.device,
    "layout": lambda tensor: tensor.layout,
    "shape": lambda tensor: list(tensor.shape),
    "data": lambda tensor: tensor.detach(),
    "requires_grad": lambda _: False,
    "is_cuda": lambda tensor: tensor.is_cuda,
    "is_sparse": lambda tensor: tensor.is_sparse,
    "is_quantized": lambda tensor: tensor.is_quantized,
    "is_nested": lambda tensor: tensor.is_nested,
    "itemsize": lambda tensor: tensor.itemsize,
    "type": lambda device: device.type,
    "Print": lambda *_: None,
    "VarConcat": lambda *items: list(items),
}
"""By the name behind `prim::`, for what needs nothing but its arguments."""


def scalar_types() -> list[Any]:
    """Return torch's dtypes by their number in TorchScript (c10/core/ScalarType.h)."""
    import torch

    return [
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.float32, torch.float64),
        *(torch.complex32, torch.complex64, torch.complex128, torch.bool),
        *(torch.qint8, torch.quint8, torch.qint32, torch.bfloat16),
    ]


def memory_formats() -> list[Any]:
    """Return torch's memory formats by their number in TorchScript (c10/core/MemoryFormat.h)."""
    import torch

    return [
        *(torch.contiguous_format, torch.preserve_format),
        *(torch.channels_last, torch.channels_last_3d),
    ]
