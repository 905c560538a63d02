"""Targets asked of their devices, some of which have environments of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import environments, plugins
from deploykit.diagnosis import examine
from deploykit.errors import UnavailableError
from deploykit.options import Conditions
from deploykit.probing import interpreter, probe
from deploykit.target_choice import available_targets

if TYPE_CHECKING:
    from tests.core.conftest import PackageServer, PluginFolder

pytestmark = pytest.mark.environment

BLOCK = """requires-python = ">=3.10"
dependencies = []

[tool.deploykit]
summary = "a target of the tests"
devices = ["cpu", "one", "two", "impossible", "broken", "fake"]
functions = ["probe", "compile", "load"]

[tool.deploykit.environments]
one = ["deploykit_demo==1.0"]
two = ["deploykit_demo==2.0"]
impossible = ["deploykit_demo==2.0"]
fake = ["deploykit_demo==1.0"]
broken = ["no_such_package"]
"""

BODY = """
from deploykit.protocol import Availability


def probe():
    try:
        from deploykit_demo import __version__ as found
    except ImportError:
        found = ""
    return (
        Availability(device="cpu", available=True),
        *(
            Availability(device=name, available=found == wanted, unprobed=not found, detail=found)
            for name, wanted in (("one", "1.0"), ("two", "2.0"), ("broken", "3.0"))
        ),
        Availability(device="impossible", available=False, detail="no such chip here"),
        Availability(device="fake", available=False, by_name=True, detail="a simulator"),
    )
"""


@pytest.fixture
def target(
    package_server: PackageServer, plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch
) -> plugins.Plugin:
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(plugin_folder.folder))
    plugin_folder.write("alpha", kind="target", block=BLOCK, body=BODY)
    return plugins.target("alpha")


def _made() -> list[str]:
    return [name for each in environments.environments() for name in each.plugins]


def test_nothing_is_installed_for_what_cannot_be(target: plugins.Plugin) -> None:
    with pytest.raises(UnavailableError, match="alpha:impossible cannot run here: no such chip"):
        interpreter(target.on("impossible"))
    assert _made() == []


def test_a_simulator_runs_where_it_is_asked_for_by_name(target: plugins.Plugin) -> None:
    assert ("fake", False) in [
        (each.device, each.available) for each in probe(target, install=False)
    ]
    assert _made() == []
    assert interpreter(target.on("fake")).is_file()
    assert "target alpha:fake" in _made()


def test_without_permission_to_install_it_is_not_known(target: plugins.Plugin) -> None:
    found = {each.device: each for each in probe(target, install=False)}
    assert found["cpu"].available
    assert [name for name, each in found.items() if each.unprobed] == ["one", "two", "broken"]
    assert _made() == []
    runs = {each.device: each.runs for each in examine(target).devices}
    assert runs == {
        "cpu": True,
        "one": None,
        "two": None,
        "broken": None,
        "impossible": False,
        "fake": False,
    }
    assert _made() == []


def test_each_device_is_asked_in_its_own_environment(target: plugins.Plugin) -> None:
    found = {each.device: each for each in probe(target)}
    assert [name for name, each in found.items() if each.available] == ["cpu", "one", "two"]
    assert (found["one"].detail, found["two"].detail) == ("1.0", "2.0")
    assert "no_such_package" in found["broken"].detail.replace("-", "_")
    assert not any(each.unprobed for each in found.values())
    # `impossible` shares what `two` needs, and `fake` what `one` does
    assert sorted(_made()) == [
        "target alpha:fake",
        "target alpha:impossible",
        "target alpha:one",
        "target alpha:two",
    ]
    chosen = available_targets(Conditions())
    assert [(str(plugin), device) for plugin, device in chosen] == [
        ("target alpha", "cpu"),
        ("target alpha:one", "one"),
        ("target alpha:two", "two"),
    ]
    assert interpreter(target.on("one")) == environments.folder_of(target.on("one")) / Path(
        "bin/python"
    )
    assert {each.device: each.runs for each in examine(target).devices}["two"] is True
