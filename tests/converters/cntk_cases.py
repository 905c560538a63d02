"""CNTK v2 models for the tests, and what ONNX, the definition and CNTK itself make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from deploykit._plugins.converters.cntk import plugin
from deploykit._plugins.converters.cntk.graph import Axis

from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from tests.converters import cntk_library
from tests.converters.cntk_v2_writer import (
    BATCH,
    CONSTANT,
    PLACEHOLDER,
    SEQUENCE,
    Model,
    Shape,
)

RANDOM = np.random.default_rng(3)


def w(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32) / 2


def onnx_run(path: Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def both(path: Path, feed: dict[str, Any], **options: str) -> list[Any]:
    """Return what the ONNX model computes, after holding it against the definition."""
    source = Source(location=str(path), format="cntk/v2", options=options)
    target = path.with_suffix(".onnx")
    target.unlink(missing_ok=True)
    plugin.convert(ConvertRequest(source=source, output=str(target)))
    found = onnx_run(target, feed)
    defined = plugin.reference(ReferenceRequest(source=source)).run(feed)
    for one, other in zip(found, defined.values(), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
    if cntk_library.LIBRARY and not options:
        compare_with_cntk(path, feed, found)
    signature = plugin.inspect(source)
    assert list(defined) == [spec.name for spec in signature.outputs]
    for spec, one in zip(signature.outputs, found, strict=True):
        assert spec.shape is not None
        assert len(spec.shape) == one.ndim
        assert all(
            not isinstance(n, int) or n == m for n, m in zip(spec.shape, one.shape, strict=True)
        )
    return found


def compare_with_cntk(path: Path, feed: dict[str, Any], found: list[Any]) -> None:
    """Hold `found` against CNTK itself, except for what CNTK or its C API cannot do on a CPU."""
    try:
        model = cntk_library.Model(path)
        samples = (
            len(next(iter(feed.values()))) if b"defaultDynamicAxis" not in path.read_bytes() else 1
        )
        for number in range(samples):
            whole = samples == 1
            given_feed = feed if whole else {name: x[number] for name, x in feed.items()}
            for one, expected in zip(found, model.run(given_feed), strict=False):
                mine = (one if whole else one[number]).reshape(-1)
                np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    except RuntimeError as error:
        if not any(words in str(error) for words in BEYOND_CNTK):
            raise


BEYOND_CNTK = (
    "Not Implemented",
    "not yet implemented",
    "Number of evaluated outputs",  # of a function with two
    "trailing dimensions of the left operand",  # CNTK 1's flattening
    "Binary tensor operation: Dimension",  # a reduction that does not keep its axes
    "DataType",  # the C API has float32 only
    "std::bad_alloc",  # nor free sizes
    "'version' is not found",  # a checkpoint of our own making
)


def computed(folder: Path, op: str, *feeds: Any, sequence: bool = False, **attributes: Any) -> Any:
    """Return what one operator makes of inputs [batch, (sequence,) ...]."""
    model, given_feeds, names = Model(), {}, []
    lead = 1
    for number, feed in enumerate(feeds):
        names.append(model.input(f"x{number}", *feed.shape[lead:], sequence=sequence))
        given_feeds[f"x{number}"] = feed
    model.function(op, "made", *names, **attributes)
    return both(model.write(folder), given_feeds)[0]


# sequences


def scalar(model: Model, uid: str, value: float) -> str:
    return model.parameter(uid, np.float32(value), CONSTANT)


def recurrent(op: str, offset: int = 1) -> tuple[Model, Any, Any]:
    """Return h = tanh(W x + R delay(h)) with its weights."""
    weight, inner = w(3, 4), w(4, 4)
    model = Model()
    model.input("x", 3, sequence=True)
    model.parameter("W", weight)
    model.parameter("R", inner)
    scalar(model, "begin", 0.1)
    model.variable("h_Output_0", PLACEHOLDER, (4,), dynamic_axis=[SEQUENCE, BATCH])
    model.function(op, "delay", "h_Output_0", "begin", offset=offset)
    model.function("Times", "inner", "R", "delay_Output_0", outputRank=1)
    model.function("Times", "outer", "W", "x", outputRank=1)
    model.function("Plus", "sum", "inner_Output_0", "outer_Output_0")
    model.function("Tanh", "h", "sum_Output_0")
    return model, weight, inner


def trained() -> Model:
    model = Model()
    model.input("x", 3)
    model.input("label", 2)
    model.parameter("W", w(3, 2))
    model.function("Times", "z", "W", "x", outputRank=1, name="prediction")
    model.function("CrossEntropyWithSoftmax", "loss", "z_Output_0", "label")
    model.function("Minus", "apart", "label", "z_Output_0")
    how: dict[str, Any] = {"axis": Axis(index=0), "reductionOpName": "Sum"}
    model.function("ReduceElements", "total", "apart_Output_0", **how)
    model.function("Combine", "all", "z_Output_0", "loss_Output_0", "total_Output_0")
    return model


def multiplied(folder: Path, left: Any, x: Any, op: str = "Times", **attributes: Any) -> Any:
    model = Model()
    model.input("x", *x.shape[1:])
    model.parameter("left", left)
    model.function(op, "made", "left", "x", **attributes)
    return both(model.write(folder), {"x": x})[0]


def convolved(folder: Path, kernel: Any, x: Any, **attributes: Any) -> Any:
    model = Model()
    model.input("x", *x.shape[1:])
    model.parameter("kernel", kernel)
    plain = {
        "strides": Shape((1,)),
        "sharing": [True],
        "autoPadding": [True, True, False],
        "lowerPad": Shape((0,)),
        "upperPad": Shape((0,)),
        "transpose": False,
    }
    model.function("Convolution", "made", "kernel", "x", **{**plain, **attributes})
    return both(model.write(folder), {"x": x})[0]
