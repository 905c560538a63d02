"""pip's settings, read as pip reads them and handed on to uv."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.errors import InstallError
from deploykit.package_index import (
    PackageIndex,
    configuration_files,
    constraints,
    package_index,
    pip_variables,
    uv_variables,
    without_credentials,
)

CONFIGURATION = """
[global]
index-url = https://me:secret@mirror.example/simple
find-links = ~/wheels
    {folder}/more
cert = {folder}/ca.pem
timeout = 60
no-index = no

[install]
extra_index_url =
    https://one.example/simple
    https://two.example/simple
trusted-host = one.example

[list]
index-url = https://not-for-install.example
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A user whose pip.conf is `CONFIGURATION`."""
    home = tmp_path / "home"
    file = home / ".config" / "pip" / "pip.conf"
    file.parent.mkdir(parents=True)
    file.write_text(CONFIGURATION.format(folder=tmp_path))
    # no system-wide file of this machine: the variable names one of the test's own
    return {"HOME": str(home), "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}


def _user_file(environ: dict[str, str]) -> Path:
    return Path(environ["HOME"]) / ".config" / "pip" / "pip.conf"


def test_files_and_sections(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", environ["HOME"])
    index = package_index(environ)
    assert index.index_url == "https://me:secret@mirror.example/simple"
    assert index.extra_index_urls == ("https://one.example/simple", "https://two.example/simple")
    assert index.find_links == (f"{environ['HOME']}/wheels", f"{tmp_path}/more")
    assert index.cert == f"{tmp_path}/ca.pem"
    assert index.trusted_hosts == ("one.example",)
    assert index.timeout_s == "60"
    assert not index.no_index
    assert dict(index.origins)["index-url"] == str(_user_file(environ))


def test_variables_are_stronger_than_files(environ: dict[str, str]) -> None:
    index = package_index(
        {**environ, "PIP_INDEX_URL": "https://x.example", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    )
    assert index.index_url == "https://x.example"
    assert index.no_index
    assert len(index.find_links) == 2  # an empty variable is none
    assert dict(index.origins)["index-url"] == "PIP_INDEX_URL"


def test_install_is_stronger_than_global_in_any_file(
    environ: dict[str, str], tmp_path: Path
) -> None:
    system = tmp_path / "xdg" / "pip" / "pip.conf"
    system.parent.mkdir(parents=True)
    system.write_text("[install]\nindex-url = https://system.example\n")
    assert package_index(environ).index_url == "https://system.example"


def test_a_named_file_replaces_the_users(environ: dict[str, str], tmp_path: Path) -> None:
    named = tmp_path / "named.conf"
    named.write_text("[global]\nindex-url = https://named.example\n")
    environ["PIP_CONFIG_FILE"] = str(named)
    assert _user_file(environ) not in configuration_files(environ)
    assert package_index(environ).index_url == "https://named.example"
    environ["PIP_CONFIG_FILE"] = os.devnull
    assert configuration_files(environ) == ()
    assert package_index(environ) == PackageIndex()


def test_pip_itself_reads_the_same(environ: dict[str, str], tmp_path: Path) -> None:
    """The order of files and sections, against pip's own answer."""
    system = tmp_path / "xdg" / "pip" / "pip.conf"
    system.parent.mkdir(parents=True)
    system.write_text("[global]\nindex-url = https://system.example\nproxy = http://p.example:1\n")
    code = (
        "import json\n"
        "from pip._internal.commands import create_command\n"
        "options, _ = create_command('install').parse_args([])\n"
        "names = ('index_url', 'extra_index_urls', 'find_links', 'cert', 'trusted_hosts', 'proxy')\n"
        "print(json.dumps([getattr(options, name) for name in names]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "No module named 'pip'" in done.stderr:
        pytest.skip("this environment has no pip to compare with")
    ours = package_index(environ)
    index_url, extra, find_links, cert, trusted, proxy = json.loads(done.stdout)
    assert index_url == ours.index_url == "https://me:secret@mirror.example/simple"
    assert tuple(extra) == ours.extra_index_urls
    assert [Path(link).name for link in find_links] == [Path(n).name for n in ours.find_links]
    assert cert == ours.cert
    assert tuple(trusted) == ours.trusted_hosts
    assert proxy == ours.proxy == "http://p.example:1"


def test_uv_is_told(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", environ["HOME"])
    told = uv_variables(package_index(environ), environ)
    assert told == {
        "UV_DEFAULT_INDEX": "https://me:secret@mirror.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": f"{environ['HOME']}/wheels,{tmp_path}/more",
        "SSL_CERT_FILE": f"{tmp_path}/ca.pem",
        "UV_INSECURE_HOST": "one.example",
        "UV_HTTP_TIMEOUT": "60",
    }


@pytest.mark.parametrize(
    ("own", "left_out"),
    [
        ("UV_DEFAULT_INDEX", "UV_DEFAULT_INDEX"),
        ("UV_INDEX_URL", "UV_DEFAULT_INDEX"),
        ("UV_EXTRA_INDEX_URL", "UV_INDEX"),
        ("UV_INDEX_STRATEGY", "UV_INDEX_STRATEGY"),
        ("SSL_CERT_FILE", "SSL_CERT_FILE"),
    ],
)
def test_what_the_user_told_uv_wins(environ: dict[str, str], own: str, left_out: str) -> None:
    index = package_index(environ)
    assert left_out in uv_variables(index, environ)
    assert left_out not in uv_variables(index, {**environ, own: "the user's"})


def test_pip_is_told_all_and_reads_no_file(environ: dict[str, str]) -> None:
    index = package_index({**environ, "PIP_CONSTRAINT": "/c.txt", "PIP_PRE": "true"})
    told = pip_variables(index)
    assert told["PIP_CONFIG_FILE"] == os.devnull
    # nothing is lost on the way
    assert package_index(told) == PackageIndex(
        **{**vars(index), "origins": package_index(told).origins}
    )


def test_passwords_are_not_shown(environ: dict[str, str]) -> None:
    environ["PIP_EXTRA_INDEX_URL"] = "https://token@a.example/simple file:///b"
    shown = package_index(environ).described()
    assert "secret" not in str(shown)
    assert "token" not in str(shown)
    assert shown["index-url"].startswith("https://****@mirror.example/simple (")
    assert (
        shown["extra-index-url"] == "https://****@a.example/simple file:///b (PIP_EXTRA_INDEX_URL)"
    )
    assert without_credentials("https://a.example/@x") == "https://a.example/@x"


def test_constraints(tmp_path: Path) -> None:
    file = tmp_path / "constraints.txt"
    file.write_text(
        "# why\n\ntorch<=2.14.1  # a reason\n--no-binary x\nnumpy ; python_version>'3'\n"
    )
    index = PackageIndex(constraint_files=(str(file),))
    assert constraints(index) == ("torch<=2.14.1", 'numpy; python_version > "3"')
    file.write_text("torch <== 2\n")
    with pytest.raises(InstallError, match="'torch <== 2' is no constraint"):
        constraints(index)
    with pytest.raises(InstallError, match="cannot read the constraint file") as error:
        constraints(PackageIndex(constraint_files=("/nowhere/c.txt",)))
    assert "PIP_CONFIG_FILE" in error.value.hint


@pytest.mark.parametrize("content", [b"index-url = x\n", b"[global\n", b"\xff\xfe[global]"])
def test_a_broken_file_is_named(environ: dict[str, str], content: bytes) -> None:
    _user_file(environ).write_bytes(content)
    with pytest.raises(InstallError) as error:
        package_index(environ)
    assert str(_user_file(environ)) in error.value.message
    assert "\n" not in error.value.message
