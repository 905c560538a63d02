"""Inputs drawn, read and checked; index bounds on graphs and on real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import SourceError, UsageError
from deploykit.feeds import (
    QuickCheck,
    axis_names,
    check_feed,
    index_bounds,
    make_feed,
    read_feed,
    size_plans,
)
from deploykit.protocol import TensorSpec
from deploykit.tensor_spec import DTYPES, is_dtype, parse_input
from deploykit.tensors import write_tensors


def specs(*texts: str) -> tuple[TensorSpec, ...]:
    return tuple(map(parse_input, texts))


IMAGE_AND_IDS = specs("image:float32[N,3,?,W]", "ids:int64[N,T]", "flag:bool[]")


def test_same_seed_same_values_other_seed_others() -> None:
    first, again, other = (
        make_feed(IMAGE_AND_IDS, seed=seed, sizes={"N": 2, "W": 5}) for seed in (7, 7, 8)
    )
    assert first["image"].shape == (2, 3, 1, 5)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["image"], other["image"])


def test_an_input_does_not_depend_on_its_neighbours() -> None:
    alone = make_feed(IMAGE_AND_IDS[:1], seed=3)
    together = make_feed(IMAGE_AND_IDS[::-1], seed=3)
    assert np.array_equal(alone["image"], together["image"])
    twins = make_feed(specs("a:float32[4]", "b:float32[4]"), seed=3)
    assert not np.array_equal(twins["a"], twins["b"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_drawn_and_fits(dtype: str) -> None:
    inputs = specs(f"x:{dtype}[3,4]", f"scalar:{dtype}[]", f"empty:{dtype}[0,2]")
    feed = make_feed(inputs, seed=0)
    assert all(is_dtype(array.dtype, dtype) for array in feed.values())
    check_feed(feed, inputs)


def test_floats_are_standard_normal() -> None:
    (values,) = make_feed(specs("x:float32[100,100]"), seed=0).values()
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_ints_without_bounds_are_0_or_1_and_begin_with_1() -> None:
    feed = make_feed(specs("mask:int64[50,8]", "length:int32[]", "on:bool[9]"), seed=0)
    assert set(np.unique(feed["mask"])) == {0, 1}
    assert (feed["mask"][:, 0] == 1).all()
    assert feed["length"] == 1
    assert feed["on"][0]


def test_pixels_use_their_whole_range() -> None:
    feed = make_feed(specs("u:uint8[100,100]", "i:int8[100,100]"), seed=0)
    assert (feed["u"].min(), feed["u"].max()) == (0, 255)
    assert (feed["i"].min(), feed["i"].max()) == (-128, 127)


def test_bounds_hold_for_ints_and_for_floats_that_are_indices() -> None:
    inputs = specs("ids:int32[1000]", "keras_ids:float32[1000]")
    feed = make_feed(inputs, seed=0, bounds={"ids": (2, 9), "keras_ids": (0, 3)})
    assert set(feed["ids"]) == set(range(2, 10))
    assert set(feed["keras_ids"]) == {0.0, 1.0, 2.0, 3.0}


def test_sizes_by_name_and_by_place() -> None:
    feed = make_feed(IMAGE_AND_IDS, seed=0, sizes={"N": 2, "image:2": 6, "ids:0": 5})
    assert feed["image"].shape == (2, 3, 6, 1)
    assert feed["ids"].shape == (5, 1)


def test_unknown_size_and_unknown_rank() -> None:
    with pytest.raises(UsageError, match="did you mean `image:2`") as caught:
        make_feed(IMAGE_AND_IDS, seed=0, sizes={"imag:2": 6})
    assert "N, W, T" in caught.value.hint
    with pytest.raises(UsageError, match="shape of the input `x` is unknown"):
        make_feed(specs("x:float32"), seed=0)


def test_axis_names() -> None:
    assert axis_names(IMAGE_AND_IDS) == ("N", "W", "T")


def test_size_plans_vary_each_axis_and_mix_all() -> None:
    plans = size_plans(IMAGE_AND_IDS, {"N": 1, "W": 32})
    assert plans[0] == {"N": 1, "W": 32, "T": 1, "image:2": 1}
    assert len(plans) == len({tuple(sorted(plan.items())) for plan in plans})
    for axis, wanted in (("N", {1, 2, 5}), ("W", {32, 1, 2, 5, 64}), ("T", {1, 2, 5})):
        assert wanted <= {plan[axis] for plan in plans}
    assert len(set(plans[-1].values())) == 4
    assert len(plans) < 14
    for plan in plans:
        check_feed(make_feed(IMAGE_AND_IDS, seed=0, sizes=plan), IMAGE_AND_IDS)


def test_size_plans_of_fixed_and_of_unnamed_axes() -> None:
    assert size_plans(specs("x:float32[1,3]")) == [{}]
    for plan in size_plans(specs("a:float32[?,3]", "b:float32[?,4]")):
        assert plan["a:0"] == plan["b:0"]


def save(folder: Path, nodes: list[Any], inputs: list[Any], constants: dict[str, Any]) -> Path:
    """Write an ONNX file whose inputs are (name, type, shape) and whose output is `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


TABLE = np.zeros((10, 4), np.float32)
NODE = helper.make_node
IDS = [("ids", TensorProto.INT64, ["N", "T"])]


def test_index_through_casts_and_moves(tmp_path: Path) -> None:
    nodes = [
        NODE("Cast", ["ids"], ["a"], to=TensorProto.INT32),
        NODE("Unsqueeze", ["a", "zero"], ["b"]),
        NODE("Concat", ["b", "one"], ["c"], axis=0),
        NODE("Gather", ["table", "c"], ["y"]),
    ]
    constants = {"table": TABLE, "zero": np.array([0]), "one": np.ones((1, 1, 1), np.int32)}
    inputs = [("ids", TensorProto.FLOAT, ["N", "T"])]
    assert index_bounds(save(tmp_path, nodes, inputs, constants)) == {"ids": (0, 9)}


def test_index_axis_offset_and_the_narrowest_of_two(tmp_path: Path) -> None:
    nodes = [
        NODE("Gather", ["table", "ids"], ["a"], axis=1),
        NODE("Add", ["offset", "ids"], ["b"]),
        NODE("Gather", ["table", "b"], ["y"]),
    ]
    # by axis 1: 0 … 3; by axis 0 of ten rows with an offset of 7 or 8: 0 … 1
    constants = {"table": TABLE, "offset": np.array([7, 8])}
    assert index_bounds(save(tmp_path, nodes, IDS, constants)) == {"ids": (0, 1)}


def test_subtracted_offset(tmp_path: Path) -> None:
    nodes = [NODE("Sub", ["ids", "one"], ["a"]), NODE("Gather", ["table", "a"], ["y"])]
    path = save(tmp_path, nodes, IDS, {"table": TABLE, "one": np.array(1)})
    assert index_bounds(path) == {"ids": (1, 10)}


def test_table_in_a_branch_and_computed_table(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        node = NODE("Gather", ["table", "ids"], [f"{name}_y"])
        return helper.make_graph([node], name, [], [out])

    nodes = [
        NODE("Identity", ["raw"], ["table"]),  # its size is known by inference only
        NODE("If", ["on"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    inputs = [*IDS, ("on", TensorProto.BOOL, [])]
    assert index_bounds(save(tmp_path, nodes, inputs, {"raw": TABLE})) == {"ids": (0, 9)}


def test_unknown_table_and_sizes_are_conservative(tmp_path: Path) -> None:
    nodes = [
        NODE("Gather", ["data", "ids"], ["a"]),
        NODE("Reshape", ["a", "shape"], ["y"]),
    ]
    inputs = [
        *IDS,
        ("data", TensorProto.FLOAT, ["D", 4]),
        ("shape", TensorProto.INT64, [2]),
        ("untouched", TensorProto.INT64, [2]),
    ]
    found = index_bounds(save(tmp_path, nodes, inputs, {}))
    assert found == {"ids": (0, 0), "shape": (1, 1)}


def test_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"random bytes")
    with pytest.raises(SourceError, match=r"x\.onnx"):
        index_bounds(tmp_path / "x.onnx")
    with pytest.raises(SourceError, match=r"none\.onnx"):
        index_bounds(tmp_path / "none.onnx")


def test_real_bert_runs_on_what_is_drawn(shared_models: Path) -> None:
    import onnxruntime

    path = shared_models / "onnx" / "optimum_tiny_bert" / "model.onnx"
    bounds = index_bounds(path)
    assert bounds == {"input_ids": (0, 30521)}
    inputs = specs("input_ids:int64[batch,sequence]", "attention_mask:int64[batch,sequence]")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for plan in size_plans(inputs, {"sequence": 16}):
        feed = make_feed(inputs, seed=1, sizes=plan, bounds=bounds)
        (logits,) = session.run(None, feed)
        assert logits.shape == (plan["batch"], 2)
        assert np.isfinite(logits).all()


CHECKED = specs("x:float32[N,3]", "m:bool[N]", "words:string", "fixed:int64[2]")
GOOD: dict[str, Any] = {
    "x": np.zeros((4, 3), np.float32),
    "m": np.zeros(4, bool),
    "words": np.array(["a"]),
    "fixed": np.array([1, 2]),
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"X": GOOD["x"]}, "no input `X`"),
    ({"fixes": GOOD["fixed"], "fixed": None}, "did you mean `fixed`"),
    ({"m": None}, "the input `m` is missing"),
    ({"x": [[0.0] * 3]}, "is a list, not a numpy array"),
    ({"fixed": np.int64(1)}, "is a int64, not a numpy array"),
    ({"x": np.zeros((4, 3))}, "has dtype float64, expected float32"),
    ({"x": np.zeros((4, 3), ">f4")}, "has dtype >f4, expected float32"),
    ({"x": np.zeros((4, 3), ml_dtypes.bfloat16)}, "has dtype bfloat16"),
    ({"x": np.zeros((4, 4), np.float32)}, "axis 1 is 4, not 3"),
    ({"x": np.zeros(4, np.float32)}, "has 1 axes"),
    ({"m": np.zeros(5, bool)}, "`N` is 4 in `x` axis 0, but 5 in `m` axis 0"),
    ({"words": np.array([1])}, "expected string"),
    ({"fixed": np.array([1, 2, 3])}, "axis 0 is 3, not 2"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
@pytest.mark.parametrize("inputs", [CHECKED, (*CHECKED[:2], CHECKED[3])], ids=["all", "numbers"])
def test_wrong_feeds(change: dict[str, Any], says: str, inputs: tuple[TensorSpec, ...]) -> None:
    names = {spec.name for spec in inputs}
    feed = {name: value for name, value in (GOOD | change).items() if value is not None}
    feed = {name: value for name, value in feed.items() if name in names or name in change}
    if "words" in change and "words" not in names:
        says = "no input `words`"
    with pytest.raises(UsageError, match=says):
        check_feed(feed, inputs)
    with pytest.raises(UsageError, match=says):
        QuickCheck(inputs)(feed)


def test_good_feeds(tmp_path: Path) -> None:
    numbers = (*CHECKED[:2], CHECKED[3])
    feed = {spec.name: GOOD[spec.name] for spec in numbers}
    check_feed(GOOD, CHECKED)
    QuickCheck(CHECKED)(GOOD)
    assert QuickCheck(numbers)._fits(feed)
    np.save(tmp_path / "x.npy", feed["x"])
    mapped = feed | {"x": np.load(tmp_path / "x.npy", mmap_mode="r")}
    QuickCheck(numbers)(mapped)  # a memory map is an array too


def test_read_npz_npy_and_golden(tmp_path: Path) -> None:
    inputs = specs("x:float32[N,3]", "n:int64[1]")
    feed = make_feed(inputs, seed=0)
    write_tensors(tmp_path / "plain.npz", feed)
    write_tensors(
        tmp_path / "golden.npz",
        {"in_x": feed["x"], "in_n": feed["n"], "out_y": np.ones(1)},
    )
    np.save(tmp_path / "x.npy", feed["x"])
    for name in ("plain.npz", "golden.npz"):
        found = read_feed(tmp_path / name, inputs)
        assert found.keys() == feed.keys()
        assert np.array_equal(found["x"], feed["x"])
    assert np.array_equal(read_feed(tmp_path / "x.npy", inputs[:1])["x"], feed["x"])


def test_read_what_does_not_fit(tmp_path: Path) -> None:
    inputs = specs("x:float32[N,3]", "n:int64[1]")
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    write_tensors(tmp_path / "x.npz", {"x": np.zeros((1, 3), np.float32)})
    (tmp_path / "empty.npy").touch()
    for name, says in (
        ("none.npz", "no file"),
        ("x.npy", "has 2 inputs: x, n"),
        ("x.npz", "the input `n` is missing"),
    ):
        with pytest.raises(UsageError, match=says):
            read_feed(tmp_path / name, inputs)
    with pytest.raises(UsageError, match=r"cannot read tensors from .*empty\.npy"):
        read_feed(tmp_path / "empty.npy", inputs[:1])


@pytest.mark.parametrize("sequences", [1, 3, 8])
def test_the_lengths_of_sequences_add_up_to_their_rows(sequences: int) -> None:
    inputs = (
        TensorSpec(name="x", dtype="float32", shape=("rows", 2)),
        TensorSpec(name="x.lengths", dtype="int64", shape=("batch",)),
        TensorSpec(name="y.lengths", dtype="int64", shape=("batch",)),
    )
    sizes = {"rows": 5, "batch": sequences}
    feed = make_feed(inputs, seed=3, sizes=sizes, bounds={"x.lengths": (1, 1)})
    assert feed["x.lengths"].shape == (sequences,)
    assert feed["x.lengths"].sum() == 5
    assert feed["x.lengths"].min() >= (1 if sequences <= 5 else 0)
    # an input that only has such a name is a number like any other
    assert set(feed["y.lengths"]) <= {0, 1}
