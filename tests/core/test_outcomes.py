"""Every error ends a step in exactly one way."""

from __future__ import annotations

import typing

import pytest

from deploykit import errors
from deploykit.outcomes import Kind, Outcome, outcome_of


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.MismatchError("y differs\nby 3"), "wrong: y differs by 3"),
        (errors.UnsupportedError("no RFFT"), "unsupported: no RFFT"),
        (errors.UnavailableError("no GPU"), "skipped(no GPU)"),
        (errors.StepTimeout("too long"), "timeout: too long"),
        (errors.StepOutOfMemory("too much"), "out-of-memory: too much"),
        (errors.StepSignal("crash", signal="SIGSEGV"), "signal(SIGSEGV)"),
        (errors.PluginError("ValueError: no"), "error: ValueError: no"),
        (errors.InstallError("no index"), "error: no index"),
        (KeyboardInterrupt(), "skipped(interrupted)"),
        (MemoryError("all gone"), "out-of-memory: all gone"),
        (ValueError("a bug"), "error: ValueError: a bug"),
    ],
)
def test_an_error_becomes_an_outcome(error: BaseException, text: str) -> None:
    assert str(outcome_of(error)) == text


def test_phase_frame_and_log_come_along() -> None:
    error = errors.StepSignal("m", signal="SIGABRT", phase="p", frame="f", log="l")
    assert outcome_of(error) == Outcome(
        kind="signal", detail="SIGABRT", phase="p", frame="f", log="l"
    )


def test_every_class_of_errors_has_an_outcome() -> None:
    kinds = typing.get_args(Kind)
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, errors.DeploykitError):
            more = {"signal": "SIGSEGV"} if name == "StepSignal" else {}
            assert outcome_of(found("m", **more)).kind in kinds
    assert str(Outcome(kind="ok")) == "ok"
    assert str(Outcome(kind="skipped", detail="not asked for")) == "skipped(not asked for)"
