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
and `converters/keras` reads that; the reference is Keras. A model that our map cannot take is traced.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import user_code
from deploykit.definition_session import DefinitionSession
from deploykit.errors import SourceError, UnsupportedError, UsageError
from deploykit.plugin_settings import check_names
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
ARCHIVE = "keras/v3"


def inspect(source: Source) -> Signature:
    """Return inputs and outputs, under the names of their layers where our own map takes the model.

    Raises SourceError where the code returns no model, UsageError where its weights do not fit,
    UnsupportedError where an operator has no ONNX form.
    """
    with _opened(source) as (_, plugin, saved):
        signature: Signature = plugin.inspect(saved)
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX. Raises as `inspect` does."""
    with _opened(request.source) as (_, plugin, saved):
        result: ConvertResult = plugin.convert(replace(request, source=saved))
        if saved.format != ARCHIVE:
            note = "layers of the user's own, or with code: traced by TensorFlow"
            if Path(request.source.location).is_file():
                note += f"; bytecode in the file was run by Python {platform.python_version()}"
            result = replace(result, repairs=(*result.repairs, note))
    return result


def reference(request: ReferenceRequest) -> Session:
    """Return the model in Keras, at inference; a traced one in TensorFlow. Raises as `inspect` does."""
    with _opened(request.source) as (model, plugin, saved):
        if saved.format != ARCHIVE:
            traced: Session = plugin.reference(replace(request, source=saved))
            return traced
        signature: Signature = plugin.inspect(saved)
    if request.threads is not None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(request.threads)

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


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any, Source]]:
    """Build the model; yield it, the converter for it, and the model as that converter takes it.

    Our own map comes first. It knows no layers of the user's own and none with code (Lambda): such a
    model is traced by TensorFlow, which has it in this environment.
    """
    from deploykit._plugins.converters.keras import plugin as own
    from deploykit._plugins.converters.tensorflow import plugin as traced

    model = _model(source)
    with tempfile.TemporaryDirectory(prefix="deploykit-keras-") as folder:
        phase("saving the model")
        saved = replace(source, location=f"{folder}/model.keras", format=ARCHIVE, options={})
        plugin = own if _is_known(model, saved) else traced
        if plugin is traced:
            phase("tracing the model")
            saved = replace(saved, location=f"{folder}/traced", format="tensorflow/saved_model")
            model.export(saved.location, verbose=False)
        yield model, plugin, saved


def _is_known(model: Any, saved: Source) -> bool:
    """Save `model` as the archive `saved`; return whether our own map takes it.

    Keras cannot save what has no configuration, and says so by errors of several kinds.
    """
    from deploykit._plugins.converters.keras import plugin as own

    try:
        model.save(saved.location)
        own.inspect(saved)
    except (UnsupportedError, NotImplementedError, ValueError, TypeError):
        return False
    return True


def _loaded(source: Source) -> Any:
    """Load a file whose Lambda layers hold code; the core says that the user trusts it.

    Such bytecode runs in the Python that wrote it, and the file does not say which that was.
    """
    import keras

    if not source.trust:
        raise UsageError(f"`{source.location}` holds code", hint="run it with `--trust`")
    try:
        return keras.models.load_model(source.location, compile=False, safe_mode=False)
    except Exception as error:  # what bytecode of another Python raises is of any class
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        raise SourceError(
            f"Keras {keras.__version__} cannot load `{source.location}`: "
            f"{type(error).__name__}: {first}"[:400],
            hint="its code may be of another Python or Keras; load it there, and save it without Lambda",
        ) from error


def _model(source: Source) -> Any:
    check_names(source.options, ("weights",), plugin="the Keras converter of code")
    phase("importing Keras")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    phase("building the model")
    keras.utils.set_random_seed(0)  # a model of random weights must be the same in every worker
    is_file = Path(source.location).is_file()
    model = _loaded(source) if is_file else user_code.made_by_user(source.location, hint=HINT)
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
