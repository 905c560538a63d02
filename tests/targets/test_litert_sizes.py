"""Dynamic sizes on the target litert: kept, fixed to one and said, or asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploykit.errors import UnsupportedError
from tests.targets.litert_worker import (
    Litert,
    Nodes,
    assert_close,
    by_onnxruntime,
    model_of,
    network,
    normal,
)

pytest_plugins = ["tests.targets.litert_fixtures"]
pytestmark = pytest.mark.environment


def test_a_batch_stays_dynamic(litert: Litert) -> None:
    model, _ = network(batch="batch")
    result = litert.compile(model)
    assert result.signature.inputs[0].shape == ("batch", 3, 16, 16)
    assert result.signature.outputs[0].shape == ("batch", 5)
    assert result.notes == ()
    feeds = [{"x": normal(count, 3, 16, 16)} for count in (1, 3, 2)]
    for feed, found in zip(feeds, litert.run(*feeds), strict=True):
        assert_close(found, by_onnxruntime(model, feed))


def test_height_and_width_stay_dynamic(litert: Litert) -> None:
    nodes: Nodes = [
        ("Conv", ["x", "w"], ["c"], {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
        ("Shape", ["c"], ["s"], {}),
        ("Slice", ["s", "one", "four"], ["hw"], {}),
        ("ReduceProd", ["hw"], ["count"], {"keepdims": 1}),
        ("Concat", ["lead", "count"], ["sizes"], {"axis": 0}),
        ("Reshape", ["c", "sizes"], ["y"], {}),
    ]
    weights = {"w": normal(4, 3, 3, 3), "one": np.array([2]), "four": np.array([4])}
    weights["lead"] = np.array([0, 4])
    axes = {("x", 2): "height", ("x", 3): "width"}
    model = model_of(nodes, {"x": normal(1, 3, 8, 8)}, ["y"], weights, open_axes=axes)
    litert.compile(model)
    feeds = [{"x": normal(1, 3, *sizes)} for sizes in ((8, 8), (13, 6))]
    for feed, found in zip(feeds, litert.run(*feeds), strict=True):
        assert_close(found, by_onnxruntime(model, feed))


@pytest.mark.parametrize("place", ["half_pixel", "align_corners"])
def test_images_of_a_dynamic_batch_are_resized(litert: Litert, place: str) -> None:
    more = {"mode": "linear", "coordinate_transformation_mode": place}
    nodes: Nodes = [("Resize", ["x", "", "s"], ["y"], more)]
    weights = {"s": np.array([1, 1, 2, 3], np.float32)}
    axes = {("x", 0): "batch"}
    model = model_of(nodes, {"x": normal(1, 2, 4, 5)}, ["y"], weights, open_axes=axes)
    result = litert.compile(model)
    assert result.notes == ()
    feeds = [{"x": normal(count, 2, 4, 5)} for count in (1, 3)]
    for feed, found in zip(feeds, litert.run(*feeds), strict=True):
        assert_close(found, by_onnxruntime(model, feed))


def test_corners_aligned_over_parts_of_elements_are_refused(litert: Litert) -> None:
    more = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    weights = {"s": np.array([1, 1, 0.5, 1], np.float32)}
    nodes: Nodes = [("Resize", ["x", "", "s"], ["y"], more)]
    with pytest.raises(UnsupportedError, match="align_corners"):
        litert.compile(model_of(nodes, {"x": normal(1, 2, 5, 4)}, ["y"], weights))


@pytest.mark.parametrize("operator", ["Conv", "MaxPool"])
def test_the_same_padding_stays_so_for_every_size(litert: Litert, operator: str) -> None:
    more: dict[str, Any] = {"auto_pad": "SAME_UPPER", "strides": [2, 3], "kernel_shape": [3, 4]}
    inputs = ["x", "w"] if operator == "Conv" else ["x"]
    weights = {"w": normal(2, 3, 3, 4)} if operator == "Conv" else {}
    axes = {("x", 2): "height", ("x", 3): "width"}
    nodes: Nodes = [(operator, inputs, ["y"], more)]
    model = model_of(nodes, {"x": normal(1, 3, 8, 8)}, ["y"], weights, open_axes=axes)
    litert.compile(model)
    feeds = [{"x": normal(1, 3, *sizes)} for sizes in ((8, 8), (13, 6), (5, 11))]
    for feed, found in zip(feeds, litert.run(*feeds), strict=True):
        assert_close(found, by_onnxruntime(model, feed))


def test_a_size_that_must_be_known_is_fixed_and_said(litert: Litert) -> None:
    nodes: Nodes = [("TopK", ["x", "k"], ["y", "i"], {"axis": 0})]
    feed = {"x": normal(1, 4)}
    model = model_of(nodes, feed, ["y"], {"k": np.array([1])}, open_axes={("x", 0): "batch"})
    result = litert.compile(model)
    assert result.signature.inputs[0].shape == (1, 4)
    assert any("x:0" in note and "fixed to 1" in note for note in result.notes)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed))


def test_sizes_that_must_be_known_are_asked_for(litert: Litert) -> None:
    nodes: Nodes = [("Resize", ["x", "", "s"], ["y"], {"mode": "cubic"})]
    feed = {"x": normal(1, 2, 4, 5)}
    weights = {"s": np.array([1, 1, 2, 2], np.float32)}
    model = model_of(nodes, feed, ["y"], weights, open_axes={("x", 2): "height"})
    with pytest.raises(UnsupportedError, match="x:2") as raised:
        litert.compile(model)
    assert "--shape" in raised.value.hint
    result = litert.compile(model, shapes={"x": (1, 2, 4, 5)})
    assert result.signature.outputs[0].shape == (1, 2, 8, 10)
    assert_close(litert.run(feed)[0], by_onnxruntime(model, feed), tolerance=1e-4)
