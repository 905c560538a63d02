"""Layers by reference: the user's file builds a `paddle.nn.Layer`, Paddle saves it as a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploykit._plugins.converters.paddlepaddle.program import first_line, import_paddle

from deploykit import user_code
from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.progress import phase
from deploykit.protocol import Source

HINT = "return the layer, or (layer, [paddle.static.InputSpec(...)])"


def save(source: Source, folder: Path) -> Path:
    """Build the layer of `source` and save it into `folder` as a program; return its graph file.

    Its inputs are the user's `--input`s, in their order, or the specs that the callable returns.
    Raises SourceError where it returns no layer, UsageError where nothing says what the inputs are,
    UnsupportedError where Paddle cannot trace it.
    """
    paddle = import_paddle()
    phase("building the layer")
    paddle.seed(0)  # a layer that starts from random weights must get the same in every worker
    made = user_code.made_by_user(source.location, hint=HINT)
    specs: Any = None
    if isinstance(made, tuple) and len(made) == 2:
        made, specs = made
    if not isinstance(made, paddle.nn.Layer):
        raise SourceError(
            f"`{source.location}` returned a {type(made).__name__}, not a paddle.nn.Layer",
            hint=HINT,
        )
    if source.inputs:
        specs = [
            paddle.static.InputSpec(
                [size if isinstance(size, int) else None for size in spec.shape or ()],
                spec.dtype,
                spec.name,
            )
            for spec in source.inputs
        ]
    if not specs:
        raise UsageError(
            f"nothing says what the inputs of `{source.location}` are",
            hint=f"for example --input image:float32[batch,3,224,224]; or {HINT}",
        )
    made.eval()
    phase("tracing the layer")
    try:
        paddle.jit.save(made, str(folder / "layer"), input_spec=specs)
    except (
        Exception
    ) as error:  # the user's own code runs here, and Paddle's errors have no one base
        raise UnsupportedError(
            f"Paddle cannot trace `{source.location}`: {type(error).__name__}: {first_line(error)}",
            hint="the layer must run in `paddle.jit.to_static` with these inputs",
        ) from error
    return folder / "layer.json"
