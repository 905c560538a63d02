"""State between calls becomes inputs and outputs; a sequence of calls gives what the source gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploykit.errors import UnsupportedError
from deploykit.steps import Worker
from tests.converters.pytorch_models import (
    ZOO,
    Array,
    assert_same,
    convert,
    file,
    module,
    names,
    random,
)

pytest_plugins = ["tests.converters.pytorch_fixtures"]
pytestmark = pytest.mark.environment


def in_turn(output: Path, feeds: list[Array], first: str = "x") -> list[Array]:
    """Call an ONNX model on `feeds`, each state fed from the call before, zeros at the start."""
    session = onnxruntime.InferenceSession(output)
    state = {
        value.name: np.zeros(value.shape, np.float32)
        for value in session.get_inputs()
        if value.name != first
    }
    wanted = [value.name for value in session.get_outputs()]
    found = []
    for feed in feeds:
        outputs = dict(zip(wanted, session.run(wanted, {first: feed, **state}), strict=True))
        state = {name: outputs[f"{name}_next"] for name in state}
        found.append(next(iter(outputs.values())))
    return found


def test_buffers_and_attributes_of_a_module(worker: Worker, tmp_path: Path) -> None:
    source, output = module("smoother", code=ZOO), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (
        ["x:float32[1,3]", "mean:float32[1,3]", "last:float32[1,3]"],
        ["output:float32[1,3]", "mean_next:float32[1,3]", "last_next:float32[1,3]"],
    )
    assert any("`last`" in line and "start with zeros" in line for line in result.repairs)
    feed = {name: random(1, 3, seed=seed) for seed, name in enumerate(("x", "mean", "last"))}
    assert_same(worker, source, output, feed)
    feeds = [random(1, 3, seed=seed) for seed in range(4)]
    mean, last = np.zeros((1, 3)), np.zeros((1, 3))
    for x, found in zip(feeds, in_turn(output, feeds), strict=True):
        mean = mean * 0.9 + x * 0.1
        np.testing.assert_allclose(found, x - last + mean, rtol=1e-5, atol=1e-6)
        last = x


def test_a_table_that_the_first_call_makes_is_a_constant(worker: Worker, tmp_path: Path) -> None:
    source, output = module("positions", code=ZOO), tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (["x:float32[2,4]"], ["output:float32[2,4]"])
    assert "`table` is fixed to what the first call made of it" in result.repairs
    (outputs,) = assert_same(worker, source, output, {"x": random(2, 4)})
    np.testing.assert_allclose(outputs["output"], random(2, 4) * [1, 2, 3, 4], rtol=1e-6)


def test_a_counter_in_a_buffer(worker: Worker, files: Path, tmp_path: Path) -> None:
    for source in (
        module("counter"),
        file("pytorch/torchscript", files / "counter.pt", "x:float32[2]"),
    ):
        output = tmp_path / f"{Path(source.location).stem}.onnx"
        result = convert(worker, source, output)
        assert names(result.signature)[0] == ["x:float32[2]", "calls:float32[]"]
        found = in_turn(output, [random(2)] * 3)
        for number, value in enumerate(found, 1):
            np.testing.assert_allclose(value, random(2) + number, rtol=1e-6)


def test_state_of_a_script_that_is_empty_at_first(
    worker: Worker, zoo: Path, tmp_path: Path
) -> None:
    source = file(
        "pytorch/torchscript", zoo / "streaming.pt", "x:float32[2,3]", constants='{"rate": 16}'
    )
    output = tmp_path / "m.onnx"
    result = convert(worker, source, output)
    assert names(result.signature) == (
        ["x:float32[2,3]", "hidden:float32[2,4]", "memory:float32[2,4]"],
        ["output:float32[2]", "hidden_next:float32[2,4]", "memory_next:float32[2,4]"],
    )
    assert "`rate` is fixed to 16, its value after the first call" in result.repairs
    assert any("`hidden`" in line and "start with zeros" in line for line in result.repairs)
    feed = {"x": random(2, 3), "hidden": random(2, 4, seed=1), "memory": random(2, 4, seed=2)}
    assert_same(worker, source, output, feed)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("growing", "`seen` grows or changes its shape from call to call: it is [1, 3]"),
        ("counting", "`calls` between calls, a int that changes: 1 after one call, 2 after two"),
    ],
)
def test_state_that_has_no_fixed_form_is_refused(
    worker: Worker, tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(UnsupportedError) as raised:
        convert(worker, module(name, code=ZOO), tmp_path / "m.onnx")
    assert says in raised.value.message
    assert "an input and an output of forward" in raised.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_stream_of_a_real_detector(worker: Worker, shared_models: Path, tmp_path: Path) -> None:
    """Five chunks in turn from zeros give the golden output of the fifth."""
    location = shared_models / "torchscript" / "silero_vad_v5"
    source = file(
        "pytorch/torchscript",
        location / "silero_vad.jit",
        "x:float32[1,512]",
        constants='{"sr": 16000}',
        outputs="prob",
    )
    output = tmp_path / "m.onnx"
    result = convert(worker, source, output)
    inputs, outputs = names(result.signature)
    assert set(inputs) == {"x:float32[1,512]", "_state:float32[2,1,128]", "_context:float32[1,64]"}
    assert outputs[0] == "prob:float32[1,1]"
    golden = np.load(location / "golden.npz")
    chunks = [*golden["in_previous_samples"].reshape(4, 1, 512), golden["in_x"]]
    found = in_turn(output, chunks)
    np.testing.assert_allclose(found[-1], golden["out_prob"], rtol=1e-3, atol=1e-6)
