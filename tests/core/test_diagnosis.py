"""What can run here: asked of targets by their own `probe`, read of converters from their needs."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import TYPE_CHECKING

import pytest

from deploykit import environments, plugins
from deploykit.diagnosis import NOT_MADE, diagnose, examine
from deploykit.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import PackageServer, PluginFolder

PROBE = '''
from deploykit.protocol import Availability


def probe():
    """Two devices, one of them missing."""
    import deploykit_demo

    return (
        Availability(device="cpu", available=True, versions={"demo": deploykit_demo.__version__}),
        Availability(device="npu", available=False, detail="no driver `demo_npu`"),
    )
'''


def test_a_converter_that_the_callers_python_serves(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", "click>=1", "tomli; python_version < '3'")
    found = examine(plugins.converter("alpha"))
    assert found.lacking == ()
    assert found.python
    (device,) = found.devices
    assert device.runs is True
    assert device.versions == {"click": importlib.metadata.version("click")}


def test_what_is_not_made_yet_is_not_known_yet(
    own_settings: None, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", "deploykit_demo")
    found = examine(plugins.converter("alpha"))
    assert found.python is None
    assert found.lacking == ("deploykit_demo (not installed)",)
    assert [(device.runs, device.detail) for device in found.devices] == [(None, NOT_MADE)]
    assert environments.environments() == ()


def test_what_no_python_here_can_run(own_settings: None, plugin_folder: PluginFolder) -> None:
    plugin_folder.write("ancient", requires_python="<2.5", kind="target")
    (device,) = examine(plugins.target("ancient")).devices
    assert device.device == "cpu"
    assert device.runs is False
    assert device.detail.startswith("no Python <2.5 was found on this machine; install one")


def test_without_a_library_of_the_system_nothing_is_installed(
    own_settings: None, plugin_folder: PluginFolder
) -> None:
    block = (
        'requires-python = ">=3.8"\ndependencies = ["deploykit_demo"]\n[tool.deploykit]\n'
        'summary = "x"\ndevices = ["gpu"]\nfunctions = ["probe"]\n[tool.deploykit.libraries]\n'
        '"libc.so.6" = "glibc"\n"libdemo_absent.so.1" = "the driver of the demo"\n'
    )
    plugin_folder.write("driven", kind="target", block=block)
    target = plugins.target("driven")
    lacks = "this machine lacks the driver of the demo (`libdemo_absent.so.1`)"
    for install in (False, True):
        (device,) = examine(target, install=install).devices
        assert (device.device, device.runs) == ("gpu", False)
        assert device.detail.endswith(lacks)
    with pytest.raises(UnavailableError, match="libdemo_absent"):
        environments.interpreter(target)
    assert environments.can_have(target) is False
    assert environments.environments() == ()


def test_the_machine_and_the_settings(
    own_settings: None, plugin_folder: PluginFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@mirror.example/simple")
    plugin_folder.write("broken", block="x = 1")
    plugin_folder.write("alpha", "click")
    found = diagnose()
    assert found.python == platform.python_version()
    assert found.processors >= 1
    assert found.memory_bytes > 1 << 28
    assert found.home == str(tmp_path / "home")
    assert found.home_free_bytes > 0
    assert found.package_index == {
        "index-url": "https://****@mirror.example/simple (PIP_INDEX_URL)"
    }
    assert [plugin.name for plugin in found.plugins] == ["alpha"]
    assert len(found.problems) == 1
    assert "broken.py" in found.problems[0]
    assert "secret" not in json.dumps(found.to_json())


def test_broken_settings_of_pip_are_a_problem_not_the_end(
    own_settings: None, plugin_folder: PluginFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (problem,) = diagnose().problems
    assert str(tmp_path / "pip.conf") in problem


@pytest.mark.environment
def test_a_target_is_asked_in_its_environment(
    package_server: PackageServer, plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin_folder.write("demo", "deploykit_demo", kind="target", body=PROBE)
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(plugin_folder.folder))
    target = plugins.target("demo")
    assert [device.runs for device in examine(target).devices] == [None]
    found = examine(target, install=True)
    assert found.python == str(environments.folder_of(target) / "bin" / "python")
    assert [(d.device, d.runs, d.detail) for d in found.devices] == [
        ("cpu", True, ""),
        ("npu", False, "no driver `demo_npu`"),
    ]
    assert found.devices[0].versions == {"demo": "2.0"}


@pytest.mark.environment
def test_a_probe_that_fails_is_a_finding(
    package_server: PackageServer, plugin_folder: PluginFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "def probe():\n    raise OSError('libdemo.so.1: cannot open shared object file')\n"
    plugin_folder.write("demo", "deploykit_demo", kind="target", body=body)
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(plugin_folder.folder))
    (device,) = examine(plugins.target("demo"), install=True).devices
    assert device.runs is False
    assert "libdemo.so.1: cannot open shared object file" in device.detail


@pytest.mark.environment
def test_what_cannot_be_installed_is_a_finding(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("demo", "deploykit_absent", kind="target")
    (device,) = examine(plugins.target("demo"), install=True).devices
    assert device.runs is False
    assert device.detail.startswith("cannot install what target demo needs")
