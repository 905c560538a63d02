"""Which targets a command means, and which settings each gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit import _plugins, plugins
from deploykit.errors import UsageError
from deploykit.events import Event
from deploykit.options import Conditions
from deploykit.target_choice import check_precision, choose_targets, settings_for

pytestmark = pytest.mark.usefixtures("odd_plugins")

HERE = Conditions(install=False)


def names(texts: list[str], conditions: Conditions = HERE) -> list[str]:
    return [f"{plugin.name}:{device}" for plugin, device in choose_targets(texts, conditions)]


def test_names_in_the_order_asked_each_once() -> None:
    asked = ["odd:wrong", "onnxruntime", "odd", "onnxruntime:cpu", "odd:wrong"]
    assert names(asked) == ["odd:wrong", "onnxruntime:cpu", "odd:cpu"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("onnxrutime", ["onnxrutime", "did you mean `onnxruntime`"]),
        ("odd:cpv", ["cpv", "did you mean `cpu`"]),
        ("", ["is unknown"]),
    ],
)
def test_an_unknown_name_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        choose_targets([text], HERE)
    for word in words:
        assert word in caught.value.message


def test_none_at_all_lists_those_that_exist() -> None:
    with pytest.raises(UsageError) as caught:
        choose_targets([], HERE)
    assert "onnxruntime" in caught.value.hint
    assert "all" in caught.value.hint


def test_all_are_those_that_run_here_with_notes_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    head = '# /// script\n# requires-python = "{python}"\n# dependencies = []\n#\n'
    head += (
        '# [tool.deploykit]\n# summary = "x"\n# devices = ["npu"]\n# functions = ["probe"]\n# ///\n'
    )
    (folder / "broken.py").write_text(
        head.format(python=">=3.10") + 'def probe():\n    raise OSError("no driver")\n'
    )
    (folder / "old.py").write_text(head.format(python="<3.0") + "def probe(): ...\n")
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(tmp_path))
    monkeypatch.setattr(_plugins, "__path__", [*_plugins.__path__[-1:], str(tmp_path)])
    events: list[Event] = []
    assert names(["all"], Conditions(install=False, listen=events.append)) == []
    notes = [event.message for event in events if event.kind == "note"]
    assert any(note.startswith("broken:*") and "no driver" in note for note in notes), notes
    assert any(note.startswith("old:*") for note in notes), notes


def test_all_leaves_out_one_device_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_plugins, "__path__", [_plugins.__path__[-1]])
    events: list[Event] = []
    found = names(["odd:five", "all"], Conditions(install=False, listen=events.append))
    assert found == ["odd:five", "odd:cpu", "odd:wrong"]
    notes = [event.message for event in events if event.kind == "note"]
    assert notes == ["odd:absent cannot run here: a device of the tests"]


def test_settings_go_where_they_belong() -> None:
    settings = {
        "all": "1",
        "odd.colour": "blue",
        "onnxruntime.optimization": "basic",
        "family.key": "2",
        "colour": "red",
    }
    # its own wins, whatever the order; a dot that follows no target belongs to the key
    expected = {"all": "1", "colour": "blue", "family.key": "2"}
    for order in (list(settings), list(reversed(settings))):
        asked = {key: settings[key] for key in order}
        assert settings_for(plugins.target("odd"), asked) == expected
    assert settings_for(plugins.target("onnxruntime"), settings) == {
        "all": "1",
        "optimization": "basic",
        "family.key": "2",
        "colour": "red",
    }


def test_precisions() -> None:
    for precision in ("fp32", "tf32", "fp16", "bf16", "int8"):
        check_precision(precision)
    with pytest.raises(UsageError, match="fp64") as caught:
        check_precision("fp64")
    assert "bf16" in caught.value.hint


@pytest.fixture
def mixing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target with a device that takes arguments."""
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "mixing.py").write_text(
        "# /// script\n# requires-python = '>=3.10'\n# dependencies = []\n#\n"
        "# [tool.deploykit]\n# summary = 'x'\n# devices = ['cpu', 'auto', 'mix:*']\n"
        "# functions = ['probe']\n# ///\n"
        "from deploykit.protocol import Availability\n"
        "def probe():\n"
        "    return tuple(Availability(device=d, available=True) for d in ('cpu', 'auto', 'mix:*'))\n"
    )
    monkeypatch.setenv("DEPLOYKIT_PLUGIN_PATH", str(tmp_path))
    monkeypatch.setattr(_plugins, "__path__", [str(tmp_path)])


@pytest.mark.usefixtures("mixing")
def test_a_device_may_take_arguments() -> None:
    assert names(["mixing", "mixing:mix:gpu.1,cpu"]) == ["mixing:cpu", "mixing:mix:gpu.1,cpu"]


@pytest.mark.usefixtures("mixing")
@pytest.mark.parametrize(
    "device", ["mix", "mix:", "mix:*", "mix:../x", "mix:A", "mixed:cpu", "cpu:1"]
)
def test_what_is_no_argument_of_a_device(device: str) -> None:
    with pytest.raises(UsageError, match="no device") as caught:
        names([f"mixing:{device}"])
    assert "mix:*" in caught.value.hint


@pytest.mark.usefixtures("mixing")
def test_all_names_no_device_that_stands_for_others() -> None:
    assert names(["all"]) == ["mixing:cpu"]
