"""Variables that a model writes when it runs: explicit inputs and outputs, as ONNX keeps state.

The graph is flattened (functions inlined), then the reads and writes of each such variable are
followed in the order that data and control edges give: the first read takes the input, later ones
what was written last, and the output is what the variable holds at the end.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.tensorflow import flattening

from deploykit.errors import UnsupportedError
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_WRITES = {
    "AssignVariableOp": "",
    "AssignAddVariableOp": "AddV2",
    "AssignSubVariableOp": "Sub",
    "Assign": "",
    "AssignAdd": "AddV2",
    "AssignSub": "Sub",
}
"""Operators that write a variable, and what computes the new value from the old and the given one."""
_OTHER_WRITES = frozenset(
    [
        "ScatterUpdate",
        "ScatterAdd",
        "ScatterSub",
        "ScatterNdUpdate",
        "ResourceScatterUpdate",
        "ResourceScatterAdd",
        "ResourceScatterNdUpdate",
        "ResourceStridedSliceAssign",
        "LookupTableInsert",
        "LookupTableInsertV2",
        "TensorListPushBackResource",
        "StackPushV2Resource",
    ]
)
_HANDLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_ALIASES = frozenset({"Identity"})


METADATA = "deploykit.state"
"""The key in an ONNX model's metadata that holds `metadata()`."""


@dataclass(frozen=True, kw_only=True)
class StateVariable:
    """A variable that becomes an input and an output; `tensor` is its place in the flat graph."""

    node: str
    tensor: str
    result: str
    input: TensorSpec
    output: TensorSpec
    initial: Array


@dataclass(frozen=True, kw_only=True)
class State:
    """All state of a model, and its flat graph, which no longer writes anything."""

    variables: tuple[StateVariable, ...]
    graph_def: Any
    outputs: tuple[str, ...]


def writes(graph_def: Any, needed: set[str]) -> dict[str, str]:
    """Return the operators that write variables among the `needed` nodes, and a node of each."""
    found: dict[str, str] = {}
    for node in flattening.nodes_and_bodies(graph_def, needed):
        if node.op in _WRITES or node.op in _OTHER_WRITES:
            found.setdefault(node.op, node.name)
    return found


def explicit(
    session: Any, outputs: Iterable[str], stops: Iterable[str], taken: Iterable[str]
) -> State:
    """Turn the variables that `outputs` write into inputs and outputs.

    `taken` are the names that inputs and outputs have already. Raises UnsupportedError where the
    order of reads and writes is not determined, or a variable is written in a way not known here.
    """
    flat, names = flattening.flat_graph(session, tuple(outputs), tuple(stops))
    nodes = {node.name: node for node in flat.node}
    for node in flattening.nodes_and_bodies(flat, set(nodes)):
        # inside a loop or a branch, which stay functions
        inner = node.op in _WRITES and nodes.get(node.name) != node
        if node.op in _OTHER_WRITES or inner:
            raise _refusal(node)
    written: dict[str, list[Any]] = {}
    for node in list(flat.node):
        if node.op in _WRITES:
            written.setdefault(_variable(node.input[0], nodes), []).append(node)
    used = set(taken)
    variables = []
    for number, name in enumerate(written):
        if name not in nodes or nodes[name].op not in _HANDLES:
            raise _refusal(written[name][0])
        variables.append(_rewritten(session, flat, name, number, used))
    return State(variables=tuple(variables), graph_def=flat, outputs=names)


def metadata(state: State) -> str:
    """Return what a runtime must know of the state, as JSON: pairs of names, and values to begin with.

    `initial` is `zeros`, or the values in base64, little-endian, in the order of C.
    """
    return json.dumps(
        [
            {
                "input": item.input.name,
                "output": item.output.name,
                "dtype": item.input.dtype,
                "shape": list(item.initial.shape),
                "initial": base64.b64encode(item.initial.tobytes()).decode()
                if item.initial.any()
                else "zeros",
            }
            for item in state.variables
        ]
    )


def _refusal(node: Any) -> UnsupportedError:
    return UnsupportedError(
        f"the model keeps state between calls in a way that ONNX has no form for: "
        f"node `{node.name}` ({node.op})",
        hint="export a variant whose state is an input and an output",
        operators=(node.op,),
    )


def _variable(tensor: str, nodes: dict[str, Any]) -> str:
    """Return the variable behind a handle or a reference."""
    name = tensor.split(":")[0].removeprefix("^")
    while name in nodes and (nodes[name].op in _ALIASES or nodes[name].op in _WRITES):
        name = nodes[name].input[0].split(":")[0]
    return name


