"""Paddle programs of both kinds, written by Paddle itself, and folders of Paddle 1."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from deploykit.errors import SourceError
from deploykit.formats import inspect
from deploykit.protocol import Signature, TensorSpec
from tests.core.formats.protobuf_writer import field

X = TensorSpec(name="x", dtype="float32", shape=(None, 3))


def test_program(models: Path) -> None:
    found = inspect(models / "paddle_program")
    assert (found.format, found.framework) == ("paddle/program", "PaddlePaddle")
    assert found.location == str(models / "paddle_program" / "model.pdmodel")
    assert found.signature is not None
    assert found.signature.inputs == (X,)
    assert [spec.shape for spec in found.signature.outputs] == [(None, 2)]
    assert found.operators == {"elementwise_add": 1, "matmul_v2": 1, "relu": 1}
    assert found.parameters == 8
    assert [Path(path).name for path in found.files] == ["model.pdmodel", "model.pdiparams"]
    assert found.details["producer"] == "Paddle 3.3.1"


def test_program_named_by_its_prefix_or_any_name(models: Path) -> None:
    folder = models / "paddle_program"
    assert inspect(folder / "model").location == str(folder / "model.pdmodel")
    shutil.move(folder / "model.pdmodel", folder / "graph.bin")
    assert inspect(folder / "graph.bin").format == "paddle/program"


def test_pir(models: Path) -> None:
    found = inspect(models / "paddle_pir")
    assert found.format == "paddle/pir"
    assert found.location == str(models / "paddle_pir" / "model.json")
    assert found.signature is not None
    assert found.signature.inputs == (X,)
    assert [spec.shape for spec in found.signature.outputs] == [(None, 2)]
    assert found.operators == {"add": 1, "matmul": 1, "relu": 1}
    assert found.parameters == 8
    assert len(found.files) == 2


@pytest.mark.parametrize("kind", ["paddle_program", "paddle_pir"])
def test_missing_weights(models: Path, kind: str) -> None:
    (models / kind / "model.pdiparams").unlink()
    with pytest.raises(SourceError, match=r"no `model\.pdiparams` beside it"):
        inspect(models / kind)


@pytest.mark.parametrize("kind", ["paddle_program", "paddle_pir"])
def test_truncated_weights(models: Path, kind: str) -> None:
    weights = models / kind / "model.pdiparams"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(SourceError, match="damaged or truncated Paddle parameter file"):
        inspect(models / kind)


def test_weights_of_another_program(models: Path) -> None:
    weights = models / "paddle_program" / "model.pdiparams"
    weights.write_bytes(weights.read_bytes() * 2)
    with pytest.raises(SourceError, match="4 tensors where the program has 2"):
        inspect(models / "paddle_program")


def test_weights_alone(models: Path) -> None:
    (models / "paddle_program" / "model.pdmodel").unlink()
    for location in (models / "paddle_program", models / "paddle_program" / "model.pdiparams"):
        with pytest.raises(SourceError, match="no graph"):
            inspect(location)


def tensor(dimensions: tuple[int, ...]) -> bytes:
    """A parameter of Paddle 1 on disk: float32 zeros."""
    description = field(1, 5) + b"".join(field(2, size) for size in dimensions)
    count = 1
    for size in dimensions:
        count *= size
    return struct.pack("<IQIi", 0, 0, 0, len(description)) + description + bytes(4 * count)


def fluid(folder: Path, *, names: tuple[str, ...] = ("fc.w_0", "fc.b_0")) -> None:
    """Write a folder as Paddle 1 does, a file for each parameter."""

    def variable(name: str, kind: int, shape: tuple[int, ...], persistable: int) -> bytes:
        description = field(1, 5) + b"".join(field(2, size) for size in shape)
        described = field(1, kind) + (field(3, field(1, description)) if shape else b"")
        return field(3, field(1, name) + field(2, described) + field(3, persistable))

    def operator(kind: str, source: str, result: str) -> bytes:
        pair = field(1, field(1, "X") + field(2, source)) + field(
            2, field(1, "Out") + field(2, result)
        )
        return field(
            4, pair + field(3, kind) + field(4, field(1, "col") + field(2, 0) + field(3, 0))
        )

    block = (
        field(1, 0)
        + field(2, -1)
        + variable("feed", 9, (), 1)
        + variable("x", 7, (-1, 3), 0)
        + variable("y", 7, (-1, 2), 0)
        + variable(names[0], 7, (3, 2), 1)
        + variable(names[1], 7, (2,), 1)
        + operator("feed", "feed", "x")
        + operator("mul", "x", "y")
        + operator("fetch", "y", "fetch")
    )
    folder.mkdir()
    (folder / "__model__").write_bytes(field(1, block))
    (folder / "fc.w_0").write_bytes(tensor((3, 2)))
    (folder / "fc.b_0").write_bytes(tensor((2,)))


def test_fluid_with_a_file_for_each_parameter(tmp_path: Path) -> None:
    fluid(tmp_path / "m")
    found = inspect(tmp_path / "m")
    assert found.format == "paddle/fluid"
    assert found.signature == Signature(
        inputs=(X,), outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 2)),)
    )
    assert found.parameters == 8
    assert len(found.files) == 3


def test_fluid_with_one_file_for_all(tmp_path: Path) -> None:
    fluid(tmp_path / "m")
    for name in ("fc.w_0", "fc.b_0"):
        (tmp_path / "m" / name).unlink()
    (tmp_path / "m" / "__params__").write_bytes(tensor((2,)) + tensor((3, 2)))
    assert len(inspect(tmp_path / "m").files) == 2


def test_fluid_with_a_missing_parameter(tmp_path: Path) -> None:
    fluid(tmp_path / "m")
    (tmp_path / "m" / "fc.b_0").unlink()
    with pytest.raises(SourceError, match=r"1 of 2 weight files.*fc\.b_0"):
        inspect(tmp_path / "m")


def test_a_parameter_named_like_a_file_elsewhere_is_not_opened(tmp_path: Path) -> None:
    fluid(tmp_path / "m", names=("../../etc/passwd", "/etc/passwd"))
    with pytest.raises(SourceError, match="missing"):
        inspect(tmp_path / "m")
