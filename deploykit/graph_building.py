"""An ONNX graph built layer by layer, for converters that read a dead framework's bytes themselves.

This file also runs inside plugin environments: numpy and onnx.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.onnx_file import (
    LARGEST_MESSAGE,
    LARGEST_SHAPE,
    opset_of,
    write_model,
    write_streamed,
)
from deploykit.onnx_opset import upgrade
from deploykit.progress import phase
from deploykit.protocol import ConvertRequest, ConvertResult, Dimension

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]

OPSET = 17
"""Graphs are built in this opset; another one is reached with ONNX's own version converter."""

IR_VERSION = 8


class GraphBuilder:
    """An ONNX graph in the making.

    Values are referred to by name. Nodes made within `layer(name)` are named after that layer of
    the source, so that a node of the result leads back to what made it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[tuple[str, str, str, Sequence[Dimension] | None]] = []
        self._constants: dict[str, Array] = {}
        self._taken: set[str] = set()
        self._layer = ""

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[None]:
        """Name the nodes made inside after the source's layer `name`."""
        outer, self._layer = self._layer, name
        try:
            yield
        finally:
            self._layer = outer

    def fresh(self, hint: str) -> str:
        """Return a name that nothing in the graph has: `hint`, or `hint` with a number behind it."""
        name, number = hint, 1
        while name in self._taken:
            name, number = f"{hint}_{number}", number + 1
        self._taken.add(name)
        return name

    def input(self, name: str, dtype: str, shape: Sequence[Dimension]) -> str:
        """Declare an input of numpy's `dtype`; a text in `shape` names a dynamic axis."""
        self._inputs.append(_value(self.fresh(name), dtype, shape))
        return self._inputs[-1].name

    def constant(self, value: Any, name: str = "", dtype: str | None = None) -> str:
        """Hold `value` (an array, a memory map, or what makes one) as a constant; return its name."""
        import numpy as np

        array = np.asarray(value, dtype=dtype)
        if array.dtype == np.float64 and not isinstance(value, np.ndarray) and dtype is None:
            array = array.astype(np.float32)  # a number in Python has no dtype of its own
        key = self.fresh(name or f"{self._layer or 'graph'}/constant")
        self._constants[key] = array
        return key

    def shape_constant(self, sizes: Sequence[int]) -> str:
        """Hold `sizes` as the int64 constant that Reshape, Slice and their like take."""
        return self.constant(list(sizes), dtype="int64")

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return that output's name; see `add_many`."""
        return self.add_many(operator, *inputs, count=1, **attributes)[0]

    def add_many(
        self, operator: str, *inputs: str, count: int, name: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Append a node with `count` outputs and return their names.

        An empty input name leaves an optional input out; an attribute of None is not written.
        `name` is a wish for the outputs' name; else they are called after layer and operator.
        """
        from onnx import helper

        stem = name or (f"{self._layer}/{operator}" if self._layer else operator)
        names = [self.fresh(stem) for _ in range(count)]
        given = {key: value for key, value in attributes.items() if value is not None}
        trimmed = list(inputs)
        while trimmed and not trimmed[-1]:
            trimmed.pop()
        self._nodes.append(helper.make_node(operator, trimmed, names, name=names[0], **given))
        return tuple(names)

    @contextlib.contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes made inside apart, for the body of a loop; constants stay outside of it."""
        outer, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = outer

    def output(
        self, name: str, value: str, dtype: str, shape: Sequence[Dimension] | None = None
    ) -> None:
        """Declare `value` as the output `name`; `shape` None leaves it to shape inference."""
        self._outputs.append((name, value, dtype, shape))

    def model(self, *, apart: bool = False) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """Return the graph as a model, its outputs under their own names.

        Where `apart`, large constants are declared without their data and returned beside it.
        """
        from onnx import helper, numpy_helper

        made = {name for node in self._nodes for name in node.output}
        wanted = {name for name, *_ in self._outputs}
        names: dict[str, str] = {}
        copies = []
        for name, value, *_ in self._outputs:
            if value in made and value not in names:
                names[value] = name
            elif value != name or value in self._constants:
                copies.append((value, name))
        for value in (made | set(self._constants)) & wanted - set(names):
            names[value] = self.fresh(f"{value}/inner")  # the name belongs to an output
        nodes = []
        for node in self._nodes:
            nodes.append(type(node)())
            nodes[-1].CopyFrom(node)
        _rename(nodes, names)
        for value, name in copies:
            nodes.append(
                helper.make_node(
                    "Identity", [names.get(value, value)], [name], name=f"{name}/output"
                )
            )
        used = {name for node in nodes for name in node.input} | _captured(nodes)
        constants = {
            names.get(name, name): array
            for name, array in self._constants.items()
            if names.get(name, name) in used
        }
        large = {
            name: array
            for name, array in constants.items()
            if apart and array.nbytes > LARGEST_SHAPE
        }
        graph = helper.make_graph(
            nodes,
            self.name or "model",
            self._inputs,
            [_value(name, dtype, shape) for name, _, dtype, shape in self._outputs],
            [
                _declared(name, array) if name in large else numpy_helper.from_array(array, name)
                for name, array in constants.items()
            ],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="deploykit",
        )
        return model, large

    def inner(self, name: str) -> GraphBuilder:
        """Return a builder of an inner graph (of Loop, Scan, If).

        Names are unique in both, and its constants are held by the outermost graph.
        """
        inner = GraphBuilder(self.fresh(name))
        inner._taken, inner._constants, inner._layer = self._taken, self._constants, self._layer
        return inner

    def makes(self, value: str) -> bool:
        """Return whether a node of this very graph, no inner or outer one, makes `value`."""
        return any(value in node.output for node in self._nodes)

    def inner_graph(self) -> onnx.GraphProto:
        """Return what a builder from `inner` holds, fit for an attribute of a node."""
        from onnx import helper

        outputs = [_value(value, dtype, shape) for _, value, dtype, shape in self._outputs]
        return helper.make_graph(self._nodes, self.name, self._inputs, outputs)

    @property
    def weight_bytes(self) -> int:
        """The size of all constants."""
        return sum(array.nbytes for array in self._constants.values())


def finish(
    builder: GraphBuilder,
    request: ConvertRequest,
    *,
    repairs: Sequence[str] = (),
    packages: Sequence[str] = ("onnx", "numpy"),
    largest: int = LARGEST_MESSAGE,
) -> ConvertResult:
    """Bring the graph to the opset asked for, write it to `request.output`, and report.

    Constants of more than `largest` bytes together go to `request.output` + `.data`. `packages` are
    those whose versions the report names. Raises UsageError or UnsupportedError
    where the opset cannot be reached.
    """
    phase("building the ONNX graph")
    model, weights = builder.model(apart=builder.weight_bytes > largest)
    upgraded: list[str] = []
    if request.opset not in (None, OPSET):
        model, upgraded = upgrade(model, request.opset)
    phase("writing and checking the ONNX graph")
    output = Path(request.output)
    signature = write_streamed(model, weights, output) if weights else write_model(model, output)
    return ConvertResult(
        signature=signature,
        opset=opset_of(model),
        repairs=(*repairs, *upgraded),
        versions={name: version(name) for name in packages},
    )


def _declared(name: str, array: Array) -> onnx.TensorProto:
    import onnx
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.TensorProto(name=name, data_type=kind, dims=array.shape)


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yield the bodies of loops and branches among `nodes`, inner ones too."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            yield graph
            yield from _bodies(graph.node)


def _captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names that bodies read, their own and those from outside."""
    found: set[str] = set()
    for graph in _bodies(nodes):
        found |= {name for node in graph.node for name in node.input}
        found |= {value.name for value in graph.output}
    return found


def _rename(nodes: Sequence[onnx.NodeProto], names: dict[str, str]) -> None:
    """Give values new names, also where bodies read them: ONNX lets no body hide an outer name."""
    inner = [node for graph in _bodies(nodes) for node in graph.node]
    for node in [*nodes, *inner]:
        node.input[:] = [names.get(one, one) for one in node.input]
    for node in nodes:
        node.output[:] = [names.get(one, one) for one in node.output]
    own = {name for node in inner for name in node.output}
    for graph in _bodies(nodes):
        for value in graph.output:
            if value.name not in own:
                value.name = names.get(value.name, value.name)


def _value(name: str, dtype: str, shape: Sequence[Dimension] | None) -> onnx.ValueInfoProto:
    import numpy as np
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
