"""`deploykit inspect`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli.console import console
from deploykit.cli.options import output_style

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.formats import Inspection

_MOST_KINDS = 12
_MOST_FILES = 8


class _Command(click.Command):
    """Its help ends with the formats, which are listed in one place only."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        from deploykit.formats import formats

        with formatter.section("Formats"):
            formatter.write_text(", ".join(formats()))


@click.command("inspect", cls=_Command)
@click.argument("model", metavar="MODEL")
@click.option("--from", "format_", metavar="FORMAT", help="The format, where content misleads.")
@output_style
def command(model: str, format_: str | None) -> None:
    """Say what a model is: format, inputs, outputs, operators, parameters, files.

    MODEL is a file, a folder that holds one model, or `module.py:callable`. It is recognised by
    its content; no framework is imported, and nothing in it is run. A `?` is a dynamic axis, and
    `unknown` is what the file does not say.

    \b
    deploykit inspect model.onnx
    deploykit inspect saved_model_folder
    deploykit inspect network.py:build
    deploykit inspect frozen.bin --from tensorflow/graph_def
    deploykit inspect model.pt2 --json
    """
    from deploykit.formats import inspect

    found = inspect(model, format=format_)
    console.emit(found, lambda: _drawn(found))


def _drawn(found: Inspection) -> RenderableType:
    from rich.text import Text

    converter = (
        f"converter `{found.converter}`"
        if found.converter is not None
        else "this version has no converter for it"
    )
    rows: list[tuple[str, str]] = [("format", f"{found.format} ({found.framework}), {converter}")]
    if found.signature is None:
        rows.append(("inputs", "not in the file"))
    else:
        rows += [("inputs", str(spec)) for spec in found.signature.inputs] or [("inputs", "none")]
        rows += [("outputs", str(spec)) for spec in found.signature.outputs] or [
            ("outputs", "none")
        ]
    if found.operators:
        rows.append(("operators", _operators(found.operators)))
    if found.parameters is not None:
        rows.append(("parameters", f"{found.parameters:,}"))
    rows += _files(found)
    rows += list(found.details.items())
    width = max(len(name) for name, _ in rows)
    lines = [_clean(found.location)]
    before = ""
    for name, value in rows:
        lines.append(f"  {_clean(name if name != before else ''):<{width}}  {_clean(value)}")
        before = name
    # Text, and not markup: `[1,3]` is a shape
    return Text("\n".join(lines))


def _operators(operators: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(operators.items())[:_MOST_KINDS]]
    more = len(operators) - len(shown)
    total = sum(operators.values())
    kinds = f"{len(operators)} kind" + ("s" if len(operators) > 1 else "")
    tail = f" and {more} more kinds" if more else ""
    return f"{total} of {kinds}: {', '.join(shown)}{tail}"


def _files(found: Inspection) -> list[tuple[str, str]]:
    base = found.location if Path(found.location).is_dir() else str(Path(found.location).parent)
    total = sum(found.files.values())
    rows = [
        ("files", f"{os.path.relpath(path, base)}  {_size(size)}")
        for path, size in list(found.files.items())[:_MOST_FILES]
    ]
    more = len(found.files) - len(rows)
    if more:
        rows.append(("files", f"and {more} more"))
    if len(found.files) > 1:
        rows.append(("files", f"together  {_size(total)}"))
    return rows


def _size(size: int) -> str:
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def _clean(text: str) -> str:
    """Return `text` without the control characters that names in a file may hold."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
