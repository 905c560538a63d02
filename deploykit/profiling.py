"""Measure a model on targets side by side: convert, compile, verify, then interleaved rounds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import __version__, environments, report
from deploykit.agreement import agree, worst_by_output
from deploykit.bundle import Manifest, check_files, read_manifest
from deploykit.compilation import (
    Build,
    CompiledBundle,
    Shapes,
    buckets,
    compile_for,
    payload_bytes,
    prepare_folder,
)
from deploykit.conversion import announced
from deploykit.errors import (
    BundleError,
    DeploykitError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from deploykit.feeds import check_feed
from deploykit.machine import fingerprint, usable_cores
from deploykit.measuring import Contender, measure
from deploykit.opening import open_bundle
from deploykit.options import Checks, Conditions, SourceOptions
from deploykit.outcomes import outcome_of
from deploykit.parity import default_tolerance
from deploykit.prepared import Prepared
from deploykit.profile_feed import feed_of_bundle, feed_of_model
from deploykit.protocol import ReferenceRequest, to_json
from deploykit.report import Measurement, ParitySummary, Report
from deploykit.runs import resumable
from deploykit.source_model import SourceModel
from deploykit.steps import OpenSession, Worker
from deploykit.target_choice import check_precision, choose_targets, settings_for
from deploykit.verification import verify

if TYPE_CHECKING:
    import numpy as np

    from deploykit.plugins import Plugin

    Array = np.ndarray[Any, Any]
    Feed = Mapping[str, Array]

NATIVE, COMPILED = "native", "native:compiled"
"""The words among the targets for the source framework itself, and for it with its own compiler."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How hard to measure: `batch` items in each inference, at most `duration_s` per contender."""

    batch: int | None = None
    duration_s: float = 10.0
    seed: int = 0


def profile(
    model: str | Path | None = None,
    targets: Sequence[str] = (),
    *,
    bundles: Sequence[str | Path] = (),
    output: str | Path | None = None,
    bundle_folder: str | Path | None = None,
    precision: str = "fp32",
    settings: Mapping[str, str] | None = None,
    shapes: Shapes = None,
    load: Load = Load(),
    source: SourceOptions = SourceOptions(),
    checks: Checks = Checks(),
    conditions: Conditions = Conditions(),
    resume: bool = False,
) -> Report:
    """Measure `model` on `targets` and finished `bundles`, side by side, and return the report.

    `targets` are names as for `compile`, `native` for the source framework itself, and
    `native:compiled` for it with its own compiler; none given means native and all. All get the same inputs and the same number of threads (every core this
    process may use, unless `conditions` says). The report goes to the file `output`, the bundles to
    `bundle_folder` (beside the report, unless named; nowhere where there is neither). A contender
    that fails is a measurement with its outcome; the others go on.

    Raises what `convert` and `compile` raise, and UsageError where there is nothing to measure.
    """
    if model is None and not bundles:
        raise UsageError("there is nothing to measure", hint="name a model or a bundle")
    if model is None and targets:
        raise UsageError(
            f"`{targets[0]}` needs a model, and only bundles were given",
            hint="leave `--target` out, or name the model",
        )
    check_precision(precision)
    if output is not None:
        _check_output(Path(output))
    conditions = replace(conditions, threads=conditions.threads or usable_cores())
    build = Build(precision=precision, settings=settings or {}, shapes=buckets(shapes))
    with contextlib.ExitStack() as stack:
        entries: list[Contender | Measurement] = []
        about: dict[str, Any] = {}
        if model is not None:
            source_model = stack.enter_context(
                SourceModel(model, options=source, conditions=conditions)
            )
            chosen = _targets(targets, conditions)
            kept = _bundle_folder(bundle_folder, output)
            asked = ["profile", source_model.identity(), build, load, checks, conditions.threads]
            run = stack.enter_context(resumable([*asked, targets, kept], resume=resume))
            folder = kept or run.folder / "bundles"
            prepare_folder(folder)
            prepared = Prepared.make(run, source_model, checks=checks)
            build, feed = feed_of_model(prepared, build, batch=load.batch, seed=load.seed)
            about = {**to_json(prepared.provenance()), "location": source_model.source.location}
            for target in chosen:
                if isinstance(target, str):
                    entries.append(_native(prepared, feed, load, compiled=target == COMPILED))
                else:
                    compiled = compile_for(run, prepared, target, build, folder)
                    asked_for = settings_for(target[0], build.settings)
                    entries.append(_compiled(compiled, asked_for, feed, load, conditions))
            source_model.close()  # nothing else may run while contenders are measured
        for bundle in bundles:
            entries.append(_bundle(Path(bundle), _feed_of(entries), load, conditions))
        made = Report(
            deploykit=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=about,
            machine=fingerprint(),
            threads=conditions.threads,
            batch=load.batch,
            sizes=_sizes(entries),
            seed=load.seed,
            duration_s=load.duration_s,
            measurements=_measured(entries, load, conditions),
        )
        if model is not None and kept is None and any(m.outcome != "ok" for m in made.measurements):
            run.keep()
        if output is not None:
            report.write(made, output)
    return made


