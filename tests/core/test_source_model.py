"""A source model's identity: the hash of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from deploykit import plugins
from deploykit.errors import UsageError
from deploykit.source_model import hash_files, newest_opset


def test_of_one_file_it_is_what_sha256sum_says(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    assert hash_files([tmp_path / "a"]) == hashlib.sha256(b"weights").hexdigest()


def test_of_several_it_depends_on_names_contents_and_nothing_else(tmp_path: Path) -> None:
    def of(folder: str, **contents: bytes) -> str:
        (tmp_path / folder).mkdir()
        for name, content in contents.items():
            (tmp_path / folder / name).write_bytes(content)
        return hash_files(sorted((tmp_path / folder).iterdir()))

    first = of("one", a=b"1", b=b"2")
    assert of("two", a=b"1", b=b"2") == first
    assert len({first, of("3", a=b"2", b=b"1"), of("4", a=b"1", c=b"2"), of("5", a=b"12")}) == 4


def test_the_newest_opset_is_the_oldest_of_what_the_targets_load() -> None:
    own = {name: plugins.target(name).newest_opset for name in ("onnxruntime", "openvino")}
    assert all(own.values())
    assert newest_opset(("onnxruntime", "openvino:cpu")) == min(filter(None, own.values()))
    assert newest_opset(()) is None
    with pytest.raises(UsageError, match="openvin"):
        newest_opset(("openvin",))
