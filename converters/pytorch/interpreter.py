"""TorchScript run node by node in python, so that torch.export sees through it.

torch.jit runs a script as a whole. Here each operator is a call of its own, which torch.export can
trace, whose state can be read and set, and which can be given another form where ONNX needs one.
Control flow on numbers and sizes is followed; what depends on a tensor's value stops torch.export.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploykit._plugins.converters.pytorch.quantised import (
    AVERAGING,
    VALUE_PRESERVING,
    Quantised,
    from_steps,
    steps,
)
from deploykit._plugins.converters.pytorch.script_graph import Place, where
from deploykit._plugins.converters.pytorch.script_operators import (
    PRIM,
    PYTHON,
    memory_formats,
    scalar_types,
)

from deploykit.errors import UnsupportedError

MOST_ITERATIONS = 100_000
"""Of one loop: a damaged or hostile script must end."""

Special = Callable[..., Any]


class ModuleAt:
    """A module of the script, known by its path."""

    def __init__(self, path: str, module: Any) -> None:
        self.path = path
        self.module = module


class Instance:
    """An object of a TorchScript class that the script makes itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.attributes: dict[str, Any] = {}


class Interpreter:
    """Runs the graph of `script.forward`.

    `special` maps qualified operators (`quantized::linear`) to functions that stand for them; such a
    function gets the arguments in the order of the operator's schema. `attribute` gives what stands
    for an attribute of a module, and `numbers` the values of those tensors that hold a single one.
    What the script assigns to attributes is in `written`.
    """

    def __init__(
        self,
        script: Any,
        *,
        special: Mapping[str, Special] | None = None,
        attribute: Callable[[Place, Any], Any] | None = None,
        numbers: Mapping[Place, Any] | None = None,
    ) -> None:
        self._script = script
        self._graph = script.inlined_graph  # nodes live only as long as it does
        self._special = dict(special or {})
        self._attribute = attribute or (lambda _, value: value)
        self._dtypes, self._formats = scalar_types(), memory_formats()
        self._numbers = dict(numbers or {})
        self._origins: dict[str, Place] = {}
        self.written: dict[Place, Any] = {}

    def __call__(self, *args: Any, state: Mapping[Place, Any] | None = None) -> Any:
        """Run forward with all its arguments, attributes set to `state` before, and return its result."""
        self.written = dict(state or {})
        root = ModuleAt("", self._script)
        results = self._block(self._graph, (root, *args), {})
        return results[0] if len(results) == 1 else tuple(results)

    def _block(self, block: Any, args: Sequence[Any], outer: dict[str, Any]) -> list[Any]:
        values = outer  # names are unique in a graph, and an inner block sees the outer values
        for parameter, value in zip(block.inputs(), args, strict=True):
            values[parameter.debugName()] = value
        for node in block.nodes():
            results = self._node(node, values)
            for output, value in zip(node.outputs(), results, strict=True):
                values[output.debugName()] = value
        return [values[output.debugName()] for output in block.outputs()]

    def _node(self, node: Any, values: dict[str, Any]) -> Sequence[Any]:
        kind = node.kind()
        if kind == "prim::Constant":
            return [_constant(node)]
        args = [values[item.debugName()] for item in node.inputs()]
        if kind == "prim::If":
            blocks = list(node.blocks())
            return self._block(blocks[0] if args[0] else blocks[1], (), values)
        if kind == "prim::Loop":
            return self._loop(node, args, values)
        if kind in _NUMBERS:
            place = self._origins.get(next(node.inputs()).debugName())
            if place in self._numbers and place not in self.written:
                return [_number(kind, self._numbers[place])]
        if kind in self._special:
            if kind in _WITH_GRIDS or kind.startswith("quantized::"):
                # scale and zero point may be buffers; the grid must be known when it is traced
                origins = [self._origins.get(item.debugName(), ("", "")) for item in node.inputs()]
                pairs = zip(origins, args, strict=True)
                args = [self._numbers.get(place, value) for place, value in pairs]
            return _several(node, self._special[kind](*args))
        namespace, _, name = kind.partition("::")
        if namespace == "prim":
            return self._prim(node, name, args)
        return _several(node, self._call(node, name, args))

    def _loop(self, node: Any, args: list[Any], values: dict[str, Any]) -> Sequence[Any]:
        (body,) = node.blocks()
        most, goes_on, carried = args[0], args[1], list(args[2:])
        iteration = 0
        while goes_on and iteration < most:
            if iteration >= MOST_ITERATIONS:
                raise UnsupportedError(
                    f"a loop of the TorchScript runs more than {MOST_ITERATIONS} times"
                )
            goes_on, *carried = self._block(body, (iteration, *carried), values)
            iteration += 1
        return carried

    # ---- prim

    def _prim(self, node: Any, name: str, args: list[Any]) -> Sequence[Any]:
        match name:
            case "GetAttr":
                if isinstance(args[0], ModuleAt):
                    self._origins[node.output().debugName()] = (args[0].path, node.s("name"))
                return [self._get(args[0], node.s("name"))]
            case "SetAttr":
                self._set(args[0], node.s("name"), args[1])
                return []
            case "ListConstruct":
                return [list(args)]
            case "TupleConstruct":
                return [tuple(args)]
            case "DictConstruct":
                return [dict(zip(args[::2], args[1::2], strict=True))]
            case "TupleUnpack" | "ListUnpack":
                return list(args[0])
            case "TupleIndex":
                return [args[0][args[1]]]
            case "TupleSlice":
                return [args[0][node.i("beg") : node.i("end")]]
            case "Uninitialized":
                return [None]
            case "RaiseException":
                raise UnsupportedError(
                    f"the TorchScript raises `{args[0]}` for these inputs",
                    hint="check shapes of --input and the setting `constants`",
                )
            case "NumToTensor":
                return args  # a size that was traced stays a number
            case "CreateObject":
                return [Instance(str(node.output().type()))]
            case "Enter" | "Exit":
                if "no_grad" not in getattr(args[0], "kind", ""):
                    raise _unknown(node)
                return [None] * node.outputsSize()
            case "CallMethod":
                return _several(node, self._method(args[0], node.s("name"), args[1:], node))
            case "fork":
                return self._block(node.g("Subgraph"), args, {})
            case "isinstance":
                raise _unknown(node)
        if name in PRIM:
            return _several(node, PRIM[name](*args))
        raise _unknown(node)

    def _method(self, owner: Any, name: str, args: list[Any], node: Any) -> Any:
        """Call a method that could not be inlined: of a module behind an interface."""
        if not isinstance(owner, ModuleAt):
            raise _unknown(node)
        graph = owner.module._c._get_method(name).graph
        results = self._block(graph, (owner, *args), {})
        return results[0] if len(results) == 1 else tuple(results)

    def _get(self, owner: Any, name: str) -> Any:
        import torch

        if isinstance(owner, Instance):
            return owner.attributes.get(name)
        place = (owner.path, name)
        if place in self.written:
            return self.written[place]
        value = getattr(owner.module, name)
        if isinstance(value, torch.nn.Module):
            return ModuleAt(f"{owner.path}.{name}".lstrip("."), value)
        return self._attribute(place, value)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        if isinstance(owner, Instance):
            owner.attributes[name] = value
        else:
            self.written[owner.path, name] = value

    # ---- operators

    def _call(self, node: Any, name: str, args: list[Any]) -> Any:
        import torch

        schema = torch_schema(node)
        if schema is None:
            if name in PYTHON:
                return PYTHON[name](*args)
            raise _unknown(node)
        kinds = [str(argument.type) for argument in schema.arguments]
        takes_tensors = any("Tensor" in kind for kind in kinds)
        has_tensors = any(isinstance(value, torch.Tensor) for value in args)
        if name in PYTHON and not has_tensors and (not takes_tensors or _plain(args)):
            return PYTHON[name](*args)
        if node.kind() in _NUMBERS:
            return _number(node.kind(), args[0])
        if any(isinstance(value, Quantised) for value in args):
            return self._on_grid(node, name, args)
        if (special := _ON_TENSORS.get(name)) is not None and "Tensor" in kinds[:1]:
            return special(*args)
        if name == "to" and schema.overload_name.startswith("prim_"):
            return self._to(args, schema.overload_name)
        if name in ("tensor", "as_tensor"):
            return self._tensor(args, schema)
        return self._operator(node, schema, args)

    def _operator(self, node: Any, schema: Any, args: Sequence[Any]) -> Any:
        import torch

        namespace, _, name = node.kind().partition("::")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        operator = getattr(packet, schema.overload_name or "default", None)
        if operator is None:
            raise _unknown(node)
        plain: list[Any] = []
        named: dict[str, Any] = {}
        for argument, value in zip(schema.arguments, args, strict=True):
            value = self._typed(argument, value)
            if argument.kwarg_only:
                named[argument.name] = value
            else:
                plain.append(value)
        return operator(*plain, **named)

    def _on_grid(self, node: Any, name: str, args: list[Any]) -> Any:
        """Run an operator of floats on a quantised tensor: on its values, the grid is kept."""
        given = next(value for value in args if isinstance(value, Quantised))
        schema = torch_schema(node)
        bare = [value.values if isinstance(value, Quantised) else value for value in args]
        if (special := _ON_TENSORS.get(name)) is not None:
            return special(*bare)
        if name not in VALUE_PRESERVING | AVERAGING:
            raise _unknown(node)
        if name in AVERAGING:
            place = next(i for i, value in enumerate(args) if value is given)
            bare[place] = steps(given)
            return from_steps(self._operator(node, schema, bare), given)
        result = self._operator(node, schema, bare)
        if isinstance(result, (list, tuple)):
            return [dataclasses.replace(given, values=value) for value in result]
        return dataclasses.replace(given, values=result)

    def _typed(self, argument: Any, value: Any) -> Any:
        import torch

        if isinstance(value, int) and not isinstance(value, bool):
            if argument.name == "dtype":
                return self._dtypes[value]
            if argument.name == "memory_format":
                return self._formats[value]
            if argument.name == "layout":
                return torch.strided
        if argument.name == "device" and value is not None:
            return torch.device("cpu")
        if argument.name == "pin_memory":
            return None
        numbers = (int, float, bool, torch.SymInt, torch.SymFloat)
        if str(argument.type) == "Tensor" and isinstance(value, numbers):
            return torch.scalar_tensor(
                value, dtype=torch.float32 if isinstance(value, float) else torch.int64
            )
        return value

    def _to(self, args: list[Any], overload: str) -> Any:
        if overload == "prim_other":
            return args[0].to(args[1].dtype)
        place = 2 if overload == "prim_Device" else 1
        dtype = args[place]
        if dtype is None:
            return args[0]
        return args[0].to(self._dtypes[dtype] if isinstance(dtype, int) else dtype)

    def _tensor(self, args: list[Any], schema: Any) -> Any:
        import torch

        given = dict(zip((argument.name for argument in schema.arguments), args, strict=True))
        dtype = given.get("dtype")
        if isinstance(args[0], torch.Tensor):
            return args[0] if dtype is None else args[0].to(self._dtypes[dtype])
        return torch.tensor(args[0], dtype=None if dtype is None else self._dtypes[dtype])


