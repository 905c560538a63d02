"""`deploykit profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.console import console
from deploykit.cli.exit_codes import exit_code
from deploykit.cli.options import (
    check_options,
    checks_from,
    condition_options,
    conditions_from,
    converter_settings,
    output_style,
    parse_settings,
    setting_option,
    source_from,
    source_options,
)
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.report import Report


@click.command("profile")
@click.argument("models", nargs=-1, required=True, metavar="MODEL|BUNDLE...")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET[:DEVICE]",
    help="A target, several, `all`, `native` (the source framework) or `native:compiled` (by its own compiler).  [default: native, all]",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the report to this JSON file."
)
@click.option(
    "--bundles",
    "bundle_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the bundles here.  [default: beside the report, REPORT.bundles]",
)
@click.option("--batch", type=click.IntRange(1), help="Items in each inference.")
@click.option(
    "--duration",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds for each contender, at most; it ends earlier when the figures are sure.",
)
@click.option("--seed", default=0, show_default=True, help="Of the order of rounds.")
@click.option("--precision", default="fp32", show_default=True, metavar="fp32|tf32|fp16|bf16|int8")
@click.option(
    "--shape", "shapes", multiple=True, metavar="NAME=1x3x224x224", help="Fix a dynamic input."
)
@click.option("--resume", is_flag=True, help="Go on after an interrupted run of this command.")
@source_options
@setting_option
@check_options
@condition_options
@output_style
def command(
    models: tuple[str, ...],
    targets: tuple[str, ...],
    output: Path | None,
    bundle_folder: Path | None,
    batch: int | None,
    duration: float,
    seed: int,
    precision: str,
    shapes: tuple[str, ...],
    resume: bool,
    settings: tuple[str, ...],
    **values: Any,
) -> int:
    """Measure a MODEL on targets, or finished BUNDLEs, side by side.

    A model is converted, compiled for each target and verified first. Then every contender lives in
    a warm worker of its own, and they take turns in interleaved rounds, so that the machine's drift
    hits all alike. All get the same number of threads. The ratio to the first comes with its 95 %
    confidence interval; raw samples are kept in the report.

    \b
    deploykit profile digits.pt2 -t native -t all -o report.json
    deploykit profile net.onnx -t onnxruntime -t openvino --batch 8 --threads 4
    deploykit profile bundles/onnxruntime-cpu-fp32 bundles/openvino-cpu-fp32 --json
    """
    from deploykit.manifest import MANIFEST
    from deploykit.profiling import Load, profile
    from deploykit.tensor_spec import parse_shapes

    bundles = [name for name in models if (Path(name) / MANIFEST).is_file()]
    others = [name for name in models if name not in bundles]
    if len(others) > 1:
        raise UsageError(
            f"one model at a time: `{others[0]}`, `{others[1]}`",
            hint="compile each, then profile the bundles together",
        )
    for_targets = parse_settings(settings)
    for_converter = converter_settings(for_targets)
    report = profile(
        others[0] if others else None,
        targets,
        bundles=bundles,
        output=output,
        bundle_folder=bundle_folder,
        precision=precision,
        settings=for_targets,
        shapes=parse_shapes(shapes),
        load=Load(batch=batch, duration_s=duration, seed=seed),
        source=source_from(values, for_converter),
        checks=checks_from(values),
        conditions=conditions_from(values),
        resume=resume,
    )
    console.emit(report, lambda: describe(report, output))
    failed = [m.outcome for m in report.measurements if m.outcome != "ok"]
    return exit_code(failed[0]) if failed else 0


def describe(report: Report, output: Path | None) -> RenderableType:
    """Return the report as a person reads it."""
    from rich.console import Group

    from deploykit.report_table import summary, table

    written = [f"report: {output}"] if output else []
    return Group(table(report), "", summary(report), *written)
