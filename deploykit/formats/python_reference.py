"""Models as code: `module.py:callable`, looked at without importing it."""

from __future__ import annotations

import ast
import difflib
import warnings
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.formats.content import open_content
from deploykit.formats.reading import Reading, listed

LARGEST_MODULE = 8 << 20
FRAMEWORKS = {"jax": "jax/reference", "flax": "jax/reference"}
"""Formats by the framework that a file imports; where it imports none of them, or torch too, it is
the first reader's."""
DEFAULT = "pytorch/module"


def split(location: str) -> tuple[Path, str] | None:
    """Return path and name of `module.py:callable`, None where the text is no such reference."""
    path, colon, name = location.rpartition(":")
    if not colon or not path.endswith(".py"):
        return None
    return Path(path), name


def read(path: Path, name: str) -> Reading:
    """Find the callable `name` of the Python file `path`. Raises SourceError where it has none."""
    found = _definitions(path)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        meant = f" (did you mean `{near[0]}`?)" if near else ""
        raise SourceError(
            f"`{path}` defines no `{name}`{meant}",
            hint=f"it defines {listed(sorted(found))}" if found else "it defines nothing",
        )
    return Reading(
        format=_format(path),
        location=path,
        files=(path,),
        details={"callable": f"{name}{found[name]}", "graph": "made by running the code"},
        member=f":{name}",
    )


def without_name(path: Path) -> SourceError:
    """Return the error for a Python file without the name of a callable."""
    found = _definitions(path)
    names = [name for name in found if not name.startswith("_")]
    return SourceError(
        f"`{path}` is Python code: name the callable in it that returns the model",
        hint=f"`{path}:{names[0]}`"
        if len(names) == 1
        else f"`{path}:NAME`, NAME one of {listed(sorted(names))}",
    )


def _format(path: Path) -> str:
    """Return the format by the frameworks that the file imports, also inside functions."""
    imported: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").partition(".")[0])
    found = {FRAMEWORKS[name] for name in imported if name in FRAMEWORKS}
    return found.pop() if len(found) == 1 and "torch" not in imported else DEFAULT


def _tree(path: Path) -> ast.Module:
    content = open_content(path)
    if content.size > LARGEST_MODULE:
        raise SourceError(f"`{path}` is too large for a Python module: {content.size} bytes")
    try:
        with warnings.catch_warnings():
            # of invalid escapes and the like: not ours to report
            warnings.simplefilter("ignore")
            return ast.parse(bytes(content.view), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = (
            error.msg if isinstance(error, SyntaxError) else "it is too deeply nested or binary"
        )
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise SourceError(f"`{path}` is no valid Python{line}: {reason}") from error


def _definitions(path: Path) -> dict[str, str]:
    """Return the names that the module defines at its top level, with a function's arguments."""
    found: dict[str, str] = {}
    for node in _tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = f"({', '.join(one.arg for one in node.args.args)})"
        elif isinstance(node, ast.ClassDef):
            found[node.name] = " (a class)"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = ""
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                found[(alias.asname or alias.name).split(".", 1)[0]] = " (imported)"
    return found
