"""XDL: real exports against golden outputs, lookups by definition, checkpoints, damage refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from deploykit._plugins.converters.xdl import checkpoint, plugin, reading, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import deploykit as dk
from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from tests.converters import xdl_writer as xdl
from tests.converters.test_xdl_tensors import CASES, convert

RANDOM = np.random.default_rng(3)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# ---- real models


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


# ---- small models of our own


def graph_nodes(pool: dict[str, Any], names: list[str], width: int) -> list[xdl.Node]:
    """Return an XDL graph: lookups, pooled, and a dense network that adds two of them."""
    parts = CASES["arithmetic"]
    declared = {"var_name": "items", "dtype": "type:float32", "shape": (1 << 40, width)}
    nodes: list[xdl.Node] = [
        ("/GetBatch", "GetBatch", (), {}),
        ("/Register", "PsRegisterVariableOp", (), declared),
        xdl.constant("/None", np.empty(0, np.int32)),
    ]
    refs = []
    for at, name in enumerate(names):
        ids, values, ends = (f"/GetBatch:{3 * at + one}" for one in range(3))
        nodes += [
            (f"/Unique_{at}", "Unique", (ids,), {"dtype": "type:int64", "itype": "type:int32"}),
            (f"/Pull_{at}", "PsSparsePullOp", (f"/Unique_{at}:0",), {"var_name": name}),
            (
                f"/Pool_{at}",
                pool.get("op", "KSum"),
                (f"/Pull_{at}:0", f"/Unique_{at}:1", values, ends, "/None:0"),
                {key: value for key, value in pool.items() if key != "op"},
            ),
        ]
        refs.append(f"/Pool_{at}:0")
    attrs = {
        "graph_def": parts["graph"][""].tobytes(),
        "input_op_names": ",".join(parts["in"]),
        "target_op_names": next(iter(parts["out"])),
        "gradient_size": 0,
    }
    return [*nodes, ("/TFBackendOp", "TFBackendOp", refs, attrs)]


def sparse_model(
    folder: Path,
    keys: Any,
    pool: dict[str, Any] | None = None,
    *,
    width: int = 5,
    binary: bool = False,
) -> tuple[Path, Any]:
    """Write a model with one table that two features share; return its graph and the rows."""
    rows = RANDOM.standard_normal((len(keys), width)).astype(np.float32)
    nodes = graph_nodes(pool or {}, ["items", "items"], width)
    tags = {
        f"/GetBatch:{3 * at + place}": f"{name}.{kind}"
        for at, name in enumerate(("mine", "theirs"))
        for place, kind in enumerate(("ids", "values", "segments"))
    }
    path = folder / ("graph.pb" if binary else "graph.txt")
    if binary:
        path.write_bytes(xdl.binary_graph(nodes, tags, ["/TFBackendOp:0"]))
    else:
        path.write_text(xdl.text_graph(nodes, tags, ["/TFBackendOp:0"]))
    np.savez(folder / "dense.npz", unused=np.zeros(1))
    (folder / "sparse.txt").write_text("items\n")
    lines = [
        ",".join([*map(str, np.atleast_1d(key)), *map(repr, row.tolist())])
        for key, row in zip(keys, rows, strict=True)
    ]
    (folder / "items").write_text("\n".join(lines) + "\n")
    return path, rows


CONTIGUOUS = np.arange(100, 117)
SCATTERED = np.array([7, -9223372036854775808, 9223372036854775807, 0, -5, 1 << 40, 12, 13, 99])
PAIRS = np.array([[0, 8], [0, -8], [1, 8], [-3, 5], [1 << 62, 1 << 62], [1, 7], [2, 0]])
KEYS = {
    "contiguous": CONTIGUOUS,
    "scattered": SCATTERED,
    "pairs": PAIRS,
    "one": SCATTERED[:1],
    "two": SCATTERED[:2],
    **{f"{count} of them": RANDOM.permutation(1 << 20)[:count] for count in (3, 15, 16, 17, 255)},
}
POOLS: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"average": True},
    "tile": {"op": "Tile", "length": 5, "reverse": False},
}


@pytest.mark.parametrize(
    ("kind", "pool"),
    [
        *((kind, "sum") for kind in KEYS),
        *((kind, pool) for kind in ("scattered", "pairs") for pool in ("mean", "tile")),
    ],
)
def test_lookups_and_sums_follow_their_definition(kind: str, pool: str, tmp_path: Path) -> None:
    keys = KEYS[kind]
    width = 2 if pool == "tile" else 5
    path, rows = sparse_model(tmp_path, keys, POOLS[pool], width=width, binary=kind == "pairs")
    assert dk.inspect(path).format == "xdl/graph"
    source, session = convert(path, tmp_path / "o.onnx")
    assert [one.name for one in session.get_inputs()][:3] == [
        "mine.ids",
        "mine.values",
        "mine.segments",
    ]
    strange = keys[RANDOM.integers(0, len(keys), 3)] + 1  # some in the table, most of them not
    feed: dict[str, Any] = {}
    expected: Any = 0
    for feature, lengths in (("mine", [3, 0, 2, 4]), ("theirs", [1, 1, 1, 1])):
        count = sum(lengths)
        ids = np.concatenate([keys[RANDOM.integers(0, len(keys), count)], strange])[-count:]
        values = RANDOM.standard_normal(count).astype(np.float32)
        ends = np.cumsum(lengths).astype(np.int32)
        feed |= {f"{feature}.ids": ids, f"{feature}.values": values, f"{feature}.segments": ends}
        expected = expected + by_hand(keys, rows, ids, values, lengths, POOLS[pool])
    (found,) = session.run(None, feed)
    (defined,) = plugin.reference(ReferenceRequest(source=source)).run(feed).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(defined, expected, rtol=1e-5, atol=1e-6)


def by_hand(
    keys: Any, rows: Any, ids: Any, values: Any, lengths: list[int], pool: dict[str, Any]
) -> Any:
    """Compute the pooled vectors of one feature in plain Python."""
    known = {tuple(np.atleast_1d(key).tolist()): row for key, row in zip(keys, rows, strict=True)}
    width = rows.shape[1]
    zero = np.zeros(width)
    vectors = [
        known.get(tuple(np.atleast_1d(one).tolist()), zero) * value
        for one, value in zip(ids, values, strict=True)
    ]
    found, at = [], 0
    for length in lengths:
        own = vectors[at : at + length]
        at += length
        if pool.get("op") == "Tile":
            flat = np.concatenate([*own, np.zeros(5)])[: pool["length"]]
            found.append(flat)
        else:
            total = sum(own, zero)
            found.append(total / len(own) if pool.get("average") and own else total)
    return np.stack(found)


def test_rows_side_by_side_may_be_reversed(tmp_path: Path) -> None:
    path, rows = sparse_model(
        tmp_path, CONTIGUOUS, {"op": "Tile", "length": 5, "reverse": True}, width=2
    )
    _, session = convert(path, tmp_path / "o.onnx")
    one = np.ones(1, np.float32)
    feed = {"mine.ids": CONTIGUOUS[:4], "mine.values": np.ones(4, np.float32)}
    feed |= {"mine.segments": np.array([4], np.int32), "theirs.ids": np.array([0])}
    feed |= {"theirs.values": one, "theirs.segments": np.array([1], np.int32)}
    (found,) = session.run(None, feed)
    expected = np.concatenate([rows[3], rows[2], rows[1][:1]])[None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_segments_that_make_no_sense_are_empty_or_cut(tmp_path: Path) -> None:
    path, _ = sparse_model(tmp_path, CONTIGUOUS)
    source, session = convert(path, tmp_path / "o.onnx")
    feed: dict[str, Any] = {}
    for feature in ("mine", "theirs"):
        feed[f"{feature}.ids"] = CONTIGUOUS[:6]
        feed[f"{feature}.values"] = RANDOM.standard_normal(6).astype(np.float32)
        feed[f"{feature}.segments"] = np.array([4, 2, -7, 3, 900], np.int32)
    (found,) = session.run(None, feed)
    (defined,) = plugin.reference(ReferenceRequest(source=source)).run(feed).values()
    np.testing.assert_allclose(found, defined, rtol=1e-5, atol=1e-6)
    assert not found[1].any()
    feed["mine.values"] = feed["mine.values"][:4]
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        session.run(None, feed)
    with pytest.raises(ValueError, match="4 values for 6 ids"):
        plugin.reference(ReferenceRequest(source=source)).run(feed)


def test_a_checkpoint_with_a_graph_is_the_whole_model(tmp_path: Path) -> None:
    """All three slicers, tables in several parts, and rows that no key points to."""
    path, rows = sparse_model(tmp_path, SCATTERED)
    spare = np.full((2, 5), 777, np.float32)
    halves = [slice(0, 4), slice(4, None)]
    parts = [
        xdl.part(
            np.concatenate([spare, rows[half][::-1]]),
            SCATTERED[half],
            np.arange(len(rows[half]))[::-1] + 2,
        )
        for half in halves
    ]
    pairs = xdl.part(RANDOM.standard_normal((9, 3)), PAIRS, np.arange(7))
    folder = xdl.checkpoint(
        tmp_path / "saved",
        {
            "items": (2, (9, 5), parts),
            "pairs": (1, (7, 3), [pairs]),
            "net/w": (0, (5, 2), [xdl.part(RANDOM.standard_normal((n, 2))) for n in (3, 2)]),
        },
    )
    assert checkpoint.read(folder).dense("net/w").shape == (5, 2)
    _, export = convert(path, tmp_path / "o.onnx")
    feed: dict[str, Any] = {}
    for feature in ("mine", "theirs"):
        feed[f"{feature}.ids"] = np.array([*SCATTERED, 5])
        feed[f"{feature}.values"] = RANDOM.standard_normal(10).astype(np.float32)
        feed[f"{feature}.segments"] = np.array([2, 7, 10], np.int32)
    expected = export.run(None, feed)
    # named from the graph, named from the checkpoint, and lying beside it as XDL saves it
    ways: list[tuple[Path, str, dict[str, str]]] = [
        (path, "xdl/graph", {"checkpoint": str(folder)}),
        (folder, "xdl/checkpoint", {"graph": str(path)}),
    ]
    shutil.copy(path, folder / "graph.txt")
    ways.append((folder, "xdl/checkpoint", {}))
    for location, kind, options in ways:
        source = Source(location=str(location), format=kind, options=options)
        plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "c.onnx")))
        np.testing.assert_allclose(
            session_of(tmp_path / "c.onnx").run(None, feed)[0], expected[0], rtol=1e-6
        )
        (tmp_path / "c.onnx").unlink()
    (folder / "graph.txt").unlink()
    signature = plugin.inspect(Source(location=str(folder), format="xdl/checkpoint"))
    assert [str(one) for one in signature.inputs] == [
        "items.ids:int64[items_count]",
        "pairs.ids:int64[pairs_count,2]",
    ]
    options = {"tables": "net/w"}
    source = Source(location=str(folder), format="xdl/checkpoint", options=options)
    plugin.convert(ConvertRequest(source=source, output=str(tmp_path / "c.onnx")))
    (found,) = session_of(tmp_path / "c.onnx").run(None, {"net/w.ids": np.array([4, 0, 5, -1])})
    np.testing.assert_allclose(found[:2], checkpoint.read(folder).dense("net/w")[[4, 0]], rtol=1e-6)
    assert not found[2:].any()


def test_ids_of_64_bits_guard_against_runtimes_of_32(tmp_path: Path) -> None:
    """OpenVINO keeps int64 in int32: it gives no numbers rather than the vectors of other ids."""
    graphs = {}
    for name, keys in (("narrow", CONTIGUOUS), ("wide", np.array([5, 5 + (1 << 32), 9, -7]))):
        (tmp_path / name).mkdir()
        path, _ = sparse_model(tmp_path / name, keys)
        convert(path, tmp_path / "o.onnx")
        graphs[name] = onnx.load(tmp_path / "o.onnx").graph
    limits = {
        name: [one for one in graph.initializer if numpy_helper.to_array(one).tolist() == 1 << 33]
        for name, graph in graphs.items()
    }
    assert limits["wide"]
    assert not limits["narrow"]
    # the comparison depends on the ids, or a compiler would do it in advance
    compared = {one.name for one in limits["wide"]}
    nodes = {output: node for node in graphs["wide"].node for output in node.output}
    guard = next(node for node in graphs["wide"].node if compared & set(node.input))
    waiting, seen = [guard.input[0]], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting += nodes[name].input if name in nodes else []
    assert "mine.ids" in seen


def test_ids_may_be_unique_already(tmp_path: Path) -> None:
    path, rows = sparse_model(tmp_path, CONTIGUOUS)
    text = path.read_text()
    assert "/Unique_0:0" in text
    # the reader gives unique ids and an index of its own
    text = text.replace('input: "/Unique_0:0"', 'input: "/GetBatch:0"')
    text = text.replace('input: "/Unique_0:1"', 'input: "/GetBatch:9"')
    path.write_text(text)
    source, session = convert(path, tmp_path / "o.onnx")
    names = [one.name for one in session.get_inputs()]
    assert names[:2] == ["mine.ids", "add.indices"] or names[1].endswith(".indices")
    feed = {
        "mine.ids": CONTIGUOUS[:2],
        names[1]: np.array([1, 0, 1], np.int32),
        "mine.values": np.ones(3, np.float32),
        "mine.segments": np.array([1, 3], np.int32),
        "theirs.ids": np.array([0, 0]),
        "theirs.values": np.ones(2, np.float32),
        "theirs.segments": np.array([1, 2], np.int32),
    }
    (found,) = session.run(None, feed)
    np.testing.assert_allclose(found, [rows[1], rows[0] + rows[1]], rtol=1e-6)
    (defined,) = plugin.reference(ReferenceRequest(source=source)).run(feed).values()
    np.testing.assert_allclose(found, defined, rtol=1e-6)


# ---- an MXNet network with the batch of its training in its operators


def variable(name: str, *shape: int, dtype: int = 0) -> dict[str, Any]:
    attrs = {"__create_by_xdl__": "True", "__dtype__": str(dtype), "__shape__": str(list(shape))}
    return {"op": "null", "name": name, "attrs": attrs, "inputs": []}


class Symbol:
    """A symbol in the making; operators are called by the number of their node."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []

    def add(self, op: str, name: str, *inputs: int, **attrs: Any) -> int:
        given = {key: str(value) for key, value in attrs.items()}
        refs = [[at, 0, 0] for at in inputs]
        self.nodes.append({"op": op, "name": name, "attrs": given, "inputs": refs})
        return len(self.nodes) - 1

    def json(self, *heads: int) -> str:
        return json.dumps(
            {"nodes": self.nodes, "arg_nodes": [], "heads": [[at, 0, 0] for at in heads]}
        )


