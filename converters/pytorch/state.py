"""State that a model keeps between calls, as inputs and outputs: what an ONNX model has instead.

The model is run twice on its example inputs. A tensor that changed is state: it becomes the input
`NAME` and the output `NAME_next`. A number that settled after the first call is fixed to that value;
what keeps changing and is no tensor cannot be expressed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploykit._plugins.converters.pytorch.program import (
    Input,
    Program,
    dtype_name,
    flat_outputs,
    leaf_names,
)
from deploykit._plugins.converters.pytorch.script_graph import Place

from deploykit.errors import UnsupportedError

NEXT = "_next"


@dataclasses.dataclass(frozen=True)
class State:
    """What was found: tensors by place as they are between calls, and settled attributes."""

    slots: Mapping[Place, Any]
    fixed: Mapping[Place, Any]
    fresh: Mapping[Place, Any]


def settled(
    fresh: Mapping[Place, Any], first: Mapping[Place, Any], second: Mapping[Place, Any]
) -> State:
    """Tell tensors from settled values, given the attributes that the calls changed.

    Raises UnsupportedError where an attribute keeps changing and is no tensor of one shape.
    """
    import torch

    slots: dict[Place, Any] = {}
    fixed: dict[Place, Any] = {}
    for place, value in second.items():
        before = first.get(place, fresh.get(place))
        name = ".".join(filter(None, place))
        if isinstance(value, torch.Tensor):
            if not isinstance(before, torch.Tensor) or before.shape != value.shape:
                raise UnsupportedError(
                    f"the state `{name}` grows or changes its shape from call to call: it is "
                    f"{_shown(before)} after one call and {_shown(value)} after two",
                    hint="make it an input and an output of forward, with the growing axis dynamic",
                )
            slots[place] = value.detach().clone()
        elif value == before:
            fixed[place] = value
        else:
            raise UnsupportedError(
                f"the model keeps `{name}` between calls, a {type(value).__name__} that changes: "
                f"{before!r} after one call, {value!r} after two",
                hint="keep it as a tensor, or make it an input and an output of forward",
            )
    return State(slots=slots, fixed=fixed, fresh=fresh)


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value)[:60] if shape is None else str(list(shape))


def with_state(
    program: Program,
    state: State,
    call: Callable[..., tuple[Any, dict[Place, Any]]],
    traceable: Callable[[], Any],
    *,
    first: Sequence[tuple[str, Any]],
) -> Program:
    """Return `program` with its state as further inputs and outputs.

    `call(args, kwargs, state)` runs the source itself with its attributes set to `state` (slots and
    fixed values) and returns its result and the attributes afterwards. `traceable` makes the module
    for torch.export: its forward takes the arguments, then the slots, and returns result and slots.
    `first` is what a call of the fresh source gives.
    """
    import torch
    from torch.utils import _pytree

    args, kwargs = program.arguments(program.leaves)
    places = list(state.slots)
    known = leaf_names(program.argument_names, args, kwargs)
    names = _names(places, known)
    own = [
        program.argument_names[number]
        if number < len(program.argument_names)
        else f"input_{number}"
        for number in range(len(args))
    ]

    def function(*given: Any, **named: Any) -> Any:
        values = given[len(args) :]
        now = {
            **state.fixed,
            **{place: value.clone() for place, value in zip(places, values, strict=True)},
        }
        result, after = call(given[: len(args)], named, now)
        return together(result, [after[place] for place in places])

    def together(result: Any, after: Sequence[Any]) -> dict[str, Any]:
        outputs = flat_outputs(result, known)
        if len(program.output_names) == len(outputs):
            outputs = [
                (name, value)
                for name, (_, value) in zip(program.output_names, outputs, strict=True)
            ]
        return {
            **dict(outputs),
            **{f"{name}{NEXT}": value for name, value in zip(names, after, strict=True)},
        }

    leaves, structure = _pytree.tree_flatten(((*args, *state.slots.values()), dict(kwargs)))
    # the new arguments come after the positional ones and before those by name
    shift = len(places)
    positional = len(_pytree.tree_leaves(args))
    inputs = [
        dataclasses.replace(item, leaf=item.leaf + (shift if item.leaf >= positional else 0))
        for item in program.inputs
    ]
    inputs += [Input(leaf=positional + number, name=name) for number, name in enumerate(names)]

    zeros = [torch.zeros_like(value) for value in state.slots.values()]
    with torch.no_grad():
        from_zeros = function(*args, *zeros, **kwargs)
    first_named = list(zip(from_zeros, (value for _, value in first), strict=False))
    zeros_do = all(
        value.shape == from_zeros[name].shape
        and torch.allclose(value, from_zeros[name], rtol=1e-4, atol=1e-6, equal_nan=True)
        for (name, value) in first_named
        if value.is_floating_point()
    )

    class Stateful(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.source = traceable()

        def forward(self, *given: Any, **named: Any) -> Any:
            return together(*self.source(*given, **named))

    return dataclasses.replace(
        program,
        kind="module",
        model=None,
        make_model=Stateful,
        function=function,
        leaves=tuple(leaves),
        structure=structure,
        argument_names=(*own, *names),
        output_names=(),
        inputs=tuple(inputs),
        repairs=(*program.repairs, *_notes(names, places, state, zeros_do)),
    )


def _names(places: Sequence[Place], taken: Sequence[str]) -> list[str]:
    names: list[str] = []
    for path, attribute in places:
        name = attribute
        if name in taken or sum(other == attribute for _, other in places) > 1:
            name = "_".join([*filter(None, path.split(".")), attribute])
        names.append(f"{name}_state" if name in taken or name in names else name)
    return names


def _notes(
    names: Sequence[str], places: Sequence[Place], state: State, zeros_do: bool
) -> list[str]:
    import torch

    notes = []
    for name, place in zip(names, places, strict=True):
        fresh, value = state.fresh.get(place), state.slots[place]
        start = "start with what a first call of the source gives: zeros are not the same"
        if zeros_do:
            start = "start with zeros"
        elif isinstance(fresh, torch.Tensor) and fresh.shape == value.shape:
            if fresh.numel() and bool((fresh == fresh.flatten()[0]).all()):
                start = f"start with {fresh.flatten()[0].item():.9g} everywhere"
            else:
                start = f"start with the values that `{'.'.join(filter(None, place))}` has in the source"
        notes.append(
            f"the state `{name}` ({dtype_name(value)}{list(value.shape)}) is an input, and its new "
            f"value the output `{name}{NEXT}`; {start}"
        )
    for place, value in state.fixed.items():
        if isinstance(value, torch.Tensor):
            name = ".".join(filter(None, place))
            notes.append(f"`{name}` is fixed to what the first call made of it")
        elif state.fresh.get(place) != value:
            name = ".".join(filter(None, place))
            notes.append(f"`{name}` is fixed to {value!r}, its value after the first call")
    return notes
