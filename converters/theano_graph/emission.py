"""A pytensor graph on its way into ONNX: which variable has which name, and what is already known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.theano_graph import performing

from deploykit.errors import UnsupportedError
from deploykit.graph_building import GraphBuilder

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

SLOW_TYPES = ("int8", "int16", "uint8", "uint16", "uint32", "uint64")
"""ONNX Runtime computes with few of them, so that sums and comparisons of them go by way of int64."""


class Emission:
    """Emits the nodes that a variable needs, once each. `rules` maps an operator's class to its rule.

    A rule takes the emission and an Apply node and returns the ONNX names of its outputs.
    """

    def __init__(self, build: GraphBuilder, rules: dict[str, Rule]) -> None:
        self.build = build
        self.rules = rules
        self.names: dict[Any, str] = {}
        self.notes: dict[str, None] = {}
        self._known: dict[Any, Array | None] = {}

    def value(self, variable: Any) -> str:
        """Return the ONNX name of `variable`, emitting what it needs. Raises UnsupportedError."""
        self.values([variable])
        return self.names[variable]

    def values(self, variables: Sequence[Any]) -> list[str]:
        """Return the ONNX names of `variables`."""
        waiting = list(reversed(variables))
        while waiting:
            variable = waiting[-1]
            if variable in self.names:
                waiting.pop()
                continue
            node = variable.owner
            if node is None:
                self.names[variable] = self._leaf(variable)
                continue
            # a rule asks itself for indices, sizes and the like; tensors are emitted before it runs
            needed = node.inputs[:1] if type(node.op).__name__ == "IfElse" else node.inputs
            missing = [one for one in needed if one not in self.names and is_tensor(one)]
            missing = [one for one in missing if one.owner is not None]
            for one in missing:
                if one.type.dtype == "int64" and one.type.ndim <= 1:
                    # sizes and indices: many are known, and then not worth a node
                    self._hold(one)
            missing = [one for one in missing if one not in self.names]
            if missing:
                waiting += missing[::-1]
                continue
            self._apply(node)
        return [self.names[one] for one in variables]

    def assume(self, variable: Any, value: Array | None) -> None:
        """Take the value of an input of an inner graph as known."""
        if value is not None:
            self._known[variable] = value

    def _hold(self, variable: Any) -> None:
        known = self.known(variable)
        if known is not None:
            self.names[variable] = self.build.constant(known)

    def _apply(self, node: Any) -> None:
        with self.build.layer(layer_name(node)):
            found = rule_of(self.rules, node)(self, node)
        for variable, name in zip(node.outputs, found, strict=True):
            self.names[variable] = name

    def _leaf(self, variable: Any) -> str:
        known = self.known(variable)
        if known is None:
            raise UnsupportedError(
                f"the output needs `{variable}`, which is not among the inputs",
                hint="return it with the inputs of the graph",
            )
        if known.dtype.kind not in "biuf":
            raise UnsupportedError(f"`{variable}` is of the dtype {known.dtype}")
        return self.build.constant(known, str(variable.name or ""))

    def known(self, variable: Any) -> Array | None:
        """Return the value of `variable` where no input decides it, None otherwise."""
        if variable not in self._known:
            self._known[variable] = self._evaluated(variable)
        return self._known[variable]

    def _evaluated(self, variable: Any) -> Array | None:
        import numpy as np
        from pytensor.graph.basic import Constant, ancestors

        if isinstance(variable, Constant):
            return np.asarray(variable.data)
        if hasattr(variable, "get_value"):
            return np.asarray(variable.get_value(borrow=True))
        if variable.owner is None:
            return None
        for one in ancestors([variable]):
            is_free = one.owner is None and not isinstance(one, Constant)
            if is_free and not hasattr(one, "get_value"):
                return None
            if one.owner is not None and rule_name(self.rules, one.owner) is None:
                return None
        return np.asarray(performing.function([], [variable])()[0])

    def integers(self, variable: Any, node: Any, what: str) -> list[int]:
        """Return the whole numbers that `variable` holds. Raises UnsupportedError where unknown."""
        found = self.known(variable)
        if found is None:
            raise UnsupportedError(
                f"{what} of {described(node)} depends on an input",
                operators=(operator_name(node),),
                hint="make it a number in the code that builds the graph",
            )
        return [int(one) for one in found.reshape(-1)]

    def cast(self, name: str, dtype: str, wanted: str) -> str:
        """Return `name` (of `dtype`) as a value of the dtype `wanted`."""
        from onnx import helper

        if dtype == wanted:
            return name
        import numpy as np

        return self.build.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))

    def as_type(self, variable: Any, wanted: str) -> str:
        """Return `variable` as a value of the dtype `wanted`."""
        return self.cast(self.value(variable), variable.type.dtype, wanted)

    def vector(self, variables: Sequence[Any]) -> str:
        """Return scalars as one int64 vector, a constant where all are known."""
        known = [self.known(one) for one in variables]
        if all(one is not None for one in known):
            return self.build.shape_constant([int(one) for one in known if one is not None])
        parts = [self.as_vector(one) for one in variables]
        return self.build.add("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def as_vector(self, variable: Any) -> str:
        """Return a scalar as an int64 vector of one element."""
        known = self.known(variable)
        if known is not None:
            return self.build.shape_constant([int(known)])
        one = self.build.shape_constant([1])
        return self.build.add("Reshape", self.as_type(variable, "int64"), one)

    def scalar(self, value: float, dtype: str) -> str:
        """Return the number `value` as a constant of this dtype."""
        return self.build.constant(value, dtype=dtype)


class Body(GraphBuilder):
    """The graph within a Loop or an If: it may use what lies outside, where its constants are too."""

    def __init__(self, outer: GraphBuilder, name: str) -> None:
        super().__init__(name)
        self._outer = outer
        self._taken = outer._taken  # ONNX lets no body hide an outer name

    def constant(self, value: Any, name: str = "", dtype: str | None = None) -> str:
        """Hold a constant outside of the body, where all rounds share it."""
        held: str = self._outer.constant(value, name or f"{self._layer or 'graph'}/constant", dtype)
        return held

    def graph(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """Return the body as a graph with these inputs and outputs."""
        from onnx import helper

        graph: onnx.GraphProto = helper.make_graph(self._nodes, self.name, inputs, outputs)
        return graph


Rule = Callable[[Emission, Any], Sequence[str]]


def is_tensor(variable: Any) -> bool:
    """Whether the variable is an array or a number, and no slice, None, or random state."""
    return hasattr(variable.type, "dtype") and hasattr(variable.type, "ndim")


def rank(variable: Any) -> int:
    """Return the number of axes of a variable."""
    return int(variable.type.ndim)


def operator_name(node: Any) -> str:
    """Return the name of an Apply node's operator: of `Elemwise` that of what it computes."""
    scalar = getattr(node.op, "scalar_op", None)
    name = type(node.op).__name__
    return type(scalar).__name__ if scalar is not None and name == "Elemwise" else name