def attention_symbol() -> str:
    """As TDM's training script builds it: attention over a user's items, with the batch baked in."""
    net = Symbol()
    net.nodes += [variable(name, 30, 4) for name in ("items", "items_0", "node")]
    net.nodes += [variable("label", 30, 2)]
    joined = net.add("Concat", "joined", 0, 1, num_args=2)
    users = net.add("Reshape", "users", joined, shape=(30, 2, 4))
    node = net.add("Reshape", "one", 2, shape=(30, 1, 4))
    node = net.add("broadcast_to", "wide", node, shape=(0, 2, 0))
    product = net.add("elemwise_mul", "product", users, node)
    both = net.add("Concat", "both", users, product, node, dim=2)
    weight = net.add("null", "w")
    wide = net.add("broadcast_to", "w_wide", weight, shape=(30, 0, 0))
    score = net.add("batch_dot", "score", both, wide)
    score = net.add("broadcast_to", "score_wide", score, shape=(0, 0, 4))
    kept = net.add("Reshape", "kept", users, shape=(30, -1, 4))
    summed = net.add("sum_axis", "summed", net.add("elemwise_mul", "weighed", kept, score), axis=1)
    out = net.add("softmax", "prop", summed, axis=1)
    loss = net.add("MakeLoss", "loss", net.add("elemwise_mul", "error", out, 3))
    prop = net.add("BlockGrad", "prediction", out)
    target = net.add("BlockGrad", "target", 3)
    return net.json(loss, prop, target)


