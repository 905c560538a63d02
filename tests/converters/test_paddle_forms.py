"""Operators that paddle2onnx exports as something else: right after repair, or refused by name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploykit import environments, plugins
from deploykit.errors import UnsupportedError
from deploykit.formats import inspect
from deploykit.protocol import ConvertRequest, ConvertResult, Source
from deploykit.steps import Worker

pytestmark = pytest.mark.environment

MAKE_FORMS = Path(__file__).resolve().parent.parent / "fixtures" / "make_paddle_forms.py"


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    converter = plugins.converter("paddle")
    python = environments.interpreter(converter)
    with Worker(converter, python=python, label="test paddle", threads=2) as worker:
        yield worker


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms")
    python = environments.interpreter(plugins.converter("paddle"))
    subprocess.run(
        [python, "-W", "ignore", MAKE_FORMS, folder], check=True, timeout=120, capture_output=True
    )
    return folder


def convert(worker: Worker, path: Path, output: Path) -> ConvertResult:
    source = Source(location=str(path), format="paddle/pir")
    return worker.call("convert", ConvertRequest(source=source, output=str(output)), ConvertResult)


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("leaky_relu", "1 attributes from double"),
        ("group_norm", "1 attributes from double"),
        ("pad", "1 attributes from double"),
        ("hardtanh", "1 hardtanh with limits of their own"),
        ("gelus", "1 GELUs exported as exact"),
        ("expand_as", "1 expand_as to sizes known at run time"),
        ("states", "2 final states of the last recurrent layer"),
        ("lengths", "2 recurrent layers given the sequence lengths"),
        ("uneven", "1 adaptive poolings into windows of unequal size"),
        ("declared", "the declared image size stays"),
        ("regions_True", "1 region poolings"),
        ("regions_False", "1 region poolings"),
        ("suppressed_-1", "1 suppressions that took the unknown count"),
        ("suppressed_0", "1 suppressions that kept a box of the background"),
    ],
)
def test_repaired_forms_give_what_paddle_computes(
    worker: Worker, made: Path, tmp_path: Path, name: str, repair: str
) -> None:
    with np.load(made / f"{name}.npz") as stored:
        feed = {key[3:]: stored[key] for key in stored if key.startswith("in_")}
        expected = [stored[key] for key in stored if key.startswith("out_")]
    result = convert(worker, made / f"{name}.json", tmp_path / "out.onnx")
    assert repair in " | ".join(result.repairs)
    session = onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
    for actual, wanted in zip(session.run(None, feed), expected, strict=True):
        assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("simple_rnn", r"no mapping for pd_op\.rnn of mode RNN_TANH", "nn.LSTM"),
        ("channels_last", r"pd_op\.batch_norm_ of data_format NHWC", "NCHW"),
        ("many_images", r"pd_op\.multiclass_nms3 for one image only", "--input"),
        ("pooled", r"`pd_op\.pool2d`: Adaptive only support static", "--input"),
    ],
)
def test_other_forms_are_refused_by_name(
    worker: Worker, made: Path, tmp_path: Path, name: str, message: str, hint: str
) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        convert(worker, made / f"{name}.json", tmp_path / "out.onnx")
    assert hint in (caught.value.hint or "")
    assert caught.value.operators
    assert not list(tmp_path.iterdir())


def test_the_state_of_dropout_is_no_parameter_of_the_file(made: Path) -> None:
    found = inspect(made / "states.json")
    assert found.format == "paddle/pir"
    # two layers of two directions: weights of input and state, two biases
    assert found.parameters == 2 * (24 * 8 + 24 * 6 + 48) + 2 * (24 * 12 + 24 * 6 + 48)
