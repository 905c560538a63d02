"""Code that the user names, `FILE.py:callable`: imported and called, for converters of models by reference.

This file also runs inside plugin environments: standard library only, Python 3.10.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError


def imported(file: str) -> types.ModuleType:
    """Import the python file, whose neighbours it may import in turn.

    Raises SourceError where there is none, it is no code of Python 3, or a package is missing.
    """
    path = Path(file)
    if not path.is_file():
        raise SourceError(f"no python file `{path}`", hint="the form is `file.py:function`")
    # the file may import its neighbours, also later, when the model runs
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"deploykit_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SourceError(f"`{path}` is no python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise SourceError(
            f"`{error.filename}`, line {error.lineno}: {error.msg}",
            hint="code for Python 2 must be brought to Python 3 first",
        ) from error
    except ModuleNotFoundError as error:
        raise SourceError(
            f"`{path}` imports `{error.name}`, which the environment of the converter does not have",
            hint="put that package's folder beside the file, or leave the import out of it",
        ) from error
    return module


def made_by_user(location: str, *, hint: str) -> Any:
    """Return what `FILE.py:callable` returns, or the object of that name where it is none to call.

    `hint` says what it should return. Raises SourceError as `imported` does, and where the file has no
    such name or the callable asks for arguments.
    """
    file, _, name = location.rpartition(":")
    module = imported(file)
    if not hasattr(module, name):
        own = [
            key
            for key, item in vars(module).items()
            if callable(item) and getattr(item, "__module__", "") == module.__name__
        ]
        raise SourceError(
            f"`{Path(file).name}` defines no `{name}`",
            hint=f"it defines: {', '.join(own) or 'nothing'}; {hint}",
        )
    made = getattr(module, name)
    if not isinstance(made, (types.FunctionType, types.MethodType, type)):
        return made
    missing = _required(made)
    if missing:
        raise SourceError(
            f"`{name}` asks for {', '.join(missing)}",
            hint=f"name a function without arguments, such as `def make(): return {name}(…)`; {hint}",
        )
    return made()


def _required(made: Any) -> list[str]:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in several]
