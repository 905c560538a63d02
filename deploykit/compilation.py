"""Compile a model for targets: each one becomes a bundle that has proved itself, or says why not."""

from __future__ import annotations

import platform
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__, environments
from deploykit.agreement import agree, worst_by_output
from deploykit.buckets import merged, write_buckets
from deploykit.bundle import Manifest, check_files, check_machine, read_manifest, write_bundle
from deploykit.conversion import Conversion, announced, widened
from deploykit.errors import (
    BundleError,
    DeploykitError,
    OutputError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from deploykit.events import Event
from deploykit.manifest import ANY
from deploykit.options import Checks, Conditions, SourceOptions
from deploykit.parity import OutputParity, default_tolerance
from deploykit.prepared import Prepared
from deploykit.protocol import (
    CompileRequest,
    CompileResult,
    Hardware,
    LoadRequest,
    from_json,
    to_json,
)
from deploykit.runs import Run, resumable
from deploykit.source_model import SourceModel
from deploykit.steps import Outcome, Worker, outcome_of
from deploykit.target_choice import check_precision, choose_targets, settings_for

if TYPE_CHECKING:
    from deploykit.agreement import Case, Pair
    from deploykit.parity import Tolerance
    from deploykit.plugins import Plugin


Shapes = Mapping[str, tuple[int, ...]] | Sequence[Mapping[str, tuple[int, ...]]] | None
"""Sizes of inputs by name; several of them where a bundle shall have a model for each."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to compile: `settings` are `key=value` for all targets or `target.key=value` for one;
    `shapes` fix the sizes of dynamic inputs, once for each model that is to be compiled; `hardware`
    None is this machine.
    """

    precision: str = "fp32"
    settings: Mapping[str, str]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ({},)
    hardware: Hardware | None = None


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
    shapes: Shapes = None,
    hardware: Hardware | None = None,
    source: SourceOptions = SourceOptions(),
    checks: Checks = Checks(),
    conditions: Conditions = Conditions(),
    resume: bool = False,
) -> Compilation:
    """Convert `model`, compile it for each of `targets` and write verified bundles under `output`.

    `targets` are names (`tvm`) with an optional device (`openvino:cpu`); `all` means every target
    that can run here. `settings` are `key=value` for all targets or `target.key=value` for one.
    `hardware` is the machine to compile for, where that is not this one: what cannot run here is not
    proven here, and says so. A target that fails is an entry with its outcome; the others go on.
    `resume` goes on after an
    interrupted call with the same arguments.

    Raises what `convert` raises, and UsageError for an unknown target, precision or setting.
    """
    output = Path(output).absolute()
    build = Build(
        precision=precision, settings=settings or {}, shapes=buckets(shapes), hardware=hardware
    )
    check_precision(precision)
    with SourceModel(model, options=source, conditions=conditions) as source_model:
        chosen = choose_targets(targets, conditions)
        prepare_folder(output)
        asked = ["compile", source_model.identity(), build, checks, conditions.threads, output]
        with resumable(asked, resume=resume) as run:
            prepared = Prepared.make(run, source_model, checks=checks)
            bundles = [compile_for(run, prepared, target, build, output) for target in chosen]
    return Compilation(conversion=prepared.conversion, bundles=tuple(bundles))


def buckets(shapes: Shapes) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    """Return `shapes` as one mapping for each set of sizes, at least one."""
    if not shapes:
        return ({},)
    return (shapes,) if isinstance(shapes, Mapping) else tuple(shapes)


