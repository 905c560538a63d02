"""Compile a model for targets: each one becomes a bundle that has proved itself, or says why not."""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__, probing
from deploykit.agreement import agree, worst_by_output
from deploykit.bundle import Manifest, check_files, read_manifest, write_bundle
from deploykit.conversion import Conversion, announced, widened
from deploykit.errors import (
    BundleError,
    DeploykitError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from deploykit.events import Event
from deploykit.options import Checks, Conditions, SourceOptions
from deploykit.parity import OutputParity, default_tolerance
from deploykit.placement import DeviceShare, check, described, shares
from deploykit.prepared import Prepared
from deploykit.protocol import (
    CompileRequest,
    CompileResult,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
    from_json,
    to_json,
)
from deploykit.runs import Run, resumable
from deploykit.source_model import SourceModel
from deploykit.steps import Outcome, Worker, outcome_of
from deploykit.target_choice import check_precision, choose_targets, settings_for
from deploykit.tensors import write_tensors

if TYPE_CHECKING:
    from deploykit.agreement import Case, Pair
    from deploykit.parity import Tolerance
    from deploykit.plugins import Plugin


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to compile: `settings` are `key=value` for all targets or `target.key=value` for one;
    `shapes` fix the sizes of dynamic inputs; `strict_placement` makes a failure of what did not run
    on the device asked for.
    """

    precision: str = "fp32"
    settings: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    strict_placement: bool = False


@dataclass(frozen=True, kw_only=True)
class CompiledBundle:
    """What became of one target: `folder` is the bundle where `outcome` is ok, else None."""

    target: str
    device: str
    precision: str
    outcome: Outcome
    folder: str | None = None
    size_bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    parity: tuple[OutputParity, ...] = ()
    placement: dict[str, DeviceShare] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """The conversion that all share, and one entry per target in the order asked for."""

    conversion: Conversion
    bundles: tuple[CompiledBundle, ...]

    @property
    def failed(self) -> tuple[CompiledBundle, ...]:
        """Those that did not end ok."""
        return tuple(bundle for bundle in self.bundles if bundle.outcome.kind != "ok")

    def to_json(self) -> dict[str, Any]:
        """Return the compilation as JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def compile(
    model: str | Path,
    targets: Sequence[str],
    output: str | Path,
    *,
    precision: str = "fp32",
    settings: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    strict_placement: bool = False,
    source: SourceOptions = SourceOptions(),
    checks: Checks = Checks(),
    conditions: Conditions = Conditions(),
    resume: bool = False,
) -> Compilation:
    """Convert `model`, compile it for each of `targets` and write verified bundles under `output`.

    `targets` are names (`tvm`) with an optional device (`openvino:cpu`); `all` means every target
    that can run here. `settings` are `key=value` for all targets or `target.key=value` for one.
    A target that fails is an entry with its outcome; the others go on. Operations that the runtime
    ran on another device than the one asked for are noted; with `strict_placement` they are a
    failure. `resume` goes on after an interrupted call with the same arguments.

    Raises what `convert` raises, and UsageError for an unknown target, precision or setting.
    """
    output = Path(output).absolute()
    build = Build(
        precision=precision,
        settings=settings or {},
        shapes=shapes or {},
        strict_placement=strict_placement,
    )
    check_build(build, checks)
    with SourceModel(model, options=source, conditions=conditions) as source_model:
        chosen = choose_targets(targets, conditions)
        prepare_folder(output)
        asked = ["compile", source_model.identity(), build, checks, conditions.threads, output]
        with resumable(asked, resume=resume) as run:
            prepared = Prepared.make(run, source_model, checks=checks)
            bundles = [compile_for(run, prepared, target, build, output) for target in chosen]
    return Compilation(conversion=prepared.conversion, bundles=tuple(bundles))


def check_build(build: Build, checks: Checks) -> None:
    """Raise UsageError for a precision that no target knows, or a placement that nothing would prove."""
    check_precision(build.precision)
    if build.strict_placement and not checks.enabled:
        raise UsageError(
            "`--strict-placement` needs the model to run, and `--no-verify` forbids it",
            hint="leave one of the two out",
        )


def compile_for(
    run: Run, prepared: Prepared, target: tuple[Plugin, str], build: Build, output: Path
) -> CompiledBundle:
    """Compile for one target and device, and verify; a failure is the entry's outcome.

    Raises UsageError and OutputError: those are the user's to mend, for all targets alike.
    """
    plugin, device = target
    name = f"{plugin.name}-{device}-{build.precision}"

    def work() -> dict[str, Any]:
        started = time.monotonic()
        try:
            bundle = _Building(prepared, plugin, device, build).bundle(output / name, run.folder)
        except (OutputError, UsageError):
            raise
        except DeploykitError as error:
            outcome = outcome_of(error)
            bundle = CompiledBundle(
                target=plugin.name, device=device, precision=build.precision, outcome=outcome
            )
            message = f"{plugin.name}:{device} {build.precision}: {outcome}"
            prepared.model.conditions.listen(Event(kind="note", step=name, message=message))
        value: dict[str, Any] = to_json(
            replace(bundle, seconds=round(time.monotonic() - started, 3))
        )
        return value

    done = from_json(CompiledBundle, run.step(f"compile {name}", work, still_good=_is_there))
    if done.outcome.log:
        run.keep()
    return done


def _is_there(recorded: dict[str, Any]) -> bool:
    """Whether the bundle that an interrupted run recorded is still as it was written."""
    folder = recorded["folder"]
    if folder is None:
        return True  # a failure
    try:
        check_files(folder, read_manifest(folder))
    except (BundleError, UsageError):
        return False
    return True


class _Building:
    """One target at work on one model."""

    def __init__(self, prepared: Prepared, plugin: Plugin, device: str, build: Build) -> None:
        self.prepared = prepared
        self.plugin = plugin
        self.device = device
        self.build = build
        self.conditions = prepared.model.conditions
        self.label = f"{plugin.name}:{device} {build.precision}"
        self.tolerance: Tolerance = prepared.checks.tolerance or widened(
            default_tolerance(build.precision), prepared.conversion
        )
        self.python = probing.interpreter(
            plugin, install=self.conditions.install, listen=self.conditions.listen
        )

    def bundle(self, folder: Path, scratch: Path) -> CompiledBundle:
        """Write the bundle `folder`; only one that gives the reference's outputs gets there."""
        # not beside the bundle: runtimes report a full disk in words of their own
        payload = scratch / f"payload-{folder.name}"
        _make_empty(payload)
        try:
            result = self._compile(payload)
        except BaseException:
            _make_empty(payload)  # as `reproduce.sh` must find it
            raise
        pairs = self.prepared.pairs_for(result.signature)
        parity: tuple[OutputParity, ...] = ()
        placement: dict[str, DeviceShare] = {}
        if self.prepared.checks.enabled:
            parity, placement = self._prove(payload, result, pairs)
        notes = result.notes
        if moved := described(self.device, placement):
            notes += (self._note(f"verify {self.label}", moved),)
        manifest = Manifest(
            deploykit=__version__,
            signature=result.signature,
            target=self.plugin.name,
            device=self.device,
            precision=self.build.precision,
            threads=self.conditions.threads,
            settings=result.settings,
            notes=notes,
            placement=placement,
            versions=result.versions,
            machine=platform.machine(),
            cpu_flags=result.cpu_flags,
            tolerance=self.tolerance,
            provenance=self.prepared.provenance(),
        )
        written = write_bundle(folder, manifest, payload, [pair for _, pair in pairs[:3]])
        shutil.rmtree(payload, ignore_errors=True)
        return CompiledBundle(
            target=self.plugin.name,
            device=self.device,
            precision=self.build.precision,
            outcome=Outcome(kind="ok"),
            folder=str(folder),
            size_bytes=payload_bytes(written),
            notes=notes,
            parity=parity,
            placement=placement,
        )

    def _compile(self, payload: Path) -> CompileResult:
        """Let the target write its payload, in a worker."""
        request = CompileRequest(
            model=str(self.prepared.onnx),
            payload=str(payload),
            signature=self.prepared.conversion.signature,
            device=self.device,
            precision=self.build.precision,
            threads=self.conditions.threads,
            settings=settings_for(self.plugin, self.build.settings),
            shapes=dict(self.build.shapes),
        )
        step = f"compile for {self.label}"
        with announced(step, self.conditions), self._worker() as worker:
            result = worker.call("compile", request, CompileResult)
        for note in result.notes:
            self._note(step, note)
        return result

    def _note(self, step: str, note: str) -> str:
        self.conditions.listen(Event(kind="note", step=step, message=f"{self.label}: {note}"))
        return note

    def _prove(
        self, payload: Path, result: CompileResult, pairs: list[tuple[Case, Pair]]
    ) -> tuple[tuple[OutputParity, ...], dict[str, DeviceShare]]:
        """Load the payload in a fresh process and compare it with the reference's outputs.

        Returns how each output fared, and where the operations ran.
        """
        request = LoadRequest(
            payload=str(payload),
            signature=result.signature,
            device=self.device,
            precision=self.build.precision,
            threads=self.conditions.threads,
            settings=result.settings,
        )
        with announced(f"verify {self.label}", self.conditions), self._worker() as worker:
            session = worker.open(request)
            agreement = agree(pairs, session, what=self.label, tolerance=self.tolerance)
            session.close()
            placement = self._placement(worker, request, pairs)
        return worst_by_output(agreement.cases), placement

    def _placement(
        self, worker: Worker, request: LoadRequest, pairs: list[tuple[Case, Pair]]
    ) -> dict[str, DeviceShare]:
        """Ask the target where the first pair's operations run; nothing where it cannot tell.

        Raises UnsupportedError where the placement shall be strict and is not, or is not known.
        """
        strict = self.build.strict_placement
        if "operators" not in self.plugin.functions or not pairs:
            if strict:
                raise UnsupportedError(
                    f"target {self.plugin.name} does not tell where operations run",
                    hint="leave out `--strict-placement` for it",
                )
            return {}
        _, (feed, _) = pairs[0]
        path = worker.folder / "placement.npz"
        write_tensors(path, feed)
        try:
            asked = OperatorsRequest(load=request, feed=str(path))
            runs = worker.call("operators", asked, tuple[OperatorRun, ...])
        except DeploykitError as error:
            if strict:
                raise
            # the model is proven: an audit that fails takes nothing from that
            self._note(f"verify {self.label}", f"where it ran is not known: {error.message}")
            return {}
        found = shares(runs)
        if strict:
            check(self.device, found, what=self.label)
        return found

    def _worker(self) -> Worker:
        return Worker(
            self.plugin,
            python=self.python,
            label=self.plugin.name,
            limits=self.conditions.limits,
            listen=self.conditions.listen,
            threads=self.conditions.threads,
        )


def _make_empty(folder: Path) -> None:
    """Make the empty folder `folder`; raise OutputError where that cannot be."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot make `{folder}`: {error.strerror or error}") from error


def payload_bytes(manifest: Manifest) -> int:
    """Return the size of what is deployed: the payload, without the golden pairs."""
    return sum(
        record.bytes for name, record in manifest.files.items() if name.startswith("payload/")
    )


def prepare_folder(folder: Path) -> None:
    """Make the folder for bundles; raise OutputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OutputError(
            f"cannot write bundles to `{folder}`: {error.strerror}",
            hint="name a folder that you may write to",
        ) from error
