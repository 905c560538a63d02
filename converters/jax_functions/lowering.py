"""A jaxpr to an ONNX graph: equation by equation, with sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder
from deploykit.protocol import Dimension

if TYPE_CHECKING:
    from converters.jax_functions.loading import Function

Emit = Callable[["Lowering", Any, list[str]], "str | Sequence[str]"]
"""From the lowering, an equation and the names of its inputs to the names of its outputs."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Primitives that call another program, and the parameter that holds it."""


def lower(function: Function) -> GraphBuilder:
    """Return the graph of `function`. Raises UnsupportedError where a primitive has no ONNX form."""
    import jax
    from jax.interpreters import partial_eval

    closed = function.jaxpr
    program, _ = partial_eval.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True
    )
    _refuse(program)
    build = GraphBuilder(function.name)
    lowering = Lowering(build)
    names = []
    for name, spec in zip(function.names, function.specs, strict=True):
        shape: list[Dimension] = [
            str(s) if jax.export.is_symbolic_dim(s) else int(s) for s in spec.shape
        ]
        names.append(build.input(name, spec.dtype.name, shape))
        for axis, size in enumerate(spec.shape):
            if jax.export.is_symbolic_dim(size):
                lowering.origins.setdefault(str(size), (names[-1], axis))
    outputs = lowering.program(program, closed.consts, names)
    for name, value, aval in zip(function.output_names, outputs, closed.out_avals, strict=True):
        shape = [
            str(s)
            if str(s) in lowering.origins
            else None
            if jax.export.is_symbolic_dim(s)
            else int(s)
            for s in aval.shape
        ]
        build.output(name, value, aval.dtype.name, shape)
    return build


def _inner(equation: Any) -> list[Any]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            program = getattr(item, "jaxpr", item)
            if hasattr(program, "eqns"):
                found.append(program)
    return found


def _refuse(program: Any) -> None:
    """Raise UnsupportedError that names every primitive without an ONNX form."""
    table = _table()
    wrong: dict[str, None] = {}
    todo = [program]
    while todo:
        for equation in todo.pop().eqns:
            name = equation.primitive.name
            if name in CALLS or name in ("scan", "while", "cond"):
                todo.extend(_inner(equation))
            elif name not in table:
                wrong[name] = None
    if wrong:
        random = any(name.startswith(("random_", "threefry")) for name in wrong)
        raise UnsupportedError(
            f"no ONNX form for the JAX primitives {', '.join(wrong)}",
            operators=tuple(wrong),
            hint="the function draws random numbers: make it deterministic" if random else "",
        )


def _table() -> dict[str, Emit]:
    from deploykit._plugins.converters.jax_functions import (
        contractions,
        control_flow,
        indexing,
        operators,
    )

    return {**operators.EMIT, **contractions.EMIT, **indexing.EMIT, **control_flow.EMIT}


