"""Finding the state that a module or a script keeps: by running it and looking at what changed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deploykit._plugins.converters.pytorch import spectral
from deploykit._plugins.converters.pytorch.interpreter import Interpreter
from deploykit._plugins.converters.pytorch.program import Program, as_tree, flat_outputs
from deploykit._plugins.converters.pytorch.script_graph import Place, attributes, nodes
from deploykit._plugins.converters.pytorch.state import settled, with_state

VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        *("select", "slice", "view", "narrow", "expand", "transpose", "permute", "squeeze"),
        *("unsqueeze", "detach", "alias", "t", "reshape", "flatten", "unbind", "chunk", "split"),
    )
)
"""Operators whose result is the same memory as their first argument."""


# ---- scripts


def writes(script: Any) -> bool:
    """Say whether forward assigns an attribute, or changes one in place, wherever in its text."""
    for node in nodes(script.inlined_graph):
        kind = node.kind()
        if kind == "prim::SetAttr":
            return True
        if kind.endswith("_") and not kind.endswith("__") and kind.startswith("aten::"):
            value = next(node.inputs(), None)
            while value is not None and value.node().kind() in VIEWS:
                value = next(value.node().inputs())
            if value is not None and value.node().kind() == "prim::GetAttr":
                return True
    return False


def script_with_state(program: Program) -> Program:
    """Return the program of a script with its state, if it keeps any, as inputs and outputs."""
    import torch
    from deploykit._plugins.converters.pytorch.scripted import traceable

    script = program.model
    if not writes(script):
        return program
    args, _ = program.arguments(program.leaves)
    copies: dict[Place, Any] = {}
    parameters = {id(parameter) for parameter in script.parameters()}

    def own_copy(place: Place, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) in parameters:
            return value
        if place not in copies:
            copies[place] = value.clone()
        return copies[place]

    interpreter = Interpreter(script, special={"aten::stft": spectral.computed}, attribute=own_copy)
    found: list[dict[Place, Any]] = []
    results = []
    for _ in range(2):
        with torch.no_grad():
            results.append(interpreter(*args, state=found[-1] if found else None))
        changed = {place: value for place, value in copies.items() if value._version}
        found.append({**changed, **interpreter.written})
    # no branch that these arguments take writes anything
    if not found[-1]:
        return dataclasses.replace(program, legacy=False)
    fresh = {place: value for place, value in attributes(script).items() if place in found[-1]}
    state = settled(fresh, *found)

    def call(args: Any, _: Any, values: Mapping[Place, Any]) -> tuple[Any, dict[Place, Any]]:
        if isinstance(program.function, Interpreter):
            result = program.function(*args, state=values)
            return result, program.function.written
        with _attributes_of(script, values) as now:
            return program.function(*args), now()

    def make() -> Any:
        return traceable(script, state.fixed, list(state.slots))

    return with_state(program, state, call, make, first=flat_outputs(results[0], ()))


@contextlib.contextmanager
def _attributes_of(
    script: Any, values: Mapping[Place, Any]
) -> Iterator[Callable[[], dict[Place, Any]]]:
    """Set attributes of a script inside the block; the function that it gives reads them."""
    owners = {place: _submodule(script, place[0]) for place in values}
    before = {place: getattr(owner, place[1]) for place, owner in owners.items()}
    for place, owner in owners.items():
        setattr(owner, place[1], values[place])
    try:
        yield lambda: {place: getattr(owner, place[1]) for place, owner in owners.items()}
    finally:
        for place, owner in owners.items():
            setattr(owner, place[1], before[place])


def _submodule(script: Any, path: str) -> Any:
    owner = script
    for part in filter(None, path.split(".")):
        owner = getattr(owner, part)
    return owner


# ---- modules


def module_with_state(program: Program) -> Program:
    """Return the program of an nn.Module with its state, if it keeps any, as inputs and outputs."""
    import torch

    module = program.model
    args, kwargs = program.arguments(program.leaves)
    kept = dict(_held(module))
    copies = {
        place: value.clone() if isinstance(value, torch.Tensor) else value
        for place, value in kept.items()
    }
    versions = {
        place: value._version for place, value in kept.items() if isinstance(value, torch.Tensor)
    }

    def changed() -> dict[Place, Any]:
        now = dict(_held(module))
        return {
            place: value
            for place, value in now.items()
            if place not in kept
            or value is not kept[place]
            or (isinstance(value, torch.Tensor) and value._version != versions[place])
        }

    try:
        with torch.no_grad():
            result = program.function(*args, **kwargs)
        first = changed()
        if not first:
            program = dataclasses.replace(program, outputs=tuple(program.named_outputs(result)))
            return program if _is_known(result) else _plain_results(program)
        result = flat_outputs(result, ())
        left = {place: (value, getattr(value, "_version", 0)) for place, value in first.items()}
        first = {place: _copied(value) for place, value in first.items()}
        # other tensors than before: an attribute may keep the argument itself
        others = [_copied(leaf) for leaf in program.leaves]
        again, named = program.arguments(others)
        with torch.no_grad():
            program.function(*again, **named)
        second = changed()
        # a table that the first call made, and the second one only read
        made_once = {
            place: value.detach()
            for place, value in second.items()
            if isinstance(value, torch.Tensor)
            and left.get(place, (None, 0))[0] is value
            and left[place][1] == value._version
        }
        second = {
            place: _copied(value) for place, value in second.items() if place not in made_once
        }
    finally:
        _restore(module, kept, copies)
    state = settled({place: copies.get(place) for place in second}, first, second)
    state = dataclasses.replace(state, fixed={**state.fixed, **made_once})

    def call(args: Any, kwargs: Any, values: Mapping[Place, Any]) -> tuple[Any, dict[Place, Any]]:
        with _held_as(module, values):
            return module(*args, **kwargs), {place: _value(module, place) for place in values}

    class Called(torch.nn.Module):  # type: ignore[misc]
        """Takes and gives the state beside the arguments and the result."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *given: Any, **named: Any) -> Any:
            count = len(given) - len(state.slots)
            slots = dict(zip(state.slots, (one.clone() for one in given[count:]), strict=True))
            result, after = call(given[:count], named, {**state.fixed, **slots})
            return as_tree(result), [after[place] for place in state.slots]

    return with_state(program, state, call, Called, first=result)


