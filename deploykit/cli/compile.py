"""`deploykit compile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@click.command("compile")
@click.argument("model")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET[:DEVICE]",
    help="A target, several, or `all`.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for the bundles, one each: TARGET-DEVICE-PRECISION.",
)
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
    model: str,
    targets: tuple[str, ...],
    output: Path,
    precision: str,
    shapes: tuple[str, ...],
    resume: bool,
    settings: tuple[str, ...],
    **values: Any,
) -> int:
    """Compile MODEL for targets; each becomes a bundle that has proved itself.

    MODEL is anything that `convert` takes. A bundle holds the compiled model, golden inputs and
    outputs, hashes and where it all came from; `verify` proves it again where it lands. A target
    that fails is named with the reason and the others go on; the exit code is the first failure's.

    \b
    deploykit compile digits.pt2 -t onnxruntime -t openvino -t tvm -o bundles
    deploykit compile net.onnx -t openvino --precision bf16 --threads 4 -o bundles
    deploykit compile net.onnx -t tvm --shape x=1x3x224x224 -o bundles
    """
    from deploykit.cli.tables import bundle_table
    from deploykit.compilation import compile
    from deploykit.tensor_spec import parse_shapes

    for_targets = parse_settings(settings)
    for_converter = converter_settings(for_targets)
    compilation = compile(
        model,
        targets,
        output,
        precision=precision,
        settings=for_targets,
        shapes=parse_shapes(shapes),
        source=source_from(values, for_converter),
        checks=checks_from(values),
        conditions=conditions_from(values),
        resume=resume,
    )
    console.emit(compilation, lambda: bundle_table(compilation))
    return exit_code(compilation.failed[0].outcome.kind) if compilation.failed else 0
