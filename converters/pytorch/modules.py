"""Python modules: the user's own file builds the network."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.pytorch.axes import (
    example_tensor,
    flat_marks,
    program_of,
    with_specs,
    with_user_marks,
)
from deploykit._plugins.converters.pytorch.program import Program
from deploykit._plugins.converters.pytorch.script import script_program

from deploykit import user_code
from deploykit.errors import SourceError, UsageError
from deploykit.protocol import Source, TensorSpec

RETURNS = "return the module, or (module, example_inputs[, dynamic_shapes])"


def load_module(source: Source) -> Program:
    """Load what `FILE.py:callable` returns, with the weights of the setting `weights`, if given."""
    import torch
    from deploykit._plugins.converters.pytorch.checkpoints import read_weights
    from deploykit._plugins.converters.pytorch.state_dicts import load_into

    made, examples, dynamic_shapes = made_by_user(source.location)
    if isinstance(made, torch.jit.ScriptModule):
        args, kwargs = ((), {}) if examples is None else _as_arguments(examples, [])
        return script_program(made, source, (*args, *kwargs.values()))
    repairs: tuple[str, ...] = ()
    if weights := source.options.get("weights"):
        path = found_file(weights, Path(source.location.rpartition(":")[0]).parent, "weights")
        found = read_weights(path, trust=source.trust, key=source.options.get("key", ""))
        repairs = load_into(made, found, path)
    program = module_program(made, examples, dynamic_shapes, source.inputs)
    return dataclasses.replace(program, repairs=repairs)


def found_file(text: str, beside: Path, what: str) -> Path:
    """Return the file that a setting names: absolute, beside the model, or where the user is.

    Raises SourceError naming the places where it is not.
    """
    places = [Path(text)] if Path(text).is_absolute() else [beside / text]
    if not Path(text).is_absolute() and (user := os.environ.get("PWD")):
        places.append(Path(user) / text)  # a worker runs in a folder of its own
    for place in places:
        if place.is_file():
            return place
    raise SourceError(
        f"the setting `{what}` names no file: {', '.join(f'`{place}`' for place in places)}",
        hint=f"give its full path: --set {what}=/…/{Path(text).name}",
    )


def module_program(
    module: Any, examples: Any, dynamic_shapes: Any, specs: tuple[TensorSpec, ...]
) -> Program:
    """Return the program of an nn.Module, its arguments from `examples`, overridden by `specs`."""
    module.eval()
    if examples is None:
        examples = getattr(module, "example_inputs", None)
    parameters = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    names = [parameter.name for parameter in parameters]
    if examples is None:
        args, kwargs = _from_specs(specs, names, _required(parameters))
        specs_left: tuple[TensorSpec, ...] = ()
    else:
        args, kwargs = _as_arguments(examples, names)
        specs_left = specs
    program = program_of("module", module, module, args, kwargs, names)
    if dynamic_shapes is not None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        program = with_user_marks(program, flat_marks(dict(bound), dynamic_shapes))
    return with_specs(program, specs_left or (specs if examples is None else ()))


def made_by_user(location: str) -> tuple[Any, Any, Any]:
    """Return the module, its example inputs and its dynamic shapes that `file.py:callable` gives.

    What it does not give is None. Raises SourceError where it gives no module.
    """
    import torch

    made = user_code.made_by_user(location, hint=RETURNS)
    examples: Any = None
    dynamic_shapes: Any = None
    if isinstance(made, tuple) and 2 <= len(made) <= 3:
        made, examples, dynamic_shapes = (*made, None)[:3]
    if not isinstance(made, (torch.nn.Module, torch.jit.ScriptModule)):
        raise SourceError(
            f"`{location}` returned a {type(made).__name__}, not a torch.nn.Module",
            hint=RETURNS,
        )
    return made, examples, dynamic_shapes


def _required(parameters: Iterable[inspect.Parameter]) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _as_arguments(examples: Any, names: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import numpy as np
    import torch
    from torch.utils import _pytree

    examples = _pytree.tree_map(
        lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, examples
    )
    if isinstance(examples, torch.Tensor):
        return (examples,), {}
    if isinstance(examples, dict):
        return (), {name: examples[name] for name in [*names, *examples] if name in examples}
    if isinstance(examples, (tuple, list)):
        return tuple(examples), {}
    raise SourceError(
        f"example inputs must be a tensor, a tuple or a dict, found {type(examples).__name__}"
    )


def _from_specs(
    specs: tuple[TensorSpec, ...], names: list[str], required: list[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = {spec.name: spec for spec in specs}
    missing = [name for name in required if name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        wrong = f"no `--input` for {', '.join(missing)}" if missing else ""
        wrong += (" and " if missing and unknown else "") + (
            f"no argument named {', '.join(unknown)}" if unknown else ""
        )
        raise UsageError(
            f"shapes of the inputs are not in this model: {wrong} (arguments: {', '.join(names)})",
            hint=f"for example --input {(missing or names or ['x'])[0]}:float32[1,3,224,224]",
        )
    kwargs: dict[str, Any] = {}
    args: list[Any] = []
    for name in names:
        if name not in given:
            break
        args.append(example_tensor(given[name]))
    for name in names[len(args) :]:
        if name in given:
            kwargs[name] = example_tensor(given[name])
    return tuple(args), kwargs