def _is_known(result: Any) -> bool:
    """Say whether torch.export can flatten what a module returns."""
    from torch.utils import _pytree

    return not any(
        dataclasses.is_dataclass(leaf) or isinstance(leaf, Mapping)
        for leaf in _pytree.tree_leaves(result)
    )


def _plain_results(program: Program) -> Program:
    """Return `program` with a model that gives dicts where its module gives dataclasses."""
    import torch

    module = program.model

    class Plain(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *given: Any, **named: Any) -> Any:
            return as_tree(self.module(*given, **named))

    return dataclasses.replace(program, make_model=lambda: Plain().eval())


def _copied(value: Any) -> Any:
    import torch

    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _held(module: Any) -> Iterator[tuple[Place, Any]]:
    """Yield the buffers of a module and the plain attributes that could be state."""
    import torch

    own = set(vars(torch.nn.Module())) | {"training"}
    kinds = (torch.Tensor, int, float, bool, str, type(None), tuple, list)
    for path, part in module.named_modules():
        plain = ((name, value) for name, value in vars(part).items() if name not in own)
        for name, value in itertools.chain(part._buffers.items(), plain):
            if isinstance(value, kinds):
                yield (path, name), value


def _value(module: Any, place: Place) -> Any:
    return getattr(module.get_submodule(place[0]), place[1])


def _put(module: Any, place: Place, value: Any) -> None:
    part = module.get_submodule(place[0])
    if place[1] in part._buffers:
        part._buffers[place[1]] = value
    else:
        part.__dict__[place[1]] = value


@contextlib.contextmanager
def _held_as(module: Any, values: Mapping[Place, Any]) -> Iterator[None]:
    absent = object()
    before = {place: getattr(module.get_submodule(place[0]), place[1], absent) for place in values}
    for place, value in values.items():
        _put(module, place, value)
    try:
        yield
    finally:
        for place, value in before.items():
            if value is absent:
                module.get_submodule(place[0]).__dict__.pop(place[1], None)
            else:
                _put(module, place, value)


def _restore(module: Any, kept: Mapping[Place, Any], copies: Mapping[Place, Any]) -> None:
    import torch

    for place in dict(_held(module)):
        if place not in kept:
            module.get_submodule(place[0]).__dict__.pop(place[1], None)
            continue
        value = kept[place]
        if isinstance(value, torch.Tensor) and value is not copies[place]:
            with torch.no_grad():
                if value._version and not torch.equal(value, copies[place]):
                    value.copy_(copies[place])
        _put(module, place, value)


# ---- exported programs


def writes_in_place(exported: Any) -> bool:
    """Say whether an ExportedProgram changes a buffer in place."""
    changes = (
        node.op == "call_function"
        and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        for node in exported.graph.nodes
    )
    if not any(changes):
        return False
    # only the functional form says what is written in place
    functional = exported.run_decompositions({})
    return bool(functional.graph_signature.buffers_to_mutate)
