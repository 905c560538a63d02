# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "scikit-learn==1.9.1",
#     "skl2onnx==1.20.0",
#     "skops==0.16.0",
#     "xgboost-cpu==3.2.0",
#     "lightgbm==4.7.0",
#     "pandas==3.1.1",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "numpy>=2,<3",
# ]
#
# [tool.deploykit]
# name = "scikit-learn"
# summary = "scikit-learn pickles and skops files, XGBoost and LightGBM models"
# formats = ["scikit-learn/pickle", "scikit-learn/skops", "xgboost/model", "lightgbm/model"]
# functions = ["inspect", "convert", "reference"]
# ///
"""scikit-learn, XGBoost and LightGBM to ONNX: labels and probabilities as plain tensors.

Linear models, preprocessing and pipelines go through skl2onnx. Ensembles of trees are written by
ourselves, with thresholds that split float32 inputs where the library splits them, and missing
values sent where it sends them. Every result is then tried on inputs around the model's own
thresholds, which inputs drawn without knowing them would miss.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from deploykit.definition_session import DefinitionSession
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)

if TYPE_CHECKING:
    from deploykit._plugins.converters.scikit_learn.loading import Loaded

PACKAGES = ("scikit-learn", "skl2onnx", "xgboost-cpu", "lightgbm", "onnx")


def inspect(source: Source) -> Signature:
    """Return inputs and outputs.

    Raises UnsupportedError where loading would run code and is not trusted, SourceError where the
    file is damaged or no fitted model, UsageError for an input that the model does not have.
    """
    signature: Signature = _load(source).signature
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX.

    Raises as `inspect` does, UnsupportedError where a step has no ONNX form or the ONNX model decides
    otherwise than the library around the model's thresholds.
    """
    from deploykit._plugins.converters.scikit_learn.checking import check
    from deploykit._plugins.converters.scikit_learn.emission import to_onnx

    from deploykit.onnx_file import opset_of, strip_traces, write_model

    loaded = _load(request.source, request)
    phase("writing the ONNX model")
    model = to_onnx(loaded, request.opset)
    strip_traces(model)
    notes = check(model, loaded)
    signature = write_model(model, request.output)
    return ConvertResult(
        signature=signature,
        opset=opset_of(model),
        repairs=(*loaded.notes, *notes),
        versions={name: version(name) for name in PACKAGES},
    )


def reference(request: ReferenceRequest) -> Session:
    """Return the library itself. Raises as `inspect` does."""
    loaded = _load(request.source)
    session: Session = DefinitionSession(loaded.signature, loaded.predict)
    return session


def _load(source: Source, request: ConvertRequest | None = None) -> Loaded:
    from deploykit._plugins.converters.scikit_learn.loading import load

    return load(source, request.dynamic if request else ())
