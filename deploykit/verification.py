"""Prove a bundle again, on the machine where it has landed: no source framework is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.agreement import Case, agree, worst_by_output
from deploykit.bundle import check_files, golden, read_manifest
from deploykit.conversion import announced
from deploykit.errors import BundleError
from deploykit.opening import open_bundle
from deploykit.options import Conditions
from deploykit.parity import OutputParity, Tolerance
from deploykit.protocol import to_json


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A bundle that gave its golden outputs: the worst case of each output over `cases` pairs."""

    bundle: str
    target: str
    device: str
    precision: str
    cases: int
    tolerance: Tolerance
    parity: tuple[OutputParity, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the verification as JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def verify(
    bundle: str | Path,
    *,
    tolerance: Tolerance | None = None,
    conditions: Conditions = Conditions(),
) -> Verification:
    """Check the hashes of `bundle`, run it on its golden inputs in a fresh process, and compare.

    Raises BundleError where a file is missing, changed or unknown, UnavailableError where this
    machine cannot run it, MismatchError where an output disagrees.
    """
    folder = Path(bundle)
    manifest = read_manifest(folder)
    with announced(f"check files of {folder.name}", conditions):
        check_files(folder, manifest)
    pairs = [
        (Case(inputs=f"golden pair {number}"), pair)
        for number, pair in enumerate(golden(folder, manifest))
    ]
    if not pairs:
        raise BundleError(
            f"`{folder}` has no golden pairs: it was compiled without verification",
            hint="compile it again without `--no-verify`",
        )
    judged_by = tolerance or manifest.tolerance
    what = f"{manifest.target}:{manifest.device} {manifest.precision}"
    with announced(f"verify {what}", conditions):
        worker, session = open_bundle(folder, manifest, conditions)
        with worker:
            agreement = agree(pairs, session, what=f"the bundle `{folder}`", tolerance=judged_by)
    return Verification(
        bundle=str(folder.resolve()),
        target=manifest.target,
        device=manifest.device,
        precision=manifest.precision,
        cases=len(agreement.cases),
        tolerance=judged_by,
        parity=worst_by_output(agreement.cases),
    )
