"""What fills an environment: uv with pip's settings, from the cache when offline, or pip itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import environments, plugins
from deploykit.errors import InstallError
from deploykit.events import Event
from deploykit.installing import find_python, find_uv, last_lines

if TYPE_CHECKING:
    from tests.core.conftest import PackageServer, PluginFolder, WriteWheel


@pytest.fixture
def no_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which uv is neither installed as a package nor on PATH."""
    monkeypatch.setitem(sys.modules, "uv", None)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    assert find_uv() is None


def _demo(environment: environments.Environment) -> str:
    return environment.versions["deploykit-demo"]


def test_this_python_is_preferred() -> None:
    assert find_python(">=3.11", uv=None) == Path(sys.executable)


def test_another_python_of_this_machine_is_found(own_settings: None) -> None:
    for minor in range(8, 15):
        version = f">=3.{minor},<3.{minor + 1}"
        if minor != sys.version_info.minor and shutil.which(f"python3.{minor}"):
            break
    else:
        pytest.skip("this machine has no other Python")
    try:
        found = find_python(version, uv=find_uv())
    except InstallError:
        pytest.skip(f"python3.{minor} is on PATH and does not start")
    assert found.exists()
    assert found != Path(sys.executable)


def test_the_reason_is_what_matters_of_the_output() -> None:
    output = (
        "Using CPython 3.11.7\nResolved 3 packages in 2ms\n  \u00d7 No solution found:\n"
        "  ╰─▶ Because there is no version of x\n      and you require x, it cannot be.\n\n"
    )
    assert last_lines(output) == (
        "No solution found: Because there is no version of x and you require x, it cannot be."
    )
    assert last_lines("warning: slow\nERROR: none\nerror: no x\n  cause: gone\n") == (
        "error: no x cause: gone"
    )
    assert last_lines(
        "error: Failed to build `x`\n  cause: Call to `y` failed\n\n  [stderr]\n  ***\n  a trace\n\n"
        "hint: look\n"
    ) == ("error: Failed to build `x` cause: Call to `y` failed")
    assert last_lines("\n") == "it gave no reason"
    assert len(last_lines("y" * 5000)) < 710


