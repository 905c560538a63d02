"""Steps that run in a worker: its calls and its sessions, as the parent sees them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import weakref
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from deploykit import errors, protocol
from deploykit.connection import Connection, OnPhase
from deploykit.connection import Limits as Limits
from deploykit.errors import DeploykitError, PluginError, StepError, UnsupportedError
from deploykit.events import Event, Listener, silent
from deploykit.jobs import Job
from deploykit.outcomes import Outcome as Outcome
from deploykit.outcomes import outcome_of as outcome_of
from deploykit.processes import clean_environment
from deploykit.protocol import LoadRequest, ReferenceRequest, Signature
from deploykit.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from deploykit.plugins import Plugin
    from deploykit.protocol import Array

T = TypeVar("T")

NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Raw latencies of one measurement, in ns; when its loop began and ended (`perf_counter_ns`)."""

    latencies_ns: list[int]
    started_ns: int
    ended_ns: int


class Worker:
    """A process that runs one plugin, for many calls; a context manager.

    It starts at once. A call that raises an error of the plugin leaves it usable; one that ends the
    process (a crash, a limit, an interrupt) leaves it ended, and every later call says so. Calls
    from several threads wait for each other.
    """

    def __init__(
        self,
        plugin: Plugin,
        *,
        python: Path,
        label: str,
        limits: Limits = NO_LIMITS,
        listen: Listener = silent,
        threads: int | None = None,
    ) -> None:
        self.plugin = plugin
        self.label = label
        self.threads = threads
        self._lock = threading.RLock()
        self._count = 0
        self._history: list[str] = []
        self._failed = False
        self._job = Job(label)
        self._argv = [
            str(python),
            *("-I", "-X", "utf8", "-X", "faulthandler"),
            str(Path(__file__).with_name("worker.py")),
            plugin.module,
            str(self._job.folder),
        ]
        self._variables = clean_environment(threads=threads)
        try:
            self._connection = Connection(
                self._argv,
                variables=self._variables,
                job=self._job,
                label=label,
                limits=limits,
                on_phase=_phase_events(label, listen),
            )
        except BaseException:
            self._job.close(failed=True)
            raise
        # for a worker that nobody closed, also at the interpreter's exit
        self._finalizer = weakref.finalize(self, _abandon, self._connection, self._job)

    @property
    def folder(self) -> Path:
        """The job folder: requests, answers, `log.txt`, `reproduce.sh`."""
        return self._job.folder

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._connection.pid

    @property
    def alive(self) -> bool:
        """Whether the worker can take another call."""
        return self._connection.alive

    def call(self, function: str, request: object | None, result: type[T]) -> T:
        """Call `function` of the plugin with `request` (a class of `protocol`) and return its result.

        Raises what the plugin raised where it is one of `errors`; PluginError for any other
        exception; StepTimeout, StepOutOfMemory, StepSignal where the process ended; UnsupportedError
        where the plugin has no such function.
        """
        with self._lock:
            self._need(function)
            message = self._message("call", function=function, **self._request(request))
            answer = self._exchange(message, keep=True)
            return self._result(answer["response"], result)

    def open(self, request: LoadRequest | ReferenceRequest) -> OpenSession:
        """Load a model in the worker, with the plugin's `load` or `reference`, and keep it there.

        Raises as `call` does.
        """
        function = "load" if isinstance(request, LoadRequest) else "reference"
        with self._lock:
            self._need(function)
            message = self._message("open", function=function, **self._request(request))
            answer = self._exchange(message, keep=True)
            return OpenSession(
                self,
                message["id"],
                signature=self._result(answer["response"], Signature),
                pid=answer["pid"] or self.pid,
                load_ms=answer["load_ms"],
                import_ms=answer["import_ms"],
            )

    def close(self) -> None:
        """End the worker and all its descendants; remove its large data. Can be called again."""
        if self._finalizer.detach() is None:
            return
        try:
            self._connection.close()
        finally:
            self._connection.end()
            self._job.close(failed=self._failed)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def peak_memory_bytes(self, pid: int | None = None) -> int:
        """Return the most memory that the worker itself ever had resident (`VmHWM`).

        `pid` names another process at work for it. Raises PluginError where the process has ended.
        """
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid or self.pid}/status").read_text(
                encoding="ascii", errors="replace"
            )
            found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
            if found:
                return int(found[1]) * 1024
        raise PluginError(f"{self.label}: the worker has ended", log=str(self._job.log))

    def _need(self, function: str) -> None:
        if function not in self.plugin.functions:
            raise UnsupportedError(
                f"{self.plugin.kind} `{self.plugin.name}` has no function `{function}`",
                hint=f"it has: {', '.join(self.plugin.functions)}",
            )

    def _message(self, do: str, **fields: Any) -> dict[str, Any]:
        self._count += 1
        fields.setdefault("response", f"response-{self._count}.json")
        return {"id": self._count, "do": do, **fields}

    def _request(self, request: object | None) -> dict[str, Any]:
        if request is None:
            return {"type": None, "request": None}
        name = f"request-{self._count + 1}.json"
        self._job.write(name, json.dumps(protocol.to_json(request), indent=1))
        return {"type": type(request).__name__, "request": name}

    def _exchange(
        self,
        message: dict[str, Any],
        *,
        keep: bool = False,
        needs: list[str] | None = None,
        extra_s: float = 0.0,
        measuring: bool = False,
    ) -> dict[str, Any]:
        """Send `message`, return the value of its answer, raise its error.

        `keep` puts it into every later `reproduce.sh`: what comes after depends on it. `needs` are
        earlier messages without which this one cannot be reproduced.
        """
        with self._lock:
            line = json.dumps(message)
            if keep:
                self._history.append(line)
                self._write_reproduce(self._history)
            try:
                answer = self._connection.exchange(message, extra_s=extra_s, measuring=measuring)
                if "error" in answer:
                    raise self._error(answer["error"])
            except KeyboardInterrupt:
                raise
            except BaseException:
                self._failed = True
                if not keep:
                    self._write_reproduce([*self._history, *(needs or []), line])
                raise
            value: dict[str, Any] = answer["ok"]
            return value

    def _error(self, found: dict[str, Any]) -> DeploykitError:
        kind = getattr(errors, found["class"])
        text = f"{self.label}: {found['message']}"
        if issubclass(kind, StepError):
            step: StepError = kind(
                text,
                hint=found["hint"] or f"its log is `{self._job.log}`",
                phase=self._connection.phase,
                frame=found["frame"],
                log=str(self._job.log),
            )
            return step
        if kind is UnsupportedError:
            return UnsupportedError(
                found["message"], hint=found["hint"], operators=tuple(found["operators"])
            )
        foreseen: DeploykitError = kind(found["message"], hint=found["hint"])
        return foreseen

    def _result(self, name: str, kind: type[T]) -> T:
        try:
            value = json.loads(self._job.file(name).read_text(encoding="utf-8"))
            return protocol.from_json(kind, value)
        except (OSError, ValueError, TypeError) as error:
            self._failed = True
            raise PluginError(
                f"{self.label}: the plugin's answer is not what the protocol asks for: {error}",
                log=str(self._job.log),
            ) from error

    def _write_reproduce(self, messages: list[str]) -> None:
        changed = {
            name: value
            for name, value in self._variables.items()
            if os.environ.get(name) != value or name == "DEPLOYKIT_PLUGIN_PATH"
        }
        self._job.write_reproduce(
            self._argv,
            messages,
            variables=changed,
            removed=sorted(os.environ.keys() - self._variables.keys()),
        )


