"""Files with weights: what they hold, and which part of it is the model's."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit._plugins.converters.pytorch.program import first_line

from deploykit.errors import SourceError, UnsupportedError, UsageError

WEIGHTS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("params", "weights", "generator", "ema", "model_ema", "ema_state_dict", "state_dict_ema"),
    *("params_ema", "ema_model", "G", "netG", "student", "teacher", "encoder"),
)
"""Under which keys training scripts keep the model beside its optimizer, the best first."""
MOST_NESTED = 4


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Tensors by name, or a whole nn.Module where a trusted pickle held one."""

    tensors: Mapping[str, Any]
    module: Any = None
    repairs: tuple[str, ...] = ()


def read_weights(path: Path, *, trust: bool, key: str = "") -> Weights:
    """Read a `.pth`, `.pt`, `.bin` or `.safetensors` file, and find the model's part in it.

    `key` names that part (`ema`, `model.state_dict`) where there are several. A pickle's own code
    runs only with `trust`. Raises SourceError where the file cannot be read or has no weights,
    UnsupportedError where it needs code, UsageError where there is no such key.
    """
    from deploykit.formats.content import open_content
    from deploykit.formats.safetensors_file import recognises

    content = open_content(path)
    loaded = _safetensors(path) if recognises(content) else _pickled(path, trust=trust)
    return _part(loaded, path, key)


def _safetensors(path: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from deploykit.formats.content import damaged, open_content
    from deploykit.formats.reading import FormatError
    from deploykit.formats.safetensors_file import tensors

    try:
        places = tensors(open_content(path))
    except FormatError as error:
        raise damaged(path, "safetensors file", error) from error
    # copy on write: torch wants memory that may be written, and nobody writes it
    data = np.memmap(path, dtype=np.uint8, mode="c")
    found = {}
    for name, place in places.items():
        dtype = getattr(torch, place.dtype)
        if place.begin == place.end:
            found[name] = torch.empty(place.shape, dtype=dtype)
            continue
        span = data[place.begin : place.end]
        if place.begin % dtype.itemsize:
            span = np.array(span)  # torch takes aligned memory only
        found[name] = torch.from_numpy(span).view(dtype).reshape(place.shape)
    return found


def _pickled(path: Path, *, trust: bool) -> Any:
    import torch

    is_archive = path.open("rb").read(4) == b"PK\x03\x04"
    try:
        with _harmless_numpy():
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise UnsupportedError(
            f"`{path}` is a pickle that needs code to load, and a pickle can run any code",
            hint="give --trust if you know where it comes from, or `file.py:function`",
        ) from error
    except (AttributeError, ModuleNotFoundError) as error:
        if not trust:
            raise SourceError(f"cannot read `{path}`: {first_line(error)}") from error
        raise UnsupportedError(
            f"`{path}` needs python code that is not here: {first_line(error)}",
            hint="name the file that defines it: --set module=FILE.py:callable",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SourceError(f"cannot read `{path}`: {first_line(error)}") from error


@contextlib.contextmanager
def _harmless_numpy() -> Iterator[None]:
    """Let `weights_only` read numpy's numbers, which training scripts keep beside the weights."""
    import numpy as np
    import torch

    # where it lies moved in numpy 2
    scalar = np.float64(0).__reduce__()[0]
    numbers = [np.dtype(kind) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    with torch.serialization.safe_globals(
        [np.dtype, np.ndarray, scalar, *{type(number) for number in numbers}]
    ):
        yield


def _part(loaded: Any, path: Path, key: str) -> Weights:
    """Follow `key`, or the keys of `WEIGHTS`, to the tensors."""
    import torch

    way: list[str] = []
    notes: list[str] = []
    for part in filter(None, key.split(".")):
        if not isinstance(loaded, Mapping) or part not in loaded:
            raise UsageError(
                f"`{path}` has no `{'.'.join([*way, part])}`",
                hint=f"it has: {', '.join(_sets(loaded)) or 'no sets of weights'}",
            )
        loaded = loaded[part]
        way.append(part)
    while not _is_weights(loaded) and not isinstance(loaded, torch.nn.Module):
        sets = _sets(loaded)
        known = [name for name in WEIGHTS if name in sets] or (sets if len(sets) == 1 else [])
        if not known or len(way) > MOST_NESTED:
            keys = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else ""
            raise SourceError(
                f"`{path}` holds no weights: a {type(loaded).__name__}"
                + (f" with the keys {keys}" if keys else ""),
                hint=f"--set key=NAME, one of {', '.join(sets)}" if sets else "",
            )
        if len(known) > 1:
            notes.append(
                f"the checkpoint also holds {', '.join(f'`{name}`' for name in known[1:])}: "
                f"`--set key={known[1]}` takes that"
            )
        way.append(known[0])
        loaded = loaded[known[0]]
    if way and not key:
        notes.insert(0, f"the weights are under `{'.'.join(way)}` of the checkpoint")
    if isinstance(loaded, torch.nn.Module):
        return Weights(tensors=loaded.state_dict(), module=loaded, repairs=tuple(notes))
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return Weights(tensors=tensors, repairs=tuple(notes))


def _is_weights(value: Any) -> bool:
    """Say whether `value` maps names to tensors, and perhaps to a few numbers."""
    import torch

    if not isinstance(value, Mapping) or not value:
        return False
    if any(isinstance(item, (Mapping, torch.nn.Module)) for item in value.values()):
        return False
    tensors = [name for name, item in value.items() if isinstance(item, torch.Tensor)]
    return len(tensors) * 2 >= len(value) and all(isinstance(name, str) for name in tensors)


def _sets(value: Any) -> list[str]:
    """Return the keys of a checkpoint under which there may be weights."""
    import torch

    if not isinstance(value, Mapping):
        return []
    return [
        str(name)
        for name, item in value.items()
        if isinstance(item, torch.nn.Module)
        or _is_weights(item)
        or (isinstance(item, Mapping) and name in WEIGHTS)
    ]
