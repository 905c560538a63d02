"""Small models, one for each use of an operator that the target litert writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tests.targets.litert_worker import Array, Feed, Nodes

_random = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return _random.normal(0, 1, shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return (_random.random(shape) + 0.1).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Array:
    return _random.integers(low, high, shape).astype(dtype)


def truths(*shape: int) -> Array:
    return _random.random(shape) < 0.5


IMAGE = normal(2, 6, 7, 9)
CASES: dict[str, tuple[Nodes, Feed, list[str], Feed, int]] = {}


def case(
    name: str,
    nodes: Nodes,
    feed: Feed,
    weights: Feed | None = None,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
) -> None:
    assert name not in CASES
    CASES[name] = (nodes, feed, list(outputs), weights or {}, opset)


def one(
    name: str,
    operator: str,
    feed: Feed,
    weights: Feed | None = None,
    opset: int = 17,
    outputs: tuple[str, ...] = ("y",),
    **attributes: Any,
) -> None:
    """A case of one node, whose inputs are those of `feed`, then the weights."""
    nodes = [(operator, [*feed, *(weights or {})], list(outputs), attributes)]
    case(name, nodes, feed, weights, outputs, opset)


def array(*values: float, dtype: Any = np.int64) -> Array:
    return np.array(values, dtype)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    return np.array(value, dtype)


def elementwise() -> None:
    for name in [
        "Abs",
        "Ceil",
        "Cos",
        "Exp",
        "Floor",
        "HardSwish",
        "Identity",
        "Neg",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Tanh",
        "Relu",
        "Elu",
        "Celu",
        "Selu",
        "LeakyRelu",
        "HardSigmoid",
        "Softplus",
        "Softsign",
        "Mish",
        "ThresholdedRelu",
        "Tan",
        "Erf",
        "Dropout",
        "IsNaN",
        "IsInf",
    ]:
        one(name, name, {"x": IMAGE * 3}, opset=20 if name in ("IsNaN", "IsInf") else 18)
    for name in ("Log", "Sqrt", "Reciprocal"):
        one(name, name, {"x": positive(2, 3, 4)})
    for name in ("Acos", "Asin", "Atan"):
        one(name, name, {"x": np.linspace(-1, 1, 201).astype(np.float32)})
    one("Erf everywhere", "Erf", {"x": np.linspace(-8, 8, 2001).astype(np.float32)})
    one("Elu of alpha", "Elu", {"x": IMAGE}, alpha=0.3)
    one("Celu of alpha", "Celu", {"x": IMAGE}, alpha=0.3)
    one("Gelu", "Gelu", {"x": IMAGE * 2}, opset=20)
    one("Gelu by tanh", "Gelu", {"x": IMAGE * 2}, opset=20, approximate="tanh")
    one("Not", "Not", {"x": truths(3, 4)})
    for name in ["Add", "Sub", "Mul", "Div", "Max", "Min"]:
        one(f"{name} per channel", name, {"x": IMAGE, "z": normal(2, 6, 1, 1) + 3})
        one(f"{name} of fewer axes", name, {"x": IMAGE, "z": normal(6, 1, 9) + 3})
        one(f"{name} of a scalar", name, {"x": IMAGE, "z": scalar(1.5)})
        one(f"{name} of 5 axes", name, {"x": normal(2, 2, 3, 4, 5), "z": normal(3, 1, 1) + 3})
        feed = {
            "x": integers(-20, 20, 3, 4, dtype=np.int32),
            "z": integers(1, 7, 4, dtype=np.int32),
        }
        one(f"{name} of int32", name, feed)
    one("Add of int64", "Add", {"x": integers(-9, 9, 3, 4), "z": integers(-9, 9, 4)})
    one("Pow", "Pow", {"x": positive(3, 4), "z": normal(4)})
    one("Pow of an integer", "Pow", {"x": normal(3, 4)}, {"z": scalar(3, np.int64)})
    for name in ("Sum", "Mean"):
        one(name, name, {"x": IMAGE, "z": normal(9), "w": normal(1, 6, 1, 1)})
    for name in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]:
        for dtype in (np.float32, np.int64):
            feed = {"x": integers(0, 3, 3, 4, dtype=dtype), "z": integers(0, 3, 4, dtype=dtype)}
            one(f"{name} of {dtype.__name__}", name, feed)
    for name in ("And", "Or", "Xor", "Equal"):
        one(f"{name} of truths", name, {"x": truths(3, 4), "z": truths(4)})
    one("Mod", "Mod", {"x": integers(-9, 9, 3, 4), "z": array(-3, 2, 5, -4)})
    one("Where", "Where", {"c": truths(3, 1), "x": normal(2, 3, 4), "z": normal(4)})
    clips = {"both": ("a", "b"), "low": ("a", ""), "high": ("", "b"), "neither": ("", "")}
    bounds = {"a": scalar(-0.3), "b": scalar(0.7)}
    for name, (low, high) in clips.items():
        weights = {key: value for key, value in bounds.items() if key in (low, high)}
        case(f"Clip {name}", [("Clip", ["x", low, high], ["y"], {})], {"x": IMAGE}, weights)
    for slope in (normal(6, 1, 1), normal(1)):
        one(f"PRelu of {slope.size}", "PRelu", {"x": IMAGE}, {"s": slope})
    one("PRelu given", "PRelu", {"x": IMAGE, "s": normal(6, 1, 1)})
    for source, goal in (
        *(("float32", "int32"), ("float32", "int64"), ("int64", "float32"), ("bool", "float32")),
        *(("float32", "bool"), ("int64", "int32"), ("bool", "int64"), ("uint8", "float32")),
    ):
        x = array(0, 1, 2.7, 3.2, 0, dtype=source)
        to = helper.np_dtype_to_tensor_dtype(np.dtype(goal))
        one(f"Cast {source} to {goal}", "Cast", {"x": x}, to=to)


def reductions() -> None:
    x = positive(2, 6, 3, 4)
    for name in [
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceSumSquare",
        "ReduceLogSumExp",
    ]:
        for axes, keep in (((2, 3), 1), ((1,), 0), ((-1, 0), 0)):
            one(f"{name} {axes}", name, {"x": x}, {"a": array(*axes)}, opset=18, keepdims=keep)
        one(f"{name} of all", name, {"x": x}, opset=18, keepdims=0)
    one("ReduceMean before 18", "ReduceMean", {"x": x}, axes=[2, 3])
    one("ReduceSum of int64", "ReduceSum", {"x": integers(0, 9, 3, 4)}, {"a": array(1)})
    one("ReduceSum of nothing", "ReduceSum", {"x": x}, noop_with_empty_axes=1)
    for name in ("ArgMax", "ArgMin"):
        for axis, keep in ((1, 1), (-1, 0)):
            one(f"{name} {axis}", name, {"x": IMAGE}, axis=axis, keepdims=keep)
        one(f"{name} of equals", name, {"x": integers(0, 2, 4, 9, dtype=np.float32)}, axis=1)
    for name in ("Softmax", "LogSoftmax"):
        for axis in (1, -1, 0):
            one(f"{name} {axis}", name, {"x": IMAGE}, axis=axis)
        one(f"{name} of 5 axes", name, {"x": normal(2, 3, 4, 2, 3)})
    one("CumSum", "CumSum", {"x": normal(3, 4)}, {"a": scalar(1, np.int64)}, reverse=1, exclusive=1)
    one("TopK", "TopK", {"x": IMAGE}, {"k": array(3)}, outputs=("v", "i"), axis=1)
    equals = {"x": integers(0, 3, 4, 9, dtype=np.float32)}
    one("TopK of equals", "TopK", equals, {"k": array(5)}, outputs=("v", "i"))


def shapes() -> None:
    one("Concat", "Concat", {"x": IMAGE, "z": normal(2, 3, 7, 9)}, axis=1)
    one("Concat of int64", "Concat", {"x": integers(0, 9, 3), "z": integers(0, 9, 2)}, axis=0)
    one("Split", "Split", {"x": IMAGE}, outputs=("a", "b", "c"), axis=1)
    one("Split of sizes", "Split", {"x": IMAGE}, {"s": array(2, 4)}, outputs=("a", "b"), axis=1)
    one("Split unequal", "Split", {"x": IMAGE}, outputs=("a", "b"), opset=18, axis=2, num_outputs=2)
    for name, places in {
        "Slice": ((1, 2), (3, 100), (1, 3), (1, 1)),
        "Slice from the end": ((-3, -4), (-1, 1 << 62), (1, 3), (1, 1)),
        "Slice in steps": ((0, 1), (100, 8), (2, 3), (2, 3)),
        "Slice backwards": ((6, -1), (0, -1000), (2, 3), (-2, -1)),
        "Slice of all": ((0,), (1 << 62,), (1,), (1,)),
    }.items():
        names = ("starts", "ends", "axes", "steps")
        one(name, "Slice", {"x": IMAGE}, {n: array(*v) for n, v in zip(names, places, strict=True)})
    one("Gather rows", "Gather", {"x": normal(5, 4), "i": integers(-5, 5, 2, 3)})
    one("Gather channels", "Gather", {"x": IMAGE}, {"i": array(0, -1)}, axis=1)
    one("Gather one", "Gather", {"x": IMAGE}, {"i": scalar(-2, np.int64)}, axis=2)
    where = integers(-6, 6, 2, 3, 7, 9)
    one("GatherElements", "GatherElements", {"x": IMAGE, "i": where}, axis=1)
    one("Size", "Size", {"x": IMAGE})
    one("GatherND", "GatherND", {"x": normal(3, 4, 5), "i": integers(0, 3, 2, 2)})
    one("Reshape", "Reshape", {"x": IMAGE}, {"s": array(0, -1, 9)})
    for axis in (0, 1, 2):
        one(f"Flatten {axis}", "Flatten", {"x": IMAGE}, axis=axis)
    one("Squeeze", "Squeeze", {"x": normal(2, 1, 3, 1)}, {"a": array(1)})
    one("Squeeze all", "Squeeze", {"x": normal(2, 1, 3, 1)})
    one("Unsqueeze", "Unsqueeze", {"x": normal(2, 3)}, {"a": array(0, -1)})
    for order in ((0, 2, 3, 1), (3, 2, 1, 0)):
        one(f"Transpose {order}", "Transpose", {"x": IMAGE}, perm=order)
    one(
        "Transpose of 6 axes", "Transpose", {"x": normal(2, 3, 4, 2, 3, 2)}, perm=[0, 4, 1, 5, 2, 3]
    )
    one("Expand", "Expand", {"x": normal(3, 1)}, {"s": array(2, 1, 4)})
    one("Expand of a scalar", "Expand", {"x": scalar(1.5)}, {"s": array(2, 3)})
    one("Expand of int64", "Expand", {"x": integers(0, 9, 3, 1)}, {"s": array(2, 1, 4)})
    one("Tile", "Tile", {"x": normal(2, 3)}, {"r": array(2, 3)})
    pads = array(0, 1, 2, 1, 0, 0, 1, 3)
    for mode in ("constant", "reflect", "edge", "wrap"):
        one(f"Pad {mode}", "Pad", {"x": IMAGE}, {"p": pads}, opset=19, mode=mode)
    one("Pad with a value", "Pad", {"x": IMAGE}, {"p": pads, "v": scalar(-2.5)})
    one("Pad by less than nothing", "Pad", {"x": IMAGE}, {"p": array(0, -1, 2, -1, 0, 0, -1, 3)})
    one(
        "OneHot", "OneHot", {"i": integers(-5, 5, 2, 3)}, {"d": array(5), "v": array(-1, 2)}, axis=1
    )
    for mode in ("DCR", "CRD"):
        feed = {"x": normal(2, 12, 3, 5)}
        one(f"DepthToSpace {mode}", "DepthToSpace", feed, blocksize=2, mode=mode)
    one("SpaceToDepth", "SpaceToDepth", {"x": normal(2, 3, 4, 6)}, blocksize=2)
    for upper in (0, 1):
        one(
            f"Trilu {upper}",
            "Trilu",
            {"x": normal(2, 4, 5)},
            {"k": scalar(1, np.int64)},
            upper=upper,
        )
    one("NonZero", "NonZero", {"x": integers(0, 2, 3, 4, dtype=np.float32)})


for fill in (elementwise, reductions, shapes):
    fill()
