"""From a file to a fitted model, with its inputs, its outputs and how the library predicts."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.scikit_learn import boosters
from deploykit._plugins.converters.scikit_learn.columns import inputs_of, rows

from deploykit.errors import SourceError, UnsupportedError
from deploykit.plugin_settings import check_names
from deploykit.progress import phase
from deploykit.protocol import DynamicAxis, Signature, Source, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A fitted model; `answers` has each output's name and the call of the library that gives it."""

    model: Any
    signature: Signature
    answers: tuple[tuple[str, Callable[[Any], Any]], ...]
    notes: tuple[str, ...] = ()

    def predict(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the library predicts for `feed`, one row per sample."""
        import numpy as np

        data = rows(self.model, self.signature.inputs, feed)
        found = {}
        with _quiet():
            for (name, call), spec in zip(self.answers, self.signature.outputs, strict=True):
                value = np.asarray(call(data))
                if value.ndim == 1 and spec.shape is not None and len(spec.shape) == 2:
                    value = value.reshape(-1, 1)
                if spec.dtype == "string":
                    value = value.astype(str)
                found[name] = value
        return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of feature names that an array does not have
        yield


def load(source: Source, dynamic: tuple[DynamicAxis, ...]) -> Loaded:
    """Load the model. Raises as the plugin's `inspect` does."""
    check_names(source.options, (), plugin="the scikit-learn converter")
    phase("loading the model")
    notes: tuple[str, ...] = ()
    path = Path(source.location)
    if source.format == "xgboost/model":
        model = boosters.xgboost_file(path)
    elif source.format == "lightgbm/model":
        model = boosters.lightgbm_file(path)
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = _skops(source) if source.format == "scikit-learn/skops" else _pickle(source)
        notes = _version_notes(caught)
    model = boosters.wrapped(getattr(model, "best_estimator_", model))
    _check_fitted(model, path)
    specs = inputs_of(model, source, dynamic)
    outputs = _outputs(model)
    return Loaded(
        model=model,
        signature=Signature(inputs=specs, outputs=tuple(spec for spec, _ in outputs)),
        answers=tuple((spec.name, call) for spec, call in outputs),
        notes=notes,
    )


def _pickle(source: Source) -> Any:
    import joblib

    if not source.trust:
        raise UnsupportedError(
            f"`{source.location}` is a pickle, and loading a pickle can run any code",
            hint="give --trust if you know where it comes from, or save the model with skops.io.dump",
        )
    try:
        return joblib.load(source.location)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(
            f"`{source.location}` needs code that is not there, or another version of it: {error}",
            hint="save it with scikit-learn 1.9, XGBoost 3.2 or LightGBM 4.7 and nothing of your own",
        ) from error
    except (pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, KeyError) as error:
        raise SourceError(
            f"cannot load `{source.location}`: {type(error).__name__}: {error}"[:400],
            hint="it is damaged, or was saved by another version of scikit-learn",
        ) from error


def _skops(source: Source) -> Any:
    import zipfile

    import skops.io

    try:
        unknown = skops.io.get_untrusted_types(file=source.location)
        if unknown and not source.trust:
            raise UnsupportedError(
                f"`{source.location}` holds types that skops does not know to be safe: "
                f"{', '.join(map(str, unknown[:8]))}",
                hint="give --trust if you know where it comes from",
            )
        return skops.io.load(source.location, trusted=unknown)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"cannot load `{source.location}`: {type(error).__name__}: {error}"[:400]
        ) from error


def _version_notes(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    from sklearn.exceptions import InconsistentVersionWarning

    found = {
        (one.message.original_sklearn_version, one.message.current_sklearn_version)
        for one in caught
        if isinstance(one.message, InconsistentVersionWarning)
    }
    return tuple(
        f"saved by scikit-learn {old}, read and compared by {new}: check one output against the old"
        for old, new in sorted(found)
    )


def _check_fitted(model: Any, path: Path) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if not isinstance(model, BaseEstimator):
        what = type(model).__name__
        more = f" of {', '.join(map(str, list(model)[:5]))}" if isinstance(model, dict) else ""
        raise SourceError(
            f"`{path}` holds a {what}{more}, not a fitted model", hint="save the model alone"
        )
    if boosters.is_wrapped(model):
        return  # a booster is what was fitted
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise SourceError(f"`{path}` holds a {type(model).__name__} that is not fitted") from error


def _outputs(model: Any) -> list[tuple[TensorSpec, Callable[[Any], Any]]]:
    """Return the outputs as skl2onnx orders them, each with the method that computes it."""
    from sklearn.base import is_classifier, is_clusterer, is_outlier_detector

    def matrix(name: str, width: int | None) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", width))

    if is_classifier(model):
        classes = model.classes_
        if isinstance(classes, list):
            raise UnsupportedError("a classifier of several outputs", hint="convert one for each")
        label = TensorSpec(name="label", dtype=_label_dtype(classes), shape=("batch",))
        if hasattr(model, "predict_proba"):
            return [
                (label, model.predict),
                (matrix("probabilities", len(classes)), model.predict_proba),
            ]
        # two classes have one score, that of the second
        scores = matrix("scores", len(classes) if len(classes) > 2 else 1)
        return [(label, model.predict), (scores, model.decision_function)]
    label = TensorSpec(name="label", dtype="int64", shape=("batch",))
    if is_clusterer(model) and hasattr(model, "transform"):
        return [(label, model.predict), (matrix("scores", None), model.transform)]
    if is_outlier_detector(model):
        shaped = TensorSpec(name="label", dtype="int64", shape=("batch", 1))
        return [(shaped, model.predict), (matrix("scores", 1), model.decision_function)]
    if hasattr(model, "predict"):
        return [(matrix("variable", None), model.predict)]
    if hasattr(model, "transform"):
        return [(matrix("variable", None), lambda data: _dense(model.transform(data)))]
    raise UnsupportedError(f"`{type(model).__name__}` neither predicts nor transforms")


def _dense(value: Any) -> Any:
    return value.toarray() if hasattr(value, "toarray") else value


def _label_dtype(classes: Any) -> str:
    if classes.dtype.kind in "iub":
        return "int64"
    if classes.dtype.kind in "OUS" and all(isinstance(one, str) for one in classes.tolist()):
        return "string"
    if classes.dtype.kind == "f" and all(float(one).is_integer() for one in classes.tolist()):
        return "int64"
    raise UnsupportedError(
        f"labels of type {classes.dtype} cannot be an output", hint="fit it on integers or texts"
    )