class Lowering:
    """Emits equations into `build`; `origins` says where each symbolic size can be read."""

    def __init__(self, build: GraphBuilder, outer: Lowering | None = None) -> None:
        self.build = build
        self.table: dict[str, Emit] = outer.table if outer else _table()
        self.origins: dict[str, tuple[str, int]] = outer.origins if outer else {}
        # values that are broadcast only when somebody needs them so: name to (small one, shape)
        self.pending: dict[str, tuple[str, tuple[Any, ...]]] = dict(outer.pending) if outer else {}
        self._literals: dict[Any, str] = {}

    def program(self, program: Any, constants: Sequence[Any], inputs: Sequence[str]) -> list[str]:
        """Emit a jaxpr; return the names of its outputs, all of them whole arrays."""
        import numpy as np

        values: dict[Any, str] = dict(zip(program.invars, inputs, strict=True))
        for variable, constant in zip(program.constvars, constants, strict=True):
            values[variable] = (
                constant if isinstance(constant, str) else self.build.constant(np.asarray(constant))
            )

        def read(atom: Any) -> str:
            if hasattr(atom, "val"):
                return self.literal(atom)
            return values[atom]

        for equation in program.eqns:
            names = [read(atom) for atom in equation.invars]
            found = self.equation(equation, names)
            for variable, name in zip(equation.outvars, found, strict=True):
                values[variable] = name
        return [self.whole(read(atom)) for atom in program.outvars]

    def equation(self, equation: Any, names: list[str]) -> Sequence[str]:
        """Emit one equation."""
        kind = equation.primitive.name
        if kind in CALLS:
            called = equation.params[CALLS[kind]]
            program, constants = getattr(called, "jaxpr", called), getattr(called, "consts", ())
            return self.program(program, constants, names)
        with self.build.layer(kind):
            if kind not in ("broadcast_in_dim", *LAZY):
                names = [self.whole(name) for name in names]
            found = self.table[kind](self, equation, names)
        return [found] if isinstance(found, str) else found

    def literal(self, atom: Any) -> str:
        """Return the constant of a number that stands in the program."""
        import numpy as np

        value = np.asarray(atom.val, atom.aval.dtype)
        key = (value.dtype.name, value.shape, value.tobytes())
        if key not in self._literals:
            self._literals[key] = self.build.constant(value)
        return self._literals[key]

    def whole(self, name: str) -> str:
        """Return `name` in its full shape."""
        if name not in self.pending:
            return name
        small, shape = self.pending[name]
        return self.build.add("Expand", small, self.shape(shape))

    # ---- sizes

    def is_symbolic(self, size: Any) -> bool:
        import jax

        return bool(jax.export.is_symbolic_dim(size))

    def size(self, size: Any) -> str:
        """Return one size as an int64 constant or computed value of shape [1]."""
        if not self.is_symbolic(size):
            return self.build.shape_constant([int(size)])
        found = size._evaluate({name: _Size(self, self._origin(name)) for name in size._get_vars()})
        return found.name if isinstance(found, _Size) else self.build.shape_constant([int(found)])

    def _origin(self, name: str) -> str:
        if name not in self.origins:
            raise UnsupportedError(f"the size `{name}` is no axis of an input")
        value, axis = self.origins[name]
        return self.build.add(
            "Gather", self.build.add("Shape", value), self.build.shape_constant([axis]), axis=0
        )

    def shape(self, sizes: Sequence[Any]) -> str:
        """Return sizes as an int64 vector."""
        if not any(self.is_symbolic(size) for size in sizes):
            return self.build.shape_constant([int(size) for size in sizes])
        return self.build.add("Concat", *(self.size(size) for size in sizes), axis=0)

    def reshaped(self, value: str, sizes: Sequence[Any]) -> str:
        """Return `value` in another shape; a single symbolic size is left to Reshape to work out."""
        symbolic = [at for at, size in enumerate(sizes) if self.is_symbolic(size)]
        if len(symbolic) == 1:
            fixed = [-1 if at == symbolic[0] else int(size) for at, size in enumerate(sizes)]
            if 0 not in fixed:
                return self.build.add("Reshape", value, self.build.shape_constant(fixed))
        return self.build.add("Reshape", value, self.shape(sizes), allowzero=1)

    def transposed(self, value: str, order: Sequence[int]) -> str:
        """Return `value` with its axes in another order."""
        if list(order) == list(range(len(order))):
            return value
        return self.build.add("Transpose", value, perm=[int(axis) for axis in order])

    def cast(self, value: str, dtype: Any) -> str:
        """Return `value` in another dtype."""
        import numpy as np
        from onnx import helper

        return self.build.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def zero(self, dtype: Any, value: float = 0) -> str:
        """Return a scalar constant of a dtype."""
        import numpy as np

        return self.build.constant(np.asarray(value, dtype))


LAZY = frozenset(
    (
        *(
            "add",
            "sub",
            "mul",
            "div",
            "max",
            "min",
            "pow",
            "rem",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
        ),
        *("and", "or", "xor", "select_n"),
    )
)
"""Element by element: ONNX broadcasts their inputs itself."""


class _Size:
    """A size that is computed in the graph: what JAX's symbolic expressions are evaluated with."""

    def __init__(self, lowering: Lowering, name: str) -> None:
        self.lowering = lowering
        self.name = name

    def _with(self, operator: str, other: Any, *, swapped: bool = False) -> _Size:
        build = self.lowering.build
        second = other.name if isinstance(other, _Size) else build.shape_constant([int(other)])
        pair = (second, self.name) if swapped else (self.name, second)
        return _Size(self.lowering, build.add(operator, *pair))

    def __add__(self, other: Any) -> _Size:
        return self._with("Add", other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> _Size:
        return self._with("Mul", other)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> _Size:
        return self._with("Sub", other)

    def __rsub__(self, other: Any) -> _Size:
        return self._with("Sub", other, swapped=True)

    def __neg__(self) -> _Size:
        return self * -1

    def __floordiv__(self, other: Any) -> _Size:
        # sizes are not negative, and so is what JAX divides: truncation is the floor
        return self._with("Div", other)

    def __mod__(self, other: Any) -> _Size:
        return self._with("Mod", other)

    def __divmod__(self, other: Any) -> tuple[_Size, _Size]:
        return self // other, self % other

    def __pow__(self, power: int) -> _Size:
        found = self
        for _ in range(int(power) - 1):
            found = found * self
        return found
