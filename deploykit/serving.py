"""What a worker does with each request: call the plugin, keep sessions, run and time them.

This file also runs inside plugin environments: standard library only (numpy where tensors travel).
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import errors, progress, protocol
from deploykit.buckets import load_payload
from deploykit.frames import frame_of
from deploykit.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from deploykit.protocol import Array, Bound, Session

MAX_LINE_BYTES = 131072
"""No message between worker and parent is longer; what is larger travels as a file."""

MAX_SAMPLES = 10_000_000
"""So many latencies are kept of one measurement (80 MB); a longer one ends there."""

_MAX_TEXT = 6000
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_DISK_FULL = os.strerror(errno.ENOSPC)
_ALLOCATION_FAILED = (
    "std::bad_alloc",
    "bad allocation",
    "Cannot allocate memory",
    "can't allocate memory",
    "Failed to allocate memory",
    "out of memory",
)


class Channel:
    """The worker's end of the pipe to the parent; safe to use from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send one line. Where the parent is gone, the process ends: nobody waits for its work."""
        line = json.dumps(message, ensure_ascii=False).encode(errors="replace") + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a message of {len(line)} bytes is too long for the channel")
        try:
            with self._lock:
                while line:
                    line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            os._exit(1)


class OpenModel:
    """A session that the parent opened, its bound inputs, and the time of its first inference."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.bound: Bound | None = None
        self.first_inference_ms: float | None = None

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on `feed`."""
        begun = time.perf_counter_ns()
        outputs = self.session.run(feed)
        self._first(begun)
        return outputs

    def bind(self, feed: Mapping[str, Array]) -> None:
        """Bind `feed` and run once: some runtimes compile for the shapes when they first see them."""
        begun = time.perf_counter_ns()
        bound = self.session.bind(feed)
        bound()
        self._first(begun)
        self.bound = bound

    def _first(self, begun: int) -> None:
        if self.first_inference_ms is None:
            self.first_inference_ms = (time.perf_counter_ns() - begun) / 1e6


