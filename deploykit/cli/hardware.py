"""`deploykit hardware`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploykit.cli.console import console
from deploykit.cli.options import output_style
from deploykit.errors import OutputError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploykit.errors import DeploykitError
    from deploykit.hardware_profile import Figure, Profile
    from deploykit.this_hardware import Fingerprint

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


@click.command("hardware")
@click.argument("name", required=False, metavar="[NAME|FILE.toml]")
@click.option("--this", is_flag=True, help="Measure the machine that this runs on (seconds).")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --this: write the profile to this new .toml file.",
)
@output_style
def command(name: str | None, this: bool, output: Path | None) -> None:
    """List the devices that deploykit knows, or show one with the source of every figure.

    With --this, say what this machine is in a compiler's words and measure its peak rates and its
    memory's bandwidth: best repetition of numpy's and ONNX Runtime's matrix products, and of passes
    over memory. Your own profiles are TOML files, named by their path or kept in the folder
    `profiles` of a plugin path.

    \b
    deploykit hardware
    deploykit hardware raspberry-pi-5
    deploykit hardware --this -o build-server.toml
    """
    from deploykit.hardware import hardware, survey

    if this and name is not None:
        raise UsageError("`--this` is the machine that this runs on: give no NAME with it")
    if output is not None and not this:
        raise UsageError("`-o` writes what `--this` measures: give both")
    if this:
        _this_machine(output)
    elif name is not None:
        profile = hardware(name)
        console.emit(profile, lambda: _shown(profile))
    else:
        profiles, errors = survey()
        found = {
            "profiles": [profile.to_json() for profile in profiles],
            "problems": [error.message for error in errors],
        }
        console.emit(found, lambda: _listed(profiles, errors))


def _this_machine(output: Path | None) -> None:
    from deploykit.hardware_reading import NAME
    from deploykit.hardware_writing import write_profile
    from deploykit.this_hardware import this_hardware

    # before anything is measured: seconds of work end in no surprise
    if output is not None and (output.suffix != ".toml" or not NAME.fullmatch(output.stem)):
        raise UsageError(
            f"`{output}` is no name of a profile: [a-z0-9._-], and it ends in `.toml`",
            hint="for example `-o build-server.toml`",
        )
    if output is not None and output.exists():
        raise OutputError(f"`{output}` exists already", hint="choose another file with `-o`")
    name = "this-machine" if output is None else output.stem
    found = this_hardware(name, listen=console.listener())
    if output is not None:
        write_profile(found.profile, output)
    console.emit(found, lambda: _measured(found, output))


def _listed(profiles: tuple[Profile, ...], errors: tuple[DeploykitError, ...]) -> RenderableType:
    from rich.console import Group

    from deploykit.cli.tables import table

    columns = [
        *("name", "kind", "processor", "device"),
        *("fp32 /s ", "fp16 /s ", "int8 /s ", "memory/s ", "memory ", "W ", "$/h "),
    ]
    parts: list[RenderableType] = [
        table("", columns, (row for profile in profiles for row in _rows(profile))),
        "peaks are operations a second, dense; `deploykit hardware NAME` has their sources",
    ]
    parts += [f"problem: {error.message}" for error in errors]
    return Group(*parts)


def _rows(profile: Profile) -> Iterator[tuple[str, ...]]:
    """Yield a row for each device of `profile`; the first says what holds for all."""
    head = [profile.name, profile.kind, profile.cpu or profile.triple.partition("-")[0]]
    power = profile.power_w
    price = profile.usd_per_hour
    tail = [
        "" if power is None else f"{power.value:g}",
        "" if price is None else f"{price:.3g}",
    ]
    for name, device in profile.devices.items() or [("", None)]:
        peaks = {} if device is None else device.peak_ops_per_s
        bandwidth = None if device is None else device.bandwidth_bytes_per_s
        memory = profile.memory_bytes
        if device is not None and device.memory_bytes is not None:
            memory = device.memory_bytes
        yield (
            *head,
            " ".join(filter(None, (name, "" if device is None else device.architecture))),
            *(_scaled(peaks.get(dtype), "") for dtype in ("fp32", "fp16", "int8")),
            _scaled(bandwidth, "B"),
            "" if memory is None else f"{memory.value / 2**30:.4g} GiB",
            *tail,
        )
        head, tail = ["", "", ""], ["", ""]


def _shown(profile: Profile) -> RenderableType:
    from rich.console import Group

    from deploykit.cli.tables import table

    numbers = {key: str(i) for i, key in enumerate(profile.sources, 1)}
    figures = [
        (what, value, figure.formula, figure.note, " ".join(numbers[key] for key in figure.sources))
        for what, value, figure in _figures(profile)
    ]
    figures += [
        (
            f"price, {price.provider} {price.instance}, {price.region}",
            f"{price.usd_per_hour:g} $/h",
            "",
            "; ".join(filter(None, (f"{price.share:g} of this hardware", price.note))),
            " ".join(numbers[key] for key in price.sources),
        )
        for price in profile.prices
    ]
    words = [
        f"{profile.name}: {profile.summary}",
        f"kind: {profile.kind}",
        f"triple: {profile.triple}",
        f"cpu: {profile.cpu or '-'}",
        f"features: {' '.join(profile.features) or '-'}",
        f"flags: {' '.join(profile.flags) or '-'}",
    ]
    for name, device in profile.devices.items():
        architecture = f", {device.architecture}" if device.architecture else ""
        words.append(f"device {name}: {device.title}{architecture} ({', '.join(device.apis)})")
    parts: list[RenderableType] = ["\n".join(words)]
    if figures:
        parts.append(table("", ["figure", "value ", "formula", "note", "source"], figures))
    rooflines = list(_rooflines(profile))
    if rooflines:
        columns = ["device", "type", "peak ", "memory moves ", "limit is arithmetic above "]
        parts.append(table("", columns, rooflines))
    parts += [
        f"[{i}] {source}" + (f", {source.url}" if source.url else "")
        for i, source in enumerate(profile.sources.values(), 1)
    ]
    return Group(*parts)


def _figures(profile: Profile) -> Iterator[tuple[str, str, Figure]]:
    """Yield what, value with its unit, and figure, of every figure in `profile`."""
    for what in ("cores", "threads"):
        if (figure := getattr(profile, what)) is not None:
            yield what, f"{figure.value:g}", figure
    if profile.memory_bytes is not None:
        yield "memory", f"{profile.memory_bytes.value / 2**30:.4g} GiB", profile.memory_bytes
    if profile.power_w is not None:
        yield "power", f"{profile.power_w.value:g} W", profile.power_w
    for name, device in profile.devices.items():
        if device.memory_bytes is not None:
            size = f"{device.memory_bytes.value / 2**30:.4g} GiB"
            yield f"{name}: memory", size, device.memory_bytes
        if device.bandwidth_bytes_per_s is not None:
            figure = device.bandwidth_bytes_per_s
            yield f"{name}: memory bandwidth", _scaled(figure, "B/s"), figure
        for dtype, figure in device.peak_ops_per_s.items():
            yield f"{name}: peak {dtype}", _scaled(figure, f"{_operation(dtype)}/s"), figure


def _rooflines(profile: Profile) -> Iterator[tuple[str, ...]]:
    """Yield a row for each element type of which both rates are known."""
    for name, device in profile.devices.items():
        for dtype, peak in device.peak_ops_per_s.items():
            values, balance = device.values_per_s(dtype), device.ops_per_byte(dtype)
            if values is not None and balance is not None:
                moved = f"{_number(values, '')} values/s"
                unit = _operation(dtype)
                yield name, dtype, _scaled(peak, f"{unit}/s"), moved, f"{balance:.3g} {unit}/byte"


def _measured(found: Fingerprint, output: Path | None) -> RenderableType:
    from rich.console import Group

    from deploykit.cli.tables import table

    rows = []
    for rate in found.rates:
        unit = "B/s" if rate.what == "memory" else f"{_operation(rate.what)}/s"
        spread = (_number(value, unit) for value in (rate.best, rate.median, rate.worst))
        rows.append((rate.what, *spread, str(rate.repetitions), str(rate.threads), rate.about))
    columns = ["measured", "best ", "median ", "slowest ", "repetitions ", "threads ", "with"]
    parts: list[RenderableType] = [_shown(found.profile), table("", columns, rows)]
    parts += [f"note: {note}" for note in found.notes]
    if output is not None:
        parts.append(f"profile: {output}")
    return Group(*parts)


def _operation(dtype: str) -> str:
    return "OP" if dtype.startswith("int") else "FLOP"


def _scaled(figure: Figure | None, unit: str) -> str:
    return "" if figure is None else _number(figure.value, unit)


def _number(value: float, unit: str) -> str:
    for scale, letter in _SCALES:
        if value >= scale:
            return f"{value / scale:.4g} {letter}{unit}"
    return f"{value:.4g} {unit}"
