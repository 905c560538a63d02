"""How a step ended, in exactly one word of eight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploykit.errors import (
    DeploykitError,
    MismatchError,
    StepError,
    StepOutOfMemory,
    StepSignal,
    StepTimeout,
    UnavailableError,
    UnsupportedError,
)

Kind = Literal[
    "ok", "wrong", "error", "unsupported", "timeout", "out-of-memory", "signal", "skipped"
]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended. `detail` is the reason (of a `signal`, its name), `hint` what to do about it.

    `phase` is what it was doing, `frame` the last line of code it was in, `log` a file.
    """

    kind: Kind
    detail: str = ""
    hint: str = ""
    phase: str = ""
    frame: str = ""
    log: str = ""

    def __str__(self) -> str:
        if self.kind in ("signal", "skipped"):
            return f"{self.kind}({self.detail})"
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def outcome_of(error: BaseException) -> Outcome:
    """Return how a step ended that raised `error`."""
    detail = _one_line(error)
    hint = error.hint if isinstance(error, DeploykitError) else ""
    if isinstance(error, StepError):
        where = {"phase": error.phase, "frame": error.frame, "log": error.log}
        if isinstance(error, StepSignal):
            return Outcome(kind="signal", detail=error.signal, **where)
        if isinstance(error, StepTimeout):
            return Outcome(kind="timeout", detail=detail, **where)
        if isinstance(error, StepOutOfMemory):
            return Outcome(kind="out-of-memory", detail=detail, **where)
        return Outcome(kind="error", detail=detail, **where)
    if isinstance(error, MismatchError):
        return Outcome(kind="wrong", detail=detail, hint=hint)
    if isinstance(error, UnsupportedError):
        return Outcome(kind="unsupported", detail=detail, hint=hint)
    if isinstance(error, UnavailableError):
        return Outcome(kind="skipped", detail=detail, hint=hint)
    if isinstance(error, KeyboardInterrupt):
        return Outcome(kind="skipped", detail="interrupted")
    if isinstance(error, MemoryError):
        return Outcome(kind="out-of-memory", detail=detail)
    if isinstance(error, DeploykitError):
        return Outcome(kind="error", detail=detail)
    return Outcome(kind="error", detail=f"{type(error).__name__}: {detail}")


def _one_line(error: BaseException) -> str:
    text = error.message if isinstance(error, DeploykitError) else str(error)
    return " ".join(text.split())
