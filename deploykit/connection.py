"""The parent's end of a worker: one process, one exchange at a time, limits kept, no spinning."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import (
    PluginError,
    StepError,
    StepOutOfMemory,
    StepTimeout,
    UnavailableError,
)
from deploykit.family import is_running
from deploykit.frames import frame_in_dump
from deploykit.jobs import Job
from deploykit.postmortem import explain, kernel_kills, read_tail
from deploykit.processes import MARKER, end_processes, tree_resident_bytes
from deploykit.protocol import VERSION
from deploykit.serving import MAX_LINE_BYTES

_LOOK_S = 0.1
_LOOK_WHILE_MEASURING_S = 1.0
_DUMP_S = 0.5
_EXIT_S = 5.0
_VANISH_S = 0.5

OnPhase = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`timeout_s` of each step; `memory_bytes` of the worker with all its descendants, resident."""

    timeout_s: float | None = None
    memory_bytes: int | None = None


class Connection:
    """A running worker process. After any failure of the process itself it is ended and stays so."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        variables: Mapping[str, str],
        job: Job,
        label: str,
        limits: Limits,
        on_phase: OnPhase,
    ) -> None:
        self.label = label
        self._job = job
        self._limits = limits
        self._on_phase = on_phase
        self._phase = "starting"
        self._buffer = b""
        self._since = 0
        self._kills = kernel_kills()
        try:
            with job.log.open("ab") as log:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    bufsize=0,
                    env={**variables, MARKER: job.mark, "TMPDIR": str(job.scratch)},
                    cwd=job.scratch,
                    start_new_session=True,
                )
        except OSError as error:
            raise UnavailableError(
                f"cannot start `{argv[0]}`: {error.strerror or error}"
            ) from error
        self.pid = self._guard = self._process.pid
        self._ended = False
        try:
            self._poll = select.poll()
            self._poll.register(self._answers, select.POLLIN)
            self._death = os.pidfd_open(self._guard) if hasattr(os, "pidfd_open") else None
            if self._death is not None:
                self._poll.register(self._death, select.POLLIN)
            hello = self._receive(self._deadline(0.0), measuring=False)
            if hello.get("hello") != VERSION:
                raise PluginError(
                    f"{label}: the worker speaks version {hello.get('hello')} of the protocol, "
                    f"not {VERSION}",
                    log=str(job.log),
                )
            self.pid = hello["pid"]
        except BaseException:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        """Whether the worker can take another request."""
        return not self._ended

    @property
    def phase(self) -> str:
        """What the plugin said last about what it is doing."""
        return self._phase

    def exchange(
        self, request: dict[str, Any], *, extra_s: float = 0.0, measuring: bool = False
    ) -> dict[str, Any]:
        """Send `request` and return its answer, which has either `ok` or `error`.

        The time limit counts from now and is `extra_s` longer than `Limits` says. While
        `measuring`, the parent wakes once a second at most.

        Raises StepTimeout, StepOutOfMemory, StepSignal, or PluginError where the process ended by
        itself or broke the protocol. Upon these, and upon an interrupt, the process is ended.
        """
        if self._ended:
            raise PluginError(f"{self.label}: the worker has ended already", log=str(self._job.log))
        try:
            self._since = self._job.log.stat().st_size
            self._kills = kernel_kills()
            deadline = self._deadline(extra_s)
            try:
                os.write(self._requests, json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                raise self._death_notice() from None
            while True:
                message = self._receive(deadline, measuring=measuring)
                if "progress" in message:
                    self._phase, done, total = message["progress"]
                    self._on_phase(self._phase, done, total)
                elif message.get("id") == request["id"] and ("ok" in message or "error" in message):
                    return message
                else:
                    raise self._junk(json.dumps(message))
        except BaseException:
            self.end()
            raise

    def close(self) -> None:
        """Let the worker close its sessions, then end it. One that fails to is ended all the same."""
        if self._ended:
            return
        try:
            with contextlib.suppress(BrokenPipeError, StepError):
                os.write(self._requests, b'{"id": 0, "do": "exit"}\n')
                deadline = time.monotonic() + _EXIT_S
                while "id" not in self._receive(deadline, measuring=False):
                    continue  # phases, while sessions close
        finally:
            self.end()

    def end(self) -> None:
        """Kill the worker and all that it started. Can be called again."""
        if self._ended:
            return
        self._ended = True
        end_processes(self._job.mark, self._guard if self._process.poll() is None else None)
        self._process.wait()
        if self._death is not None:
            os.close(self._death)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    @property
    def _answers(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    @property
    def _requests(self) -> int:
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _deadline(self, extra_s: float) -> float | None:
        if self._limits.timeout_s is None:
            return None
        return time.monotonic() + self._limits.timeout_s + extra_s

    def _receive(self, deadline: float | None, *, measuring: bool) -> dict[str, Any]:
        """Return the next message, asleep until it comes."""
        look_s = _LOOK_WHILE_MEASURING_S if measuring else _LOOK_S
        look = time.monotonic()
        while b"\n" not in self._buffer:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise self._timeout()
            if self._limits.memory_bytes is not None and now >= look:
                self._check_memory(self._limits.memory_bytes)
                look = now + look_s
            ends = [time_s for time_s in (deadline, look) if time_s is not None]
            if self._limits.memory_bytes is None:
                ends = [] if deadline is None else [deadline]
            if self._death is None:
                ends.append(now + _LOOK_WHILE_MEASURING_S)
            # rounded up: a wait of 0 ms just before the deadline would spin
            wait_ms = int(max(0.0, min(ends) - now) * 1000) + 1 if ends else None
            events = dict(self._poll.poll(wait_ms))
            if self._answers in events:
                piece = os.read(self._answers, 65536)
                if not piece:
                    raise self._death_notice()
                self._buffer += piece
                if len(self._buffer) > MAX_LINE_BYTES and b"\n" not in self._buffer:
                    raise self._junk(self._buffer.decode("utf-8", "replace"))
            elif events or self._process.poll() is not None:
                raise self._death_notice()
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise self._junk(line.decode("utf-8", "replace"))
        return message

    def _death_notice(self) -> Exception:
        """Return why the process is gone, or why we must end it: it closed its channel."""
        until = time.monotonic() + _EXIT_S
        while True:
            try:
                returncode = self._process.wait(_VANISH_S)
                break
            except subprocess.TimeoutExpired:
                # the guard may be busy ending what the worker left
                if is_running(self.pid) or time.monotonic() > until:
                    return self._junk("(end of file)")
        return explain(
            self.label,
            returncode,
            phase=self._phase,
            log=self._job.log,
            since=self._since,
            kills_before=self._kills,
        )

    def _junk(self, text: str) -> PluginError:
        return PluginError(
            f"{self.label}: the worker broke the protocol: found {text[:80]!r} in its channel",
            hint="the plugin must not write to descriptors that it did not open",
            phase=self._phase,
            log=str(self._job.log),
        )

    def _timeout(self) -> StepTimeout:
        limit = "" if self._limits.timeout_s is None else f" within {self._limits.timeout_s:g} s"
        return StepTimeout(
            f"{self.label}: not done{limit}, while {self._phase}",
            hint="give it more time with `--timeout`",
            phase=self._phase,
            frame=self._ask_where(),
            log=str(self._job.log),
        )

    def _check_memory(self, most: int) -> None:
        used = tree_resident_bytes(self._guard, besides=self._guard)
        if used > most:
            raise StepOutOfMemory(
                f"{self.label}: {used / 2**20:.0f} MiB in use, more than the limit of "
                f"{most / 2**20:.0f} MiB, while {self._phase}",
                hint="allow more with `--memory-limit`",
                phase=self._phase,
                frame=self._ask_where(),
                log=str(self._job.log),
            )

    def _ask_where(self) -> str:
        """Return the line that the worker is in: it dumps its frames into the log when asked."""
        log = Path(self._job.log)
        since = log.stat().st_size
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR2)
        until = time.monotonic() + _DUMP_S
        while time.monotonic() < until and self._process.poll() is None:
            time.sleep(0.02)
            frame = frame_in_dump(read_tail(log, since))
            if frame:
                return frame
        return ""
