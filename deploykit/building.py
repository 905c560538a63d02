"""One target at work on one model: compile, prove, see where it ran, and write the bundle."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import __version__, probing
from deploykit.agreement import agree, worst_by_output
from deploykit.buckets import first_of, merged, write_buckets
from deploykit.bundle import check_machine, write_bundle
from deploykit.conversion import announced, widened
from deploykit.errors import DeploykitError, OutputError, UnavailableError, UnsupportedError
from deploykit.events import Event
from deploykit.manifest import ANY, Manifest
from deploykit.parity import OutputParity, default_tolerance
from deploykit.placement import DeviceShare, check, described, shares
from deploykit.prepared import Prepared
from deploykit.protocol import (
    CompileRequest,
    CompileResult,
    Hardware,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
)
from deploykit.steps import Outcome, Worker
from deploykit.target_choice import settings_for
from deploykit.tensors import write_tensors

if TYPE_CHECKING:
    from deploykit.agreement import Case, Pair
    from deploykit.parity import Tolerance
    from deploykit.plugins import Plugin

GOLDEN_PAIRS = 3
"""So many a bundle keeps, and at least one for each of its sizes."""

Shapes = Mapping[str, tuple[int, ...]] | Sequence[Mapping[str, tuple[int, ...]]] | None
"""Sizes of inputs by name; several of them where a bundle shall have a model for each."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What to compile: `settings` are `key=value` for all targets or `target.key=value` for one;
    `shapes` fix the sizes of dynamic inputs, once for each model that is to be compiled; `hardware`
    None is this machine; `strict_placement` makes a failure of what did not run on the device asked
    for.
    """

    precision: str = "fp32"
    settings: Mapping[str, str]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ({},)
    hardware: Hardware | None = None
    strict_placement: bool = False


@dataclass(frozen=True, kw_only=True)
class CompiledBundle:
    """What became of one target: `folder` is the bundle where `outcome` is ok, else None.

    `placement` is where its operations ran, by device; empty where the target does not tell.
    """

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


def buckets(shapes: Shapes) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    """Return `shapes` as one mapping for each set of sizes, at least one."""
    if not shapes:
        return ({},)
    return (shapes,) if isinstance(shapes, Mapping) else tuple(shapes)


def payload_bytes(manifest: Manifest) -> int:
    """Return the size of what is deployed: the payload, without the golden pairs."""
    return sum(
        record.bytes for name, record in manifest.files.items() if name.startswith("payload/")
    )


class Building:
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
        if build.hardware is not None and not plugin.cross:
            raise UnsupportedError(
                f"target {plugin.name} compiles only for the machine that it runs on, "
                f"not for {build.hardware.name}",
                hint="compile it there, or take another target",
            )
        self.python = probing.interpreter(
            plugin, install=self.conditions.install, listen=self.conditions.listen
        )

    def bundle(self, folder: Path, scratch: Path) -> CompiledBundle:
        """Write the bundle `folder`; only one that gives the reference's outputs gets there.

        One for other hardware, which cannot run here, gets there with a note that says so.
        """
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
        note = ""
        if self.prepared.checks.enabled:
            try:
                check_machine(manifest)
                parity, placement = self._prove(payload, result, pairs)
            except UnavailableError as error:
                if self.build.hardware is None:
                    raise
                note = f"not proven here ({error.message}): `deploykit verify` proves it where it lands"
            else:
                manifest = replace(manifest, placement=placement)
                note = described(self.device, placement)
        if note:
            self._note(f"verify {self.label}", note)
            manifest = replace(manifest, notes=(*manifest.notes, note))
        kept = pairs[: max(GOLDEN_PAIRS, len(self.build.shapes))]
        written = write_bundle(folder, manifest, payload, [pair for _, pair in kept])
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
            placement=manifest.placement,
        )

    def _manifest(self, result: CompileResult) -> Manifest:
        """Return what is known of the bundle before it has run and its files are hashed."""
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
            self._note(step, note)
        return result

    def _note(self, step: str, note: str) -> None:
        self.conditions.listen(Event(kind="note", step=step, message=f"{self.label}: {note}"))

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
            placement = self._placement(worker, first_of(request), pairs)
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