@pytest.mark.environment
def test_a_folder_of_wheels_is_preferred_where_its_build_is_more_specific(
    package_server: PackageServer,
    plugin_folder: PluginFolder,
    write_wheel: WriteWheel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with a CPU build of torch in find-links: `==2.0` takes `2.0+cpu`."""
    write_wheel(tmp_path / "wheels", "deploykit_demo", "2.0+cpu")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    plugin_folder.write("alpha", "deploykit_demo==2.0")
    assert _demo(environments.create(plugins.converter("alpha"))) == "2.0+cpu"


@pytest.mark.environment
def test_wheels_alone_do_without_an_index(
    package_server: PackageServer,
    plugin_folder: PluginFolder,
    write_wheel: WriteWheel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_wheel(tmp_path / "wheels", "deploykit_demo", "1.7")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    plugin_folder.write("alpha", "deploykit_demo")
    assert _demo(environments.create(plugins.converter("alpha"))) == "1.7"
    assert package_server.requests == []


@pytest.mark.environment
def test_of_several_indexes_the_best_version_wins(
    package_server: PackageServer,
    plugin_folder: PluginFolder,
    write_wheel: WriteWheel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel = write_wheel(tmp_path / "extra" / "deploykit-demo", "deploykit_demo", "1.1")
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "extra").as_uri())
    plugin_folder.write("alpha", "deploykit_demo")
    assert _demo(environments.create(plugins.converter("alpha"))) == "2.0"


@pytest.mark.environment
def test_constraints_of_pip_and_of_the_block_hold(
    package_server: PackageServer,
    plugin_folder: PluginFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package_server.add("deploykit_other", "1.0", requires=("deploykit_demo",))
    package_server.add("deploykit_other", "2.0", requires=("deploykit_demo",))
    (tmp_path / "constraints.txt").write_text("deploykit-demo<2\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    plugin_folder.write(
        "alpha",
        "deploykit_other",
        fields='[tool.uv]\nconstraint-dependencies = ["deploykit-other<2"]',
    )
    made = environments.create(plugins.converter("alpha"))
    assert made.versions == {"deploykit-demo": "1.0", "deploykit-other": "1.0"}


@pytest.mark.environment
def test_offline_with_a_filled_cache_works(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", "deploykit_demo>=1.5")
    plugin = plugins.converter("alpha")
    environments.remove(environments.create(plugin))
    package_server.stop()
    heard: list[Event] = []
    assert _demo(environments.create(plugin, listen=heard.append)) == "2.0"
    # either uv found all in its cache by itself, or it was told to
    notes = [event.message for event in heard if event.kind == "note"]
    assert len(notes) in (1, 2)
    assert all("installing" in note or "cannot be reached" in note for note in notes)


@pytest.mark.environment
def test_offline_with_an_empty_cache_says_so(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    plugin_folder.write("alpha", "deploykit_demo>=1.5")
    package_server.stop()
    with pytest.raises(InstallError) as error:
        environments.create(plugins.converter("alpha"))
    assert error.value.hint.startswith("the package index cannot be reached")
    assert environments.environments() == ()


@pytest.mark.environment
def test_the_users_project_does_not_interfere(
    package_server: PackageServer,
    plugin_folder: PluginFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "x"\nversion = "1"\n[tool.uv]\nconstraint-dependencies = ["deploykit-demo<1"]\n'
        '[[tool.uv.index]]\nurl = "http://127.0.0.1:9/simple"\ndefault = true\n'
    )
    monkeypatch.chdir(project)
    monkeypatch.setenv("UV_FROZEN", "1")
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", str(project / ".venv"))
    monkeypatch.setenv("VIRTUAL_ENV", str(project / ".venv"))
    monkeypatch.setenv("PYTHONPATH", str(project))
    plugin_folder.write("alpha", "deploykit_demo")
    assert _demo(environments.create(plugins.converter("alpha"))) == "2.0"
    assert [path.name for path in project.iterdir()] == ["pyproject.toml"]


@pytest.mark.environment
def test_uv_leaves_out_what_the_block_overrides(
    package_server: PackageServer, plugin_folder: PluginFolder
) -> None:
    package_server.add("deploykit_other", "1.0", requires=("deploykit_demo",))
    never = """override-dependencies = ["deploykit-demo ; sys_platform == 'never'"]"""
    plugin_folder.write("alpha", "deploykit_other", fields=f"[tool.uv]\n{never}")
    made = environments.create(plugins.converter("alpha"))
    assert made.versions == {"deploykit-other": "1.0"}


def test_without_uv_overrides_are_refused(no_uv: None, plugin_folder: PluginFolder) -> None:
    plugin_folder.write(
        "alpha", "deploykit_other", fields='[tool.uv]\noverride-dependencies = ["deploykit-demo<2"]'
    )
    with pytest.raises(InstallError, match="which pip cannot do") as raised:
        environments.create(plugins.converter("alpha"))
    assert raised.value.hint == "install uv"


@pytest.mark.environment
def test_without_uv_pip_does_it(
    no_uv: None,
    package_server: PackageServer,
    plugin_folder: PluginFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "constraints.txt").write_text("deploykit-demo<2\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "elsewhere"))
    plugin_folder.write("alpha", "deploykit_demo")
    made = environments.create(plugins.converter("alpha"))
    assert made.installer == "pip"
    assert _demo(made) == "1.0"
    assert not (tmp_path / "elsewhere").exists()

    plugin_folder.write("beta", "deploykit_absent")
    with pytest.raises(InstallError, match="No matching distribution found for deploykit_absent"):
        environments.create(plugins.converter("beta"))
    assert [item.key for item in environments.environments()] == [made.key]
