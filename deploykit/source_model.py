"""A source model at work: recognised, hashed, and open in a worker of its own framework."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from deploykit import __version__, environments, plugins
from deploykit.errors import UnsupportedError, UsageError
from deploykit.formats import Inspection, inspect
from deploykit.options import Conditions, SourceOptions
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Source,
)
from deploykit.steps import Worker

if TYPE_CHECKING:
    from deploykit.steps import OpenSession

ONNX = "onnx"
WEIGHTS = ("weights", "params", "init")
"""Settings by which converters are told where the weights are."""


class SourceModel:
    """The model at `location` with the worker of its converter, started when first needed.

    The worker imports the framework once: it converts, and then answers as the reference.
    """

    def __init__(
        self, location: str | Path, *, options: SourceOptions, conditions: Conditions
    ) -> None:
        self.inspection: Inspection = inspect(
            location,
            format=options.format,
            trust=options.trust,
            elsewhere=any(key in options.settings for key in WEIGHTS),
        )
        if self.inspection.converter is None:
            known = sorted(
                name for plugin in plugins.plugins("converter") for name in plugin.formats
            )
            raise UnsupportedError(
                f"`{location}` is {self.inspection.format} ({self.inspection.framework}), "
                "for which there is no converter",
                hint=f"formats with a converter: {', '.join(known)}",
            )
        self.plugin = plugins.converter(self.inspection.converter)
        self.options = options
        self.conditions = conditions
        self.source = Source(
            location=self.inspection.location,
            format=self.inspection.format,
            inputs=options.inputs,
            options=dict(options.settings),
            trust=options.trust,
        )
        self._worker: Worker | None = None
        self._reference: OpenSession | None = None

    @property
    def name(self) -> str:
        """The last part of the location, fit for a message or a file name."""
        return Path(self.source.location.rpartition(":")[0] or self.source.location).name

    def sha256(self) -> str:
        """Return one hash over the names and contents of the model's files, those in settings too."""
        files = [Path(path) for path in sorted(self.inspection.files)]
        for value in self.options.settings.values():
            # `FILE` or `FILE.py:callable`
            for text in (value, value.rpartition(":")[0]):
                if text and Path(text) not in files and _is_file(Path(text)):
                    files.append(Path(text))
        return hash_files(files)

    def identity(self) -> list[object]:
        """Return what decides the outcome of a conversion, for the key of a resumable run."""
        return [__version__, self.source, self.sha256(), self.options]

    def worker(self) -> Worker:
        """Return the worker of this model's converter, starting it at the first call."""
        if self._worker is None:
            python = environments.interpreter(
                self.plugin, install=self.conditions.install, listen=self.conditions.listen
            )
            self._worker = Worker(
                self.plugin,
                python=python,
                label=f"{self.plugin.name} {self.name}",
                limits=self.conditions.limits,
                listen=self.conditions.listen,
                threads=self.conditions.threads,
            )
        return self._worker

    def convert(self, output: Path) -> ConvertResult:
        """Write the model as ONNX to `output`, in the opset that the options ask for.

        Where they name targets, that is the newest that all of these load, or the converter's own
        choice where it cannot write that one. Raises UsageError where a target does not say what it
        loads, UnsupportedError where the converter writes only newer opsets.
        """
        newest = newest_opset(self.options.for_targets) if self.options.opset is None else None
        if newest is None:
            return self._convert(output, self.options.opset)
        try:
            return self._convert(output, newest)
        except (UnsupportedError, UsageError) as error:
            # the exporter may be older than the targets
            result = self._convert(output, None)
            if result.opset > newest:
                output.unlink(missing_ok=True)
                names = ", ".join(self.options.for_targets)
                raise UnsupportedError(
                    f"converter `{self.plugin.name}` writes opset {result.opset}, "
                    f"and {names} together load up to {newest}",
                    hint="ask for an older one with `--opset`",
                ) from error
            return result

    def _convert(self, output: Path, opset: int | None) -> ConvertResult:
        request = ConvertRequest(
            source=self.source, output=str(output), opset=opset, dynamic=self.options.dynamic
        )
        return self.worker().call("convert", request, ConvertResult)

    def tidy(self, output: Path, *, opset: int) -> tuple[ConvertResult, OpenSession]:
        """Write this ONNX model without needless nodes to `output`; return also its session."""
        request = ConvertRequest(
            source=replace(self.source, options={"tidy": "yes"}), output=str(output), opset=opset
        )
        result = self.worker().call("convert", request, ConvertResult)
        tidied = ReferenceRequest(
            source=Source(location=str(output), format=ONNX), threads=self.conditions.threads
        )
        return result, self.worker().open(tidied)

    def reference(self) -> OpenSession:
        """Return the model loaded in its own framework, ready to give reference outputs."""
        if self._reference is None:
            request = ReferenceRequest(source=self.source, threads=self.conditions.threads)
            self._reference = self.worker().open(request)
        return self._reference

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
        self._worker = self._reference = None

    def __enter__(self) -> SourceModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a setting may be any text, too long for a name
        return False


def newest_opset(targets: tuple[str, ...]) -> int | None:
    """Return the newest opset that all of `targets` (`openvino`, `tvm:cpu`) load, None for no targets.

    Raises UsageError where one is unknown or does not say.
    """
    newest = []
    for text in targets:
        plugin, _ = plugins.parse_target(text)
        if plugin.newest_opset is None:
            raise UsageError(
                f"target `{plugin.name}` does not say which opsets it loads",
                hint="choose one with `--opset`",
            )
        newest.append(plugin.newest_opset)
    return min(newest, default=None)


def hash_files(paths: list[Path]) -> str:
    """Return the SHA-256 of a single file; of several, one over their names (not folders) and
    hashes, in order.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256")
        if len(paths) == 1:
            return content.hexdigest()  # what `sha256sum` says
        digest.update(path.name.encode() + b"\0" + content.digest())
    return digest.hexdigest()


def onnx_model(path: Path, conditions: Conditions) -> SourceModel:
    """Return the ONNX file `path` as a source model: its reference runs the unoptimised graph."""
    return SourceModel(path, options=SourceOptions(format=ONNX), conditions=conditions)
