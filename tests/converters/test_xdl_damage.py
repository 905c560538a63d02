"""XDL: what is refused, and that damaged files are an error or a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from deploykit._plugins.converters.xdl import checkpoint, plugin, reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import DeploykitError, SourceError, UnsupportedError, UsageError
from deploykit.protocol import Source
from tests.converters import xdl_writer as xdl
from tests.converters.xdl_models import (
    CONTIGUOUS,
    PAIRS,
    RANDOM,
    sparse_model,
)


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