def _targets(names: Sequence[str], conditions: Conditions) -> list[tuple[Plugin, str] | str]:
    """Return the targets asked for in order, each once; the words for the source framework as such."""
    found: list[tuple[Plugin, str] | str] = []
    for name in names or (NATIVE, "all"):
        if name.startswith(f"{NATIVE}:") and name != COMPILED:
            raise UsageError(
                f"`{name}` is unknown", hint=f"the source framework is `{NATIVE}` or `{COMPILED}`"
            )
        native = name in (NATIVE, COMPILED)
        more: Sequence[tuple[Plugin, str] | str] = (
            [name] if native else choose_targets([name], conditions)
        )
        found += [target for target in more if target not in found]
    return found


def _native(
    prepared: Prepared, feed: Feed, load: Load, *, compiled: bool
) -> Contender | Measurement:
    """Return the source framework itself as a contender; with its own compiler only once proven."""
    model = prepared.model
    conditions = model.conditions
    compiler = model.plugin.compiler if compiled else ""

    def start() -> tuple[Worker, OpenSession]:
        worker = Worker(
            model.plugin,
            python=environments.interpreter(model.plugin, install=conditions.install),
            label=f"native {model.name}",
            limits=conditions.limits,
            listen=conditions.listen,
            threads=conditions.threads,
        )
        try:
            request = ReferenceRequest(
                source=model.source, threads=conditions.threads, compiled=compiled
            )
            return worker, worker.open(request)
        except BaseException:
            worker.close()
            raise

    settings = {"compiler": compiler} if compiler else {}
    parity = None
    if compiled:
        try:
            parity = _proven(prepared, start)
        except DeploykitError as error:
            return Measurement.failed(
                target=NATIVE,
                device="cpu",
                precision="fp32",
                outcome=outcome_of(error),
                settings=settings,
            )
    return Contender(
        label=f"{NATIVE} {compiler or model.inspection.framework}",
        target=NATIVE,
        device="cpu",
        precision="fp32",
        open=start,
        feed=feed,
        settings=settings,
        size_bytes=sum(model.inspection.files.values()),
        items_per_run=load.batch or 1,
        parity=parity,
        versions=prepared.conversion.versions,
    )


def _proven(
    prepared: Prepared, start: Callable[[], tuple[Worker, OpenSession]]
) -> ParitySummary | None:
    """Compare the compiled framework with itself as it is. Raises MismatchError where it differs."""
    plugin = prepared.model.plugin
    if not plugin.compiler:
        raise UnsupportedError(
            f"{plugin} has no compiler of its own", hint=f"measure the framework as `{NATIVE}`"
        )
    if not prepared.pairs:
        return None
    label = f"verify {plugin.compiler}"
    with announced(label, prepared.model.conditions):
        worker, session = start()
        with worker:
            tolerance = prepared.checks.tolerance or default_tolerance("fp32")
            found = agree(prepared.pairs, session, what=plugin.compiler, tolerance=tolerance)
    return ParitySummary.of(worst_by_output(found.cases))