def symbol_model(folder: Path, symbol: str, tags: dict[str, str]) -> tuple[Path, Any]:
    """Write a graph whose network is `attention_symbol`, with vectors from outside, and its weight."""
    refs = ["/GetBatch:0", "/GetBatch:1", "/GetBatch:2", "/GetBatch:3", "/Pull:0"]
    attrs = {"graph_def": symbol, "var_name_str": "items,items_0,node,label,w", "is_training": True}
    nodes: list[xdl.Node] = [
        ("/GetBatch", "GetBatch", (), {}),
        ("/Pull", "PsPullOp", (), {"var_name": "w"}),
        ("/MxnetBackendOp", "MxnetBackendOp", refs, attrs),
    ]
    weight = RANDOM.standard_normal((1, 12, 1)).astype(np.float32)
    saved = folder / "saved"
    if not saved.exists():
        xdl.checkpoint(saved, {"w": (0, weight.shape, [xdl.part(weight)])})
    (folder / "graph.txt").write_text(xdl.text_graph(nodes, tags, []))
    return folder / "graph.txt", checkpoint.read(saved).dense("w")


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


# ---- refusals and damage


def broken(change: Callable[[str], str], tmp_path: Path) -> Source:
    path, _ = sparse_model(tmp_path, CONTIGUOUS)
    path.write_text(change(path.read_text()))
    return Source(location=str(path), format="xdl/graph")


