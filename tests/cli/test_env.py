"""`deploykit env`, as the user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import deploykit

ROOT = Path(deploykit.__file__).resolve().parent.parent
PLUGIN = '''# /// script
# requires-python = ">=3.8"
# dependencies = [{needs}]
#
# [tool.deploykit]
# summary = "a plugin of the tests"
# formats = ["{name}/model"]
# functions = ["convert"]
# ///
"""A plugin of the tests."""
'''
SMALL = '"packaging<25"'  # older than what any caller's environment has by way of deploykit

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `deploykit` with a home and plugins of the test's own."""
    group = tmp_path / "plugins" / "converters"
    group.mkdir(parents=True)
    (group / "one_own.py").write_text(PLUGIN.format(name="one", needs=SMALL))
    (group / "two_own.py").write_text(PLUGIN.format(name="two", needs=SMALL))
    (group / "here_own.py").write_text(PLUGIN.format(name="here", needs='"click"'))
    (group / "bad_own.py").write_text(PLUGIN.format(name="bad", needs='"packaging==0.0.7"'))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploykit", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "DEPLOYKIT_HOME": str(tmp_path / "home"),
                "DEPLOYKIT_PLUGIN_PATH": str(tmp_path / "plugins"),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


def test_an_empty_list(run: Run) -> None:
    assert run("env", "list").stdout.startswith("no environments yet")
    assert json.loads(run("env", "list", "--json").stdout) == {"environments": []}


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (("create", "one_won"), 2, "(did you mean `one_own`?)", "plugins: "),
        (("path", "one_own"), 7, "is not made yet", "deploykit env create one_own"),
        (("remove", "one_own"), 2, "`one_own` has no environment", "deploykit env list"),
        (("remove", "0123456789abcdef"), 2, "plugin `0123456789abcdef` is unknown", "plugins: "),
        (("remove",), 2, "say what to remove", "deploykit env list"),
        (("remove", "one_own", "--all"), 2, "say what to remove", "deploykit env list"),
    ],
)
def test_what_makes_no_sense(
    run: Run, arguments: tuple[str, ...], code: int, error: str, hint: str
) -> None:
    done = run("env", *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("  hint: ")
    assert hint in lines[1]


def test_remove_all_of_none(run: Run) -> None:
    done = run("env", "remove", "--all")
    assert (done.returncode, done.stdout) == (0, "there was none to remove\n")


def test_a_plugin_that_needs_none(run: Run) -> None:
    done = run("env", "create", "here_own")
    assert done.returncode == 0
    assert "converter here_own: not needed: this Python has all of it" in done.stdout
    assert run("env", "path", "here_own").stdout == f"{sys.prefix}\n"


@pytest.mark.environment
def test_made_listed_found_and_removed(run: Run, tmp_path: Path) -> None:
    done = run("env", "create", "one_own", "two_own", "here_own")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("installing packaging<25 for converter one_own into ") == 1
    assert "converter two_own: there" in done.stdout

    (listed,) = json.loads(run("env", "list", "--json").stdout)["environments"]
    assert listed["plugins"] == ["converter one_own", "converter two_own"]
    assert listed["versions"]["packaging"].startswith("24.")
    table = run("env", "list").stdout
    assert listed["key"] in table
    assert "converter one_own, converter two_own" in table

    folder = run("env", "path", "one_own").stdout.strip()
    assert folder == listed["folder"] == str(tmp_path / "home" / "environments" / listed["key"])
    shown = json.loads(run("env", "path", "two_own", "--json").stdout)
    assert shown["python"] == f"{folder}/bin/python"

    removed = run("env", "remove", "two_own")
    assert removed.stdout == (
        f"{listed['key']} (converter one_own, converter two_own): removed, {folder}\n"
    )
    assert not Path(folder).exists()


@pytest.mark.environment
def test_one_that_fails_does_not_stop_the_others(run: Run) -> None:
    done = run("env", "create", "bad_own", "one_own", "--json")
    assert done.returncode == 6
    answer = json.loads(done.stdout)
    assert answer["failed"] == ["bad_own"]
    assert [item["state"] for item in answer["environments"]] == ["made"]
    assert "error: cannot install what converter bad_own needs: " in done.stderr
    assert "packaging==0.0.7" in done.stderr
    assert done.stderr.splitlines()[-2] == "error: not made: bad_own"
    key = Path(answer["environments"][0]["folder"]).name
    assert run("env", "remove", key).returncode == 0
    assert json.loads(run("env", "list", "--json").stdout) == {"environments": []}
