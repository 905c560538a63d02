"""What a model on disk is: its format by its content, and what can be read without a framework.

Standard library only, and fast: files are memory-mapped, and weights are never read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import UnsupportedError
from deploykit.protocol import Signature, to_json

FRAMEWORKS = {
    "onnx": "ONNX",
    "pytorch": "PyTorch",
    "tensorflow": "TensorFlow",
    "paddle": "PaddlePaddle",
    "keras": "Keras",
    "mxnet": "Apache MXNet",
    "caffe": "Caffe",
    "caffe2": "Caffe2",
    "cntk": "Microsoft CNTK",
    "coreml": "Apple Core ML",
    "xdl": "XDL",
    "theano": "Theano",
    "jax": "JAX",
    "hugging-face": "Hugging Face transformers",
    "scikit-learn": "scikit-learn",
    "xgboost": "XGBoost",
    "lightgbm": "LightGBM",
}


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found out about a model without running it or importing its framework.

    `location` is what to give to a converter; `converter` is None where this version has none.
    `signature` is None where only running code can tell; in it, a dtype `unknown` and a shape
    None mean that the file does not say. `operators` counts the graph's operators by name,
    `parameters` the elements of constant tensors (int64 and bool ones, which are shapes and
    indices, left out). `files` are the sizes in bytes of all that belongs to it, by absolute path.
    """

    location: str
    format: str
    framework: str
    converter: str | None
    signature: Signature | None
    operators: dict[str, int]
    parameters: int | None
    files: dict[str, int]
    details: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return this as plain JSON values."""
        value: dict[str, Any] = to_json(self)
        return value


def inspect(
    location: str | Path,
    *,
    format: str | None = None,
    trust: bool = False,
    elsewhere: bool = False,
) -> Inspection:
    """Say what the model at `location` is: a file, a folder, or `module.py:callable`.

    Nothing is imported or unpickled. `format` (such as `tensorflow/graph_def`) skips recognition.
    `trust` accepts a pickle that runs code when a converter loads it, `elsewhere` a graph whose
    weights are not beside it.

    Raises SourceError where there is no model, an incomplete or damaged one, or more than one;
    UsageError for an unknown `format`.
    """
    from deploykit.formats.content import size_of
    from deploykit.formats.locate import read

    reading = read(location, format, trust=trust, elsewhere=elsewhere)
    return Inspection(
        location=_absolute(reading.location) + reading.member,
        format=reading.format,
        framework=FRAMEWORKS[reading.format.split("/", 1)[0]],
        converter=_converter(reading.format),
        signature=reading.signature,
        operators=reading.operators,
        parameters=reading.parameters,
        files={_absolute(path): size_of(path) for path in reading.files},
        details=reading.details,
    )


def formats() -> tuple[str, ...]:
    """Return the names of all formats that `inspect` recognises."""
    from deploykit.formats.locate import FOLDERS_AND_CODE
    from deploykit.formats.recognise import READERS

    return (*READERS, *FOLDERS_AND_CODE)


def _absolute(path: Path) -> str:
    # not resolved: beside a link lie other files than beside what it points to
    return os.path.abspath(path)  # noqa: PTH100


def _converter(format: str) -> str | None:
    from deploykit.plugins import converter_for

    try:
        return converter_for(format).name
    except UnsupportedError:
        return None