def test_refusals_name_what_and_where(tmp_path: Path) -> None:
    source = broken(lambda text: text.replace('op: "KSum"', 'op: "KMax"'), tmp_path)
    with pytest.raises(UnsupportedError, match=r"/Pool_0` \(KMax\)") as caught:
        plugin.inspect(source)
    assert "sparse=pooled" in caught.value.hint
    source = broken(lambda text: text.replace("/Unique_0:1", "/Unique_1:1"), tmp_path)
    with pytest.raises(UnsupportedError, match="not of its own ids"):
        plugin.inspect(source)
    source = broken(lambda text: text.replace('"TFBackendOp"', '"OtherOp"'), tmp_path)
    with pytest.raises(UnsupportedError, match="no dense network"):
        plugin.inspect(source)
    source = broken(lambda text: text.replace("/GetBatch:2", "/Elsewhere:2"), tmp_path)
    with pytest.raises(SourceError, match="no node `/Elsewhere`"):
        plugin.inspect(source)
    source = broken(str, tmp_path)
    for options in ({"checkpoint": str(tmp_path / "none")}, {"checkpoint": str(tmp_path)}):
        with pytest.raises(SourceError, match="checkpoints"):
            plugin.inspect(Source(location=source.location, format="xdl/graph", options=options))
    (tmp_path / "items").unlink()
    with pytest.raises(SourceError, match="`items` is missing"):
        plugin.inspect(source)
    folder = xdl.checkpoint(tmp_path / "saved", {"w": (0, (3,), [xdl.part(np.zeros(3))])})
    with pytest.raises(SourceError, match="no hash table"):
        plugin.inspect(Source(location=str(folder), format="xdl/checkpoint"))
    source = Source(location=str(folder), format="xdl/checkpoint", options={"tables": "w"})
    with pytest.raises(SourceError, match="no table of vectors"):
        plugin.inspect(source)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1,0.5,0.5,1,1,1\n1,2,3,1,1,1\n", "an id twice"),
        ("1,0.5,0.5,1,1,1\n2,nan,3,1,1,1\n", "no finite numbers"),
        ("1,0.5,0.5,1,1,1\n2,3,1,1,1\n", "line 2 has 5 values"),
        ("1,0.5,0.5,1,1,1\n2,x,3,1,1,1\n", "damaged"),
        ("a,0.5,0.5,1,1,1\n", "damaged"),
        ("99999999999999999999,1,1,1,1,1\n", "damaged"),
        ("1,0.5\n", "its first line has 2 values"),
        ("\n" * 5000, "its first line has 1 values"),
    ],
)
def test_damaged_tables_are_refused(lines: str, message: str, tmp_path: Path) -> None:
    path, _ = sparse_model(tmp_path, CONTIGUOUS)
    (tmp_path / "items").write_text(lines)
    with pytest.raises(SourceError, match=message):
        plugin.inspect(Source(location=str(path), format="xdl/graph"))


