"""`deploykit convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.console import console
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

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.conversion import Conversion


@click.command("convert")
@click.argument("model")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The ONNX file."
)
@click.option(
    "--for-target",
    "for_targets",
    multiple=True,
    metavar="TARGET",
    help="Choose the newest opset that this target loads; may be given several times.",
)
@source_options
@setting_option
@check_options
@condition_options
@output_style
def command(model: str, output: Path, settings: tuple[str, ...], **values: Any) -> None:
    """Convert MODEL to ONNX and verify it against its own framework.

    MODEL is a file, a folder, or `module.py:callable` that returns a PyTorch module. Source
    framework and ONNX model get the same inputs, over several seeds and several sizes of each
    dynamic axis; the file appears only if they agree.

    \b
    deploykit convert digits.pt2 -o digits.onnx
    deploykit convert saved_model/ -o net.onnx --set signature=serving_default
    deploykit convert net.py:make -o net.onnx --input 'x:float32[batch,3,224,224]'
    deploykit convert old.onnx -o new.onnx --opset 20
    deploykit convert net.h5 -o net.onnx --keras-backend theano --for-target openvino
    """
    from deploykit.conversion import convert

    own = parse_settings(settings)
    own |= converter_settings(own)
    conversion = convert(
        model,
        output,
        source=source_from(values, own),
        checks=checks_from(values),
        conditions=conditions_from(values),
    )
    console.emit(conversion, lambda: describe(conversion))


def describe(conversion: Conversion) -> RenderableType:
    """Return the result of a conversion as a person reads it."""
    from rich.console import Group

    from deploykit.cli.tables import parity_table

    lines = [
        f"{conversion.output}",
        f"  from      {conversion.format} ({conversion.source})",
        f"  opset     {conversion.opset}",
        *(f"  input     {spec}" for spec in conversion.signature.inputs),
        *(f"  output    {spec}" for spec in conversion.signature.outputs),
        *(f"  repaired  {repair}" for repair in conversion.repairs),
        *(f"  note      {note}" for note in conversion.notes),
    ]
    if not conversion.verified:
        return Group(*lines, "  not verified (--no-verify)")
    title = f"worst of {conversion.cases} comparisons with the source framework"
    return Group(*lines, parity_table(title, conversion.parity))
