"""Each operator that the target litert writes, run by LiteRT and held against onnx's definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from tests.targets.litert_layer_cases import ALL
from tests.targets.litert_worker import Array, Feed, Litert, Nodes, assert_close, model_of

pytest_plugins = ["tests.targets.litert_fixtures"]
pytestmark = pytest.mark.environment

# onnx's reference ends with an error (padding of pools, groups, negative padding, rows of one axis
# as a depth), or leaves its own text (LRN's window, the absolute value in a norm)
REFERENCE_FAILS = {
    *("Pad by less than nothing", "OneHot", "LRN", "LpNormalization 1", "ConvTranspose grouped"),
    *("MaxPool padded", "MaxPool of one axis", "MeanVarianceNormalization"),
    "LSTM of other activations",
}


def expected(name: str, model: onnx.ModelProto, feed: Feed) -> list[Array]:
    if name in REFERENCE_FAILS:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return [np.asarray(each) for each in session.run(None, feed)]
    return [np.asarray(each) for each in ReferenceEvaluator(model).run(None, feed)]


def together(names: list[str]) -> tuple[onnx.ModelProto, Feed, dict[str, Array]]:
    """Return one model of several cases, its inputs, and what onnx computes for each case alone."""
    nodes: Nodes = []
    inputs: Feed = {}
    weights: Feed = {}
    wanted: dict[str, Array] = {}
    opset = 0
    for name in names:
        own_nodes, own_feed, outputs, own_weights, opset = ALL[name]

        def own(value: str, case: str = name) -> str:
            return f"{case}/{value}" if value else ""

        nodes += [
            (kind, [own(each) for each in ins], [own(each) for each in outs], more)
            for kind, ins, outs, more in own_nodes
        ]
        inputs |= {own(key): array for key, array in own_feed.items()}
        weights |= {own(key): array for key, array in own_weights.items()}
        alone = model_of(own_nodes, own_feed, outputs, own_weights, opset=opset)
        found = expected(name, alone, own_feed)
        wanted |= dict(zip([own(each) for each in outputs], found, strict=True))
    return model_of(nodes, inputs, list(wanted), weights, opset=opset), inputs, wanted


def groups(size: int = 8) -> list[list[str]]:
    """Cases of one opset, a few at a time: compiling each alone takes a minute more."""
    by_opset: dict[int, list[str]] = {}
    for name, (*_, opset) in ALL.items():
        by_opset.setdefault(opset, []).append(name)
    return [
        names[at : at + size] for names in by_opset.values() for at in range(0, len(names), size)
    ]


@pytest.mark.parametrize("names", groups(), ids=lambda names: f"{names[0]} ... {names[-1]}")
def test_operators_compute_what_onnx_defines(litert: Litert, names: list[str]) -> None:
    model, feed, wanted = together(names)
    litert.compile(model)
    (found,) = litert.run(feed)
    assert list(found) == list(wanted)
    assert_close(found, list(wanted.values()), tolerance=2e-5)
