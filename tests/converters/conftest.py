"""TensorFlow's converter at work, for the tests that convert many small models in one worker."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploykit import environments, plugins
from deploykit.feeds import index_bounds, make_feed
from deploykit.protocol import ConvertRequest, ConvertResult, ReferenceRequest, Source
from deploykit.steps import Worker
from deploykit.tensor_spec import parse_input

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
Array = np.ndarray[Any, Any]


class TensorFlow:
    """The converter's worker, and the files that scripts make in its environment."""

    def __init__(self, python: Path, worker: Worker, folder: Path) -> None:
        self.python, self.worker, self.folder = python, worker, folder

    def files(self, script: str) -> Path:
        """Return the folder that `script` of the fixtures fills, which it does once."""
        folder = self.folder / script
        if not folder.exists():
            folder.mkdir()
            command = [str(self.python), "-I", str(FIXTURES / f"{script}.py"), str(folder)]
            subprocess.run(command, check=True, timeout=300)
        return folder

    @staticmethod
    def source(path: Path, *inputs: str, **settings: str) -> Source:
        """Return the model at `path`, its format by its name."""
        kinds = {".pb": "tensorflow/graph_def", ".meta": "tensorflow/checkpoint"}
        return Source(
            location=str(path),
            format=kinds.get(path.suffix, "tensorflow/saved_model"),
            inputs=tuple(parse_input(text) for text in inputs),
            options=settings,
        )

    def convert(self, source: Source, output: Path) -> ConvertResult:
        """Convert as `deploykit convert` does."""
        request = ConvertRequest(source=source, output=str(output))
        return self.worker.call("convert", request, ConvertResult)

    def compare(self, source: Source, output: Path, *, atol: float = 1e-5) -> ConvertResult:
        """Convert, and hold every output against TensorFlow's on two random inputs."""
        result = self.convert(source, output)
        reference = self.worker.open(ReferenceRequest(source=source))
        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        assert [spec.name for spec in reference.signature.outputs] == names
        assert [value.name for value in session.get_inputs()] == [
            spec.name for spec in reference.signature.inputs
        ]
        axes = {size: 3 for spec in result.signature.inputs for size in spec.shape or () if size}
        sizes = {name: size for name, size in axes.items() if isinstance(name, str)}
        for seed in (0, 1):
            feed = make_feed(
                result.signature.inputs, seed=seed, sizes=sizes, bounds=index_bounds(output)
            )
            wanted = reference.run(feed)
            for name, found in zip(names, session.run(names, feed), strict=True):
                assert found.dtype == wanted[name].dtype, name
                assert found.shape == wanted[name].shape, name
                scale = max(1.0, float(np.abs(wanted[name]).max(initial=0)))
                np.testing.assert_allclose(
                    found, wanted[name], rtol=1e-4, atol=atol * scale, err_msg=name
                )
        reference.close()
        return result


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TensorFlow]:
    plugin = plugins.converter("tensorflow")
    python = environments.interpreter(plugin)
    with Worker(plugin, python=python, label="tensorflow", threads=2) as worker:
        yield TensorFlow(python, worker, tmp_path_factory.mktemp("tensorflow_models"))
