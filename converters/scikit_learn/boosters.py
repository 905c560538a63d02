"""Boosters of XGBoost and LightGBM as estimators of scikit-learn, the form that all the rest takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploykit.errors import SourceError


def xgboost_file(path: Path) -> Any:
    """Load a `.json` or `.ubj` model. Raises SourceError where it is damaged."""
    import xgboost

    booster = xgboost.Booster()
    try:
        booster.load_model(path)
    except xgboost.core.XGBoostError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise SourceError(
            f"XGBoost {xgboost.__version__} cannot load `{path}`: {reason}",
            hint="save it again: booster.save_model('model.json')",
        ) from error
    return booster


def lightgbm_file(path: Path) -> Any:
    """Load a model in text form. Raises SourceError where it is damaged."""
    import lightgbm

    try:
        whole = b"\nend of trees" in path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read `{path}`: {error.strerror or error}") from error
    if not whole:  # LightGBM itself crashes on a part of a model
        raise SourceError(
            f"`{path}` is a damaged LightGBM model: the line `end of trees` is missing",
            hint="copy or download it again",
        )
    try:
        return lightgbm.Booster(model_file=str(path))
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        raise SourceError(
            f"LightGBM {lightgbm.__version__} cannot load `{path}`: {error}"[:400],
            hint="save it again: booster.save_model('model.txt')",
        ) from error


def wrapped(model: Any) -> Any:
    """Return a booster as an estimator, anything else as it is."""
    import lightgbm
    import xgboost

    if isinstance(model, xgboost.Booster):
        return _of_xgboost(model)
    return _of_lightgbm(model) if isinstance(model, lightgbm.Booster) else model


def is_wrapped(model: Any) -> bool:
    """Whether `model` is what `wrapped` makes of a booster."""
    return any(type(model) in pair for pair in _MADE.values())


def _of_xgboost(booster: Any) -> Any:
    import numpy as np
    import xgboost
    from deploykit._plugins.converters.scikit_learn.ensembles import (
        XGBOOST_CLASSIFIERS,
        xgboost_objective,
    )

    objective = xgboost_objective(booster)

    def raw(data: Any, *, margin: bool) -> Any:
        matrix = xgboost.DMatrix(np.asarray(data, np.float32))
        return booster.predict(matrix, output_margin=margin, validate_features=False)

    def probabilities(data: Any) -> Any:
        if objective == "binary:logistic":
            positive = raw(data, margin=False)
            return np.stack([1 - positive, positive], axis=1)
        if objective == "multi:softprob":
            return raw(data, margin=False)
        # softmax is the label alone: the probabilities behind it come from its margins
        margin = raw(data, margin=True).astype(np.float64)
        shifted = np.exp(margin - margin.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    made = estimators()["BoosterOfXGBoost"][objective in XGBOOST_CLASSIFIERS]()
    made.booster = booster
    made.n_features_in_ = booster.num_features()
    if objective in XGBOOST_CLASSIFIERS:
        count = (
            2
            if objective == "binary:logistic"
            else raw(np.zeros((1, made.n_features_in_)), margin=True).shape[-1]
        )
        made.classes_ = np.arange(count)
        made.compute = probabilities
    else:
        made.compute = lambda data: raw(data, margin=False)
    return made


def _of_lightgbm(booster: Any) -> Any:
    import numpy as np
    from deploykit._plugins.converters.scikit_learn.ensembles import (
        LIGHTGBM_CLASSIFIERS,
        lightgbm_objective,
    )

    words = lightgbm_objective(booster).split()
    is_classifier = bool(words) and words[0] in LIGHTGBM_CLASSIFIERS

    def probabilities(data: Any) -> Any:
        found = booster.predict(np.asarray(data, np.float64))
        return np.stack([1 - found, found], axis=1) if found.ndim == 1 else found

    made = estimators()["BoosterOfLightGBM"][is_classifier]()
    made.booster_ = booster
    made.n_features_in_ = booster.num_feature()
    if is_classifier:
        made.classes_ = np.arange(max(2, booster.num_model_per_iteration()))
        made.compute = probabilities
    else:
        made.compute = lambda data: booster.predict(np.asarray(data, np.float64))
    return made


_MADE: dict[str, tuple[Any, Any]] = {}


def estimators() -> dict[str, tuple[Any, Any]]:
    """Return the classes, made once: skl2onnx knows converters by class. Regressor, classifier."""
    if _MADE:
        return _MADE
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    class BoosterOfXGBoost(BaseEstimator):  # type: ignore[misc]
        def get_booster(self) -> Any:
            return self.booster

    class BoosterOfLightGBM(BaseEstimator):  # type: ignore[misc]
        pass

    class Regressor(RegressorMixin):  # type: ignore[misc]
        def predict(self, data: Any) -> Any:
            return self.compute(data)

    class Classifier(ClassifierMixin):  # type: ignore[misc]
        def predict_proba(self, data: Any) -> Any:
            return self.compute(data)

        def predict(self, data: Any) -> Any:
            return self.classes_[self.compute(data).argmax(axis=1)]

    for base in (BoosterOfXGBoost, BoosterOfLightGBM):
        _MADE[base.__name__] = (
            type(f"{base.__name__}Regressor", (Regressor, base), {}),
            type(f"{base.__name__}Classifier", (Classifier, base), {}),
        )
    return _MADE