def torch_schema(node: Any) -> Any:
    """Return the schema of the operator of a node, None where it has none."""
    import torch

    text = node.schema()
    return None if text in ("", "(no schema)") else torch._C.parse_schema(text)


_ON_TENSORS: Mapping[str, Callable[..., Any]] = {
    "size": lambda tensor, *axis: tensor.shape[axis[0]] if axis else list(tensor.shape),
    "dim": lambda tensor: tensor.dim(),
    "len": lambda tensor: tensor.shape[0],
    "numel": lambda tensor: tensor.numel(),
    "is_floating_point": lambda tensor: tensor.is_floating_point(),
    "is_complex": lambda tensor: tensor.is_complex(),
    "__is__": lambda a, b: a is b,
    "__isnot__": lambda a, b: a is not b,
    "cpu": lambda tensor: tensor,
}


def _plain(args: Sequence[Any]) -> bool:
    """Whether numbers stand where the schema has tensors: sizes that were traced."""
    import torch

    numbers = (int, float, bool, torch.SymInt, torch.SymFloat, type(None), str, list)
    return all(isinstance(value, numbers) for value in args)


_WITH_GRIDS = frozenset(["aten::quantize_per_tensor"])
_NUMBERS = {
    "aten::Int": int,
    "aten::IntImplicit": int,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
    "aten::item": None,
    "aten::ScalarImplicit": None,
}
"""What makes a number of a tensor, and which kind of number."""


def _number(kind: str, value: Any) -> Any:
    import torch

    item = value.item() if isinstance(value, torch.Tensor) else value
    make = _NUMBERS[kind]
    return item if make is None or isinstance(item, (torch.SymInt, torch.SymFloat)) else make(item)


def _constant(node: Any) -> Any:
    if not node.hasAttribute("value") and "None" in str(node.output().type()):
        return None
    return node.output().toIValue()


def _several(node: Any, result: Any) -> Sequence[Any]:
    count = node.outputsSize()
    if count == 0:
        return []
    return [result] if count == 1 else list(result)


def _unknown(node: Any) -> UnsupportedError:
    place = where(node)
    return UnsupportedError(
        f"the operator {node.kind()} of the TorchScript has no ONNX form here"
        + (f" (in `{place}`)" if place else ""),
        operators=(str(node.kind()),),
        hint="export the module itself with torch.export, or leave this part out of it",
    )
