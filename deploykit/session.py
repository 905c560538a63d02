"""Load a bundle and run inference: in this process where it has the runtime, else in a worker.

with load("bundles/onnxruntime-cpu-fp32") as session:
    outputs = session.run({"images": images})
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from deploykit import plugins, telemetry
from deploykit.buckets import load_payload
from deploykit.errors import DeploykitError, PluginError, StepError, UnavailableError, UsageError
from deploykit.events import Listener, silent
from deploykit.feeds import QuickCheck
from deploykit.manifest import Manifest, check_machine, load_request, read_manifest
from deploykit.protocol import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    from deploykit.plugins import Plugin
    from deploykit.protocol import Bound, LoadRequest, Session
    from deploykit.steps import OpenSession, Worker

    Array = np.ndarray[Any, Any]


def load(
    bundle: str | Path,
    *,
    threads: int | None = None,
    isolated: bool | None = None,
    check: bool = True,
    install: bool = True,
    listen: Listener = silent,
) -> LoadedSession:
    """Load the bundle in the folder `bundle`, ready to run.

    `threads` None takes the number it was compiled for. `isolated` True runs it in a worker, with
    an environment of its own that is made on first use unless `install` is False; False runs it in
    this process; None in this process where that has the target's packages, else in a worker.
    Inputs and outputs of a worker travel as files, which costs milliseconds a run. `check` compares
    every file with its hash first.

    Raises BundleError where the bundle is damaged, UnavailableError where this machine or this
    Python lacks what it needs, and what the target raises.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    check_machine(manifest)
    if check:
        from deploykit.bundle import check_files

        check_files(folder, manifest)
    plugin = target_of(manifest)
    request = load_request(folder, manifest, threads=threads)
    if isolated is None or not isolated:
        from deploykit.requirements import unmet

        missing = unmet(plugin, isolated=False)
        if not missing:
            return LoadedSession(manifest, _InProcess(plugin, request))
        if isolated is False:
            raise UnavailableError(
                f"this Python lacks what {plugin} needs: {', '.join(missing)}",
                hint="install it here, or leave `isolated` out to use an environment of its own",
            )
    from deploykit import probing
    from deploykit.steps import Worker

    python = probing.interpreter(plugin, install=install, listen=listen)
    worker = Worker(
        plugin, python=python, label=folder.name, listen=listen, threads=request.threads
    )
    try:
        return LoadedSession(manifest, _InWorker(worker, worker.open(request)))
    except BaseException:
        worker.close()
        raise


def target_of(manifest: Manifest) -> Plugin:
    """Return the target that runs the bundle. Raises UnavailableError where there is none."""
    try:
        return plugins.target(manifest.target).on(manifest.device)
    except UsageError as error:
        raise UnavailableError(
            f"the bundle needs the target `{manifest.target}`, which this deploykit does not have",
            hint=error.hint,
        ) from error


class LoadedSession:
    """A loaded bundle; a context manager.

    Threads may share it: their runs wait for each other. For parallel inference give each thread a
    session of its own.
    """

    def __init__(self, manifest: Manifest, session: _InProcess | _InWorker) -> None:
        self.manifest = manifest
        self.isolated = isinstance(session, _InWorker)
        """Whether it runs in a worker."""
        self._session: _InProcess | _InWorker | None = session
        self._check = QuickCheck(manifest.signature.inputs)
        self._lock = threading.Lock()
        self._run = session.run

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs in the order of the model."""
        return self.manifest.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs in the order of the model."""
        return self.manifest.signature.outputs

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name for the numpy arrays `feed`, one for each input.

        Raises UsageError where `feed` is wrong: a name, a dtype, a shape; PluginError where the
        runtime fails.
        """
        self._check(feed)
        with self._lock:
            try:
                return self._run(feed)
            except Exception as error:
                raise _foreseen(error, "running") from error

    def bind(self, feed: Mapping[str, Array]) -> BoundRun:
        """Fix the inputs for repeated runs without copies; calling the result runs once on them.

        Raises as `run` does.
        """
        self._check(feed)
        with self._lock:
            if self._session is None:
                _closed(feed)
            try:
                return BoundRun(self._session.bind(feed), self._lock)
            except Exception as error:
                raise _foreseen(error, "binding") from error

    def close(self) -> None:
        """Give back memory and process. Can be called again; nothing else can after it."""
        with self._lock:
            session, self._session, self._run = self._session, None, _closed
            if session is not None:
                session.close()

    def __enter__(self) -> LoadedSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class BoundRun:
    """One inference on fixed inputs."""

    def __init__(self, bound: Bound, lock: threading.Lock) -> None:
        self._bound = bound
        self._lock = lock

    def __call__(self) -> None:
        """Run once and return when the outputs are there. Raises PluginError where that fails."""
        with self._lock:
            try:
                self._bound()
            except Exception as error:
                raise _foreseen(error, "running") from error

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        with self._lock:
            return self._bound.outputs()


class _InProcess:
    """The target's own session in this process."""

    def __init__(self, plugin: Plugin, request: LoadRequest) -> None:
        telemetry.switch_off()
        try:
            module = importlib.import_module(plugin.module)
            session: Session = load_payload(module.load, request)
        except Exception as error:
            raise _foreseen(error, "loading") from error
        # straight to the runtime's: every call between costs
        self.run = session.run
        self.bind = session.bind
        self.close = session.close


class _InWorker:
    """A session in a worker, whose process ends with it."""

    def __init__(self, worker: Worker, session: OpenSession) -> None:
        self._session = session
        self.close = worker.close

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return self._session.run(dict(feed))

    def bind(self, feed: Mapping[str, Array]) -> Bound:
        self._session.bind(dict(feed))
        return _BoundInWorker(self._session)


class _BoundInWorker:
    def __init__(self, session: OpenSession) -> None:
        self._session = session

    def __call__(self) -> None:
        self._session.measure(iterations=1)

    def outputs(self) -> dict[str, Array]:
        return self._session.outputs()


def _closed(feed: Mapping[str, Array]) -> NoReturn:  # noqa: ARG001
    raise UsageError("the session is closed", hint="load the bundle again")


def _foreseen(error: Exception, phase: str) -> DeploykitError:
    """Return `error` as one of `errors`: whatever a runtime raises is foreseen."""
    if isinstance(error, DeploykitError):
        return error
    from deploykit import errors
    from deploykit.serving import describe

    found = describe(error)
    kind = getattr(errors, found["class"])
    if issubclass(kind, StepError):
        step: StepError = kind(found["message"], phase=phase, frame=found["frame"])
        return step
    return PluginError(found["message"], phase=phase, frame=found["frame"])
