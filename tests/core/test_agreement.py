"""Agreement of two sessions: which inputs are tried, and what a disagreement is told to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.agreement import Case, agree, reference_pairs, worst_by_output
from deploykit.errors import MismatchError, PluginError, StepSignal, UsageError
from deploykit.options import Checks
from deploykit.parity import Tolerance, compare
from deploykit.protocol import TensorSpec
from deploykit.tensors import write_tensors

Array = np.ndarray[Any, Any]
Shapes = Callable[[tuple[int, ...]], bool]

TIGHT = Tolerance(atol=1e-6, rtol=1e-6)
X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


class Doubles:
    """Gives `2 x`, for shapes that `takes` accepts, and remembers what it was given."""

    def __init__(
        self, takes: Shapes = lambda _: True, error: type[PluginError] = PluginError
    ) -> None:
        self.takes = takes
        self.error = error
        self.seen: list[Array] = []

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        x = feed["x"]
        self.seen.append(x)
        if not self.takes(x.shape):
            raise self.error(f"no kernel for {x.shape}")
        return {"y": 2 * x, "total": x.sum(keepdims=True)}


class Off(Doubles):
    """Wrong for one size of the batch only."""

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        outputs = super().run(feed)
        if len(feed["x"]) == 5:
            outputs["total"] = outputs["total"] + 1
        return outputs


def pairs(reference: Doubles, spec: TensorSpec = X, **checks: Any) -> Any:
    return reference_pairs(reference, (spec,), checks=Checks(**checks), bounds={})


def test_seeds_differ_and_sizes_vary() -> None:
    reference = Doubles()
    found, rejected = pairs(reference)
    assert rejected == ()
    assert [str(case) for case, _ in found] == [
        *(f"seed {seed} (batch=1)" for seed in range(3)),
        *("seed 3 (batch=2)", "seed 4 (batch=5)", "seed 5 (batch=3)"),
    ]
    assert len({x.tobytes() for x in reference.seen}) == 6
    assert {x.shape[0] for x in reference.seen} == {1, 2, 3, 5}


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_number_of_seeds(seeds: int) -> None:
    found, _ = pairs(Doubles(), seeds=seeds)
    assert len(found) == seeds + 3


def test_fixed_sizes_are_only_seeded() -> None:
    found, _ = pairs(Doubles(), TensorSpec(name="x", dtype="float32", shape=(2, 3)))
    assert [str(case) for case, _ in found] == ["seed 0", "seed 1", "seed 2"]


def test_sizes_need_not_vary() -> None:
    found, _ = reference_pairs(Doubles(), (X,), checks=Checks(), bounds={}, vary_sizes=False)
    assert len(found) == 3


def test_a_rejected_size_is_a_note() -> None:
    found, rejected = pairs(Doubles(lambda shape: shape[0] != 5))
    assert len(found) == 5
    (note,) = rejected
    assert "batch=5" in note
    assert "no kernel for (5, 3)" in note


def test_a_crash_of_the_reference_is_no_rejection() -> None:
    class Crashes(Doubles):
        def run(self, feed: dict[str, Array]) -> dict[str, Array]:
            if len(feed["x"]) == 5:
                raise StepSignal("crashed", signal="SIGSEGV")
            return super().run(feed)

    with pytest.raises(StepSignal):
        pairs(Crashes())


def test_a_model_that_takes_no_random_inputs_asks_for_real_ones() -> None:
    with pytest.raises(UsageError, match="no kernel") as caught:
        pairs(Doubles(lambda _: False), TensorSpec(name="x", dtype="float32", shape=(2, 3)))
    assert "--sample" in caught.value.hint


@pytest.mark.parametrize("smallest", [1, 20, 224])
def test_a_base_size_is_sought_for_inner_axes(smallest: int) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", "height", "width"))
    found, _ = pairs(Doubles(lambda shape: min(shape[1:]) >= smallest), spec, seeds=1)
    sizes = found[0][0].sizes
    assert sizes["batch"] == 1
    assert sizes["height"] == sizes["width"] >= smallest
    assert any(case.sizes["height"] != case.sizes["width"] for case, _ in found)


def test_a_sample_is_taken_instead(tmp_path: Path) -> None:
    write_tensors(tmp_path / "mine.npz", {"x": np.ones((7, 3), np.float32)})
    found, rejected = pairs(Doubles(), sample=tmp_path / "mine.npz")
    ((case, (feed, outputs)),) = found
    assert (str(case), rejected) == ("inputs of mine.npz", ())
    np.testing.assert_array_equal(outputs["y"], 2 * feed["x"])
    write_tensors(tmp_path / "mine.npz", {"z": np.ones((7, 3), np.float32)})
    with pytest.raises(UsageError, match="no input `z`"):
        pairs(Doubles(), sample=tmp_path / "mine.npz")


def test_those_that_agree() -> None:
    found, _ = pairs(Doubles())
    agreement = agree(found, Doubles(), what="the copy", tolerance=TIGHT)
    assert len(agreement.cases) == len(agreement.pairs) == 6
    assert all(case.ok for case in agreement.cases)
    assert [parity.output for parity in worst_by_output(agreement.cases)] == ["y", "total"]


def test_one_that_is_wrong_for_one_size_is_named() -> None:
    found, _ = pairs(Doubles())
    with pytest.raises(MismatchError) as caught:
        agree(found, Off(), what="the copy", tolerance=TIGHT)
    assert caught.value.message.startswith(
        "the copy disagrees on output `total` at seed 4 (batch=5)"
    )
    assert "atol=1e-06" in caught.value.hint
    assert "--tolerance" in caught.value.hint


def test_the_worst_case_of_each_output_is_kept() -> None:
    def case(name: str, error: float) -> Case:
        reference = {"y": np.ones(4, np.float32)}
        return Case(inputs=name, outputs=compare(reference, {"y": reference["y"] + error}, TIGHT))

    loose = [case("a", 1e-7), case("b", 0.5), case("c", 0.25)]
    (worst,) = worst_by_output(tuple(loose))
    assert worst.max_abs_error == 0.5
    assert worst_by_output(()) == ()
