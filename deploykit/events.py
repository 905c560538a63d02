"""What long work tells whoever watches: one stream of events, one type of listener."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened in the step `step`.

    `start` and `end` bracket it, `progress` names its current phase (`done` of `total` where the
    number of parts is known), `note` is a line the user should see. `outcome` is set at the end.
    """

    kind: Literal["start", "progress", "end", "note"]
    step: str
    message: str = ""
    done: int = 0
    total: int = 0
    outcome: str = ""


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Listen to nothing."""
