"""Damaged and hostile CNTK v1 files: a graph or an error of our own, never anything else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from deploykit._plugins.converters.cntk.graph import Leaf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import DeploykitError, SourceError, UnsupportedError
from tests.converters import cntk_v1_writer as v1
from tests.converters.cntk_v1_writer import File
from tests.converters.test_cntk_v1 import by_op, read, w


def small() -> bytes:
    """Return a file with most kinds of payload."""
    file = File(18)
    file.input("x", 6, 6, 2)
    file.parameter("K", w(2, 2, 3, 3))
    file.convolution("c", "K", "x", file.window((3, 3, 2), (2,), (1, 1, 2), auto=True))
    file.node("Pooling", "p", "c", payload=file.window((2, 2, 1), (1,), (2, 2, 1), pool=1))
    sizes = [file.parameter(f"n{at}", np.abs(w(1, 2))) for at in range(4)]
    file.normalization("n", "p", *sizes, spatial=True)
    file.parameter("W", w(2, 3, 3, 4))
    file.times("t", "W", "n", mapped=0)
    file.delay("PastValue", "before", "h", 4)
    file.node("Plus", "h", "t", "before")
    body = v1.f4(0) + v1.shape(4, 4) + v1.sparse(np.eye(4))
    file.node("LearnableParameter", "S", payload=body)
    file.times("s", "S", "h")
    file.node("Slice", "r", "s", payload=v1.i8(0, 2) + v1.i4(1))
    file.node("Reshape", "o", "r", payload=v1.i4(1, 0) + v1.shape(1, 2))
    return file.bytes(feature=("x",), output=("o",))


SMALL = small()
QUICK = settings(
    max_examples=300,
    deadline=3000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def look_at(content: bytes, folder: Path) -> None:
    """Read `content`: a graph or one of our own errors, with a message fit to print."""
    try:
        graph = read(folder, content)
    except DeploykitError as error:
        message = error.message
    else:
        assert all(isinstance(leaf, Leaf) for leaf in graph.leaves.values())
        return
    assert message.isprintable()
    assert len(message) < 1000


def test_the_small_file_is_whole(tmp_path: Path) -> None:
    graph = read(tmp_path, SMALL)
    assert [root.name for root in graph.roots] == ["o"]
    assert by_op(graph, "Reshape").attributes["newShape"] == (1, 2)


def test_every_truncation_is_damage(tmp_path: Path) -> None:
    for end in [*range(8, 400), *range(400, len(SMALL) - 1, 7), len(SMALL) - 1]:
        with pytest.raises(SourceError, match="damaged or truncated CNTK v1 model"):
            read(tmp_path, SMALL[:end])


@QUICK
@given(data=st.data())
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 4]))
    look_at(bytes(damaged), tmp_path)


@QUICK
@given(data=st.data())
def test_hostile_numbers(tmp_path: Path, data: st.DataObject) -> None:
    at = data.draw(st.integers(8, len(SMALL) - 8))
    number = data.draw(st.sampled_from([2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1, 0]))
    width = data.draw(st.sampled_from(["<I", "<Q"]))
    packed = struct.pack(width, number & (2 ** (8 * struct.calcsize(width)) - 1))
    look_at(SMALL[:at] + packed + SMALL[at + len(packed) :], tmp_path)


@QUICK
@given(content=st.binary(max_size=400), at=st.integers(8, len(SMALL)))
def test_garbage_after_a_true_beginning(tmp_path: Path, content: bytes, at: int) -> None:
    look_at(SMALL[:at] + content, tmp_path)


def test_a_sparse_matrix_that_would_fill_memory(tmp_path: Path) -> None:
    head = v1.u8(4) + v1.text("nnmatrix") + v1.i4(6) + v1.u8(0, 2**31, 2**31)
    body = v1.f4(0) + v1.shape(2**31, 2**31) + b"s" + v1.text("BMAT") + head + v1.text("EMAT")
    file = File(12)
    file.node("LearnableParameter", "W", payload=body)
    with pytest.raises(UnsupportedError, match="sparse matrix"):
        read(tmp_path, file.bytes(output=("W",)))


@pytest.mark.parametrize("indices", [[0, 9], [-1, 0], [0, 4]])
def test_sparse_indices_outside_are_damage(tmp_path: Path, indices: list[int]) -> None:
    good = v1.sparse(np.eye(4))
    at = good.index(np.arange(4, dtype="<i4").tobytes())
    bad = good[:at] + np.array(indices, "<i4").tobytes() + good[at + 8 :]
    file = File(12)
    file.node("LearnableParameter", "W", payload=v1.f4(0) + v1.shape(4, 4) + bad)
    with pytest.raises(SourceError, match="index outside"):
        read(tmp_path, file.bytes(output=("W",)))


def test_two_nodes_of_one_name_are_damage(tmp_path: Path) -> None:
    file = File(12)
    file.input("x", 2)
    file.input("x", 2)
    with pytest.raises(SourceError, match="two nodes are named `x`"):
        read(tmp_path, file.bytes())
