"""Convert a source model to ONNX and prove the result against the source framework itself."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.agreement import Case, agree, reference_pairs, worst_by_output
from deploykit.errors import DeploykitError, OutputError
from deploykit.events import Event
from deploykit.options import Checks, Conditions, SourceOptions
from deploykit.parity import SMALLEST_SCALE, OutputParity, Tolerance, default_tolerance
from deploykit.protocol import ConvertResult, Signature, to_json
from deploykit.runs import resumable
from deploykit.source_model import SourceModel, hash_files, onnx_model

if TYPE_CHECKING:
    from deploykit.agreement import Pair


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A finished conversion.

    `parity` has the worst case of each output over `cases` comparisons; it is empty where `verified`
    is false. `repairs` and `notes` say what was mended and what could not be tried. `steps` and
    `atol` are the converter's own allowance where the source's kernels differ (0: none needed).
    """

    source: str
    format: str
    converter: str
    source_sha256: str
    output: str
    onnx_sha256: str
    signature: Signature
    opset: int
    verified: bool
    cases: int = 0
    parity: tuple[OutputParity, ...] = ()
    repairs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    atol: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the conversion as JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def convert(
    model: str | Path,
    output: str | Path,
    *,
    source: SourceOptions = SourceOptions(),
    checks: Checks = Checks(),
    conditions: Conditions = Conditions(),
) -> Conversion:
    """Convert `model` to the ONNX file `output` and verify it against its own framework.

    The file appears only when it is whole and proven. Weights beyond 2 GB lie beside it.

    Raises SourceError where the model cannot be read, UnsupportedError where it cannot be
    converted, MismatchError where the ONNX model gives other outputs, OutputError where `output`
    cannot be written.
    """
    output = Path(output).absolute()
    with SourceModel(model, options=source, conditions=conditions) as source_model:
        _check_output(output)
        # made in the cache: whatever kills us, nothing unfinished lies beside the output
        with resumable(["convert", output], resume=False) as run:
            folder = run.folder / "onnx"
            folder.mkdir()
            conversion, _ = convert_within(source_model, folder / output.name, checks=checks)
            install_files(folder, output)
    return dataclasses.replace(conversion, output=str(output))


def convert_within(
    model: SourceModel, output: Path, *, checks: Checks
) -> tuple[Conversion, list[tuple[Case, Pair]]]:
    """Convert `model` to `output` and verify; return also the reference's inputs and outputs.

    With the checks disabled there are no reference pairs.
    """
    listen = model.conditions.listen
    step = f"convert {model.name} ({model.plugin.name})"
    # a large model takes seconds to hash, which the worker need not wait for
    with ThreadPoolExecutor(max_workers=1) as pool, announced(step, model.conditions):
        source_sha256 = pool.submit(model.sha256)
        result = model.convert(output)
    if result.steps or result.atol:
        allowed = f"{result.steps} steps" if result.steps else f"{result.atol:.1e} of the scale"
        listen(
            Event(
                kind="note",
                step=step,
                message=f"the source's own kernels differ by rounding: {allowed} are allowed",
            )
        )
    for repair in result.repairs:
        listen(Event(kind="note", step=step, message=f"repaired: {repair}"))
    cases: tuple[Case, ...] = ()
    pairs: list[tuple[Case, Pair]] = []
    noted: tuple[str, ...] = ()
    if checks.enabled:
        with announced(f"verify against {model.inspection.framework}", model.conditions):
            proof = _prove(model, output, result, checks)
        result, pairs, cases, noted = proof.result, proof.pairs, proof.cases, proof.notes
    notes = (*noted, *_little_said(cases))
    for note in notes:
        listen(Event(kind="note", step=step, message=note))
    return (
        Conversion(
            source=model.source.location,
            format=model.source.format,
            converter=model.plugin.name,
            source_sha256=source_sha256.result(),
            output=str(output),
            onnx_sha256=hash_files(sorted(output.parent.iterdir())),
            signature=result.signature,
            opset=result.opset,
            verified=checks.enabled,
            cases=len(cases),
            parity=worst_by_output(cases),
            repairs=result.repairs,
            notes=notes,
            versions=result.versions,
            steps=result.steps,
            atol=result.atol,
        ),
        pairs,
    )


