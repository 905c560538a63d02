"""How results look to a person: tables that need no colour to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from deploykit.building import CompiledBundle
    from deploykit.compilation import Compilation
    from deploykit.outcomes import Outcome
    from deploykit.parity import OutputParity


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a plain table; a column whose title ends in a space is aligned right."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column.strip(), justify="right" if column.endswith(" ") else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def parity_table(title: str, outputs: Iterable[OutputParity]) -> Group:
    """Return one row per output: how far it is from the reference."""
    from rich.console import Group

    drawn = table(
        "",
        ["output", "max abs error ", "max rel error ", "cosine ", "SQNR dB ", ""],
        (
            (
                output.output,
                f"{output.max_abs_error:.2e}",
                f"{output.max_rel_error:.2e}",
                f"{output.cosine:.6f}",
                f"{output.sqnr_db:.1f}",
                "ok" if output.ok else output.reason,
            )
            for output in outputs
        ),
    )
    return Group(title, drawn)


def bundle_table(compilation: Compilation) -> Group:
    """Return one row per target: how it ended, its size, its worst error; then a line for each:
    where it is, or why it failed.
    """
    from rich.console import Group

    drawn = table(
        "",
        ["target", "device", "precision", "outcome", "size MB ", "s ", "max abs error "],
        (
            (
                bundle.target,
                bundle.device,
                bundle.precision,
                _word(bundle.outcome),
                f"{bundle.size_bytes / 1e6:.2f}" if bundle.folder else "-",
                f"{bundle.seconds:.1f}",
                f"{max(p.max_abs_error for p in bundle.parity):.2e}" if bundle.parity else "-",
            )
            for bundle in compilation.bundles
        ),
    )
    # paths and reasons as lines of their own: a cell would break them
    return Group(drawn, *(line for bundle in compilation.bundles for line in _about(bundle)))


def _word(outcome: Outcome) -> str:
    return str(outcome) if outcome.kind == "signal" else outcome.kind


def _about(bundle: CompiledBundle) -> list[str]:
    """Return where a bundle is, or why there is none: what it was doing, where, its log."""
    name = f"{bundle.target}:{bundle.device} {bundle.precision}"
    if bundle.folder:
        return [f"{name}: {bundle.folder}"]
    outcome = bundle.outcome
    where = ", ".join(
        f"{word} {text}"
        for word, text in (("while", outcome.phase), ("in", outcome.frame), ("log", outcome.log))
        if text
    )
    lines = [f"{name}: {outcome}", *([f"  {where}"] if where else [])]
    return [*lines, f"  hint: {outcome.hint}"] if outcome.hint else lines
