"""Where a graph decodes files, text or examples, or takes batches from a queue: begin behind that.

ONNX has no operators for these, and a model is deployed with numbers as inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deploykit.errors import UnsupportedError

_FRONT = (
    "Decode",
    "AudioSpectrogram",
    "Mfcc",
    "ParseExample",
    "ParseSingleExample",
    "ParseSequenceExample",
    "Iterator",
    "QueueDequeue",
    "Reader",
    "ReadFile",
    "StringToNumber",
    "StringToHash",
    "RegexReplace",
    "Substr",
)
"""How the names of operators begin that make numbers of files, text or queues."""
_STRING = 7
"""TensorFlow's number for the dtype."""
_ARRANGES = frozenset({"Reshape", "Identity", "ExpandDims", "Squeeze"})
_LOOPS = ("Enter", "TensorArray", "TensorList", "While", "StatelessWhile", "Map")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """`inputs` are the tensors where the graph begins, in the order of the graph."""

    inputs: tuple[str, ...]
    repairs: tuple[str, ...] = ()


def begin_at_numbers(graph: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Cut:
    """Return `inputs`, those in front of decoders and queues replaced by what comes behind them.

    What is only reshaped next is passed over, where its size is known. Raises UnsupportedError where what comes behind is no tensor of numbers.
    """
    needed = _operations(graph, outputs, stops=inputs)
    front = {
        operation.name
        for operation in needed
        if _is_front(operation)
        or (operation.type.startswith("Placeholder") and _is_text(operation))
    }
    if not any(_is_front(operation) for operation in needed):
        return Cut(inputs=inputs)
    for operation in needed:  # from the beginning on
        if any(source.op.name in front for source in operation.inputs) and _is_text(operation):
            front.add(operation.name)
    found: dict[str, tuple[str, str]] = {}
    for operation in needed:
        for tensor in operation.inputs:
            if operation.name in front or tensor.op.name not in front:
                continue
            if tensor.dtype.name in ("string", "variant", "resource") or operation.type.startswith(
                _LOOPS
            ):
                raise UnsupportedError(
                    f"node `{operation.name}` ({operation.type}) works on text or files, "
                    "for which ONNX has no operators",
                    hint="name the tensors of numbers that come of it: `--set inputs=NODE:0`",
                    operators=(operation.type,),
                )
            begin = _to_known_size(tensor, needed)
            found[begin.name] = (begin.name.removesuffix(":0"), tensor.op.type)
    if not found:
        return Cut(inputs=inputs)
    kept = tuple(
        name for name in inputs if graph.get_tensor_by_name(_full(name)).op.name not in front
    )
    operators = sorted({graph.get_operation_by_name(name).type for name in front})
    decoders = [name for name in operators if not name.startswith("Placeholder")]
    what = "`, `".join(sorted(name for name, _ in found.values()))
    return Cut(
        inputs=(*kept, *sorted(name.removesuffix(":0") for name in found)),
        repairs=(
            (
                f"the graph begins at `{what}`: ONNX has no {', '.join(decoders)}, "
                "so prepare what goes in there as the source model does"
            ),
        ),
    )


def refuse_tables(nodes: Iterable[Any]) -> None:
    """Raise UnsupportedError where one of `nodes` looks something up in a table."""
    for node in nodes:
        if node.op.startswith("LookupTableFind"):
            words = node.attr["Tin"].type == _STRING
            raise UnsupportedError(
                f"node `{node.name}` ({node.op}) looks {'words' if words else 'keys'} up in a table, "
                "for which ONNX has no operator",
                hint="look up before the model: take the numbers that the table gives as the input "
                "(in a GraphDef `--set inputs=NODE:0`, else export a signature that does)",
                operators=(node.op,),
            )


def _full(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _is_front(operation: Any) -> bool:
    return bool(operation.type.startswith(_FRONT))


def _is_text(operation: Any) -> bool:
    return any(tensor.dtype.name == "string" for tensor in operation.outputs)


def _operations(graph: Any, outputs: tuple[str, ...], stops: tuple[str, ...]) -> list[Any]:
    """Return the operations that `outputs` need and that lie behind no other input, first ones first."""
    ends = {_full(name) for name in stops}
    seen: set[str] = set()
    waiting = [graph.get_tensor_by_name(_full(name)).op for name in outputs]
    while waiting:
        operation = waiting.pop()
        if operation.name in seen:
            continue
        seen.add(operation.name)
        waiting.extend(tensor.op for tensor in operation.inputs if tensor.name not in ends)
        waiting.extend(tensor.op for tensor in operation.inputs if tensor.op.type == "Placeholder")
    found = [operation for operation in graph.get_operations() if operation.name in seen]
    return _sources_first(found)


def _sources_first(operations: list[Any]) -> list[Any]:
    """Sort by data edges; what turns in a loop comes in the order of the graph."""
    names = {operation.name for operation in operations}
    done: set[str] = set()
    found: list[Any] = []
    left = list(operations)
    while left:
        ready = [
            one
            for one in left
            if all(t.op.name in done or t.op.name not in names for t in one.inputs)
        ] or left[:1]
        found.extend(ready)
        done.update(one.name for one in ready)
        left = [one for one in left if one.name not in done]
    return found


def _to_known_size(tensor: Any, needed: list[Any]) -> Any:
    """Return what `tensor` is only reshaped to, where the sizes of that are known, else `tensor`.

    The first size may be unknown, a batch.
    """
    names = {operation.name for operation in needed}
    readers = [one for one in tensor.consumers() if one.name in names]
    if len(readers) != 1 or readers[0].type not in _ARRANGES or readers[0].inputs[0] is not tensor:
        return tensor
    after = readers[0].outputs[0]
    known = after.shape.rank is not None and None not in after.shape.as_list()[1:]
    return after if known else tensor