def _compiled(
    compiled: CompiledBundle,
    asked_for: Mapping[str, str],
    feed: Feed,
    load: Load,
    conditions: Conditions,
) -> Contender | Measurement:
    """Return a bundle just compiled as a contender, or why it could not be compiled."""
    if compiled.folder is None:
        return Measurement.failed(
            target=compiled.target,
            device=compiled.device,
            precision=compiled.precision,
            outcome=compiled.outcome,
            settings=dict(asked_for),
            notes=compiled.notes,
        )
    folder = Path(compiled.folder)
    manifest = read_manifest(folder)
    parity = ParitySummary.of(compiled.parity) if compiled.parity else None
    return _contender(folder, manifest, feed, parity, load, conditions)


def _bundle(
    folder: Path, feed: Feed | None, load: Load, conditions: Conditions
) -> Contender | Measurement:
    """Return a finished bundle as a contender, on the inputs of the others if there are any; or how
    its own proof failed.

    Raises BundleError where it is damaged, UsageError where it cannot take the inputs: a comparison
    on different inputs is none.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if feed is None:
        feed = feed_of_bundle(folder, manifest, batch=load.batch, seed=load.seed)
    check_feed(feed, manifest.signature.inputs)
    parity = None
    if manifest.golden:
        try:
            parity = ParitySummary.of(verify(folder, conditions=conditions).parity)
        except (BundleError, UsageError):
            raise
        except DeploykitError as error:
            return Measurement.failed(
                target=manifest.target,
                device=manifest.device,
                precision=manifest.precision,
                outcome=outcome_of(error),
                settings=manifest.settings,
                versions=manifest.versions,
                notes=manifest.notes,
            )
    return _contender(folder, manifest, feed, parity, load, conditions)


def _contender(
    folder: Path,
    manifest: Manifest,
    feed: Feed,
    parity: ParitySummary | None,
    load: Load,
    conditions: Conditions,
) -> Contender:
    return Contender(
        label=f"{manifest.target}:{manifest.device} {manifest.precision}",
        target=manifest.target,
        device=manifest.device,
        precision=manifest.precision,
        open=lambda: open_bundle(folder, manifest, conditions),
        feed=feed,
        settings=manifest.settings,
        versions=manifest.versions,
        notes=manifest.notes,
        size_bytes=payload_bytes(manifest),
        items_per_run=load.batch or 1,
        parity=parity,
    )


def _measured(
    entries: Sequence[Contender | Measurement], load: Load, conditions: Conditions
) -> tuple[Measurement, ...]:
    """Measure the contenders among `entries` together; the others keep their place."""
    ready = [entry for entry in entries if isinstance(entry, Contender)]
    if not ready:
        return tuple(entry for entry in entries if isinstance(entry, Measurement))
    measured = iter(
        measure(ready, duration_s=load.duration_s, seed=load.seed, listen=conditions.listen)
    )
    return tuple(next(measured) if isinstance(entry, Contender) else entry for entry in entries)


def _feed_of(entries: Sequence[Contender | Measurement]) -> Feed | None:
    """Return the inputs that all contenders get, None where there is no contender yet."""
    return next((entry.feed for entry in entries if isinstance(entry, Contender)), None)


def _sizes(entries: Sequence[Contender | Measurement]) -> dict[str, int]:
    """Return the size of every input axis in the measured inferences, as `INPUT:AXIS`."""
    return {
        f"{name}:{axis}": size
        for name, array in (_feed_of(entries) or {}).items()
        for axis, size in enumerate(array.shape)
    }


def _check_output(output: Path) -> None:
    """Raise OutputError where the report cannot be written: hours later would be too late."""
    if output.is_dir():
        raise OutputError(f"`{output}` is a folder", hint="name a file, such as `report.json`")
    folder = output.absolute().parent
    if not folder.is_dir():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder `{folder}`: {error.strerror}") from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OutputError(
            f"cannot write to `{folder}`: {error.strerror}",
            hint="name a folder that you may write to",
        ) from error


def _bundle_folder(named: str | Path | None, output: str | Path | None) -> Path | None:
    """Return the folder for bundles: as named, else beside the report, else None."""
    if named is not None:
        return Path(named).absolute()
    return None if output is None else Path(output).with_suffix(".bundles").absolute()
