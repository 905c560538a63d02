"""Damaged and hostile files: an error or a result, never a crash, a hang or gigabytes."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import SourceError
from deploykit.formats.locate import read
from tests.core.formats.conftest import FIXTURES
from tests.core.formats.protobuf_writer import field, varint

FILES = (
    "small.onnx",
    "frozen.pb",
    "saved_model/saved_model.pb",
    "saved_model/variables/variables.index",
    "checkpoint/model.ckpt.meta",
    "checkpoint/model.ckpt.index",
    "model.tflite",
    "paddle_program/model.pdmodel",
    "paddle_program/model.pdiparams",
    "paddle_pir/model.json",
    "program.pt2",
    "traced.pt",
    "lite.ptl",
    "state_dict.pth",
    "legacy.pth",
    "whole_module.pth",
    "keras.h5",
    "model.keras",
)
MODEL_OF = {
    "saved_model/variables/variables.index": "saved_model",
    "paddle_program/model.pdiparams": "paddle_program",
}
"""Where a part is damaged, and the whole is looked at."""

FAST = settings(
    max_examples=80,
    deadline=3000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let the process grow by no more than half a gigabyte."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, small_onnx: Path) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "models"
    shutil.copytree(FIXTURES, folder, ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(small_onnx, folder / "small.onnx")
    return folder


def look_at(path: Path) -> str:
    """Return the message of the error, empty where there is a result; nothing else may happen."""
    try:
        read(path, None)
    except SourceError as error:
        message = error.message
    else:
        return ""
    assert message.isprintable()
    assert len(message) < 2000
    return message


def look_at_damaged(workplace: Path, name: str, content: bytes) -> None:
    """Put `content` in the place of the file `name`, look at the model, and put things right."""
    path = workplace / name
    whole = path.read_bytes()
    # a new file each time: the old one may still be mapped
    path.unlink()
    path.write_bytes(content)
    try:
        look_at(workplace / MODEL_OF.get(name, name))
    finally:
        path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
@FAST
@given(data=st.data())
def test_truncated(workplace: Path, name: str, data: st.DataObject) -> None:
    whole = (workplace / name).read_bytes()
    look_at_damaged(workplace, name, whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize("name", FILES)
@FAST
@given(data=st.data())
def test_changed_bytes(workplace: Path, name: str, data: st.DataObject) -> None:
    damaged = bytearray((workplace / name).read_bytes())
    # beginnings and ends hold the structure, the rest mostly weights
    places = st.one_of(st.integers(0, min(400, len(damaged) - 1)), st.integers(0, len(damaged) - 1))
    for at in data.draw(st.lists(places, min_size=1, max_size=8)):
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, damaged[at] ^ 4]))
    look_at_damaged(workplace, name, bytes(damaged))


@FAST
@given(content=st.binary(min_size=1, max_size=300), name=st.sampled_from(FILES))
def test_garbage_after_a_true_beginning(workplace: Path, content: bytes, name: str) -> None:
    whole = (workplace / name).read_bytes()
    look_at_damaged(workplace, name, whole[:24] + content)


def deep_json(depth: int) -> bytes:
    return b'{"base_code":{"magic":"pir"},"program":' + b"[" * depth + b"]" * depth + b"}"


def deep_onnx_type(depth: int) -> bytes:
    kind = field(1, field(1, 1))
    for _ in range(depth):
        kind = field(4, field(1, kind))
    given_input = field(11, field(1, "x") + field(2, kind))
    graph = field(1, field(1, "x") + field(2, "y") + field(4, "Relu")) + given_input
    return field(1, 9) + field(7, graph) + field(8, field(2, 18))


def deep_cntk(depth: int) -> bytes:
    value = field(1, 1) + field(2, 1)
    for _ in range(depth):
        inner = field(1, 1) + field(2, field(1, "k") + field(2, value))
        value = field(1, 1) + field(2, 10) + field(12, inner)
    return value


HOSTILE = {
    "deep json": deep_json(200_000),
    "deep types": deep_onnx_type(5000),
    "shape of a million sizes": field(1, 9)
    + field(7, field(1, field(4, "Relu")) + field(5, field(1, 7) * 1_000_000))
    + field(8, field(2, 18)),
    "sizes that multiply without end": field(1, 9)
    + field(7, field(1, field(4, "Relu")) + field(5, field(1, (1 << 62) - 1) * 64 + field(2, 1)))
    + field(8, field(2, 18)),
    "field of 2^63 bytes": field(1, 9) + varint(7 << 3 | 2) + varint(1 << 63) + b"\x0a\x00",
    "pickle with a string of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"a.",
    "pickle of doubling": b"\x80\x02)" + b"2\x86" * 5000 + b".",
    "pickle of depth": b"\x80\x02(" + b"]" * 300_000 + b"\x85" * 100_000 + b".",
    "pickle memo": b"\x80\x02" + b"}" + b"r\xff\xff\xff\x7f" * 1000 + b".",
    "tflite vector of 2^32": struct.pack("<I4sHHHHiI", 16, b"TFL3", 6, 8, 4, 0, 8, 4)
    + struct.pack("<I", 0xFFFF_FFFF),
    "leveldb handles": bytes(100)
    + varint(0) * 2
    + varint(1 << 60) * 2
    + bytes(40 - 2 - 18)
    + bytes.fromhex("57fb808b247547db"),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(92) + b"model_config\0" * 1000,
    "mxnet count": b'{"nodes": [{"op": ' + b"[" * 100_000,
    "cntk dictionaries": field(1, 1) + field(2, field(1, "k") + field(2, deep_cntk(5000))),
    "cntk length": b"ktnc" + b"\xff" * 4 + field(1, 1) + field(2, field(1, "k") + field(2, b"")),
    "keras json": b'{"class_name": "Sequential", "config": ' + b"[" * 100_000,
    "cntk v1 of 2^63 nodes": "BCN\0BVersion\0".encode("utf-16-le")
    + struct.pack("<Q", (1 << 64) - 1)
    + "EVersion\0".encode("utf-16-le")
    + struct.pack("<Q", 1 << 63)
    + "ECN\0".encode("utf-16-le"),
    "xdl graph": field(1, field(1, "/KSum") + field(2, "KSum")) * 1000
    + b"\x0a\xff\xff\xff\xff\x0f",
    "xdl graph of depth": b'node {\n  name: "/KSum"' + b" attr { value {" * 100_000,
    "paddle parameters": struct.pack("<IQ", 0, 3) + struct.pack("<Q", 1 << 63) * 4,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[name])
    look_at(path)


def test_hostile_members(tmp_path: Path) -> None:
    """What is inside an archive is as little to be trusted as the archive."""
    numbers = itertools.count()
    bodies = [
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"null",
        b'{"graph_module": 1}',
        b"\xff\xfe",
        json.dumps(
            {
                "graph_module": {
                    "signature": {
                        "input_specs": [{"user_input": {"arg": {"as_tensor": {"name": "x"}}}}],
                        "output_specs": [],
                    },
                    "graph": {
                        "nodes": [],
                        "tensor_values": {"x": {"dtype": 7, "sizes": [{"as_int": 1e999}]}},
                    },
                }
            }
        ).encode(),
    ]
    for body in bodies:
        path = tmp_path / f"{next(numbers)}.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/archive_format", "pt2")
            archive.writestr("m/models/model.json", body)
        with pytest.raises(SourceError, match="damaged or truncated PyTorch ExportedProgram"):
            read(path, None)
        path = tmp_path / f"{next(numbers)}.keras"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("config.json", "metadata.json", "model.weights.h5"):
                archive.writestr(name, body)
        assert look_at(path) == "" or "Keras archive" in look_at(path)
