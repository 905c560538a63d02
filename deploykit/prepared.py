"""A converted model, ready to be compiled, with its source still at hand for new references."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.agreement import Case, reference_pairs
from deploykit.bundle import Provenance
from deploykit.conversion import Conversion, convert_within
from deploykit.errors import UsageError
from deploykit.feeds import check_feed
from deploykit.index_bounds import index_bounds
from deploykit.options import Checks
from deploykit.protocol import Signature, from_json, to_json
from deploykit.runs import Run
from deploykit.source_model import SourceModel
from deploykit.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from deploykit.agreement import Pair


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A converted model, ready to be compiled, with its source still at hand for new references."""

    model: SourceModel
    onnx: Path
    conversion: Conversion
    pairs: list[tuple[Case, Pair]]
    checks: Checks

    @classmethod
    def make(cls, run: Run, model: SourceModel, *, checks: Checks) -> Prepared:
        """Convert `model` into the folder of `run`, or take what an interrupted run converted."""
        folder = run.folder / "onnx"
        onnx = folder / f"{Path(model.name).stem}.onnx"
        kept = run.folder / "pairs"

        def work() -> dict[str, Any]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(kept, ignore_errors=True)
            folder.mkdir()
            kept.mkdir()
            conversion, pairs = convert_within(model, onnx, checks=checks)
            for number, (_, (feed, outputs)) in enumerate(pairs):
                write_tensors(
                    kept / f"{number:02}.npz",
                    {f"in_{k}": v for k, v in feed.items()}
                    | {f"out_{k}": v for k, v in outputs.items()},
                )
            return {
                "conversion": conversion.to_json(),
                "cases": [to_json(case) for case, _ in pairs],
            }

        done = run.step("convert", work)
        pairs: list[tuple[Case, Pair]] = []
        for number, case in enumerate(done["cases"]):
            tensors = read_tensors(kept / f"{number:02}.npz")
            feed = {k[3:]: v for k, v in tensors.items() if k.startswith("in_")}
            outputs = {k[4:]: v for k, v in tensors.items() if k.startswith("out_")}
            pairs.append((from_json(Case, case), (feed, outputs)))
        return cls(
            model=model,
            onnx=onnx,
            conversion=from_json(Conversion, done["conversion"]),
            pairs=pairs,
            checks=checks,
        )

    def pairs_for(self, signature: Signature) -> list[tuple[Case, Pair]]:
        """Return the reference pairs that a compiled model with `signature` can take.

        Where it fixes sizes that none of the pairs has, the source framework is asked again.
        """
        fitting = []
        for case, (feed, outputs) in self.pairs:
            try:
                check_feed(feed, signature.inputs)
            except UsageError:
                continue
            fitting.append((case, (feed, outputs)))
        if fitting or not self.checks.enabled:
            return fitting
        if self.checks.sample is not None:
            raise UsageError(
                f"the inputs of `{self.checks.sample}` do not fit the compiled sizes "
                f"{', '.join(str(spec) for spec in signature.inputs)}",
                hint="give a sample of those sizes, or fix other sizes with `--shape`",
            )
        pairs, _ = reference_pairs(
            self.model.reference(),
            signature.inputs,
            checks=self.checks,
            bounds=index_bounds(self.onnx),
            vary_sizes=False,
        )
        return pairs

    def provenance(self) -> Provenance:
        """Return where the bundle's model came from."""
        conversion = self.conversion
        return Provenance(
            source=self.model.name,
            format=conversion.format,
            source_sha256=conversion.source_sha256,
            converter=conversion.converter,
            converter_versions=conversion.versions,
            repairs=conversion.repairs,
            options=dict(self.model.options.settings),
            onnx_sha256=conversion.onnx_sha256,
            opset=conversion.opset,
        )
