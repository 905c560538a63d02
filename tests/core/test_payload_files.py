"""Files of a payload: whole or not there, and read again as what they were."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from deploykit.errors import BundleError
from deploykit.payload_files import read_record, write_record, write_whole


@dataclass(frozen=True)
class Note:
    name: str
    sizes: tuple[int, ...]


def test_a_record_comes_back(tmp_path: Path) -> None:
    note = Note(name="x", sizes=(1, 2))
    write_record(tmp_path / "note.json", note)
    assert read_record(tmp_path / "note.json", Note) == note
    first = (tmp_path / "note.json").read_bytes()
    write_record(tmp_path / "note.json", note)
    assert (tmp_path / "note.json").read_bytes() == first
    write_record(tmp_path / "plain.json", {"b": [1], "a": "x"})
    assert read_record(tmp_path / "plain.json", dict) == {"a": "x", "b": [1]}
    assert {path.name for path in tmp_path.iterdir()} == {"note.json", "plain.json"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"note\.json` is damaged"):
        read_record(path, Note)
    with pytest.raises(BundleError, match=r"absent\.json"):
        read_record(tmp_path / "absent.json", Note)


def test_what_is_there_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    write_whole(path, b"first")
    with pytest.raises(TypeError):
        write_whole(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"first"
    write_whole(path, memoryview(b"second"))
    assert path.read_bytes() == b"second"
