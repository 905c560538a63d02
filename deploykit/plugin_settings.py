"""The settings of a plugin: which it knows, what they default to, and which values make sense.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from deploykit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: its default, and either its `choices` or, without any, whole numbers >= `least`."""

    default: str
    choices: tuple[str, ...] = ()
    least: int = 0

    def check(self, name: str, value: str) -> None:
        """Raise UsageError where `value` is not one that the setting `name` takes."""
        if self.choices:
            if value not in self.choices:
                raise UsageError(
                    f"setting `{name}` cannot be `{value}`",
                    hint=f"it takes {' | '.join(self.choices)}",
                )
        elif value != self.default and not (value.isdecimal() and int(value) >= self.least):
            raise UsageError(
                f"setting `{name}` cannot be `{value}`",
                hint=f"it takes a whole number, {self.least} or more",
            )


def check_names(asked: Iterable[str], known: Collection[str], *, plugin: str) -> None:
    """Raise UsageError for a setting that `plugin` does not have; it lists those that it has."""
    for name in asked:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f' (did you mean "{close[0]}"?)' if close else ""
            raise UsageError(
                f"{plugin} has no setting `{name}`{guess}",
                hint=f"it has: {', '.join(sorted(known)) or 'none'}",
            )


def in_force(
    asked: Mapping[str, str], known: Mapping[str, Setting], *, plugin: str
) -> dict[str, str]:
    """Return every setting of `known` with the value asked for, or its default.

    Raises UsageError for a name that is not known (it lists those that are) or a wrong value.
    """
    check_names(asked, known, plugin=plugin)
    for name, value in asked.items():
        known[name].check(name, value)
    return {name: asked.get(name, setting.default) for name, setting in known.items()}
