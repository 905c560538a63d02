"""A payload of several fixed sizes: one compiled model for each, chosen by the shapes of the inputs.

For targets that need sizes fixed, or are faster with them. The plugins know nothing of it: each
size is a payload of its own in a folder of the bundle's payload, and `buckets.json` lists them.

This file also runs inside plugin environments: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError
from deploykit.protocol import (
    CompileResult,
    Dimension,
    LoadFunction,
    LoadRequest,
    Signature,
    TensorSpec,
    from_json,
    to_json,
)

if TYPE_CHECKING:
    from deploykit.protocol import Array, Bound, Session

BUCKETS = "buckets.json"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One of the sizes: its folder within the payload, and what `compile` said of it."""

    folder: str
    signature: Signature
    settings: dict[str, str] = field(default_factory=dict)


def write_buckets(payload: Path, results: Mapping[str, CompileResult]) -> None:
    """Write down what the folders of `payload` hold, by their names."""
    buckets = [
        Bucket(folder=name, signature=result.signature, settings=result.settings)
        for name, result in results.items()
    ]
    temporary = payload / f"{BUCKETS}.tmp"
    temporary.write_text(json.dumps(to_json(buckets), indent=1) + "\n", encoding="utf-8")
    temporary.replace(payload / BUCKETS)


def merged(results: Sequence[CompileResult]) -> CompileResult:
    """Return what the payload as a whole is: sizes that differ are dynamic, notes say which exist."""
    first = results[0]
    signature = Signature(
        inputs=_merged_specs([result.signature.inputs for result in results]),
        outputs=_merged_specs([result.signature.outputs for result in results]),
    )
    sizes = "; ".join(_sizes(result.signature) for result in results)
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return replace(
        first,
        signature=signature,
        notes=(*notes, f"compiled for these sizes, and takes no others: {sizes}"),
        cpu_flags=tuple(sorted({flag for result in results for flag in result.cpu_flags})),
        portable=all(result.portable for result in results),
    )


def load_payload(load: LoadFunction, request: LoadRequest) -> Session:
    """Load the payload with the target's `load`: every size of it where there are several.

    Raises what `load` raises.
    """
    payload = Path(request.payload)
    if not (payload / BUCKETS).is_file():
        return load(request)
    buckets = from_json(
        tuple[Bucket, ...], json.loads((payload / BUCKETS).read_text(encoding="utf-8"))
    )
    return BucketSession(
        request.signature,
        [
            load(
                replace(
                    request,
                    payload=str(payload / bucket.folder),
                    signature=bucket.signature,
                    settings=bucket.settings,
                )
            )
            for bucket in buckets
        ],
    )


class BucketSession:
    """Sessions of several sizes as one; every run goes to the one that its inputs fit."""

    def __init__(self, signature: Signature, sessions: Sequence[Session]) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._sessions = tuple(sessions)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises UsageError for sizes that were not compiled."""
        return self._fitting(feed).run(feed)

    def bind(self, feed: Mapping[str, Array]) -> Bound:
        """Fix the inputs; calling the result runs one inference on them. Raises as `run`."""
        return self._fitting(feed).bind(feed)

    def close(self) -> None:
        """Give back what the sessions hold."""
        for session in self._sessions:
            session.close()

    def _fitting(self, feed: Mapping[str, Array]) -> Session:
        for session in self._sessions:
            if all(_fits(feed[spec.name].shape, spec.shape) for spec in session.inputs):
                return session
        given = "; ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        known = "; ".join(
            ", ".join(f"{spec.name} {list(spec.shape or ())}" for spec in session.inputs)
            for session in self._sessions
        )
        raise UsageError(
            f"no model was compiled for the sizes {given}", hint=f"it was compiled for {known}"
        )


def _fits(found: tuple[int, ...], shape: tuple[Dimension, ...] | None) -> bool:
    return shape is None or (
        len(found) == len(shape)
        and all(not isinstance(d, int) or d == n for n, d in zip(found, shape, strict=True))
    )


def _merged_specs(several: Sequence[tuple[TensorSpec, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(specs[0], shape=_merged_shape([spec.shape for spec in specs]))
        for specs in zip(*several, strict=True)
    )


def _merged_shape(
    shapes: Sequence[tuple[Dimension, ...] | None],
) -> tuple[Dimension, ...] | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or len({len(shape) for shape in known}) > 1:
        return None
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*known, strict=True))


def _sizes(signature: Signature) -> str:
    return ", ".join(str(spec) for spec in signature.inputs)
