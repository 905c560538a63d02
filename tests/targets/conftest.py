"""Models and the two calls that every target's tests need."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import plugins
from deploykit.onnx_file import signature_of
from deploykit.protocol import CompileRequest, CompileResult, LoadRequest
from deploykit.requirements import unmet

FLOAT = TensorProto.FLOAT
Value = tuple[str, int, list[int | str | None] | None]
Build = Callable[..., onnx.ModelProto]


@pytest.fixture(scope="session")
def build() -> Build:
    """Make a checked model: nodes as (operator, inputs, outputs, attributes), arrays as weights."""

    def made(
        nodes: list[tuple[str, list[str], list[str], dict[str, Any]]],
        inputs: list[Value],
        outputs: list[Value],
        weights: dict[str, np.ndarray[Any, Any]] | None = None,
        opset: int = 17,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            [helper.make_node(kind, ins, outs, **more) for kind, ins, outs, more in nodes],
            "graph",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        )
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model

    return made


@pytest.fixture(scope="session")
def convolutions(build: Build) -> onnx.ModelProto:
    """Two convolutions, a depthwise one between them, wide enough for every layout."""
    source = np.random.default_rng(5)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return source.normal(0, 0.2, shape).astype(np.float32)

    return build(
        [
            ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c1"], ["r1"], {}),
            ("Conv", ["r1", "w2"], ["c2"], {"group": 32, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
            ("Clip", ["c2", "low", "high"], ["k2"], {}),
            ("Conv", ["k2", "w3", "b3"], ["y"], {}),
        ],
        [("x", FLOAT, [1, 16, 20, 36])],
        [("y", FLOAT, [1, 24, 10, 18])],
        {
            "w1": weight(32, 16, 3, 3),
            "b1": weight(32),
            "w2": weight(32, 1, 3, 3),
            "low": np.array(0, np.float32),
            "high": np.array(6, np.float32),
            "w3": weight(24, 32, 1, 1),
            "b3": weight(24),
        },
    )


class Bench:
    """One target's `compile` and `load` on a payload of its own."""

    def __init__(self, target: str, folder: Path) -> None:
        self.plugin = plugins.target(target)
        lacking = unmet(self.plugin, isolated=False)
        if lacking:
            pytest.skip(f"not in this environment: {', '.join(lacking)}")
        self.module: Any = importlib.import_module(self.plugin.module)
        self.folder = folder
        self.payload = folder
        self.result: CompileResult | None = None
        self.request: CompileRequest | None = None

    def compile(self, model: onnx.ModelProto | Path, **more: Any) -> CompileResult:
        """Compile `model`, given as itself or as a file, to a new payload."""
        self.payload = self.folder / f"payload-{len(list(self.folder.iterdir()))}"
        self.payload.mkdir()
        if isinstance(model, Path):
            path, loaded = model, onnx.load(model, load_external_data=False)
        else:
            path, loaded = self.folder / "model.onnx", model
            onnx.save(model, path)
        self.request = CompileRequest(
            model=str(path),
            payload=str(self.payload),
            signature=signature_of(loaded),
            **{"device": self.plugin.devices[0], "threads": 2, **more},
        )
        result: CompileResult = self.module.compile(self.request)
        self.result = result
        return result

    def compile_file(self, path: Path) -> CompileResult:
        """Compile another file as if it were the model of the last compilation."""
        assert self.request is not None
        result: CompileResult = self.module.compile(replace(self.request, model=str(path)))
        return result

    def load(self, **more: Any) -> Any:
        """Load what was compiled."""
        assert self.result is not None
        assert self.request is not None
        return self.module.load(
            LoadRequest(
                payload=str(self.payload),
                signature=self.result.signature,
                device=self.request.device,
                precision=self.request.precision,
                **{"threads": 2, "settings": self.result.settings, **more},
            )
        )


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """The target that the test module names as TARGET."""
    return Bench(request.module.TARGET, tmp_path)


class Golden:
    """A shared real model with what the original framework computed."""

    def __init__(self, folder: Path) -> None:
        self.path = next(folder.glob("*.onnx"))
        names = json.loads((folder / "golden.json").read_text())["tensor_names"]
        with np.load(folder / "golden.npz") as arrays:
            self.feed = {name: arrays[f"in_{key}"] for key, name in names["in"].items()}
            self.outputs = {name: arrays[f"out_{key}"] for key, name in names["out"].items()}

    def assert_same(self, actual: dict[str, np.ndarray[Any, Any]]) -> None:
        """Compare by the largest magnitude of each output, as the profile's parity does."""
        assert set(actual) == set(self.outputs)
        for name, expected in self.outputs.items():
            assert actual[name].shape == expected.shape
            error = np.abs(actual[name].astype(np.float64) - expected).max()
            assert error <= 1e-4 * np.abs(expected).max(), (name, error)


@pytest.fixture
def golden(shared_models: Path) -> Callable[[str], Golden]:
    """Return the shared ONNX model of that name."""
    return lambda name: Golden(shared_models / "onnx" / name)