def _rewritten(session: Any, flat: Any, name: str, number: int, used: set[str]) -> StateVariable:
    """Replace one variable in `flat`, in place."""
    import tensorflow as tf

    nodes = {node.name: node for node in flat.node}
    handle = nodes[name]
    tensor, result = f"state_{number}", f"state_{number}_result"
    events = _in_order(flat, nodes, name)
    current = tensor
    for node in events:
        if node.op in _WRITES:
            current = _write(flat, node, current)
        elif node.op == "ReadVariableOp":
            _become(node, "Identity", [current], T=node.attr["dtype"].type)
        elif node.op == "ResourceGather":
            _gather(flat, node, current)
        elif handle.op != "VarHandleOp":
            for at, source in enumerate(node.input):
                if not source.startswith("^") and _reads(source, name, nodes):
                    node.input[at] = current
        else:
            raise _refusal(node)
    value = _value(session, name, handle.op)
    dtype = tf.dtypes.as_dtype(handle.attr["dtype"].type)
    flat.node.add(name=tensor, op="Placeholder").attr["dtype"].type = dtype.as_datatype_enum
    _become(flat.node.add(name=result), "Identity", [current], T=dtype.as_datatype_enum)
    sizes = tuple(int(size) for size in value.shape)
    plain = name.rpartition(":")[2]
    names = []
    for end in ("", "_next"):
        free = plain if f"{plain}{end}" not in used else f"{plain}_{number}"
        used.add(f"{free}{end}")
        names.append(f"{free}{end}")
    return StateVariable(
        node=name,
        tensor=f"{tensor}:0",
        result=result,
        input=TensorSpec(name=names[0], dtype=dtype.name, shape=sizes),
        output=TensorSpec(name=names[1], dtype=dtype.name, shape=sizes),
        initial=value,
    )


def _reads(source: str, name: str, nodes: dict[str, Any]) -> bool:
    plain = source.split(":")[0]
    if plain == name:
        return True
    # a write gives the reference on
    return nodes[plain].op in _WRITES and _variable(source, nodes) == name


def _in_order(flat: Any, nodes: dict[str, Any], name: str) -> list[Any]:
    """Return the nodes that read or write a variable, in the order in which they run.

    Raises UnsupportedError where a write and another of them may run in either order.
    """
    is_handle = nodes[name].op == "VarHandleOp"
    events = []
    for node in flat.node:
        sources = [source for source in node.input if not source.startswith("^")]
        touched = [source for source in sources if _touches(source, name, nodes)]
        if touched and not (is_handle and node.op in _ALIASES):
            events.append(node)
    chosen = {node.name for node in events}
    before = {node.name: (_ancestors(node.name, nodes) & chosen) - {node.name} for node in events}
    for node in events:
        if node.op in _WRITES:
            for other in events:
                ordered = other.name in before[node.name] or node.name in before[other.name]
                if other is not node and not ordered:
                    raise UnsupportedError(
                        f"the model writes its state `{name}` (node `{node.name}`) and uses it "
                        f"(node `{other.name}`) in no certain order",
                        hint="export a variant whose state is an input and an output",
                        operators=(node.op,),
                    )
    return sorted(events, key=lambda node: len(before[node.name]))


def _touches(source: str, name: str, nodes: dict[str, Any]) -> bool:
    plain = source.split(":")[0]
    if plain not in nodes:
        return False
    if nodes[name].op == "VarHandleOp":
        return nodes[plain].op in (*_ALIASES, *_HANDLES) and _variable(source, nodes) == name
    return plain == name or (nodes[plain].op in _WRITES and _variable(source, nodes) == name)


def _ancestors(name: str, nodes: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in found or one not in nodes:
            continue
        found.add(one)
        waiting.extend(part.removeprefix("^").split(":")[0] for part in nodes[one].input)
    return found


def _write(flat: Any, node: Any, current: str) -> str:
    """Make a write a value; return the name of the tensor that the variable holds after it."""
    given = node.input[1]
    kind = node.attr["dtype"].type or node.attr["T"].type
    if not _WRITES[node.op]:
        fresh, operator, inputs = f"{node.name}/value", "Identity", [given]
    else:
        fresh, operator, inputs = f"{node.name}/value", _WRITES[node.op], [current, given]
    _become(flat.node.add(name=fresh), operator, inputs, T=kind)
    controls = [source for source in node.input if source.startswith("^")]
    if node.op.endswith("VariableOp"):
        _become(node, "NoOp", controls)
    else:  # its result is read as well
        _become(node, "Identity", [fresh, *controls], T=kind)
    return fresh


def _gather(flat: Any, node: Any, current: str) -> None:
    import tensorflow as tf

    if node.attr["batch_dims"].i:
        raise _refusal(node)
    kinds = {"Tparams": node.attr["dtype"].type, "Tindices": node.attr["Tindices"].type}
    axis = flat.node.add(name=f"{node.name}/axis", op="Const")
    axis.attr["dtype"].type = tf.int32.as_datatype_enum
    axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(0, tf.int32))
    inputs = [current, node.input[1], axis.name]
    _become(node, "GatherV2", inputs, Taxis=tf.int32.as_datatype_enum, **kinds)


def _become(node: Any, operator: str, inputs: list[str], **types: int) -> None:
    node.op = operator
    del node.input[:]
    node.input.extend(inputs)
    node.attr.clear()
    for name, value in types.items():
        node.attr[name].type = value


def _value(session: Any, name: str, operator: str) -> Array:
    value: Array
    if operator == "VarHandleOp":
        value = session.run(flattening.read_operation(session.graph, name))
    else:
        value = session.run(f"{name}:0")
    return value
