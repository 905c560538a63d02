"""The ONNX model against the library where it matters for trees: around their own thresholds.

Inputs that know nothing of the model (standard normal, as the general verification draws them) may
all fall into one leaf, and then agree whatever the other leaves say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit._plugins.converters.scikit_learn.columns import MATRIX
from deploykit._plugins.converters.scikit_learn.emission import last_step
from deploykit._plugins.converters.scikit_learn.ensembles import Ensemble, ensemble_of

from deploykit.errors import UnsupportedError
from deploykit.progress import phase

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from deploykit._plugins.converters.scikit_learn.loading import Loaded

    Array = np.ndarray[Any, Any]

ROWS = 2000
FEW = 0.005
"""The share of rows that may differ behind preprocessing: that runs in float64 in scikit-learn and in
float32 in ONNX, and a value within rounding of a threshold may fall on its other side."""
CLOSE = 1e-4


def check(model: onnx.ModelProto, loaded: Loaded) -> tuple[str, ...]:
    """Compare, and return what is to be noted. Raises UnsupportedError where they differ."""
    last = last_step(loaded.model)
    own = ensemble_of(last)
    trees = own or _boosted(last)
    if trees is None or [spec.name for spec in loaded.signature.inputs] != [MATRIX]:
        return ()
    phase("comparing around the thresholds of the trees")
    alone = last is loaded.model
    data = around(trees, exact=alone)
    if not alone:
        before = _before(loaded.model, data)
        if before is None:
            return ()
        data = before
    if loaded.signature.inputs[0].dtype not in ("float32", "float64"):
        return ()
    wrong, tried = _differences(model, loaded, data)
    with_missing = _with_missing(data)
    if alone and _accepts(loaded, with_missing[:1]):
        more, again = _differences(model, loaded, with_missing)
        if more and own is None and not wrong:
            return ("rows with missing values (NaN) come out otherwise than in the library",)
        wrong, tried = wrong + more, tried + again
    if wrong > (0 if alone else FEW * tried):
        raise UnsupportedError(
            f"the ONNX model differs from the library in {wrong} of {tried} rows drawn around the "
            "thresholds of its trees",
            hint="this is a fault of the conversion: please report it with the model",
        )
    if wrong:
        return (
            (
                f"{wrong} of {tried} rows drawn around the trees' thresholds fall on another side of one: "
                "the preprocessing before them is float32 here and float64 in scikit-learn"
            ),
        )
    return ()


def _boosted(model: Any) -> Ensemble | None:
    """Return the trees of what skl2onnx converts itself, for their thresholds only."""
    import numpy as np

    members = np.ravel(np.asarray(getattr(model, "estimators_", ()), object)).tolist()
    parts = [ensemble_of(member) for member in members if hasattr(member, "tree_")]
    trees = tuple(tree for part in parts if part is not None for tree in part.trees)
    if not trees:
        return None
    return Ensemble(trees=trees, features=int(model.n_features_in_), outputs=1, base=(0.0,))


def around(trees: Ensemble, *, exact: bool) -> Array:
    """Return float32 rows whose values lie on, next to (where `exact`) and between the thresholds."""
    import numpy as np

    random = np.random.default_rng(0)
    rows = random.standard_normal((ROWS, trees.features)).astype(np.float32)
    for feature, values in trees.thresholds().items():
        with np.errstate(over="ignore", invalid="ignore"):
            between = (values[:-1] + values[1:]) / 2
            outside = np.array([values[0] - 1 - abs(values[0]), values[-1] + 1 + abs(values[-1])])
            choices = [between, outside]
            if exact:
                infinity = np.float32(np.inf)
                choices += [values, np.nextafter(values, infinity), np.nextafter(values, -infinity)]
        pool = np.concatenate(choices).astype(np.float32)
        rows[:, feature] = random.choice(pool[np.isfinite(pool)], ROWS)
    return rows


def _before(model: Any, data: Array) -> Array | None:
    """Return rows that the steps before the trees turn into about `data`, None where they cannot say."""
    import numpy as np

    for _, step in reversed(model.steps[:-1]):
        if step in (None, "passthrough"):
            continue
        if not hasattr(step, "inverse_transform"):
            return None
        try:
            data = step.inverse_transform(data)
        except (ValueError, TypeError, AttributeError, NotImplementedError):
            return None
    return np.asarray(data, np.float32)


def _with_missing(data: Array) -> Array:
    import numpy as np

    random = np.random.default_rng(1)
    return np.where(random.random(data.shape) < 0.2, np.float32(np.nan), data)


def _accepts(loaded: Loaded, data: Array) -> bool:
    try:
        loaded.predict({MATRIX: data})
    except ValueError:
        return False  # a model that takes no missing values says so
    return True


def _differences(model: onnx.ModelProto, loaded: Loaded, data: Array) -> tuple[int, int]:
    """Return the number of rows that differ, and of rows."""
    import numpy as np
    import onnxruntime

    dtype = loaded.signature.inputs[0].dtype
    batch = loaded.signature.inputs[0].shape[0]
    size = batch if isinstance(batch, int) else len(data)
    data = data[: len(data) // size * size]
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [spec.name for spec in loaded.signature.outputs]
    wrong = np.zeros(len(data), bool)
    for begin in range(0, len(data), size):
        part = data[begin : begin + size]
        expected = loaded.predict({MATRIX: part})
        found = dict(zip(names, session.run(names, {MATRIX: part.astype(dtype)}), strict=True))
        for name in names:
            if name == "label" and len(names) > 1:
                continue  # follows from the probabilities, where two of them are not equal
            a, b = (
                np.asarray(one[name], np.float64).reshape(len(part), -1)
                for one in (found, expected)
            )
            far = np.abs(a - b) > CLOSE * max(1e-2, float(np.abs(b).max(initial=0.0)))
            wrong[begin : begin + size] |= far.any(axis=1)
    return int(wrong.sum()), len(data)
