"""Every error that deploykit foresees, each with its exit code.

    DeploykitError
    ├── UsageError            2    an option, a name or an input that makes no sense
    ├── SourceError           3    the model cannot be read: empty, damaged, incomplete, ambiguous
    ├── UnsupportedError      4    a format, operator or precision that this plugin cannot take
    ├── MismatchError         5    outputs disagree with the reference beyond the tolerance
    ├── InstallError          6    an environment could not be made
    ├── UnavailableError      7    this machine lacks what the target or the bundle needs
    ├── OutputError           8    a result could not be written
    ├── BundleError          13    a bundle is damaged or of an unknown schema
    └── StepError                  a worker failed
        ├── PluginError       9    the framework or runtime raised an error
        ├── StepTimeout      10    the time limit was reached
        ├── StepOutOfMemory  11    the memory limit was reached, or an allocation failed
        └── StepSignal       12    the worker was killed by a signal (a crash of native code)

0 is success, 1 a bug of deploykit itself (with a log file to report), 130 an interrupt (Ctrl-C).

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations


class DeploykitError(Exception):
    """Something foreseen went wrong. `message` says what and where, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DeploykitError):
    """An option, a name or an input makes no sense."""

    exit_code = 2


class SourceError(DeploykitError):
    """The model cannot be read."""

    exit_code = 3


class UnsupportedError(DeploykitError):
    """A plugin cannot take this model. `operators` names what it lacks, where that is the reason."""

    exit_code = 4

    def __init__(self, message: str, *, hint: str = "", operators: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.operators = operators


class MismatchError(DeploykitError):
    """Outputs disagree with the reference beyond the tolerance."""

    exit_code = 5


class InstallError(DeploykitError):
    """An environment could not be made."""

    exit_code = 6


class UnavailableError(DeploykitError):
    """This machine lacks what the target or the bundle needs."""

    exit_code = 7


class OutputError(DeploykitError):
    """A result could not be written."""

    exit_code = 8


class BundleError(DeploykitError):
    """A bundle is damaged or of an unknown schema."""

    exit_code = 13


class StepError(DeploykitError):
    """A worker failed. `phase` is what it was doing, `frame` the last line of code it was in."""

    exit_code = 9

    def __init__(
        self, message: str, *, hint: str = "", phase: str = "", frame: str = "", log: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.phase = phase
        self.frame = frame
        self.log = log


class PluginError(StepError):
    """The framework or runtime raised an error."""


class StepTimeout(StepError):
    """The time limit was reached."""

    exit_code = 10


class StepOutOfMemory(StepError):
    """The memory limit was reached, or an allocation failed."""

    exit_code = 11


class StepSignal(StepError):
    """The worker was killed by a signal. `signal` is its name, such as `SIGSEGV`."""

    exit_code = 12

    def __init__(
        self,
        message: str,
        *,
        signal: str,
        hint: str = "",
        phase: str = "",
        frame: str = "",
        log: str = "",
    ) -> None:
        super().__init__(message, hint=hint, phase=phase, frame=frame, log=log)
        self.signal = signal
