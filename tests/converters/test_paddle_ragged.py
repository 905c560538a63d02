"""Paddle 1 programs with ragged inputs: rows and lengths in ONNX give what Paddle's sequences give."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import deploykit as dk
from benchmarks import golden_models
from deploykit import environments, plugins
from deploykit.errors import UnsupportedError, UsageError
from deploykit.tensors import write_tensors

pytestmark = pytest.mark.environment

MAKE_MODELS = Path(__file__).resolve().parent.parent / "fixtures" / "make_ragged_models.py"
Array = np.ndarray[Any, Any]
TOLERANCE = dk.Tolerance(atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs with every operator on sequences, made and computed by Paddle itself."""
    folder = tmp_path_factory.mktemp("ragged")
    python = environments.interpreter(plugins.converter("paddle"), install=True)
    subprocess.run([str(python), str(MAKE_MODELS), str(folder)], check=True, capture_output=True)
    return folder


def run(path: Path, feed: Mapping[str, Array]) -> list[Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(feed))
    return outputs


@pytest.mark.parametrize("name", ["text", "attention", "lstm", "gru"])
def test_sequences_give_what_paddle_gives(made: Path, tmp_path: Path, name: str) -> None:
    golden = np.load(made / name / "golden.npz")
    done = dk.convert(made / name, tmp_path / "out.onnx", checks=dk.Checks(seeds=1))
    assert "ragged inputs became rows" in done.repairs[0]
    feed = {key[3:]: golden[key] for key in golden if key.startswith("in_")}
    assert {spec.name for spec in done.signature.inputs} == set(feed)
    found = run(tmp_path / "out.onnx", feed)
    assert len(found) == 2
    for number, output in enumerate(found):
        np.testing.assert_allclose(output, golden[f"out_{number}"], rtol=1e-4, atol=1e-5)


def test_a_click_predictor_of_2019(shared_models: Path, tmp_path: Path) -> None:
    model = golden_models.read(shared_models / "paddle1" / "ctr_prediction")
    done = dk.convert(model.folder, tmp_path / "out.onnx", checks=dk.Checks(seeds=1))
    assert done.verified
    assert golden_models.judge(tmp_path / "out.onnx", model, TOLERANCE) == "right"
    # the proof has sequences of different lengths: one that mixed them up would show
    feed = dict(model.feed)
    lengths = [name for name in feed if name.endswith(".lengths")]
    feed |= {name: np.array([4, 1]) for name in lengths}
    (other,) = run(tmp_path / "out.onnx", feed)
    assert np.abs(other - next(iter(model.expected.values()))).max() > 1e-3


def test_lengths_that_do_not_add_up_are_refused_by_the_reference(
    made: Path, tmp_path: Path
) -> None:
    golden = np.load(made / "gru" / "golden.npz")
    sample = tmp_path / "inputs.npz"
    write_tensors(sample, {"rows": golden["in_rows"], "rows.lengths": np.array([1, 2])})
    with pytest.raises(UsageError, match="adds up to 3, `rows` has 11 rows"):
        dk.convert(made / "gru", tmp_path / "out.onnx", checks=dk.Checks(sample=sample))
    assert not (tmp_path / "out.onnx").exists()


def test_an_operator_without_a_form_is_named_with_what_it_makes(made: Path, tmp_path: Path) -> None:
    program = (made / "gru" / "__model__").read_bytes()
    assert program.count(b"\x1a\x07dropout") == 1
    (tmp_path / "__model__").write_bytes(program.replace(b"\x1a\x07dropout", b"\x1a\x07digamma"))
    (tmp_path / "__params__").write_bytes((made / "gru" / "__params__").read_bytes())
    with pytest.raises(UnsupportedError, match=r"digamma \(makes `dropout_\d+.tmp`\)") as caught:
        dk.convert(tmp_path, tmp_path / "out.onnx")
    assert caught.value.operators == ("digamma",)


def test_the_file_keeps_the_names_of_the_source(made: Path, tmp_path: Path) -> None:
    dk.convert(made / "text", tmp_path / "out.onnx", checks=dk.Checks(seeds=1))
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [value.name for value in graph.input] == ["ids", "ids.lengths"]
    sizes = [size.dim_param for value in graph.input for size in value.type.tensor_type.shape.dim]
    assert sizes == ["ids_rows", "", "batch"]
