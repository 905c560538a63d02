"""The contract of `test_targets.py`, in the environments of the targets that are not installed here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit import environments, plugins
from deploykit.plugins import Plugin
from deploykit.requirements import unmet
from deploykit.system_libraries import missing_libraries

pytestmark = pytest.mark.environment

CONTRACT = Path(__file__).with_name("test_targets.py")
ROOT = CONTRACT.parents[2]
APART = [plugin for plugin in plugins.plugins("target") if unmet(plugin, isolated=False)]

# The target's own packages come first; pytest is found behind them, among ours.
RUN = """
import os, sys
sys.path.insert(0, os.getcwd())
sys.path += sys.argv[1].split(os.pathsep)
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("plugin", APART, ids=lambda plugin: plugin.name)
def test_in_its_own_environment(plugin: Plugin) -> None:
    lacking = missing_libraries(plugin)
    if lacking:
        pytest.skip(lacking)
    python = environments.interpreter(plugin)
    ours = os.pathsep.join(path for path in sys.path if Path(path).name == "site-packages")
    done = subprocess.run(
        [str(python), "-c", RUN, ours, str(CONTRACT), "-k", plugin.name],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted, done.stdout
    assert int(counted[1]) >= 12
