"""Lookups in embedding tables and pooling, by definition; checkpoints of the parameter servers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from deploykit._plugins.converters.xdl import checkpoint, plugin
from onnx import numpy_helper

import deploykit as dk
from deploykit.protocol import ConvertRequest, ReferenceRequest, Source
from tests.converters import xdl_writer as xdl
from tests.converters.test_xdl_tensors import convert
from tests.converters.xdl_models import (
    CONTIGUOUS,
    KEYS,
    PAIRS,
    POOLS,
    RANDOM,
    SCATTERED,
    by_hand,
    session_of,
    sparse_model,
)


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
