"""The hardware profiles that exist: TOML files in the plugins' `profiles/` folders, data only.

    hardware("raspberry-pi-5").to_request()      # triple, cpu, features, cores: what a target needs

Besides those that come with deploykit, each folder of `DEPLOYKIT_PLUGIN_PATH` may have `profiles/`,
and a profile may be named by its path.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from deploykit.errors import UsageError
from deploykit.hardware_profile import Device as Device
from deploykit.hardware_profile import Figure as Figure
from deploykit.hardware_profile import Price as Price
from deploykit.hardware_profile import Profile as Profile
from deploykit.hardware_profile import Source as Source
from deploykit.hardware_reading import read_profile


def hardware(name: str | os.PathLike[str]) -> Profile:
    """Return the profile called `name`, or the one in the file `name` (`./my-board.toml`).

    Raises UsageError that lists what exists, or names the file and the field that is wrong.
    """
    text = os.fspath(name)
    if text.endswith(".toml") or os.sep in text:
        return read_profile(text)
    found, errors = survey()
    known = {profile.name: profile for profile in found}
    if text in known:
        return known[text]
    if errors:
        raise errors[0]  # it may be the one that was asked for
    near = get_close_matches(text, known, n=1)
    meant = f" (did you mean `{near[0]}`?)" if near else ""
    raise UsageError(
        f"hardware `{text}` is unknown{meant}",
        hint="`deploykit hardware` lists what is known; `deploykit hardware --this -o NAME.toml` "
        "makes a profile of the machine that it runs on",
    )


def hardware_profiles() -> tuple[Profile, ...]:
    """Return every profile, sorted by name.

    Raises UsageError, naming the file, where one does not fit the schema or two share a name.
    """
    found, errors = survey()
    if errors:
        raise errors[0]
    return found


def survey() -> tuple[tuple[Profile, ...], tuple[UsageError, ...]]:
    """Return the profiles that can be read, and an error for each file that cannot be used."""
    files: dict[str, list[Path]] = {}
    for path in profile_files():
        files.setdefault(path.stem, []).append(path)
    profiles = []
    errors = []
    for name, paths in sorted(files.items()):
        if len(paths) > 1:
            several = " and ".join(f"`{path}`" for path in paths)
            errors.append(
                UsageError(
                    f"two hardware profiles are called `{name}`: {several}",
                    hint="rename one of the files",
                )
            )
            continue
        try:
            profiles.append(read_profile(paths[0]))
        except UsageError as error:
            errors.append(error)
    return tuple(profiles), tuple(errors)


def profile_files() -> tuple[Path, ...]:
    """Return every TOML file in the `profiles/` folders of `deploykit._plugins`."""
    from deploykit import _plugins

    return tuple(
        path
        for folder in dict.fromkeys(Path(name).resolve() for name in _plugins.__path__)
        for path in sorted((folder / "profiles").glob("*.toml"))
        if path.name[0] not in "._" and path.is_file()
    )
