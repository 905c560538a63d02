"""Environments of plugins: made once, whole or not at all, by one process at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import environments, plugins
from deploykit.errors import InstallError, OutputError, UnavailableError, UsageError
from deploykit.events import Event

if TYPE_CHECKING:
    from tests.core.conftest import PackageServer, PluginFolder

ROOT = Path(plugins.__file__).resolve().parent.parent
DEMO = "deploykit_demo>=1.5"
PAGE = "GET /simple/deploykit-demo/"  # asked for once in each build


class Heard(list[Event]):
    """A listener that remembers."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def notes(self) -> list[str]:
        return [event.message for event in self if event.kind == "note"]


def _version_in(python: Path) -> str:
    code = "import deploykit_demo; print(deploykit_demo.__version__)"
    done = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


# --- without making any --------------------------------------------------------------------------


def test_the_callers_python_serves_where_it_has_all(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", "click>=1", "packaging")
    plugin = plugins.converter("alpha")
    assert environments.interpreter(plugin, install=False) == Path(sys.executable)
    assert environments.can_have(plugin, install=False)


def test_absent_and_not_to_be_installed(own_settings: None, plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin = plugins.converter("alpha")
    with pytest.raises(UnavailableError) as error:
        environments.interpreter(plugin, install=False)
    assert error.value.hint == "make it with `deploykit env create alpha`"
    assert not environments.can_have(plugin, install=False)
    assert environments.can_have(plugin, install=True)
    assert not (Path(os.environ["DEPLOYKIT_HOME"])).exists()


def test_no_python_of_that_age(own_settings: None, plugin_folder: PluginFolder) -> None:
    plugin_folder.write("ancient", requires_python=">=2.4,<2.5")
    plugin = plugins.converter("ancient")
    assert not environments.can_have(plugin)
    with pytest.raises(InstallError, match=r"no Python >=2\.4,<2\.5 was found"):
        environments.interpreter(plugin)
    assert environments.environments() == ()


def test_the_key_is_what_is_needed(plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", "a", "b")
    plugin_folder.write("beta", "b", "a")
    plugin_folder.write("gamma", "a")
    plugin_folder.write("delta", "a", "b", requires_python=">=3.9")
    plugin_folder.write(
        "epsilon", "a", "b", fields='[[tool.uv.index]]\nname = "x"\nurl = "https://x.example"'
    )
    keys = {plugin.name: environments.key_of(plugin) for plugin in plugins.plugins()}
    assert keys["alpha"] == keys["beta"]
    assert len(set(keys.values())) == 4


def test_a_folder_that_is_not_ours_is_left_alone(
    own_settings: None, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin = plugins.converter("alpha")
    folder = environments.folder_of(plugin)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("ten years of work")
    (folder / "deploykit.json").write_text("{}")
    (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert environments.environments() == ()
    with pytest.raises(InstallError, match="is in the way"):
        environments.create(plugin)
    with pytest.raises(UsageError, match="was not made by deploykit"):
        environments.remove(environments.Environment(key="x", folder=folder, plugins=()))
    assert (folder / "thesis.txt").read_text() == "ten years of work"


def test_a_link_to_an_environment_is_not_followed(own_settings: None, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "CACHEDIR.TAG").write_text(environments._TAG)
    link = tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(UsageError, match="was not made by deploykit"):
        environments.remove(environments.Environment(key="x", folder=link, plugins=()))
    assert real.is_dir()


def test_a_home_that_cannot_be_written(
    own_settings: None,
    plugin_folder: PluginFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugin_folder.write("alpha", DEMO)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(OutputError) as error:
        environments.create(plugins.converter("alpha"))
    assert "DEPLOYKIT_HOME" in error.value.hint


# --- made ----------------------------------------------------------------------------------------


@pytest.mark.environment
def test_made_on_first_use_and_found_on_the_second(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin_folder.write("beta", DEMO)
    heard = Heard()
    python = environments.interpreter(plugins.converter("alpha"), listen=heard)
    folder = environments.folder_of(plugins.converter("alpha"))
    assert python == folder / "bin" / "python"
    assert _version_in(python) == "2.0"
    assert heard.notes() == [f"installing {DEMO} for converter alpha into {folder}"]
    assert [heard[0].kind, heard[-1].kind, heard[-1].outcome] == ["start", "end", "ok"]

    again = Heard()
    begun = time.perf_counter()
    assert environments.interpreter(plugins.converter("alpha"), listen=again) == python
    assert environments.interpreter(plugins.converter("beta"), listen=again) == python
    assert time.perf_counter() - begun < 0.5
    assert again == []
    assert package_server.requests.count(PAGE) == 1

    (listed,) = environments.environments()
    assert listed.plugins == ("converter alpha", "converter beta")
    assert listed.versions["deploykit-demo"] == "2.0"
    assert listed.installer == "uv"
    assert listed.size_bytes > 0
    assert json.loads(json.dumps(listed.to_json()))["python"] == str(python)


@pytest.mark.environment
def test_what_cannot_be_installed_leaves_a_reason_and_no_folder(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", "deploykit_demo==3.0")
    plugin = plugins.converter("alpha")
    heard = Heard()
    with pytest.raises(InstallError) as error:
        environments.create(plugin, listen=heard)
    assert "deploykit-demo==3.0" in error.value.message
    assert len(error.value.message) < 900
    log = Path(error.value.hint.rpartition("log: ")[2])
    assert "deploykit-demo" in log.read_text()
    assert not environments.folder_of(plugin).exists()
    assert heard[-1].outcome == "error"


@pytest.mark.environment
def test_an_unfinished_environment_is_rubbish_and_built_anew(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin = plugins.converter("alpha")
    made = environments.create(plugin)
    state = made.folder / environments.STATE_FILE
    for damage in ("", "{", '{"schema": 999}'):
        state.write_text(damage)
        assert environments.lookup(plugin) is None
        assert [item.created for item in environments.environments()] == [""]
    state.unlink()
    (made.folder / "lib" / "half").mkdir()
    assert _version_in(environments.create(plugin).python) == "2.0"
    assert not (made.folder / "lib" / "half").exists()


@pytest.mark.environment
def test_an_environment_whose_python_is_gone_is_built_anew(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin = plugins.converter("alpha")
    python = environments.create(plugin).python
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert environments.lookup(plugin) is None
    assert _version_in(environments.interpreter(plugin)) == "2.0"


@pytest.mark.environment
def test_removed_and_made_again(package_server: PackageServer, plugin_folder: PluginFolder) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin = plugins.converter("alpha")
    made = environments.create(plugin)
    environments.remove(made)
    assert not made.folder.exists()
    assert environments.environments() == ()
    assert environments.create(plugin).python.exists()


# --- several processes ---------------------------------------------------------------------------

CREATE = """
import sys
from deploykit import environments, plugins
made = environments.create(plugins.converter("alpha"), listen=lambda e: print(e.message, flush=True))
print("made", made.python, flush=True)
"""


def _start(plugin_folder: PluginFolder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CREATE],
        cwd=ROOT,
        env={**os.environ, "DEPLOYKIT_PLUGIN_PATH": str(plugin_folder.folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _running_with(text: str) -> list[str]:
    """Return the command lines of processes that mention `text`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it ended
        if text in words and int(entry.name) != os.getpid():
            found.append(words)
    return found


@pytest.mark.environment
def test_of_two_processes_one_builds_and_the_other_waits(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    package_server.go.clear()
    one, other = _start(plugin_folder), _start(plugin_folder)
    assert package_server.asked.wait(60)
    time.sleep(1.0)  # the other has long come to the lock
    package_server.go.set()
    outputs = [process.communicate(timeout=120) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], outputs
    said = [stdout for stdout, _ in outputs]
    assert sorted("installing deploykit_demo" in text for text in said) == [False, True]
    assert sorted("waiting for another process" in text for text in said) == [False, True]
    assert {text.splitlines()[-1] for text in said} == {
        f"made {environments.folder_of(plugins.converter('alpha'))}/bin/python"
    }
    assert package_server.requests.count(PAGE) == 1


@pytest.mark.environment
def test_an_interrupt_leaves_nothing(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    folder = environments.folder_of(plugins.converter("alpha"))
    package_server.go.clear()
    process = _start(plugin_folder)
    assert package_server.asked.wait(60)
    assert folder.exists()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert not folder.exists()
    assert _running_with(str(folder)) == []


@pytest.mark.environment
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="orphans are found through /proc")
def test_after_a_kill_the_next_build_ends_the_orphan_and_starts_anew(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", DEMO)
    plugin = plugins.converter("alpha")
    folder = environments.folder_of(plugin)
    package_server.go.clear()
    process = _start(plugin_folder)
    assert package_server.asked.wait(60)
    process.kill()
    process.communicate(timeout=60)
    assert folder.exists()
    assert environments.lookup(plugin) is None
    assert len(_running_with(str(folder))) == 1  # uv, which nobody waits for any more

    running_at_note: list[str] = []

    def listen(event: Event) -> None:
        if event.kind == "note":  # the folder is clean, and the new build has not begun
            running_at_note.extend(_running_with(str(folder)))
            package_server.go.set()

    assert _version_in(environments.create(plugin, listen=listen).python) == "2.0"
    assert package_server.go.is_set()
    assert running_at_note == []