@dataclass(frozen=True)
class _Proof:
    """What was converted in the end, the reference's pairs, how each fared, and what to note."""

    result: ConvertResult
    pairs: list[tuple[Case, Pair]]
    cases: tuple[Case, ...]
    notes: tuple[str, ...]


def widened(tolerance: Tolerance, result: ConvertResult | Conversion) -> Tolerance:
    """Return `tolerance` with what the source's own kernels differ by allowed as well."""
    return dataclasses.replace(tolerance, steps=result.steps, atol=max(tolerance.atol, result.atol))


def _little_said(cases: tuple[Case, ...]) -> list[str]:
    """Return a note for each output that is so small in all `cases` that agreement says little."""
    largest: dict[str, float] = {}
    for output in (output for case in cases for output in case.outputs if output.elements):
        largest[output.output] = max(largest.get(output.output, 0.0), output.largest)
    return [
        f"output `{name}` never exceeds {value:.1e} on the inputs tried, so that its agreement says "
        "little; verify on real inputs with `--sample`"
        for name, value in largest.items()
        if value < SMALLEST_SCALE
    ]


def _prove(model: SourceModel, output: Path, result: ConvertResult, checks: Checks) -> _Proof:
    """Run source framework and ONNX on the same inputs; raise MismatchError where they disagree.

    The tidied graph is tried first, and takes the place of the exported one where it agrees.
    """
    from deploykit.feeds import index_bounds

    pairs, rejected = reference_pairs(
        model.reference(),
        result.signature.inputs,
        checks=checks,
        bounds=index_bounds(output),
    )
    tolerance = checks.tolerance or widened(default_tolerance("fp32"), result)
    what = f"the ONNX model made from {model.name}"
    notes = rejected
    if model.options.tidy and not Path(f"{output}.data").exists():
        folder = output.parent / "tidied"
        folder.mkdir()
        try:
            with onnx_model(output, model.conditions) as exported:
                tidied, session = exported.tidy(folder / output.name, opset=result.opset)
                agreement = agree(pairs, session, what=what, tolerance=tolerance)
            (folder / output.name).replace(output)
            kept = dataclasses.replace(result, signature=tidied.signature)
            # what the ONNX converter mends on its way is of no interest to the user of another framework
            cleaned = tuple(line for line in tidied.repairs if line.startswith("cleaned up"))
            return _Proof(kept, pairs, agreement.cases, (*notes, *cleaned))
        except DeploykitError as error:
            notes = (*notes, f"left as it was exported, for cleaned up it fails: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    with onnx_model(output, model.conditions) as converted:
        agreement = agree(pairs, converted.reference(), what=what, tolerance=tolerance)
    return _Proof(result, pairs, agreement.cases, notes)


@contextlib.contextmanager
def announced(step: str, conditions: Conditions) -> Iterator[None]:
    """Tell the listener that `step` begins and how it ends."""
    from deploykit.steps import outcome_of

    conditions.listen(Event(kind="start", step=step))
    try:
        yield
    except BaseException as error:
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else outcome_of(error).kind
        conditions.listen(Event(kind="end", step=step, outcome=outcome))
        raise
    conditions.listen(Event(kind="end", step=step, outcome="ok"))


def _check_output(output: Path) -> None:
    """Raise OutputError where `output` cannot be written: an hour later would be too late."""
    if output.is_dir():
        raise OutputError(f"`{output}` is a folder", hint="name a file, such as `model.onnx`")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            return
    except OSError as error:
        raise OutputError(
            f"cannot write `{output.name}` into `{output.parent}`: {error.strerror}",
            hint="name a folder that exists and that you may write to",
        ) from error


def install_files(folder: Path, output: Path) -> None:
    """Move the converted file and any weights beside it to their place, the model last."""
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name == output.name):
            _move(path, output.parent / path.name)
    except OSError as error:
        raise OutputError(f"cannot write `{output}`: {error.strerror}") from error


def _move(path: Path, destination: Path) -> None:
    """Move a file to `destination`, which is replaced only when the new one is whole."""
    try:
        path.replace(destination)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the cache may lie on another file system
            raise
    else:
        return
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(path, temporary)
        temporary.replace(destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