class OpenSession:
    """A session that lives in a worker. Tensors travel as files of the job folder.

    `load_ms` is the time of the plugin's `load` (or `reference`), less `import_ms`, the time of the
    phases in it whose names begin with "importing". `first_inference_ms` is the time of the first
    run (or of the first binding and run), None before it. `pid` is the process that the model runs in:
    the worker, or one that it started.
    """

    def __init__(
        self,
        worker: Worker,
        number: int,
        *,
        signature: Signature,
        pid: int,
        load_ms: float,
        import_ms: float,
    ) -> None:
        self.signature = signature
        self.pid = pid
        self.load_ms = load_ms
        self.import_ms = import_ms
        self.first_inference_ms: float | None = None
        self._worker = worker
        self._number = number
        self._bound: list[str] = []
        self._bound_feed: Path | None = None

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Run once on `feed` and return every output by name. Raises as `Worker.call` does."""
        feed_path, outputs_path = self._file("feed.npz"), self._file("outputs.npz")
        write_tensors(feed_path, feed)
        message = self._message("run", feed=feed_path.name, outputs=outputs_path.name)
        answer = self._worker._exchange(message)
        self.first_inference_ms = answer["first_inference_ms"]
        outputs = read_tensors(outputs_path)
        feed_path.unlink()
        outputs_path.unlink()
        return outputs

    def bind(self, feed: dict[str, Array]) -> None:
        """Fix the inputs for `measure`, and run once on them. Raises as `Worker.call` does."""
        feed_path = self._file("bound.npz")
        write_tensors(feed_path, feed)
        message = self._message("bind", feed=feed_path.name)
        answer = self._worker._exchange(message)
        self.first_inference_ms = answer["first_inference_ms"]
        if self._bound_feed is not None:
            self._bound_feed.unlink(missing_ok=True)
        self._bound, self._bound_feed = [json.dumps(message)], feed_path

    def outputs(self) -> dict[str, Array]:
        """Return the outputs of the last run of the bound inputs."""
        path = self._file("outputs.npz")
        self._worker._exchange(self._message("outputs", outputs=path.name), needs=self._bound)
        outputs = read_tensors(path)
        path.unlink()
        return outputs

    def measure(self, *, iterations: int | None = None, duration_s: float | None = None) -> Samples:
        """Run the bound inputs over and over in the worker; return the latency of each run.

        Ends after `iterations` or once `duration_s` is over, whichever comes first; the worker's
        time limit counts on top of `duration_s`. The parent sleeps meanwhile.

        Raises UsageError where nothing is bound or neither end is given, else as `Worker.call`.
        """
        if iterations is None and duration_s is None:
            raise errors.UsageError("a measurement needs `iterations` or `duration_s`")
        path = self._file("samples.bin")
        answer = self._worker._exchange(
            self._message(
                "measure", samples=path.name, iterations=iterations, duration_s=duration_s
            ),
            needs=self._bound,
            extra_s=duration_s or 0.0,
            measuring=True,
        )
        latencies = array("q")
        with path.open("rb") as stream:
            latencies.fromfile(stream, answer["count"])
        path.unlink()
        return Samples(
            latencies_ns=latencies.tolist(),
            started_ns=answer["started_ns"],
            ended_ns=answer["ended_ns"],
        )

    def peak_memory_bytes(self) -> int:
        """Return the most memory that the process `pid` ever had resident (`VmHWM`)."""
        return self._worker.peak_memory_bytes(self.pid)

    def close(self) -> None:
        """Give back what the session holds; the worker stays."""
        if self._worker.alive:
            self._worker._exchange(self._message("close"))

    def _message(self, do: str, **fields: Any) -> dict[str, Any]:
        return self._worker._message(do, session=self._number, **fields)

    def _file(self, name: str) -> Path:
        return self._worker.folder / f"session-{self._number}-{self._worker._count + 1}-{name}"


def _phase_events(label: str, listen: Listener) -> OnPhase:
    # no method of the worker: that would keep alive a worker that everybody has forgotten
    def on_phase(phase: str, done: int, total: int) -> None:
        listen(Event(kind="progress", step=label, message=phase, done=done, total=total))

    return on_phase


def _abandon(connection: Connection, job: Job) -> None:
    connection.end()
    job.close(failed=True)
