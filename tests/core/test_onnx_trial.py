"""What ONNX Runtime computes on inputs drawn for a target to try its payload on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.errors import SourceError, UnsupportedError
from deploykit.onnx_file import signature_of
from deploykit.onnx_trial import (
    ReferenceRun,
    changes_nothing,
    dynamic_axes,
    first_that_agrees,
    outputs_seen,
    reference_runs,
    with_fewest_fixed,
    with_first_axis_of_one,
)
from deploykit.parity import Tolerance
from deploykit.protocol import Signature, TensorSpec

Array = np.ndarray[Any, Any]
EXACT = Tolerance(atol=1e-6, rtol=1e-6)


def _spec(*shape: int | str | None, name: str = "x", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, Signature]:
    """Rows are taken two by two: `[n, m]` to `[n*m/2, 2]`, so `n*m` must be even."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["k", 2])],
        [numpy_helper.from_array(np.array([-1, 2], np.int64), "shape")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, tmp_path / "pairs.onnx")
    return tmp_path / "pairs.onnx", signature_of(model)


class Session:
    """A stand-in for a runtime: a function of the feed."""

    def __init__(self, compute: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.closed = False
        self._compute = compute

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        return self._compute(feed)

    def bind(self, feed: Mapping[str, Array]) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model at all")
    with pytest.raises(SourceError, match=r"broken\.onnx"):
        reference_runs(str(broken), (_spec(1),), ())


def test_sizes_that_the_model_refuses_are_left_out(pairs: tuple[Path, Signature]) -> None:
    path, signature = pairs
    runs = reference_runs(str(path), signature.inputs, signature.outputs)
    evaluator = ReferenceEvaluator(onnx.load(path))
    for run in runs:
        expected: Any = evaluator.run(None, run.feed)
        np.testing.assert_array_equal(run.outputs["y"], expected[0])
    shapes = {run.feed["x"].shape for run in runs}
    assert all(n * m % 2 == 0 for n, m in shapes)
    assert len({n for n, _ in shapes}) > 1
    assert len({m for _, m in shapes}) > 2


def test_no_size_that_the_model_takes(pairs: tuple[Path, Signature]) -> None:
    path, signature = pairs
    with pytest.raises(UnsupportedError, match="none of the inputs") as raised:
        reference_runs(str(path), (_spec(3, 1, "k"),), signature.outputs)
    assert "--shape" in raised.value.hint
    assert reference_runs(str(path), (_spec(3, 1),), signature.outputs) == []


def test_fixed_sizes_give_one_run(pairs: tuple[Path, Signature]) -> None:
    path, signature = pairs
    (run,) = reference_runs(str(path), (_spec(3, 4),), signature.outputs)
    assert outputs_seen(signature.outputs, (_spec(3, 4),), [run]) == (_spec(6, 2, name="y"),)


def test_outputs_keep_what_is_known() -> None:
    runs = [ReferenceRun({}, {"y": np.zeros((size, 2), np.float32)}) for size in (1, 3)]
    unknown = TensorSpec(name="y", dtype="float32", shape=None)
    assert outputs_seen((unknown,), (_spec("n"),), runs) == (_spec(None, None, name="y"),)
    negative = _spec(-1, 2, name="y")
    assert outputs_seen((negative,), (_spec("n"),), runs) == (_spec(None, 2, name="y"),)
    named = _spec("n", 2, name="y")
    assert outputs_seen((named,), (_spec("n"),), runs) == (named,)


def test_a_batch_of_one_wherever_the_batch_occurs() -> None:
    inputs = (_spec("batch", "m"), _spec(None, "batch", None), _spec(5, "m"))
    assert dynamic_axes(inputs) == ["x:0", "x:1", "x:0", "x:1", "x:2", "x:1"]
    assert [spec.shape for spec in with_first_axis_of_one(inputs)] == [
        (1, "m"),
        (1, 1, None),
        (5, "m"),
    ]


def test_as_few_axes_as_need_be_are_fixed() -> None:
    def build(inputs: tuple[TensorSpec, ...]) -> str:
        if dynamic_axes(inputs):
            raise UnsupportedError("not so")
        return str(inputs[0])

    assert with_fewest_fixed("demo", (_spec(2),), build) == ("x:float32[2]", ())
    made, notes = with_fewest_fixed("demo", (_spec("n", 2),), build)
    assert made == "x:float32[1,2]"
    assert notes == ("demo cannot keep x:0 dynamic: fixed to 1 (not so)",)
    with pytest.raises(UnsupportedError, match="not so") as raised:
        with_fewest_fixed("demo", (_spec("n", "m"),), build)
    assert "--shape" in raised.value.hint
    with pytest.raises(UnsupportedError, match="not so"):
        with_fewest_fixed("demo", (_spec(3, "m"),), build)


def test_the_first_choice_that_agrees() -> None:
    runs = [ReferenceRun({"x": np.ones(2, np.float32)}, {"y": np.ones(2, np.float32)})]
    opened: list[Session] = []

    def load(error: float) -> Session:
        opened.append(Session(lambda feed: {"y": feed["x"] + np.float32(error)}))
        return opened[-1]

    assert first_that_agrees((0.1, 0.0), load, runs, EXACT) == (0.0, "")
    assert first_that_agrees((0.1, 5e-6), load, runs, EXACT) == (5e-6, "")
    choice, reason = first_that_agrees((0.1, 0.2), load, runs, EXACT)
    assert choice == 0.2
    assert "output `y` at x=2" in reason
    assert all(session.closed for session in opened)


def test_a_session_that_refuses_is_no_agreement() -> None:
    def refuse(feed: Mapping[str, Array]) -> dict[str, Array]:
        raise UnsupportedError("not at these sizes")

    run = ReferenceRun({"x": np.ones(2, np.float32)}, {"y": np.ones(2, np.float32)})
    chosen = first_that_agrees((1,), lambda _: Session(refuse), [run], EXACT)
    assert chosen == (1, "not at these sizes")


def test_the_very_same_bits() -> None:
    run = ReferenceRun({"x": np.ones(2, np.float32)}, {})

    def adding(error: float) -> Session:
        return Session(lambda feed: {"y": feed["x"] + np.float32(error)})

    assert changes_nothing(adding(0), adding(0), run)
    assert not changes_nothing(adding(0), adding(1e-6), run)
