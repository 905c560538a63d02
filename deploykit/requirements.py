"""Does the Python that runs deploykit already have what a plugin needs?"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import site
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from deploykit.plugins import Plugin


def unmet(plugin: Plugin, *, isolated: bool = True) -> tuple[str, ...]:
    """Return what this interpreter lacks of the needs of `plugin`, such as `onnx<1.18 (found 1.23.2)`.

    `isolated` asks for what a worker (`python -I`) sees, which leaves out PYTHONPATH and the user's
    own site folder; False asks for what this very process can import. Dependencies of dependencies
    are taken as given, save those of an extra that the plugin names.
    """
    from packaging.requirements import Requirement

    reasons = []
    if not python_satisfies(plugin.requires_python):
        reasons.append(f"Python {plugin.requires_python} (found {platform.python_version()})")
    installed = _Installed(isolated=isolated)
    for text in plugin.dependencies:
        reasons += installed.unmet(Requirement(text), extra="")
    return tuple(dict.fromkeys(reasons))


def python_satisfies(requires_python: str, version: str | None = None) -> bool:
    """Return whether Python `version`, by default this one, is within `requires_python`."""
    from packaging.specifiers import SpecifierSet

    found = version or platform.python_version().rstrip("+")
    return SpecifierSet(requires_python).contains(found, prereleases=True)


def unmet_in(
    dependencies: tuple[str, ...], versions: Mapping[str, str], *, python_version: str
) -> tuple[str, ...]:
    """Return which `dependencies` an environment lacks that has `versions` (canonical name: version)."""
    from packaging.requirements import Requirement

    major, minor, *_ = python_version.split(".")
    environment = {"python_version": f"{major}.{minor}", "python_full_version": python_version}
    reasons: list[str] = []
    for requirement in map(Requirement, dependencies):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            reasons += _reason(requirement, versions.get(canonical(requirement.name)))
    return tuple(reasons)


def canonical(name: str) -> str:
    """Return the one spelling of a distribution's name: `onnx_ir` is `onnx-ir`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _reason(requirement: Requirement, found: str | None) -> Iterator[str]:
    if found is None:
        yield f"{requirement} (not installed)"
    elif not requirement.specifier.contains(found, prereleases=True):
        yield f"{requirement} (found {found})"


class _Installed:
    """The distributions of this interpreter."""

    def __init__(self, *, isolated: bool) -> None:
        self.path = [*site.getsitepackages()] if isolated else list(sys.path)

    def distribution(self, name: str) -> importlib.metadata.Distribution | None:
        found = importlib.metadata.distributions(name=name, path=self.path)
        # an interrupted uninstall leaves a folder without a version behind
        return next((item for item in found if item.metadata["Name"] and item.version), None)

    def unmet(self, requirement: Requirement, *, extra: str) -> Iterator[str]:
        from packaging.requirements import Requirement

        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            return
        distribution = self.distribution(requirement.name)
        yield from _reason(requirement, distribution.version if distribution else None)
        if distribution is None:
            return
        for wanted in requirement.extras:
            for text in distribution.requires or ():
                item = Requirement(text)
                if item.marker is not None and "extra" in str(item.marker):
                    yield from self.unmet(item, extra=wanted)
