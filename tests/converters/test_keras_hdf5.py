"""HDF5 files on which the HDF5 library crashes or never ends: an error, and soon."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from deploykit._plugins.converters.keras import hdf5, plugin

from deploykit.errors import SourceError
from deploykit.protocol import Source

h5py = pytest.importorskip("h5py")
MODELS = Path(os.environ.get("DEPLOYKIT_MODELS", Path(__file__).parents[3] / "shared" / "models"))
REAL = MODELS / "keras_h5" / "dl4j_conv2d_theano_1" / "conv2d_theano_1.h5"


def patched(path: Path, at: int, new: bytes, old: bytes | None = None) -> Path:
    """Write the real model to `path` with `new` at byte `at`."""
    content = bytearray(REAL.read_bytes())
    if old is not None:
        assert content[at : at + len(old)] == old
    content[at : at + len(new)] = new
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        plugin.inspect(Source(location=str(path), format="keras/hdf5"))
    return str(caught.value)


def test_a_heap_that_the_library_walks_for_ever_is_refused(tmp_path: Path) -> None:
    """The free rest of the heap, of no size, where the text is looked for: found by the fuzzer."""
    heap = REAL.read_bytes().index(hdf5.HEAP)
    path = patched(tmp_path / "m.h5", heap + 16, bytes(16))
    assert f"heap of texts at byte {heap}" in refusal(path)


def test_a_file_that_crashes_the_library_is_refused(tmp_path: Path) -> None:
    """A type of variable length that is neither text nor a sequence: found by the fuzzer."""
    path = patched(tmp_path / "m.h5", 857, b"\x05", old=b"\x01")
    assert "SIGSEGV" in refusal(path) or "damaged" in refusal(path)


@pytest.mark.parametrize("width", [4, 8])
def test_heaps_of_whole_files_pass(width: int, tmp_path: Path) -> None:
    texts = ["", "a", "longer than eight", "x" * 5000]
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plist.set_sizes(8, width)
    raw = h5py.h5f.create(str(tmp_path / "t.h5").encode(), fcpl=plist)
    with h5py.File(raw) as file:
        for number, text in enumerate(texts):
            file.attrs[f"t{number}"] = text
        file.create_dataset("d", data=texts)
    with hdf5.opened(tmp_path / "t.h5") as file:
        assert [file.attrs[f"t{number}"] for number in range(len(texts))] == texts
    content = (tmp_path / "t.h5").read_bytes()
    assert hdf5.HEAP in content
    with hdf5.opened(content) as file:
        assert [text.decode() for text in file["d"]] == texts


def test_what_the_rehearsal_raises_or_prints_is_left_to_the_performance(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise KeyError("x")

    hdf5.rehearse(fails, tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_rehearsal_that_crashes(number: signal.Signals, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=number.name):
        hdf5.rehearse(lambda: os.kill(os.getpid(), number), tmp_path)


def test_a_rehearsal_without_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def works() -> Any:
        while True:
            pass

    monkeypatch.setattr(hdf5, "LEAST_S", 1)
    with pytest.raises(ValueError, match="SIGXCPU"):
        hdf5.rehearse(works, tmp_path)
    monkeypatch.setattr(hdf5, "WAITING_S", 0)
    with pytest.raises(ValueError, match="SIGALRM"):
        hdf5.rehearse(lambda: time.sleep(30), tmp_path)