def compile_for(
    run: Run, prepared: Prepared, target: tuple[Plugin, str], build: Build, output: Path
) -> CompiledBundle:
    """Compile for one target and device, and verify; a failure is the entry's outcome.

    Raises UsageError and OutputError: those are the user's to mend, for all targets alike.
    """
    plugin, device = target
    # the arguments of a device (`hetero:gpu,cpu`) have signs that are none of a file's name
    name = f"{plugin.name}-{re.sub('[^a-z0-9_.]+', '-', device)}-{build.precision}"
    if build.hardware is not None:
        name += f"-{build.hardware.name}"

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
        self.python = environments.interpreter(
            plugin, install=self.conditions.install, listen=self.conditions.listen
        )

    def bundle(self, folder: Path, scratch: Path) -> CompiledBundle:
        """Write the bundle `folder`; only one that gives the reference's outputs gets there."""
        # not beside the bundle: runtimes report a full disk in words of their own
        payload = scratch / f"payload-{folder.name}"
        _make_empty(payload)
        try:
            result, pairs = self._built(payload)
        except BaseException:
            _make_empty(payload)  # as `reproduce.sh` must find it
            raise
        manifest = self._manifest(result)
        parity: tuple[OutputParity, ...] = ()
        if self.prepared.checks.enabled:
            try:
                check_machine(manifest)
                parity = self._prove(payload, result, pairs)
            except UnavailableError as error:
                if self.build.hardware is None:
                    raise
                manifest = replace(manifest, notes=(*manifest.notes, self._unproven(error)))
        written = write_bundle(
            folder, manifest, payload, [pair for _, pair in pairs[: max(3, len(self.build.shapes))]]
        )
        shutil.rmtree(payload, ignore_errors=True)
        return CompiledBundle(
            target=self.plugin.name,
            device=self.device,
            precision=self.build.precision,
            outcome=Outcome(kind="ok"),
            folder=str(folder),
            size_bytes=payload_bytes(written),
            notes=manifest.notes,
            parity=parity,
        )

    def _unproven(self, error: UnavailableError) -> str:
        """Say that the payload could not be run here, where that was to be expected."""
        note = f"not proven here ({error.message}): `deploykit verify` proves it where it lands"
        self.conditions.listen(
            Event(kind="note", step=f"verify {self.label}", message=f"{self.label}: {note}")
        )
        return note

    def _manifest(self, result: CompileResult) -> Manifest:
        """Return what is known of the bundle before its files are hashed."""
        hardware = self.build.hardware
        machine = hardware.architecture if hardware else platform.machine()
        return Manifest(
            deploykit=__version__,
            signature=result.signature,
            target=self.plugin.name,
            device=self.device,
            precision=self.build.precision,
            threads=self.conditions.threads,
            settings=result.settings,
            notes=result.notes,
            versions=result.versions,
            machine=ANY if result.portable else machine,
            system=ANY if result.portable else platform.system(),
            cpu_flags=result.cpu_flags,
            hardware=hardware.name if hardware else "",
            tolerance=self.tolerance,
            provenance=self.prepared.provenance(),
        )

    def _built(self, payload: Path) -> tuple[CompileResult, list[tuple[Case, Pair]]]:
        """Write the payload, a model for each set of sizes, and return the pairs that it can take."""
        if self.build.hardware is not None and not self.plugin.cross:
            raise UnsupportedError(
                f"target {self.plugin.name} compiles only for the machine that it runs on, "
                f"not for {self.build.hardware.name}",
                hint="compile it there, or take another target",
            )
        if len(self.build.shapes) == 1:
            result = self._compile(payload, self.build.shapes[0])
            return result, self.prepared.pairs_for(result.signature)
        results = {}
        for number, shapes in enumerate(self.build.shapes):
            folder = payload / str(number)
            folder.mkdir()
            results[folder.name] = self._compile(folder, shapes)
        write_buckets(payload, results)
        pairs = [self.prepared.pairs_for(result.signature) for result in results.values()]
        # the first of each size come first: those are kept as golden pairs
        mixed = [pair for row in zip_longest(*pairs) for pair in row if pair is not None]
        return merged(tuple(results.values())), mixed

    def _compile(self, payload: Path, shapes: Mapping[str, tuple[int, ...]]) -> CompileResult:
        """Let the target write its payload, in a worker."""
        request = CompileRequest(
            model=str(self.prepared.onnx),
            payload=str(payload),
            signature=self.prepared.conversion.signature,
            device=self.device,
            precision=self.build.precision,
            threads=self.conditions.threads,
            settings=settings_for(self.plugin, self.build.settings),
            shapes=dict(shapes),
            hardware=self.build.hardware,
        )
        step = f"compile for {self.label}"
        with announced(step, self.conditions), self._worker() as worker:
            result = worker.call("compile", request, CompileResult)
        for note in result.notes:
            self.conditions.listen(Event(kind="note", step=step, message=f"{self.label}: {note}"))
        return result

    def _prove(
        self, payload: Path, result: CompileResult, pairs: list[tuple[Case, Pair]]
    ) -> tuple[OutputParity, ...]:
        """Load the payload in a fresh process and compare it with the reference's outputs."""
        request = LoadRequest(
            payload=str(payload),
            signature=result.signature,
            device=self.device,
            precision=self.build.precision,
            threads=self.conditions.threads,
            settings=result.settings,
        )
        with announced(f"verify {self.label}", self.conditions), self._worker() as worker:
            agreement = agree(
                pairs, worker.open(request), what=self.label, tolerance=self.tolerance
            )
        return worst_by_output(agreement.cases)

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