class Server:
    """Answers requests one after another with the plugin `module`."""

    def __init__(self, module: str, folder: str, answers: int) -> None:
        self._module = module
        self._folder = Path(folder)
        self._channel = Channel(answers)
        self._models: dict[int, OpenModel] = {}
        self._busy = False
        self._importing_ns = 0
        self._import_begun: int | None = None
        progress.listen(self._on_phase)

    def serve(self, requests: int) -> None:
        """Answer each line from the descriptor `requests`, until it ends or a request says exit."""
        self._channel.send(
            {
                "hello": protocol.VERSION,
                "python": sys.version.split()[0],
                "pid": os.getpid(),
            }
        )
        with os.fdopen(requests, "rb") as stream:
            for line in stream:
                self._answer(json.loads(line))
        # the end of the requests, without a parent that killed us first: a replay by hand
        self._do_exit({})

    def _answer(self, request: dict[str, Any]) -> None:
        number = request["id"]
        self._busy = True
        try:
            answer = {"id": number, "ok": getattr(self, f"_do_{request['do']}")(request)}
        except BaseException as error:
            # also SystemExit and KeyboardInterrupt: a framework that gives up must not end us mutely
            traceback.print_exc()
            answer = {"id": number, "error": describe(error)}
        finally:
            self._busy = False
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._channel.send(answer)

    def _on_phase(self, name: str, done: int, total: int) -> None:
        now = time.perf_counter_ns()
        if name.startswith("importing"):
            self._import_begun = self._import_begun or now
        elif self._import_begun is not None:
            self._importing_ns += now - self._import_begun
            self._import_begun = None
        if self._busy:  # else nobody reads, and the pipe would fill
            self._channel.send({"progress": [name[:200], done, total]})

    def _plugin(self) -> Any:
        if self._module not in sys.modules:
            progress.phase(f"importing {self._module.rpartition('.')[2]}")
        return importlib.import_module(self._module)

    def _request(self, request: dict[str, Any]) -> Any:
        if request["request"] is None:
            return None
        text = self._path(request["request"]).read_text(encoding="utf-8")
        return protocol.from_json(getattr(protocol, request["type"]), json.loads(text))

    def _respond(self, request: dict[str, Any], result: Any) -> None:
        path = self._path(request["response"])
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(protocol.to_json(result), indent=1), encoding="utf-8")
        temporary.replace(path)

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _do_call(self, request: dict[str, Any]) -> dict[str, Any]:
        function = getattr(self._plugin(), request["function"])
        argument = self._request(request)
        progress.phase(request["function"])
        result = function() if argument is None else function(argument)
        self._respond(request, result)
        return {"response": request["response"]}

    def _do_open(self, request: dict[str, Any]) -> dict[str, Any]:
        function = getattr(self._plugin(), request["function"])
        argument = self._request(request)
        progress.phase("loading")
        self._importing_ns, self._import_begun = 0, None
        begun = time.perf_counter_ns()
        loads = isinstance(argument, protocol.LoadRequest)
        session: Session = load_payload(function, argument) if loads else function(argument)
        ended = time.perf_counter_ns()
        self._models[request["id"]] = OpenModel(session)
        signature = protocol.Signature(inputs=tuple(session.inputs), outputs=tuple(session.outputs))
        self._respond(request, signature)
        return {
            "response": request["response"],
            "load_ms": (ended - begun - self._importing_ns) / 1e6,
            "import_ms": self._importing_ns / 1e6,
        }

    def _do_run(self, request: dict[str, Any]) -> dict[str, Any]:
        model = self._models[request["session"]]
        outputs = model.run(read_tensors(self._path(request["feed"])))
        write_tensors(self._path(request["outputs"]), outputs)
        return {"first_inference_ms": model.first_inference_ms}

    def _do_bind(self, request: dict[str, Any]) -> dict[str, Any]:
        model = self._models[request["session"]]
        model.bind(read_tensors(self._path(request["feed"])))
        return {"first_inference_ms": model.first_inference_ms}

    def _do_outputs(self, request: dict[str, Any]) -> dict[str, Any]:
        write_tensors(self._path(request["outputs"]), self._bound(request).outputs())
        return {}

    def _do_measure(self, request: dict[str, Any]) -> dict[str, Any]:
        latencies, begun, ended = measure(
            self._bound(request), request["iterations"], request["duration_s"]
        )
        with self._path(request["samples"]).open("wb") as stream:
            latencies.tofile(stream)
        return {"count": len(latencies), "started_ns": begun, "ended_ns": ended}

    def _do_close(self, request: dict[str, Any]) -> dict[str, Any]:
        self._models.pop(request["session"]).session.close()
        return {}

    def _do_exit(self, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        # Then wait to be killed: while we live, the parent can tell what descends from us.
        while self._models:
            self._models.popitem()[1].session.close()
        return {}

    def _bound(self, request: dict[str, Any]) -> Bound:
        bound = self._models[request["session"]].bound
        if bound is None:
            raise errors.UsageError("the session has no bound inputs", hint="call `bind` first")
        return bound


def measure(
    bound: Bound, iterations: int | None, duration_s: float | None
) -> tuple[array[int], int, int]:
    """Run `bound` over and over; return each latency in ns, and when the loop began and ended.

    It ends after `iterations`, or with the first run that ends `duration_s` or more after the
    beginning, whichever comes first. The times are those of `time.perf_counter_ns`, one clock for
    all processes of a Linux machine. The garbage collector is off meanwhile.
    """
    clock = time.perf_counter_ns
    latencies = array("q")
    keep = latencies.append
    most = MAX_SAMPLES if iterations is None else min(iterations, MAX_SAMPLES)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begun = ended = clock()
        last = sys.maxsize if duration_s is None else begun + int(duration_s * 1e9)
        for _ in range(most):
            start = clock()
            bound()
            ended = clock()
            keep(ended - start)
            if ended >= last:
                break
    finally:
        if collecting:
            gc.enable()
    return latencies, begun, ended


def describe(error: BaseException) -> dict[str, Any]:
    """Return `error` as JSON values for the parent, who raises the same class of `errors` again."""
    try:
        text = str(error)
    except Exception as nested:
        text = f"(its message cannot be shown: {type(nested).__name__})"
    if isinstance(error, errors.DeploykitError):
        known = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return {
            "class": known.__name__,
            "message": _bounded(text),
            "hint": error.hint[:1500],
            "operators": [str(name)[:100] for name in getattr(error, "operators", ())][:50],
            "frame": frame_of(error)[:300],
        }
    full = isinstance(error, OSError) and error.errno in _NO_ROOM
    if full or _DISK_FULL in text:
        return {
            "class": "OutputError",
            "message": _bounded(f"the result cannot be written: {text}"),
            "hint": "",
            "operators": [],
            "frame": frame_of(error)[:300],
        }
    failed = isinstance(error, MemoryError) or any(sign in text for sign in _ALLOCATION_FAILED)
    name = type(error).__name__
    return {
        "class": "StepOutOfMemory" if failed else "PluginError",
        "message": _bounded(f"{name}: {text}" if text else name),
        "hint": "",
        "operators": [],
        "frame": frame_of(error)[:300],
    }


def _bounded(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n[{len(text) - _MAX_TEXT} characters left out]\n{text[-half:]}"
