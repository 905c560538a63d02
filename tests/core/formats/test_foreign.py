"""Formats that are named: Keras, MXNet, Caffe, Caffe2, CNTK, Core ML; and what is no model."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import SourceError
from deploykit.formats import inspect
from tests.core.formats.protobuf_writer import field


def test_keras_hdf5(models: Path) -> None:
    found = inspect(models / "keras.h5")
    assert (found.format, found.framework) == ("keras/hdf5", "Keras")
    assert found.operators == {"Dense": 1, "InputLayer": 1}
    assert found.details == {
        "producer": "Keras 3.15.1",
        "backend": "tensorflow",
        "model": "Functional",
    }


def test_keras_archive(models: Path) -> None:
    found = inspect(models / "model.keras")
    assert found.format == "keras/v3"
    assert found.operators == {"Dense": 1, "InputLayer": 1}


def test_truncated_hdf5(models: Path) -> None:
    path = models / "keras.h5"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match="truncated HDF5"):
        inspect(path)


def mxnet(folder: Path) -> None:
    nodes = [
        {"op": "null", "name": "data", "inputs": []},
        {"op": "FullyConnected", "name": "fc", "inputs": [[0, 0, 0]]},
    ]
    symbol = {
        "nodes": nodes,
        "arg_nodes": [0],
        "heads": [[1, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10901]},
    }
    (folder / "net-symbol.json").write_text(json.dumps(symbol))
    array = struct.pack("<IiI2qiii", 0xF993FAC9, 0, 2, 3, 2, 1, 0, 0) + bytes(24)
    names = struct.pack("<QQ", 1, 4) + b"arg:"
    (folder / "net-0003.params").write_bytes(struct.pack("<QQQ", 0x112, 0, 1) + array + names)


def test_mxnet(tmp_path: Path) -> None:
    mxnet(tmp_path)
    found = inspect(tmp_path)
    assert found.format == "mxnet/symbol"
    assert found.parameters == 6
    assert found.operators == {"FullyConnected": 1}
    assert found.details["producer"] == "MXNet 1.9.1"
    assert len(found.files) == 2


def test_mxnet_without_weights_and_weights_without_symbol(tmp_path: Path) -> None:
    mxnet(tmp_path)
    (tmp_path / "net-0003.params").rename(tmp_path / "w")
    with pytest.raises(SourceError, match=r"weights of .* are missing"):
        inspect(tmp_path / "net-symbol.json")
    with pytest.raises(SourceError, match="MXNet parameters and no graph"):
        inspect(tmp_path / "w")
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "net-0000.params").write_bytes(whole[:60])
    with pytest.raises(SourceError, match="truncated MXNet parameter file"):
        inspect(tmp_path / "net-symbol.json")


def caffe(*, old: bool = False) -> bytes:
    if old:
        blob = field(1, 1) + field(2, 1) + field(3, 3) + field(4, 2) + field(5, bytes(24))
        layer = field(2, "data") + field(3, "fc") + field(4, "fc") + field(5, 14) + field(6, blob)
        return field(1, "Net") + field(2, layer)
    blob = field(5, bytes(24)) + field(7, field(1, bytes([3, 2])))
    layer = field(1, "fc") + field(2, "InnerProduct") + field(3, "data") + field(7, blob)
    return field(1, "Net") + field(100, layer)


@pytest.mark.parametrize("old", [False, True])
def test_caffe(tmp_path: Path, old: bool) -> None:
    (tmp_path / "net.caffemodel").write_bytes(caffe(old=old))
    (tmp_path / "deploy.prototxt").write_text('name: "Net"\nlayer {\n  type: "InnerProduct"\n}\n')
    found = inspect(tmp_path)
    assert found.format == "caffe/caffemodel"
    assert found.location == str(tmp_path / "net.caffemodel")
    assert found.operators == {"INNER_PRODUCT" if old else "InnerProduct": 1}
    assert found.parameters == 6
    assert len(found.files) == 2
    assert inspect(tmp_path / "deploy.prototxt").location == found.location
    (tmp_path / "net.caffemodel").unlink()
    with pytest.raises(SourceError, match=r"weights of .* are missing"):
        inspect(tmp_path)


def test_caffe2(tmp_path: Path) -> None:
    shape = field(5, field(1, "shape") + field(6, 3) + field(6, 2))
    values = field(5, field(1, "values") + b"".join(field(5, bytes(4)) for _ in range(6)))
    fill = field(2, field(2, "w") + field(4, "GivenTensorFill") + shape + values)
    use = field(1, "net") + field(2, field(1, "x") + field(1, "w") + field(2, "y") + field(4, "FC"))
    (tmp_path / "init_net.pb").write_bytes(fill)
    (tmp_path / "predict_net.pb").write_bytes(use)
    for location in (tmp_path, tmp_path / "init_net.pb", tmp_path / "predict_net.pb"):
        found = inspect(location)
        assert found.format == "caffe2/net"
        assert found.location == str(tmp_path / "predict_net.pb")
        assert found.operators == {"FC": 1}
        assert found.parameters == 6
    (tmp_path / "init_net.pb").unlink()
    with pytest.raises(SourceError, match=r"no `init_net\.pb` beside it"):
        inspect(tmp_path)


def test_cntk(tmp_path: Path) -> None:
    first = tmp_path / "one.dnn"
    body = "BCN\0BVersion\0".encode("utf-16-le") + struct.pack("<Q", 14)
    first.write_bytes(body + "ECN\0".encode("utf-16-le"))
    found = inspect(first)
    assert (found.format, found.converter) == ("cntk/v1", "cntk")
    assert found.details == {"format version": "14"}
    oldest = "BCN\0".encode("utf-16-le") + struct.pack("<Q", 0)
    first.write_bytes(oldest + "BNodeList\0ENodeList\0ECN\0".encode("utf-16-le"))
    assert inspect(first).details == {"format version": "1"}
    first.write_bytes(body)
    with pytest.raises(SourceError, match="end marker"):
        inspect(first)
    second = tmp_path / "two.dnn"
    entry = field(1, "version") + field(2, field(1, 1) + field(2, 3) + field(5, 2))
    second.write_bytes(field(1, 2) + field(2, entry))
    assert inspect(second).format == "cntk/v2"


def test_core_ml(tmp_path: Path) -> None:
    description = field(1, field(1, "image") + field(3, field(1000, 0)))
    model = field(1, 7) + field(2, description) + field(500, b"")
    data = tmp_path / "net.mlpackage" / "Data" / "com.apple.CoreML"
    data.mkdir(parents=True)
    (data / "model.mlmodel").write_bytes(model)
    assert inspect(data / "model.mlmodel").format == "coreml/mlmodel"
    (tmp_path / "net.mlpackage" / "Manifest.json").write_text("{}")
    found = inspect(tmp_path)
    assert found.format == "coreml/mlpackage"
    assert found.location == str(tmp_path / "net.mlpackage")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"GGUF" + bytes(20), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "the download went wrong"),
        (b"Dear sir, please find the model attached.", "a text file"),
        ("déjà vu ".encode() * 20_000, "a text file"),
        (b'{"a": 1}', "a text file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file without a Keras model"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "file.bin").write_bytes(content)
    with pytest.raises(SourceError, match="not a model") as caught:
        inspect(tmp_path / "file.bin")
    assert words in caught.value.message


def test_random_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 100, 4096):
        for _ in range(40):
            (tmp_path / "file.bin").write_bytes(random.bytes(size))
            with pytest.raises(SourceError):
                inspect(tmp_path / "file.bin")
            (tmp_path / "file.bin").unlink()
