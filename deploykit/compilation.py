"""Compile a model for targets: each one becomes a bundle that has proved itself, or says why not."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.building import Build, Building, CompiledBundle, Shapes, buckets
from deploykit.bundle import check_files, read_manifest
from deploykit.conversion import Conversion
from deploykit.errors import (
    BundleError,
    DeploykitError,
    OutputError,
    UsageError,
)
from deploykit.events import Event
from deploykit.hardware import hardware as named_hardware
from deploykit.options import Checks, Conditions, SourceOptions
from deploykit.prepared import Prepared
from deploykit.protocol import (
    Hardware,
    from_json,
    to_json,
)
from deploykit.runs import Run, resumable
from deploykit.source_model import SourceModel
from deploykit.steps import outcome_of
from deploykit.target_choice import check_precision, choose_targets

if TYPE_CHECKING:
    from deploykit.plugins import Plugin


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
    hardware: str | Hardware | None = None,
    strict_placement: bool = False,
    source: SourceOptions = SourceOptions(),
    checks: Checks = Checks(),
    conditions: Conditions = Conditions(),
    resume: bool = False,
) -> Compilation:
    """Convert `model`, compile it for each of `targets` and write verified bundles under `output`.

    `targets` are names (`tvm`) with an optional device (`openvino:cpu`); `all` means every target
    that can run here. `settings` are `key=value` for all targets or `target.key=value` for one.
    `hardware` is the machine to compile for, where that is not this one, or the name of its profile:
    what cannot run here is not proven here, and says so. Operations that the runtime ran on another device than the one asked for
    are noted; with `strict_placement` they are a failure. A target that fails is an entry with its
    outcome; the others go on. `resume` goes on after an interrupted call with the same arguments.

    Raises what `convert` raises, and UsageError for an unknown target, precision,
    setting or hardware.
    """
    output = Path(output).absolute()
    if isinstance(hardware, str):
        hardware = named_hardware(hardware).to_request()
    build = Build(
        precision=precision,
        settings=settings or {},
        shapes=buckets(shapes),
        hardware=hardware,
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
    # the arguments of a device (`hetero:gpu,cpu`) have signs that are none of a file's name
    name = f"{plugin.name}-{re.sub('[^a-z0-9_.]+', '-', device)}-{build.precision}"
    if build.hardware is not None:
        name += f"-{build.hardware.name}"

    def work() -> dict[str, Any]:
        started = time.monotonic()
        try:
            bundle = Building(prepared, plugin, device, build).bundle(output / name, run.folder)
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
