"""Hardware profiles written as TOML files, so that they read back as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path

from deploykit.errors import OutputError
from deploykit.hardware_profile import BYTES_OF, SCHEMA, Figure, Profile, Source
from deploykit.hardware_reading import FIGURES


def format_profile(profile: Profile) -> str:
    """Return `profile` as the TOML text that `hardware_reading` reads back as the same profile."""
    lines = [f"schema = {SCHEMA}"]
    for key in ("summary", "kind", "triple", "cpu"):
        lines += _pair(key, getattr(profile, key))
    lines += _pair("features", profile.features) + _pair("flags", profile.flags)
    for key in FIGURES:
        lines += _section(key, getattr(profile, key))
    for name, device in profile.devices.items():
        lines += ["", f"[devices.{name}]", *_pair("title", device.title)]
        lines += _pair("apis", device.apis) + _pair("architecture", device.architecture)
        for key in ("memory_bytes", "bandwidth_bytes_per_s"):
            lines += _section(f"devices.{name}.{key}", getattr(device, key))
        for dtype in BYTES_OF:
            lines += _section(
                f"devices.{name}.peak_ops_per_s.{dtype}", device.peak_ops_per_s.get(dtype)
            )
    for price in profile.prices:
        lines += ["", "[[prices]]"]
        for key, value in vars(price).items():
            lines += _pair(key, value)
    for name, source in profile.sources.items():
        lines += _section(f"sources.{_toml(name) if '.' in name else name}", source)
    return "\n".join(lines) + "\n"


def write_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write `profile` to the new file `path`, which appears when it is whole.

    Raises OutputError where it exists already or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(format_profile(profile), encoding="utf-8")
        path.open("x").close()  # ours from here on: a rename alone would replace another's file
        temporary.replace(path)
    except FileExistsError as error:
        raise OutputError(
            f"`{path}` exists already", hint="choose another file with `-o`"
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot write the hardware profile `{path}`: {error.strerror or error}",
            hint="choose another file with `-o`",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _section(name: str, value: Figure | Source | None) -> list[str]:
    if value is None:
        return []
    return ["", f"[{name}]", *(line for k, v in vars(value).items() for line in _pair(k, v))]


def _pair(key: str, value: object) -> list[str]:
    """Return the lines of `key = value`, none where it is empty."""
    if value in ("", ()):
        return []
    line = f"{key} = {_toml(value)}"
    if len(line) <= 100 or not isinstance(value, tuple):
        return [line]
    return [f"{key} = [", *(f"    {_toml(item)}," for item in value), "]"]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # TOML's basic strings and numbers are JSON's, save DEL, which no field may have
    return json.dumps(value, ensure_ascii=False)
