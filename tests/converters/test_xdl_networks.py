"""MXNet networks inside XDL: the batch of the training, users and their candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deploykit._plugins.converters.xdl import plugin

from deploykit.errors import UnsupportedError
from deploykit.protocol import ReferenceRequest, Source
from tests.converters import xdl_writer as xdl
from tests.converters.test_xdl_tensors import convert
from tests.converters.xdl_models import (
    RANDOM,
    SCATTERED,
    Symbol,
    attention_symbol,
    graph_nodes,
    sparse_model,
    symbol_model,
    variable,
)


def test_the_batch_of_the_training_gives_way(tmp_path: Path) -> None:
    path, weight = symbol_model(tmp_path, attention_symbol(), {"/GetBatch:3": "label"})
    source, session = convert(path, tmp_path / "o.onnx", checkpoint=str(tmp_path / "saved"))
    # the label is not needed, and what needs it is no prediction
    assert [one.name for one in session.get_inputs()] == ["items", "items_0", "node"]
    assert [one.name for one in session.get_outputs()] == ["prediction_output"]
    for rows in (1, 5):
        a, b, node = (RANDOM.standard_normal((rows, 4)).astype(np.float32) for _ in range(3))
        (found,) = session.run(None, {"items": a, "items_0": b, "node": node})
        users = np.stack([a, b], axis=1)
        wide = np.repeat(node[:, None], 2, axis=1)
        score = np.concatenate([users, users * wide, wide], axis=2) @ weight[0]
        summed = (users * score).sum(axis=1)
        expected = np.exp(summed) / np.exp(summed).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        feed = {"items": a, "items_0": b, "node": node}
        defined = plugin.reference(ReferenceRequest(source=source)).run(feed)
        np.testing.assert_allclose(found, defined["prediction_output"], rtol=1e-5, atol=1e-6)


def test_rows_of_users_are_taken_for_each_candidate(tmp_path: Path) -> None:
    """As XDL's own MXNet examples do it: the user's vectors once, an indicator for each candidate."""
    net = Symbol()
    net.nodes += [variable("users", 8, 5), variable("input", 8, dtype=4), variable("ads", 8, 5)]
    net.nodes += [variable("label", 8, 2)]
    taken = net.add("take", "taken", 0, net.add("BlockGrad", "indicator", 1))
    both = net.add("Concat", "both", taken, 2, num_args=2)
    dense = net.add("FullyConnected", "fc1", both, net.add("null", "w"), num_hidden=3, no_bias=True)
    head = net.add("SoftmaxOutput", "prop", dense, 3)
    loss = net.add("BlockGrad", "loss", net.add("log", "log", head))
    path, rows = sparse_model(tmp_path, SCATTERED)
    nodes = graph_nodes({}, ["items", "items"], 5)[:-1]
    refs = ["/Pool_0:0", "/GetBatch:0", "/Pool_1:0", "/GetBatch:15", "/Weight:0"]
    attrs = {"graph_def": net.json(head, loss), "var_name_str": "users,input,ads,label,w"}
    nodes.append(("/Weight", "PsPullOp", (), {"var_name": "w"}))
    nodes.append(("/MxnetBackendOp", "MxnetBackendOp", refs, attrs | {"is_training": True}))
    tags = {"/GetBatch:0": "indicator.0", "/GetBatch:15": "label"}
    # the ids of the users stand where the indicator does in this graph: move them
    nodes = [
        (
            name,
            op,
            [ref.replace("/GetBatch:0", "/GetBatch:9") if op == "Unique" else ref for ref in ins],
            own,
        )
        for name, op, ins, own in nodes
    ]
    tags |= {
        "/GetBatch:9": "user.ids",
        "/GetBatch:1": "user.values",
        "/GetBatch:2": "user.segments",
    }
    tags |= {"/GetBatch:3": "ad.ids", "/GetBatch:4": "ad.values", "/GetBatch:5": "ad.segments"}
    path.write_text(xdl.text_graph(nodes, tags, []))
    weight = RANDOM.standard_normal((3, 10)).astype(np.float32)
    np.savez(tmp_path / "dense.npz", w=weight)
    source, session = convert(path, tmp_path / "o.onnx")
    shapes = {one.name: one.shape for one in session.get_inputs()}
    assert shapes["user.segments"] == ["groups"]
    assert shapes["ad.segments"] == shapes["indicator.0"] == ["batch"]
    feed = {"user.ids": SCATTERED[:3], "user.values": np.array([1, 2, 3], np.float32)}
    feed |= {"user.segments": np.array([1, 3], np.int32), "ad.ids": SCATTERED[4:7]}
    feed |= {"ad.values": np.ones(3, np.float32), "ad.segments": np.array([1, 2, 3], np.int32)}
    feed |= {"indicator.0": np.array([0, 1, 1], np.int32)}
    users = np.stack([rows[0], 2 * rows[1] + 3 * rows[2]])[[0, 1, 1]]
    logits = np.concatenate([users, rows[4:7]], axis=1) @ weight.T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = dict(zip(("prop_output", "fc1_output"), session.run(None, feed), strict=True))
    np.testing.assert_allclose(found["prop_output"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["fc1_output"], logits, rtol=1e-5, atol=1e-6)
    defined = plugin.reference(ReferenceRequest(source=source)).run(feed)
    np.testing.assert_allclose(defined["prop_output"], expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_of_any_batch_is_refused(tmp_path: Path) -> None:
    symbol = attention_symbol().replace('"batch_dot"', '"elemwise_add"')
    path, _ = symbol_model(tmp_path, symbol, {"/GetBatch:3": "label"})
    options = {"checkpoint": str(tmp_path / "saved")}
    source = Source(location=str(path), format="xdl/graph", options=options)
    with pytest.raises(UnsupportedError, match="size 30 of the training batch"):
        plugin.inspect(source)
    only_losses = attention_symbol().replace('"prediction"', '"x"').replace("BlockGrad", "MakeLoss")
    path, _ = symbol_model(tmp_path, only_losses, {"/GetBatch:3": "label"})
    with pytest.raises(UnsupportedError, match="are losses"):
        plugin.inspect(source)
