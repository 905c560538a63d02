# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["tensorflow-cpu==2.21.0", "tf2onnx==1.17.0", "onnx==1.23.2", "numpy>=1.26,<3"]
#
# [tool.deploykit]
# name = "keras-code"
# summary = "Keras models by reference, `module.py:callable`, also with weights in a file of their own"
# formats = ["keras/reference"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# weights = "file of weights that the model loads (default: those that the code gives it)"
# ///
"""Keras by reference: the user's code builds the model in Keras itself, our own map converts it.

The environment is that of the TensorFlow converter. Keras saves what the code built as an archive,
and `converters/keras` reads that; the reference is Keras.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import user_code
from deploykit.definition_session import DefinitionSession
from deploykit.errors import SourceError, UsageError
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
    import numpy as np

    Array = np.ndarray[Any, Any]

HINT = "return a keras.Model"


def inspect(source: Source) -> Signature:
    """Return inputs and outputs under the names of their layers.

    Raises SourceError where the code returns no model, UsageError where its weights do not fit,
    UnsupportedError where a layer has no ONNX form.
    """
    from deploykit._plugins.converters.keras import plugin

    model = _model(source)
    with tempfile.TemporaryDirectory() as folder:
        signature: Signature = plugin.inspect(_saved(model, source, Path(folder)))
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX. Raises as `inspect` does."""
    from deploykit._plugins.converters.keras import plugin

    model = _model(request.source)
    with tempfile.TemporaryDirectory() as folder:
        source = _saved(model, request.source, Path(folder))
        result: ConvertResult = plugin.convert(replace(request, source=source))
    return result


def reference(request: ReferenceRequest) -> Session:
    """Return the model in Keras, at inference. Raises as `inspect` does."""
    model = _model(request.source)
    if request.threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(request.threads)
    signature = inspect(request.source)

    def evaluate(feed: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        given = [feed[spec.name] for spec in signature.inputs]
        found = model(given if len(given) > 1 else given[0], training=False)
        several = found if isinstance(found, (list, tuple)) else [found]
        return {
            spec.name: np.asarray(value)
            for spec, value in zip(signature.outputs, several, strict=True)
        }

    session: Session = DefinitionSession(signature, evaluate)
    return session


def _model(source: Source) -> Any:
    for key in source.options:
        if key != "weights":
            raise UsageError(
                f"the Keras converter of code has no setting `{key}`", hint="it has: weights"
            )
    phase("importing Keras")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    phase("building the model")
    keras.utils.set_random_seed(0)  # a model of random weights must be the same in every worker
    model = user_code.made_by_user(source.location, hint=HINT)
    if not isinstance(model, keras.Model):
        raise SourceError(
            f"`{source.location}` returned a {type(model).__name__}, not a keras.Model",
            hint=HINT,
        )
    weights = source.options.get("weights")
    if weights is not None:
        if not Path(weights).is_file():
            raise UsageError(f"there is no file `{weights}` with weights")
        try:
            model.load_weights(weights)
        except (ValueError, KeyError, OSError) as error:
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise UsageError(
                f"the weights `{weights}` do not fit the model of `{source.location}`: {first}",
                hint="name the weights that this code was trained to",
            ) from error
    return model


def _saved(model: Any, source: Source, folder: Path) -> Source:
    """Save the model as an archive; return it as a source with the user's inputs."""
    path = folder / "model.keras"
    phase("saving the model")
    model.save(path)
    return Source(location=str(path), format="keras/v3", inputs=source.inputs, trust=source.trust)
