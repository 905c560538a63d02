"""What this interpreter has of what a plugin needs."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import plugins
from deploykit.requirements import python_satisfies, unmet, unmet_in

if TYPE_CHECKING:
    from tests.core.conftest import PluginFolder

CLICK = importlib.metadata.version("click")


@pytest.mark.parametrize(
    ("dependency", "expected"),
    [
        ("click", ()),
        ("CLICK>=1", ()),
        (f"click=={CLICK}", ()),
        ("click<2", (f"click<2 (found {CLICK})",)),
        ("deploykit-no-such-thing>1", ("deploykit-no-such-thing>1 (not installed)",)),
        ("deploykit-no-such-thing; python_version < '3'", ()),
        ("click<2; python_version > '3'", (f'click<2; python_version > "3" (found {CLICK})',)),
    ],
)
def test_dependencies(
    plugin_folder: PluginFolder, dependency: str, expected: tuple[str, ...]
) -> None:
    plugin_folder.write("alpha", dependency)
    assert unmet(plugins.converter("alpha")) == expected


def test_python_itself(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", requires_python="<3.9")
    assert unmet(plugins.converter("alpha")) == (
        f"Python <3.9 (found {platform.python_version()})",
    )


def test_an_extra_counts(tmp_path: Path, plugin_folder: PluginFolder) -> None:
    """`httpx[http2]` with httpx installed and h2 not is not satisfied: shown with a made-up pair."""
    site = tmp_path / "site"
    info = site / "deploykit_demo-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: deploykit-demo\nVersion: 1.0\nProvides-Extra: more\n"
        'Requires-Dist: deploykit-missing>=2; extra == "more"\nRequires-Dist: also-missing\n'
    )
    plugin_folder.write("plain", "deploykit-demo")
    plugin_folder.write("more", "deploykit_demo[more]")
    code = (
        "import sys; sys.path.append(sys.argv[2])\n"
        "from deploykit import _plugins, plugins; _plugins.__path__ = [sys.argv[1]]\n"
        "from deploykit.requirements import unmet\n"
        "for isolated in (False, True):\n"
        "    for name in ('plain', 'more'):\n"
        "        print(unmet(plugins.converter(name), isolated=isolated))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(plugin_folder.folder), str(site)],
        cwd=Path(plugins.__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "()",
        "('deploykit-missing>=2; extra == \"more\" (not installed)',)",
        # a worker runs isolated, so it does not see what only this process's sys.path has
        "('deploykit-demo (not installed)',)",
        "('deploykit_demo[more] (not installed)',)",
    ]


def test_python_versions() -> None:
    assert python_satisfies("")
    assert python_satisfies(">=3.11")
    assert python_satisfies(">=3.10,<3.13", "3.12.4")
    assert not python_satisfies(">=3.10,<3.13", "3.13.0")


def test_another_environment_is_judged_by_its_own_python() -> None:
    needs = ("numpy>=1.23", "dataclasses; python_version < '3.7'", "onnx_ir")
    assert unmet_in(needs, {"numpy": "1.24", "onnx-ir": "1"}, python_version="3.8.18") == ()
    assert unmet_in(needs, {"numpy": "1.19"}, python_version="3.6.15") == (
        "numpy>=1.23 (found 1.19)",
        'dataclasses; python_version < "3.7" (not installed)',
        "onnx_ir (not installed)",
    )
