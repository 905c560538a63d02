"""XDL: real exports and checkpoints against what their frameworks gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from deploykit._plugins.converters.xdl import checkpoint, plugin, tables

import deploykit as dk
from deploykit.protocol import ReferenceRequest, Source
from tests.converters.test_xdl_tensors import convert
from tests.converters.xdl_models import (
    RANDOM,
    session_of,
)


def din(folder: Path) -> tuple[dict[str, Any], Any]:
    """Return ids for the DIN export, as XDL's reader gives them, and what TensorFlow gave for them."""
    golden = np.load(folder / "golden.npz")
    features = {
        "uid_embedding_1": "uid",
        "mid_embedding_3": "mid",
        "cat_embedding_3": "cat",
        "mid_embedding_4": "mid_his",
        "cat_embedding_4": "cat_his",
    }
    mask = golden["in_Placeholder_8_0"]
    feed = {"Placeholder_8:0": mask}
    for name, key in features.items():
        ids = golden[f"in_ids_{key}"]
        ends = np.arange(1, len(ids) + 1, dtype=np.int32)
        feed[f"{name}.ids"] = ids
        feed[f"{name}.values"] = np.ones(len(ids), np.float32)
        feed[f"{name}.segments"] = ends.reshape(mask.shape) if key.endswith("his") else ends
    return feed, golden["out_tf_model_1_add_6_0"]


