"""`deploykit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploykit.cli.console import console
from deploykit.cli.options import condition_options, conditions_from, output_style


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--tolerance", metavar="T", help="Judge by this instead of the bundle's own.")
@condition_options
@output_style
def command(bundle: Path, tolerance: str | None, **values: Any) -> None:
    """Run BUNDLE on its golden inputs, on this machine, and compare with its golden outputs.

    The source framework is not needed. A changed file, a machine that lacks what the bundle needs
    and a wrong output each have their own exit code.

    \b
    deploykit verify bundles/openvino-cpu-fp32
    """
    from deploykit.cli.tables import parity_table
    from deploykit.parity import parse_tolerance
    from deploykit.verification import verify

    verification = verify(
        bundle,
        tolerance=parse_tolerance(tolerance) if tolerance else None,
        conditions=conditions_from(values),
    )
    title = f"{verification.bundle}: worst of {verification.cases} golden pairs"
    console.emit(verification, lambda: parity_table(title, verification.parity))
