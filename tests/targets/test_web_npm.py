"""The package of npm that the target web takes its runtime from."""

from __future__ import annotations

import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from deploykit._plugins.targets.web_page import (
    npm_package,
)

from deploykit.errors import PluginError, UnavailableError

from .web_models import tarball


def _link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.fixture
def npm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of deploykit, a registry that nobody may ask, and no npm."""
    monkeypatch.setenv("DEPLOYKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("npm_config_registry", "https://packages.invalid/npm")
    monkeypatch.setattr(npm_package.shutil, "which", lambda _: None)

    def refuse(*args: Any, **more: Any) -> None:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "home"


def _known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take `path` for the archive that the plugin knows."""
    monkeypatch.setattr(npm_package, "INTEGRITY", npm_package.integrity_of(path))


def test_without_network_and_cache_it_says_what_to_do(npm_home: Path) -> None:
    with pytest.raises(UnavailableError, match="no network in this test") as raised:
        npm_package.archive()
    assert f"npm pack onnxruntime-web@{npm_package.VERSION}" in raised.value.hint
    assert str(npm_home / "npm") in raised.value.hint
    assert list((npm_home / "npm").iterdir()) == []


def test_a_filled_cache_needs_no_network(npm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (npm_home / "npm").mkdir(parents=True)
    path = tarball(npm_home / "npm" / npm_package.ARCHIVE, {"package/dist/a.mjs": b"a"})
    _known(path, monkeypatch)
    assert npm_package.archive() == path


def test_another_archive_is_refused_and_not_kept(
    npm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"something"))
    with pytest.raises(PluginError, match="another archive") as raised:
        npm_package.archive()
    assert npm_package.INTEGRITY in raised.value.hint
    assert list((npm_home / "npm").iterdir()) == []


def test_a_damaged_cache_is_fetched_again(
    npm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tarball(tmp_path / "good.tgz", {"package/dist/a.mjs": b"a"})
    _known(good, monkeypatch)
    asked = []

    def answer(address: str, timeout: float) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(good.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setenv("npm_config_registry", "https://packages.invalid/npm")
    (npm_home / "npm").mkdir(parents=True)
    (npm_home / "npm" / npm_package.ARCHIVE).write_bytes(good.read_bytes()[:-1])
    assert npm_package.archive().read_bytes() == good.read_bytes()
    name = f"onnxruntime-web/-/onnxruntime-web-{npm_package.VERSION}.tgz"
    assert asked == [f"https://packages.invalid/npm/{name}"]


def test_what_npm_says_is_told(
    npm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(npm_package.shutil, "which", lambda _: str(npm))
    with pytest.raises(UnavailableError, match="npm error code ENOTFOUND"):
        npm_package.archive()


@pytest.mark.parametrize(
    ("variables", "file", "expected"),
    [
        ({}, "", ""),
        ({}, "registry = https://a.invalid/x\n", "https://a.invalid/x/"),
        (
            {},
            "# registry=https://no.invalid\nregistry='https://b.invalid/'\n",
            "https://b.invalid/",
        ),
        ({}, "@scope:registry=https://no.invalid\n", ""),
        ({}, "\0\x01[[[", ""),
        ({"NPM_CONFIG_REGISTRY": "https://c.invalid"}, "registry=x", "https://c.invalid/"),
    ],
)
def test_the_registry_is_the_users(
    tmp_path: Path, variables: dict[str, str], file: str, expected: str
) -> None:
    (tmp_path / ".npmrc").write_text(file)
    environ = {**variables, "NPM_CONFIG_USERCONFIG": str(tmp_path / ".npmrc")}
    assert npm_package.registry(environ) == expected


def test_without_npm_and_registry_it_says_so(
    npm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setattr(npm_package, "registry", lambda: "")
    with pytest.raises(UnavailableError, match="names no registry") as raised:
        npm_package.archive()
    assert "npm pack" in raised.value.hint


def test_an_open_registry_is_refused(npm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://a.invalid/")
    with pytest.raises(UnavailableError, match="not an https address"):
        npm_package.archive()


def test_unpacking_takes_only_what_it_was_asked_for(tmp_path: Path) -> None:
    names = ["../evil", "/evil", "package/dist/../../evil", "package/other", "package/dist/b.mjs"]
    path = tarball(tmp_path / "a.tgz", dict.fromkeys(names, b"x") | {"package/dist/a.mjs": b"a"})
    (tmp_path / "inner" / "to").mkdir(parents=True)
    npm_package.unpack(path, {"a.mjs": "a.js"}, tmp_path / "inner" / "to")
    found = [each for each in tmp_path.rglob("*") if each.is_file() and each != path]
    assert found == [tmp_path / "inner" / "to" / "a.js"]
    assert found[0].read_bytes() == b"a"


@pytest.mark.parametrize(
    "member",
    [
        _link("package/dist/a.mjs", tarfile.SYMTYPE, "/etc/passwd"),
        _link("package/dist/a.mjs", tarfile.LNKTYPE, "package/other"),
        _link("package/dist/a.mjs", tarfile.FIFOTYPE, ""),
        _link("package/dist/a.mjs", tarfile.DIRTYPE, ""),
    ],
)
def test_a_member_that_is_no_file_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    path = tarball(tmp_path / "a.tgz", {"package/other": b"secret", "link": member})
    (tmp_path / "to").mkdir()
    with pytest.raises(PluginError, match="not a plain file"):
        npm_package.unpack(path, {"a.mjs": "a.js"}, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no archive", b"cut"])
def test_an_archive_that_cannot_be_unpacked(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tgz"
    if content == b"cut":
        whole = tarball(path, {"package/dist/a.mjs": os.urandom(10000)}).read_bytes()
        content = whole[: len(whole) // 2]
    path.write_bytes(content)
    with pytest.raises(PluginError, match=r"a\.tgz"):
        npm_package.unpack(path, {"a.mjs": "a.js"}, tmp_path)


def test_a_file_that_the_archive_lacks_is_named(tmp_path: Path) -> None:
    path = tarball(tmp_path / "a.tgz", {"package/dist/a.mjs": b"a"})
    with pytest.raises(PluginError, match=r"lacks package/dist/b\.wasm"):
        npm_package.unpack(path, {"a.mjs": "a.js", "b.wasm": "b.wasm"}, tmp_path)