def test_a_din_export_runs_from_ids(shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "xdl" / "example_din"
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert conversion.verified
    assert any("statistics of its batch" in line for line in conversion.repairs)
    assert any("TFBackendOp_1` (prediction)" in line for line in conversion.repairs)
    feed, expected = din(folder)
    (found,) = session_of(tmp_path / "out.onnx").run(None, feed)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    source = Source(location=str(folder / "graph.txt"), format="xdl/graph")
    (defined,) = plugin.reference(ReferenceRequest(source=source)).run(feed).values()
    np.testing.assert_allclose(defined, expected, rtol=1e-5, atol=1e-6)
    # an id that was never trained is a row of zeros, and no values at all are ones
    feed["mid_embedding_3.ids"] = feed["mid_embedding_3.ids"] + (1 << 40)
    feed["uid_embedding_1.values"] = np.empty(0, np.float32)
    (other,) = session_of(tmp_path / "out.onnx").run(None, feed)
    (defined,) = plugin.reference(ReferenceRequest(source=source)).run(feed).values()
    np.testing.assert_allclose(other, defined, rtol=1e-5, atol=1e-6)
    assert np.abs(other - expected).max() > 1e-4


def test_a_din_export_runs_from_vectors(shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "xdl" / "example_din"
    source = dk.SourceOptions(settings={"sparse": "pooled"})
    golden = np.load(folder / "golden.npz")
    names = json.loads((folder / "golden.json").read_text())["tensor_names"]["in"]
    feed = {name: golden[f"in_{key}"] for key, name in names.items() if ":" in name}
    sample = tmp_path / "sample.npz"
    wanted = [name for name in feed if not name.startswith("Placeholder_1")]
    np.savez(sample, **{name: feed[name] for name in wanted})
    dk.convert(folder, tmp_path / "out.onnx", source=source, checks=dk.Checks(sample=sample))
    session = session_of(tmp_path / "out.onnx")
    # the targets of Reshape operators follow from the rest
    assert sorted(one.name for one in session.get_inputs()) == sorted(wanted)
    (found,) = session.run(None, {name: feed[name] for name in wanted})
    np.testing.assert_allclose(found, golden["out_tf_model_1_add_6_0"], rtol=1e-5, atol=1e-6)


def test_a_tdm_export_gives_what_mxnet_gave(shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "xdl" / "example_tdm_dnn"
    source = dk.SourceOptions(settings={"sparse": "pooled"})
    conversion = dk.convert(folder, tmp_path / "out.onnx", source=source)
    assert conversion.verified
    assert any("float64: bn_2_d" in line for line in conversion.repairs)
    golden = np.load(folder / "golden.npz")
    session = session_of(tmp_path / "out.onnx")
    feed = {one.name: golden[f"in_{one.name}"] for one in session.get_inputs()}
    softmax, logits = session.run(None, feed)
    # means of 474530 are subtracted from numbers like them: MXNet's float32 has noise of 0.01 here
    np.testing.assert_allclose(logits, golden["out_fc_4_d_output"], atol=0.015)
    np.testing.assert_allclose(softmax, golden["out_softmax"], atol=0.0015)


def test_a_tdm_export_runs_from_ids(shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "xdl" / "example_tdm_dnn"
    source, session = convert(folder / "graph.txt", tmp_path / "o.onnx")
    table = tables.read_text(folder / "item_emb", "item_emb", 24)
    feed: dict[str, Any] = {"indicator.0": np.array([0, 0, 1, 1, 1], np.int32)}
    for one in session.get_inputs():
        feature, _, kind = one.name.rpartition(".")
        rows = 5 if feature.startswith("unit") else 2
        if kind == "segments":
            feed[one.name] = np.arange(1, rows + 1, dtype=np.int32) * 2
        elif kind == "values":
            feed[one.name] = RANDOM.uniform(0.5, 1.5, 2 * rows).astype(np.float32)
        elif kind == "ids":
            feed[one.name] = RANDOM.choice(table.keys, 2 * rows)
            feed[one.name][0] = 12345  # of no item
    found = session.run(None, feed)
    expected = plugin.reference(ReferenceRequest(source=source)).run(feed)
    for one, value in zip(session.get_outputs(), found, strict=True):
        np.testing.assert_allclose(value, expected[one.name], rtol=1e-5, atol=1e-6)
    # the pooled vectors, computed here, give the same in the dense network alone
    dense, alone = convert(folder / "graph.txt", tmp_path / "d.onnx", sparse="pooled")
    row_of = {int(key): row for key, row in zip(table.keys, table.rows, strict=True)}
    order = [f"item_{n}" for n in range(1, 70)] + ["unit_id_expand"]
    vectors = {}
    for number, feature in enumerate(order):
        ids, values = feed[f"{feature}.ids"], feed[f"{feature}.values"]
        weighed = np.stack(
            [row_of.get(int(one), np.zeros(24)) * v for one, v in zip(ids, values, strict=True)]
        )
        mean = weighed.reshape(-1, 2, 24).mean(axis=1)
        taken = mean if feature == "unit_id_expand" else mean[feed["indicator.0"]]
        vectors["item_emb" if number == 0 else f"item_emb_{number - 1}"] = taken.astype(np.float32)
    for value, other in zip(found, alone.run(None, vectors), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)
    assert dense.options == {"sparse": "pooled"}


def test_a_checkpoint_without_a_graph_is_its_tables(shared_models: Path, tmp_path: Path) -> None:
    folder = shared_models / "xdl" / "ps_checkpoint_convert" / "ckpt_in"
    golden = np.load(folder.parent / "golden.npz")
    read = checkpoint.read(folder)
    np.testing.assert_array_equal(read.dense("dense/kernel"), golden["out_dense_kernel"])
    np.testing.assert_array_equal(read.dense("dense/bias"), golden["out_dense_bias"])
    assert read.dense("xdl_global_step") == golden["out_xdl_global_step"]
    conversion = dk.convert(folder, tmp_path / "out.onnx")
    assert any("--set graph" in line for line in conversion.repairs)
    ids = np.concatenate([golden["out_emb2.keys"], [[1, 8]]])
    (found,) = session_of(tmp_path / "out.onnx").run(["emb2"], {"emb2.ids": ids})
    np.testing.assert_array_equal(found[:-1], golden["out_emb2"][golden["out_emb2.rows"]])
    np.testing.assert_array_equal(found[-1], np.zeros(8))
    # what XDL itself writes as text is the same table
    text = tables.read_text(folder.parent / "ckpt_standard" / "emb2", "emb2", 8)
    table = read.table("emb2")
    np.testing.assert_array_equal(text.keys, table.keys)
    np.testing.assert_allclose(text.rows, table.rows, rtol=1e-5, atol=1e-7)