def layer_name(node: Any) -> str:
    """Return the name that the source gave to one of the node's outputs, or its operator's."""
    return next((str(one.name) for one in node.outputs if one.name), operator_name(node))


def described(node: Any) -> str:
    """Return in words which node this is."""
    named = next((f" `{one.name}`" for one in node.outputs if one.name), "")
    fed = [str(one.name) for one in node.inputs if getattr(one, "name", None)]
    return f"the operator {operator_name(node)}{named}" + (
        f" (of `{', '.join(fed[:3])}`)" if fed else ""
    )


def rule_name(rules: dict[str, Rule], node: Any) -> str | None:
    """Return the key of the rule for a node: its operator's class, or the nearest one above it."""
    for kind in type(node.op).__mro__:
        if kind.__name__ in rules:
            return str(kind.__name__)
    return None


def rule_of(rules: dict[str, Rule], node: Any) -> Rule:
    """Return the rule for a node. Raises UnsupportedError where there is none."""
    name = rule_name(rules, node)
    if name is None:
        raise UnsupportedError(
            f"no ONNX form for {described(node)}",
            operators=(operator_name(node),),
            hint=_hint(node),
        )
    return rules[name]


def _hint(node: Any) -> str:
    kinds = [kind.__name__ for kind in type(node.op).__mro__]
    if any("random" in kind.lower() or "mrg" in kind.lower() for kind in kinds):
        return "build the graph for inference: without dropout and noise (deterministic=True)"
    if any("grad" in kind.lower() for kind in kinds):
        return "return the outputs of the network, not its loss or updates"
    return "write this part of the graph with other operators"