def test_a_name_never_leaves_its_folder(tmp_path: Path) -> None:
    folder = xdl.checkpoint(tmp_path / "saved", {"../../x": (2, (1, 2), [])})
    assert checkpoint.read(folder).path("../../x", 0).parent == folder / "ckpt-2"
    listing = (folder / "checkpoints").read_bytes()
    (folder / "checkpoints").write_bytes(listing.replace(b"ckpt-2", b"../../"))
    with pytest.raises(SourceError, match="no name of a folder"):
        checkpoint.read(folder)
    path, _ = sparse_model(tmp_path, CONTIGUOUS)
    path.write_text(path.read_text().replace(xdl.quoted("items"), xdl.quoted("../items")))
    with pytest.raises(SourceError, match="is missing"):
        plugin.inspect(Source(location=str(path), format="xdl/graph"))


FAST = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=6)


def damaged(content: bytes, cut: int, changes: list[tuple[int, int]], keep: bool) -> bytes:
    data = bytearray(content)
    for at, value in changes:
        data[at % len(data)] = value
    return bytes(data if keep else data[: cut % (len(data) + 1)])


@FAST
@given(st.booleans(), st.booleans(), st.integers(0, 1 << 30), CHANGES)
def test_damaged_graphs_are_refused_or_read(
    tmp_path: Path, binary: bool, keep: bool, cut: int, changes: list[tuple[int, int]]
) -> None:
    path, _ = sparse_model(tmp_path, CONTIGUOUS, binary=binary)
    path.write_bytes(damaged(path.read_bytes(), cut, changes, keep))
    try:
        graph = reading.read(path)
        plugin.inspect(Source(location=str(path), format="xdl/graph"))
    except DeploykitError:
        return
    assert graph.nodes


