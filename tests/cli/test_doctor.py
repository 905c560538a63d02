"""`deploykit doctor`, as the user calls it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import deploykit
from deploykit import plugins

ROOT = Path(deploykit.__file__).resolve().parent.parent


def doctor(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `deploykit doctor` in a home without any environment."""
    return subprocess.run(
        [sys.executable, "-m", "deploykit", "doctor", *arguments],
        cwd=ROOT,
        env={**os.environ, "DEPLOYKIT_HOME": str(home), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def extra_plugins(tmp_path: Path) -> str:
    """A folder with a target that nothing here can run, and a broken file."""
    group = tmp_path / "plugins" / "targets"
    group.mkdir(parents=True)
    (group / "relic_own.py").write_text(
        '# /// script\n# requires-python = "<2.5"\n# dependencies = ["demo[gpu]==1"]\n'
        '# [tool.deploykit]\n# summary = "a relic"\n# devices = ["cpu", "gpu"]\n'
        '# functions = ["probe"]\n# [tool.deploykit.settings]\n# speed = "fast (default) or slow"\n'
        '# ///\n"""A relic."""\n'
    )
    (group / "broken_own.py").write_text("print('no block')\n")
    return str(tmp_path / "plugins")


def test_every_plugin_and_device_is_told(tmp_path: Path) -> None:
    done = doctor(tmp_path / "home", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["python"] == platform.python_version()
    assert found["executable"] == sys.executable
    assert found["home"] == str(tmp_path / "home")
    told = {(item["kind"], item["name"]): item for item in found["plugins"]}
    assert set(told) == {(plugin.kind, plugin.name) for plugin in plugins.plugins()}
    for item in told.values():
        assert item["devices"]
        for device in item["devices"]:
            assert device["runs"] in (True, False, None)
    # a base dependency, so it runs in any environment that deploykit does
    devices = {each["device"]: each for each in told["target", "onnxruntime"]["devices"]}
    assert devices["cpu"]["runs"] is True
    assert "Windows" in devices["dml"]["detail"]
    # asking installs nothing
    assert not (tmp_path / "home" / "environments").exists()


def test_the_table_says_why(tmp_path: Path, extra_plugins: str) -> None:
    done = doctor(
        tmp_path / "home",
        DEPLOYKIT_PLUGIN_PATH=extra_plugins,
        PIP_INDEX_URL="https://me:secret@mirror.example/simple",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"deploykit {deploykit.__version__}, Python ")
    rows = [line.split() for line in lines if "relic_own" in line]
    assert [row[:4] for row in rows] == [
        ["target", "relic_own", "cpu", "no"],
        ["target", "relic_own", "gpu", "no"],
    ]
    assert any("no Python <2.5 was found on this machine" in line for line in lines)
    assert any(line.startswith("problem: the plugin `") and "broken_own" in line for line in lines)
    assert "secret" not in done.stdout
    assert "https://****@mirror.example/simple (PIP_INDEX_URL)" in done.stdout


def test_one_plugin_in_detail(tmp_path: Path, extra_plugins: str) -> None:
    done = doctor(tmp_path / "home", "relic_own", DEPLOYKIT_PLUGIN_PATH=extra_plugins)
    assert done.returncode == 7  # it cannot run here
    assert "needs: demo[gpu]==1" in done.stdout
    assert "runs in: an environment of its own, not made yet" in done.stdout
    assert "--set speed=…  fast (default) or slow" in done.stdout
    assert "onnxruntime" not in done.stdout.partition("plugin ")[2]
    assert doctor(tmp_path / "home", "onnxruntime").returncode == 0


def test_an_unknown_plugin(tmp_path: Path) -> None:
    done = doctor(tmp_path / "home", "onnxruntim")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: plugin `onnxruntim` is unknown (did you mean `onnxruntime`?)"
    )
