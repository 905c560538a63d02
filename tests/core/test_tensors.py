"""Tensors on disk: what is written is read, and damage is one clear error."""

from __future__ import annotations

import pickle
import resource
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deploykit.errors import OutputError, UsageError
from deploykit.tensors import read_tensor, read_tensors, write_tensors

ARRAYS = npst.arrays(
    st.sampled_from(["f2", "f4", "f8", "i1", "i8", "u1", "u8", "?", "c8", "<U3"]),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(NAMES.filter(lambda name: not name.endswith(".npy")), ARRAYS, max_size=3))
def test_round_trip(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_tensors(tmp_path / "t.npz", tensors)
    found = read_tensors(tmp_path / "t.npz")
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


def test_same_tensors_same_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_tensors(tmp_path / name, {"x": np.arange(5), "y": np.ones((2, 2))})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_order_of_memory_is_kept_in_values(tmp_path: Path) -> None:
    value = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    write_tensors(tmp_path / "t.npz", {"x": value, "every second": value[::2]})
    found = read_tensors(tmp_path / "t.npz")
    np.testing.assert_array_equal(found["x"], value)
    np.testing.assert_array_equal(found["every second"], value[::2])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"random" * 100, b"\x93NUMPY\x01\x00"])
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"t\.npz"):
        read_tensors(tmp_path / "t.npz")


def test_truncated_at_every_length(tmp_path: Path) -> None:
    write_tensors(tmp_path / "whole.npz", {"x": np.arange(9, dtype=np.float32)})
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "t.npz").write_bytes(whole[:length])
        with pytest.raises(UsageError):
            read_tensors(tmp_path / "t.npz")


def test_flipped_byte_in_the_data_is_noticed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.npz", {"x": np.arange(100, dtype=np.int64)})
    content = bytearray((tmp_path / "t.npz").read_bytes())
    content[content.index(np.int64(50).tobytes())] ^= 1
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(UsageError, match="CRC"):
        read_tensors(tmp_path / "t.npz")


class _Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array(stream, np.array([_Trap(mark)], object), allow_pickle=True)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(_Trap(mark)))
    for name in ("t.npz", "bare.npz"):
        with pytest.raises(UsageError):
            read_tensors(tmp_path / name)
    assert not mark.exists()


def test_missing_file_and_single_array(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_tensors(tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(UsageError, match=r"not an \.npz"):
        read_tensors(tmp_path / "one.npy")
    assert read_tensor(tmp_path / "one.npy").tolist() == [1, 1, 1]
    write_tensors(tmp_path / "t.npz", {"x": np.ones(3)})
    with pytest.raises(UsageError, match=r"not an \.npy"):
        read_tensor(tmp_path / "t.npz")


def test_bfloat16_and_strings_travel(tmp_path: Path) -> None:
    numbers = np.array([1.5, -2], ml_dtypes.bfloat16)
    words = np.array([["a", "longer"], ["", "ä"]], object)  # as ONNX Runtime gives them
    write_tensors(tmp_path / "t.npz", {"numbers": numbers, "words": words})
    found = read_tensors(tmp_path / "t.npz")
    assert found["numbers"].dtype == ml_dtypes.bfloat16
    assert found["numbers"].tolist() == numbers.tolist()
    assert found["words"].tolist() == words.tolist()


def test_objects_are_refused_not_pickled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`x` holds objects"):
        write_tensors(tmp_path / "t.npz", {"x": np.array([{}], object)})
    assert list(tmp_path.iterdir()) == []


def test_any_damage_is_one_kind_of_error(tmp_path: Path) -> None:
    """500 archives with a few random bytes each: the same tensors, or a UsageError."""
    random = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "packed.npz", x=np.arange(50), y=np.eye(3))
    write_tensors(tmp_path / "plain.npz", {"x": np.arange(50), "y": np.eye(3)})
    refused = 0
    for turn in range(500):
        content = bytearray((tmp_path / ("packed.npz", "plain.npz")[turn % 2]).read_bytes())
        for place in random.integers(0, len(content), 3):
            content[place] = random.integers(0, 256)
        (tmp_path / "t.npz").write_bytes(content)
        try:
            read_tensors(tmp_path / "t.npz")
        except UsageError:
            refused += 1
    assert refused > 300


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 64 KiB: writing more fails in the kernel as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_leaves_the_old_file(tmp_path: Path, full_disk: None) -> None:
    write_tensors(tmp_path / "t.npz", {"x": np.arange(3)})
    with pytest.raises(OutputError, match=r"t\.npz"):
        write_tensors(tmp_path / "t.npz", {"x": np.zeros(100_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]
    assert read_tensors(tmp_path / "t.npz")["x"].tolist() == [0, 1, 2]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_tensors(tmp_path / "absent" / "t.npz", {"x": np.ones(1)})


def test_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "t.npz", {"x": np.ones(1)})
    assert list(tmp_path.iterdir()) == []
