"""One target at work as `deploykit compile` has it: compiled in one worker, loaded in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from deploykit import environments, plugins
from deploykit.onnx_file import signature_of
from deploykit.protocol import Availability, CompileRequest, CompileResult, LoadRequest
from deploykit.steps import Worker

Feed = dict[str, "np.ndarray[Any, Any]"]


class WorkerBench:
    """The plugin in the environment that deploykit makes for it."""

    def __init__(self, target: str, folder: Path) -> None:
        self.plugin = plugins.target(target)
        self.python = environments.interpreter(self.plugin)
        self.folder = folder
        self.payload = folder
        self.request: CompileRequest | None = None
        self.result: CompileResult | None = None

    def worker(self) -> Worker:
        return Worker(self.plugin, python=self.python, label=self.plugin.name, threads=2)

    def probe(self) -> dict[str, Availability]:
        with self.worker() as worker:
            found = worker.call("probe", None, tuple[Availability, ...])
        return {each.device: each for each in found}

    def compile(self, model: onnx.ModelProto | Path, **more: Any) -> CompileResult:
        """Compile `model`, given as itself or as a file, to a new payload."""
        self.payload = self.folder / f"payload-{len(list(self.folder.iterdir()))}"
        self.payload.mkdir()
        path = model if isinstance(model, Path) else self.folder / "model.onnx"
        if isinstance(model, onnx.ModelProto):
            onnx.save(model, path)
        self.request = CompileRequest(
            model=str(path),
            payload=str(self.payload),
            signature=signature_of(onnx.load(path, load_external_data=False)),
            **{"device": self.plugin.devices[0], "threads": 2, **more},
        )
        with self.worker() as worker:
            self.result = worker.call("compile", self.request, CompileResult)
        return self.result

    def load_request(self, **more: Any) -> LoadRequest:
        assert self.request is not None
        assert self.result is not None
        return LoadRequest(
            payload=str(self.payload),
            signature=self.result.signature,
            device=self.request.device,
            precision=self.request.precision,
            **{"threads": 2, "settings": self.result.settings, **more},
        )

    def run(self, *feeds: Feed) -> list[Feed]:
        """Load what was compiled in a fresh process, the ONNX file gone, and run it on `feeds`."""
        (self.folder / "model.onnx").unlink(missing_ok=True)
        with self.worker() as worker:
            session = worker.open(self.load_request())
            return [session.run(feed) for feed in feeds]
