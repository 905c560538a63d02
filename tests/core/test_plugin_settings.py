"""Settings of plugins."""

from __future__ import annotations

import pytest

from deploykit.errors import UsageError
from deploykit.plugin_settings import Setting, in_force

KNOWN = {
    "mode": Setting(default="fast", choices=("fast", "small")),
    "streams": Setting(default="auto", least=1),
}


def test_defaults_and_what_was_asked_for() -> None:
    assert in_force({}, KNOWN, plugin="toy") == {"mode": "fast", "streams": "auto"}
    asked = {"streams": "3", "mode": "small"}
    assert in_force(asked, KNOWN, plugin="toy") == {"mode": "small", "streams": "3"}


def test_what_is_in_force_may_be_asked_for_again() -> None:
    settings = in_force({}, KNOWN, plugin="toy")
    assert in_force(settings, KNOWN, plugin="toy") == settings


def test_an_unknown_name_is_answered_with_the_known() -> None:
    with pytest.raises(UsageError, match='did you mean "streams"') as raised:
        in_force({"stream": "1"}, KNOWN, plugin="toy")
    assert raised.value.hint == "it has: mode, streams"


@pytest.mark.parametrize(
    ("name", "value"),
    [("mode", "Fast"), ("streams", "0"), ("streams", "-1"), ("streams", "two"), ("streams", "")],
)
def test_a_wrong_value_is_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"`{name}` cannot be `{value}`"):
        in_force({name: value}, KNOWN, plugin="toy")
