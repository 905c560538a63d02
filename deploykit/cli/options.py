"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploykit.cli.console import console
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.options import Checks, Conditions, SourceOptions

F = TypeVar("F", bound=Callable[..., Any])


def _stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _set_json(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    console.json = value


def _set_quiet(_context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    console.quiet = value


output_style = _stack(
    click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set_json,
        help="Print one JSON document on stdout.",
    ),
    click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set_quiet,
        help="No progress on stderr.",
    ),
)

source_options = _stack(
    click.option("--from", "format_", metavar="FORMAT", help="The format, where content misleads."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME:DTYPE[SHAPE]",
        help="What an input is: `x:float32[1,3,?,width]` (`?` and names are dynamic).",
    ),
    click.option(
        "--dynamic",
        multiple=True,
        metavar="NAME:AXIS=AXISNAME",
        help="Keep an axis dynamic: `x:0=batch,2=time`.",
    ),
    click.option("--opset", type=click.IntRange(7, 30), help="ONNX opset of the result."),
    click.option("--no-tidy", is_flag=True, help="Leave the graph as it was exported."),
    click.option(
        "--keras-backend",
        type=click.Choice(["theano", "tensorflow", "cntk"]),
        help="The backend of a Keras 1 file, which does not say it.",
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="Run code that the model file brings along (a pickle's, say).",
    ),
)

check_options = _stack(
    click.option(
        "--tolerance",
        metavar="T",
        help="Largest difference allowed: `1e-3`, or `atol=1e-4,rtol=1e-3`.",
    ),
    click.option("--no-verify", is_flag=True, help="Do not compare with the source framework."),
    click.option(
        "--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Random inputs."
    ),
    click.option(
        "--sample",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Compare on these inputs instead (.npz by input name).",
    ),
)

condition_options = _stack(
    click.option(
        "--threads", type=click.IntRange(1, 1024), help="Threads for framework and runtime."
    ),
    click.option("--timeout", type=click.FloatRange(min=0.1), help="Seconds for each step."),
    click.option("--memory-limit", metavar="SIZE", help="Memory of each worker: `4G`, `800M`."),
    click.option("--no-install", is_flag=True, help="Make no environment; use those that exist."),
)

setting_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of a plugin: `KEY=VALUE`, or `PLUGIN.KEY=VALUE` for that target or converter. "
    "`deploykit doctor PLUGIN` lists them.",
)


def parse_settings(texts: tuple[str, ...]) -> dict[str, str]:
    """Return `key=value` texts as a mapping; raise UsageError for anything else."""
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"`--set {text}` is no setting", hint="write it as `--set key=value`")
        settings[key.strip()] = value
    return settings


def converter_settings(settings: dict[str, str]) -> dict[str, str]:
    """Take out of `settings` those that name a converter, `CONVERTER.KEY`, and return them by key."""
    from deploykit.plugins import plugins

    names = {plugin.name for plugin in plugins("converter")}
    taken = [key for key in settings if "." in key and key.partition(".")[0] in names]
    return {key.partition(".")[2]: settings.pop(key) for key in taken}


def source_from(values: dict[str, Any], settings: dict[str, str] | None = None) -> SourceOptions:
    """Take the options of `source_options` out of `values`."""
    from deploykit.options import SourceOptions

    settings = dict(settings or {})
    if backend := values.pop("keras_backend"):
        settings["backend"] = backend
    return SourceOptions.parse(
        format=values.pop("format_"),
        inputs=values.pop("inputs"),
        dynamic=values.pop("dynamic"),
        opset=values.pop("opset"),
        for_targets=values.pop("for_targets", ()),
        tidy=not values.pop("no_tidy"),
        trust=values.pop("trust"),
        settings=settings,
    )


def checks_from(values: dict[str, Any]) -> Checks:
    """Take the options of `check_options` out of `values`."""
    from deploykit.options import Checks
    from deploykit.parity import parse_tolerance

    tolerance = values.pop("tolerance")
    return Checks(
        enabled=not values.pop("no_verify"),
        tolerance=parse_tolerance(tolerance) if tolerance else None,
        seeds=values.pop("seeds"),
        sample=values.pop("sample"),
    )


def conditions_from(values: dict[str, Any]) -> Conditions:
    """Take the options of `condition_options` out of `values`."""
    from deploykit.options import Conditions
    from deploykit.steps import Limits

    memory = values.pop("memory_limit")
    return Conditions(
        limits=Limits(
            timeout_s=values.pop("timeout"), memory_bytes=parse_size(memory) if memory else None
        ),
        threads=values.pop("threads"),
        install=not values.pop("no_install"),
        listen=console.listener(),
    )


def parse_size(text: str) -> int:
    """Return the bytes that `4G`, `800M`, `64K` or a plain number means (powers of 1024)."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    scale = units.get(digits[-1:], 1)
    try:
        size = float(digits[:-1] if scale > 1 else digits) * scale
        if not 0 < size < 1 << 60:
            raise ValueError
    except ValueError:
        raise UsageError(f"`{text}` is no size", hint="write it like `4G` or `800M`") from None
    return int(size)
