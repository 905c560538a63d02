"""Finding hardware profiles by name and by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit import _plugins
from deploykit.errors import UsageError
from deploykit.hardware import hardware, hardware_profiles, profile_files, survey
from deploykit.protocol import Hardware

SMALL = """schema = 1
summary = "a board"
kind = "board"
triple = "aarch64-linux-gnu"
cpu = "cortex-a55"
features = ["+dotprod", "-sve"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder of plugins that exists; its `profiles/` is returned."""
    monkeypatch.setattr(_plugins, "__path__", [str(tmp_path)])
    (tmp_path / "profiles").mkdir()
    return tmp_path / "profiles"


def test_an_unknown_name_is_told_with_what_is_near(folder: Path) -> None:
    (folder / "raspberry-pi-5.toml").write_text(SMALL)
    with pytest.raises(UsageError) as told:
        hardware("rasberry-pi-5")
    assert told.value.message == (
        "hardware `rasberry-pi-5` is unknown (did you mean `raspberry-pi-5`?)"
    )
    assert "--this" in told.value.hint


def test_a_broken_file_hides_no_other(folder: Path) -> None:
    (folder / "good.toml").write_text(SMALL)
    (folder / "bad.toml").write_text("kind = [")
    assert hardware("good").cpu == "cortex-a55"
    with pytest.raises(UsageError, match=r"bad\.toml` is not TOML"):
        hardware("other")  # the broken one may be it
    with pytest.raises(UsageError, match=r"bad\.toml` is not TOML"):
        hardware_profiles()
    found, errors = survey()
    assert [profile.name for profile in found] == ["good"]
    assert len(errors) == 1


def test_two_of_one_name_are_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / "profiles").mkdir(parents=True)
    monkeypatch.setattr(_plugins, "__path__", [str(tmp_path), str(other)])
    for place in (folder, other / "profiles"):
        (place / "board.toml").write_text(SMALL)
    (folder / "second.toml").write_text(SMALL)
    with pytest.raises(UsageError, match="two hardware profiles are called `board`"):
        hardware("board")
    assert hardware("second").name == "second"


def test_what_is_no_profile_is_passed_over(folder: Path) -> None:
    (folder / "README.md").write_text("words")
    (folder / ".hidden.toml").write_text("[")
    (folder / "folder.toml").mkdir()
    (folder / "board.toml").write_text(SMALL)
    assert [path.name for path in profile_files()] == ["board.toml"]


def test_a_file_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own-board.toml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    for name in ("own-board.toml", "./own-board.toml", tmp_path / "own-board.toml"):
        assert hardware(name).name == "own-board"
    with pytest.raises(UsageError, match=r"cannot read the hardware profile `absent\.toml`"):
        hardware("absent.toml")


def test_a_profile_becomes_a_request(folder: Path) -> None:
    path = folder / "board.toml"
    path.write_text(SMALL)
    assert hardware("board").to_request() == Hardware(
        name="board",
        triple="aarch64-linux-gnu",
        cpu="cortex-a55",
        features=("+dotprod", "-sve"),
        cores=None,
        gpu="",
    )
    path.write_text(
        f'{SMALL}[cores]\nvalue = 6\nsources = ["s"]\n'
        '[devices.gpu]\ntitle = "G"\napis = ["cuda"]\narchitecture = "sm_87"\n'
        '[sources.s]\ntitle = "T"\npublisher = "P"\ndate = "2024"\n'
    )
    request = hardware("board").to_request()
    assert request.cores == 6
    assert isinstance(request.cores, int)
    assert request.gpu == "sm_87"
    assert request.architecture == "aarch64"
