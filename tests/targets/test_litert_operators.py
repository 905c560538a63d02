"""Each operator that the target litert writes, run by LiteRT and held against onnx's definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from tests.targets.litert_cases import CASES
from tests.targets.litert_worker import Array, Feed, Litert, assert_close, model_of

pytest_plugins = ["tests.targets.litert_fixtures"]
pytestmark = pytest.mark.environment

# onnx's reference ends with an error (padding of pools, groups, negative padding, rows of one axis
# as a depth), or leaves its own text (LRN's window, the absolute value in a norm)
REFERENCE_FAILS = {
    *("Pad by less than nothing", "OneHot", "LRN", "LpNormalization 1", "ConvTranspose grouped"),
    *("MaxPool padded", "MaxPool of one axis", "MeanVarianceNormalization"),
}


def expected(name: str, model: onnx.ModelProto, feed: Feed) -> list[Array]:
    if name in REFERENCE_FAILS:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return [np.asarray(each) for each in session.run(None, feed)]
    return [np.asarray(each) for each in ReferenceEvaluator(model).run(None, feed)]


@pytest.mark.parametrize("name", CASES)
def test_the_operator_computes_what_onnx_defines(litert: Litert, name: str) -> None:
    nodes, feed, outputs, weights, opset = CASES[name]
    model = model_of(nodes, feed, outputs, weights, opset=opset)
    litert.compile(model)
    (found,) = litert.run(feed)
    assert_close(found, expected(name, model, feed), tolerance=2e-5)
