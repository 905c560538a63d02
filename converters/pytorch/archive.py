"""What a `.pt2` file could make `torch.export.load` execute, looked for before it is loaded.

An ExportedProgram is a zip archive with a JSON graph. Loading it resolves each node's target by
walking attributes from `torch`, evaluates symbolic expressions with sympy's parser (Python's `eval`),
and unpickles some constants: each of these can run any code. So only what torch itself writes passes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from deploykit.errors import SourceError, UnsupportedError

_TARGET = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.(_sym|sym)_\w+|#\w+[\w.:]*"
)
_OPERATOR_FUNCTIONS_THAT_CALL = {"call", "methodcaller", "attrgetter", "itemgetter"}
_SYMBOL = re.compile(r"\bSymbol\('\w+'")
_EXPRESSION = re.compile(r"[\w\s+\-*/%(),.<>=!&|~^]*")


def check_archive(path: str) -> None:
    """Raise UnsupportedError where loading the `.pt2` file `path` could run code that it carries.

    Raises SourceError where `path` is no readable archive of an ExportedProgram.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for name in names:
                if "/aotinductor/" in name or "/opaque_obj" in name:
                    raise _refused(path, f"`{name}` is compiled or pickled code")
            graphs = [name for name in names if _is_graph(name)]
            if not graphs:
                raise SourceError(
                    f"`{path}` holds no exported program (no models/*.json in the archive)",
                    hint="save it with torch.export.save(program, path)",
                )
            for name in graphs:
                for reason in _suspicious(json.loads(archive.read(name))):
                    raise _refused(path, f"`{name}`: {reason}")
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise SourceError(f"cannot read `{path}`: {error}") from error


def _is_graph(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file == "serialized_exported_program.json" or (
        folder.rpartition("/")[2] == "models" and file.endswith(".json")
    )


def _refused(path: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"`{path}` would run code of its own when loaded: {reason}",
        hint="give --trust if you know where the file comes from",
    )


def _suspicious(value: Any) -> Iterator[str]:
    """Name every target and expression in the JSON `value` that torch would not have written."""
    if isinstance(value, list):
        for item in value:
            yield from _suspicious(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "target" and isinstance(item, str) and "inputs" in value:
                if not _harmless_target(item):
                    yield f"the target {item!r} is no operator"
            elif key == "expr_str" and isinstance(item, str) and not _harmless_expression(item):
                yield f"the symbolic expression {item!r} is more than arithmetic"
            else:
                yield from _suspicious(item)


def _harmless_target(target: str) -> bool:
    if "__" in target or not _TARGET.fullmatch(target):
        return False
    module, _, function = target.partition(".")
    return module != "_operator" or function not in _OPERATOR_FUNCTIONS_THAT_CALL


def _harmless_expression(text: str) -> bool:
    """Arithmetic on names and numbers, with calls of torch's and sympy's own functions only."""
    import sympy
    from torch.utils._sympy import functions

    text = _SYMBOL.sub("Symbol(name", text)
    if (
        not _EXPRESSION.fullmatch(text)
        or "__" in text
        or re.search(r"\)\s*\(|[^\W\d]\w*\s*\.", text)
    ):
        return False
    for name in re.findall(r"([^\W\d]\w*)\s*\(", text):
        known = getattr(functions, name, None) or getattr(sympy, name, None)
        if not (isinstance(known, type) and issubclass(known, sympy.Basic)):
            return False
    return True


@contextlib.contextmanager
def tensors_only() -> Iterator[None]:
    """Let every `torch.load` inside the block read tensors and plain containers, nothing pickled."""
    # torch reads it at each call, and it wins over the weights_only=False in torch.export.load
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
