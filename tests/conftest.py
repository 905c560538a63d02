"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts us in the background lets us ignore Ctrl-C, and all that we start inherits it:
# the commands under test must hear it as from a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models with golden inputs and outputs; they are not ours to publish."""
    named = os.environ.get("DEPLOYKIT_MODELS")
    folder = Path(named) if named else ROOT.parent / "shared" / "models"
    if not (folder / "MANIFEST.tsv").is_file():
        pytest.skip(
            f"no shared models: neither $DEPLOYKIT_MODELS nor {folder} holds a MANIFEST.tsv"
        )
    return folder


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network with a dynamic batch: `x` float32 [batch, 3, 8, 8] to `y`."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    kernel = (random.standard_normal((4, 3, 3, 3)) / 5).astype(np.float32)
    dense = (random.standard_normal((4, 5)) / 2).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("MatMul", ["flat", "dense"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(dense, "dense"),
        ],
    )
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def odd_model(tmp_path: Path) -> Path:
    """A model for the converter `odd_source` of `fixtures/plugins`: it computes `y = x * 2 + 1`."""
    folder = tmp_path / "source"
    folder.mkdir()
    # Core ML's Model: specification 4, and a description with one input called x
    model = folder / "odd.mlmodel"
    model.write_bytes(bytes([8, 4, 18, 5, 10, 3, 10, 1]) + b"x")
    return model


END_TO_END = {
    "benchmarks": {"test_benchmarks"},
    "cli": {
        "test_bad_input",
        "test_compile",
        "test_convert",
        "test_interrupt",
        "test_limits",
        "test_profile",
        "test_resume",
        "test_run",
        "test_verify",
    },
    "core": {"test_compilation", "test_profiling"},
}
"""Whole commands, dozens of processes each: they run plugins in the base environment and need no
package index, but are no part of what one runs at every change."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of whole commands like those that make environments."""
    for item in items:
        if item.path.stem in END_TO_END.get(item.path.parent.name, ()):
            item.add_marker(pytest.mark.environment)
