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

FORMATS = (
    "pytorch/module",
    "paddle/layer",
    "theano/reference",
    "jax/reference",
    "keras/reference",
)
"""What the callable can be a model of; the first where the file's imports do not say."""

IMPORTS = {
    "torch": "pytorch/module",
    "paddle": "paddle/layer",
    "theano": "theano/reference",
    "pytensor": "theano/reference",
    "lasagne": "theano/reference",
    "jax": "jax/reference",
    "flax": "jax/reference",
    "keras": "keras/reference",
    "tensorflow": "keras/reference",
}
"""Packages by which a file shows its framework, in this order where it imports several."""


def split(location: str) -> tuple[Path, str] | None:
    """Return path and name of `module.py:callable`, None where the text is no such reference."""
    path, colon, name = location.rpartition(":")
    if not colon or not path.endswith(".py"):
        return None
    return Path(path), name


def read(path: Path, name: str, format: str | None = None) -> Reading:
    """Find the callable `name` of the Python file `path`. Raises SourceError where it has none.

    `format` None goes by what the file imports.
    """
    tree = _parsed(path)
    found = _definitions(tree)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        meant = f" (did you mean `{near[0]}`?)" if near else ""
        raise SourceError(
            f"`{path}` defines no `{name}`{meant}",
            hint=f"it defines {listed(sorted(found))}" if found else "it defines nothing",
        )
    return Reading(
        format=format if format in FORMATS else _format(tree),
        location=path,
        files=(path,),
        details={"callable": f"{name}{found[name]}", "graph": "made by running the code"},
        member=f":{name}",
    )


def without_name(path: Path) -> SourceError:
    """Return the error for a Python file without the name of a callable."""
    found = _definitions(_parsed(path))
    names = [name for name in found if not name.startswith("_")]
    return SourceError(
        f"`{path}` is Python code: name the callable in it that returns the model",
        hint=f"`{path}:{names[0]}`"
        if len(names) == 1
        else f"`{path}:NAME`, NAME one of {listed(sorted(names))}",
    )


def _format(tree: ast.Module) -> str:
    """Return the format by the packages that the file imports, at its top or in a function."""
    packages: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".", 1)[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            packages.add(node.module.split(".", 1)[0])
    return next((format for name, format in IMPORTS.items() if name in packages), FORMATS[0])


def _parsed(path: Path) -> ast.Module:
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


def _definitions(tree: ast.Module) -> dict[str, str]:
    """Return the names that the module defines at its top level, with a function's arguments."""
    found: dict[str, str] = {}
    for node in tree.body:
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
