"""The choices that convert, compile and profile share, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.events import Listener, silent
from deploykit.protocol import DynamicAxis, TensorSpec
from deploykit.steps import Limits

if TYPE_CHECKING:
    from deploykit.parity import Tolerance


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read the source model and what its ONNX form shall be.

    `format` None recognises it by content. `inputs` override what the file says; `dynamic` names
    axes that stay dynamic. `opset` None takes the newest that all of `for_targets` load, or without
    targets the converter's own. `tidy` False leaves the graph as it was exported. `settings` are the
    converter's own (`signature=serving_default`).
    """

    format: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    dynamic: tuple[DynamicAxis, ...] = ()
    opset: int | None = None
    for_targets: tuple[str, ...] = ()
    tidy: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False

    @classmethod
    def parse(
        cls,
        *,
        format: str | None = None,
        inputs: Iterable[str] = (),
        dynamic: Iterable[str] = (),
        opset: int | None = None,
        for_targets: Iterable[str] = (),
        tidy: bool = True,
        settings: Mapping[str, str] | None = None,
        trust: bool = False,
    ) -> SourceOptions:
        """Return the options from text: `inputs` as `name:dtype[shape]`, `dynamic` as `x:0=batch`.

        Raises UsageError where a text does not parse.
        """
        from deploykit.tensor_spec import parse_dynamic, parse_input

        return cls(
            format=format,
            inputs=tuple(parse_input(text) for text in inputs),
            dynamic=tuple(axis for text in dynamic for axis in parse_dynamic(text)),
            opset=opset,
            for_targets=tuple(for_targets),
            tidy=tidy,
            settings=dict(settings or {}),
            trust=trust,
        )


@dataclass(frozen=True, kw_only=True)
class Checks:
    """How outputs are compared with the reference.

    `tolerance` None takes the default of the precision. `seeds` random inputs are tried, besides
    `sample`, a file of the user's own inputs (`.npz`). `enabled` False proves nothing.
    """

    enabled: bool = True
    tolerance: Tolerance | None = None
    seeds: int = 3
    sample: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under what conditions workers run: limits per step, threads, permission to install."""

    limits: Limits = Limits()
    threads: int | None = None
    install: bool = True
    listen: Listener = silent
