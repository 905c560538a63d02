"""Exit codes of commands whose result is a list of outcomes rather than one error."""

from __future__ import annotations

from deploykit import errors

_OF_OUTCOME = {
    "ok": 0,
    "wrong": errors.MismatchError.exit_code,
    "unsupported": errors.UnsupportedError.exit_code,
    "timeout": errors.StepTimeout.exit_code,
    "out-of-memory": errors.StepOutOfMemory.exit_code,
    "signal": errors.StepSignal.exit_code,
    "skipped": errors.UnavailableError.exit_code,
    "error": errors.PluginError.exit_code,
}


def exit_code(outcome: str) -> int:
    """Return the exit code of an outcome such as `wrong` or `signal(SIGSEGV)`."""
    return _OF_OUTCOME[outcome.partition("(")[0]]