@FAST
@given(
    st.sampled_from(["checkpoints", "ckpt-2/__meta__", "ckpt-2/t^0"]),
    st.booleans(),
    st.integers(0, 1 << 30),
    CHANGES,
)
def test_damaged_checkpoints_are_refused_or_read(
    tmp_path: Path, name: str, keep: bool, cut: int, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path / "saved"
    if not folder.exists():
        rows = RANDOM.standard_normal((7, 3)).astype(np.float32)
        xdl.checkpoint(folder, {"t": (1, (7, 3), [xdl.part(rows, PAIRS, np.arange(7))])})
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(damaged(whole, cut, changes, keep))
    try:
        found = plugin.inspect(Source(location=str(folder), format="xdl/checkpoint"))
        assert found.inputs
    except DeploykitError:
        return
    finally:
        (folder / name).write_bytes(whole)


def test_unknown_inputs_and_wrong_dtypes(tmp_path: Path) -> None:
    from deploykit.tensor_spec import parse_input

    path, _ = sparse_model(tmp_path, CONTIGUOUS)
    for words in ("nothing:int64[n]", "mine.ids:float32[n]"):
        source = Source(location=str(path), format="xdl/graph", inputs=(parse_input(words),))
        with pytest.raises(UsageError):
            plugin.inspect(source)
