"""`deploykit run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploykit.cli.console import console
from deploykit.cli.options import output_style

if TYPE_CHECKING:
    import numpy as np


@click.command("run")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "inputs",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="An .npz (arrays by input name), an .npy (for the only input) or an image.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write outputs (.npz)."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads for the runtime.")
@output_style
def command(bundle: Path, inputs: Path, output: Path | None, threads: int | None) -> None:
    """Run BUNDLE on your own inputs.

    \b
    deploykit run bundles/onnxruntime-cpu-fp32 --input images.npz -o logits.npz
    """
    from deploykit.feeds import read_feed
    from deploykit.session import load
    from deploykit.tensors import write_tensors

    listen = console.listener()
    with load(bundle, threads=threads, listen=listen) as session:
        feed = read_feed(inputs, session.inputs, listen=listen)
        outputs = session.run(feed)
    if output is not None:
        write_tensors(output, outputs)
    console.emit(
        {
            "bundle": str(bundle),
            "outputs": {name: _summary(value) for name, value in outputs.items()},
            "written": str(output) if output else None,
        },
        lambda: (
            "\n".join(
                f"{name}  {value.dtype}{list(value.shape)}  {_text(value)}"
                for name, value in outputs.items()
            )
            + (f"\nwritten to {output}" if output else "")
        ),
    )


def _summary(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return what a machine wants to know of an output without its numbers."""
    return {"dtype": str(value.dtype), "shape": list(value.shape)}


def _text(value: np.ndarray[Any, Any]) -> str:
    """Return the first few numbers of an output on one line."""
    shown = ", ".join(
        f"{item:.6g}" if value.dtype.kind == "f" else str(item) for item in value.flat[:6]
    )
    return f"{shown}{', …' if value.size > 6 else ''}"
