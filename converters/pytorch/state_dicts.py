"""Weights alone, joined with the code of their network."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.pytorch.checkpoints import Weights, read_weights
from deploykit._plugins.converters.pytorch.modules import (
    found_file,
    made_by_user,
    module_program,
)
from deploykit._plugins.converters.pytorch.program import Program

from deploykit import user_code
from deploykit.errors import SourceError, UnsupportedError
from deploykit.protocol import Source

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "_model.", "ema_model.")
"""Prefixes that DataParallel, torch.compile and training frameworks put before every name."""
SHOWN = 8


def load_state_dict(source: Source) -> Program:
    """Load weights into the network of the setting `module`; or a whole module, where trusted.

    Raises UnsupportedError where there is no code, SourceError where the two do not fit.
    """
    path = Path(source.location)
    reference = source.options.get("module", "")
    if reference:
        file, _, name = reference.rpartition(":")
        if not file or not name:
            raise SourceError(
                f"the setting `module` is `{reference}`", hint="--set module=FILE.py:callable"
            )
        code = found_file(file, path.parent, "module")
        if source.trust:
            _lend_to_pickles(code)
        reference = f"{code}:{name}"
    if source.trust:
        sys.path.insert(0, str(path.parent))  # a pickle names its classes by their module
    weights = read_weights(path, trust=source.trust, key=source.options.get("key", ""))
    if not reference:
        if weights.module is None:
            raise _weights_only(path, weights)
        program = module_program(weights.module, None, None, source.inputs)
        return dataclasses.replace(program, repairs=weights.repairs)
    module, examples, dynamic_shapes = made_by_user(reference)
    repairs = load_into(module, weights, path)
    program = module_program(module, examples, dynamic_shapes, source.inputs)
    return dataclasses.replace(program, repairs=repairs)


def _lend_to_pickles(code: Path) -> None:
    """Let a pickle find the classes of `code` where a script that saved itself had them."""
    main = sys.modules["__main__"]
    for name, value in vars(user_code.imported(str(code))).items():
        if isinstance(value, type) and not hasattr(main, name):
            setattr(main, name, value)


def _weights_only(path: Path, weights: Weights) -> UnsupportedError:
    names = list(weights.tensors)
    return UnsupportedError(
        f"`{path}` holds weights only ({len(names)} tensors: {_listed(names, 3)}), "
        "which do not say what to compute",
        hint="name the python code that builds the network: --set module=FILE.py:callable "
        "--input x:float32[1,3,224,224]; `file.py:function` that returns (network, example_inputs) "
        "does as well",
    )


def load_into(module: Any, weights: Weights, path: Path) -> tuple[str, ...]:
    """Load `weights` into `module` and return what was mended on the way.

    Raises SourceError that lists the names that are missing, left over or of another shape.
    """
    wanted = module.state_dict()
    tensors, repairs = _without_wrapper(weights.tensors, wanted)
    tensors = _deparametrised(tensors, wanted)
    shapes = [
        f"`{name}` is {list(tensors[name].shape)}, the module has {list(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    # older than PyTorch 0.4.1; in evaluation nothing reads it
    missing = [
        name for name in wanted if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    over = [name for name in tensors if name not in wanted]
    if missing or over or shapes:
        wrong = [
            *([f"missing {len(missing)}: {_listed(missing, SHOWN)}"] if missing else []),
            *([f"unexpected {len(over)}: {_listed(over, SHOWN)}"] if over else []),
            *([f"other shapes: {'; '.join(shapes[:SHOWN])}"] if shapes else []),
        ]
        raise SourceError(
            f"the weights of `{path.name}` are not those of this module: {', '.join(wrong)}",
            hint="build the module with the arguments that it was trained with",
        )
    _load(module, tensors, wanted)
    cast = sorted(
        {
            f"{_dtype(tensors[name])} became {_dtype(value)}"
            for name, value in wanted.items()
            if name in tensors and tensors[name].dtype != value.dtype
        }
    )
    notes = [f"weights of {one}, as the module has them" for one in cast]
    return (*weights.repairs, *repairs, *notes)


def _load(module: Any, tensors: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    import torch

    same = all(
        name in tensors and tensors[name].dtype == value.dtype for name, value in wanted.items()
    )
    with torch.no_grad():
        # without a copy where that is possible: large models come mapped from their file
        module.load_state_dict(dict(tensors), strict=False, assign=same)
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=False)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _without_wrapper(
    tensors: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Take off the prefixes that every name has and the module's do not."""
    found = dict(tensors)
    repairs = []
    while found and not set(found) & set(wanted):
        prefix = _common(found)
        if prefix is None:
            break
        stripped = {name.removeprefix(prefix): value for name, value in found.items()}
        if prefix not in WRAPPERS and not set(stripped) & set(wanted):
            break
        found = stripped
        repairs.append(f"the names in the checkpoint begin with `{prefix}`, which was taken off")
    return found, repairs


def _common(names: Mapping[str, Any]) -> str | None:
    first = next(iter(names)).partition(".")[0] + "."
    return first if all(name.startswith(first) and name != first for name in names) else None


def _deparametrised(tensors: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Take the names that weight normalisation had before it was a parametrisation, or has now."""
    names = (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    )
    found = dict(tensors)
    for new, old in names:
        for ours, theirs in ((new, old), (old, new)):
            for name in [one for one in wanted if one.endswith(f".{ours}") and one not in found]:
                other = f"{name.removesuffix(ours)}{theirs}"
                if other in found:
                    found[name] = found.pop(other)
    return found


def _listed(names: Sequence[str], most: int) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"`{name}`" for name in names[:most]) + rest
