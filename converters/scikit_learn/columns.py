"""Inputs: one matrix, or one column each where the model picks columns by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import DynamicAxis, Source, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MATRIX = "X"
DTYPES = ("float32", "float64", "int64", "string", "bool")


def inputs_of(
    model: Any, source: Source, dynamic: tuple[DynamicAxis, ...]
) -> tuple[TensorSpec, ...]:
    """Return the inputs; `source.inputs` override their dtypes.

    Raises UsageError for an input that the model does not have, UnsupportedError where the number of
    features is not known.
    """
    batch = next((axis.name for axis in dynamic if axis.axis == 0), "batch")
    picked = _picked_columns(model)
    if picked is not None:
        specs = {
            name: TensorSpec(name=name, dtype=dtype, shape=(batch, 1))
            for name, dtype in picked.items()
        }
    else:
        width = getattr(model, "n_features_in_", None)
        if width is None:
            raise UnsupportedError(
                f"`{type(model).__name__}` does not say how many features it takes",
                hint="fit it with scikit-learn 0.24 or newer",
            )
        specs = {MATRIX: TensorSpec(name=MATRIX, dtype="float32", shape=(batch, int(width)))}
    for spec in source.inputs:
        if spec.name not in specs:
            raise UsageError(
                f"the model has no input `{spec.name}`", hint=f"inputs: {', '.join(specs)}"
            )
        if spec.dtype not in DTYPES:
            raise UsageError(
                f"`{spec.name}` cannot be {spec.dtype}", hint=f"dtypes: {', '.join(DTYPES)}"
            )
        shape = spec.shape or specs[spec.name].shape
        if len(shape or ()) != 2 or shape[1] not in (None, specs[spec.name].shape[1]):  # type: ignore[index]
            raise UsageError(f"`{spec.name}` is {specs[spec.name]}, asked for {spec}")
        first = shape[0] if shape[0] is not None else batch  # type: ignore[index]
        width = specs[spec.name].shape[1]  # type: ignore[index]
        specs[spec.name] = TensorSpec(name=spec.name, dtype=spec.dtype, shape=(first, width))
    return tuple(specs.values())


def rows(model: Any, specs: tuple[TensorSpec, ...], feed: Mapping[str, Array]) -> Any:
    """Return `feed` as the library takes it: an array in double precision, or a data frame."""
    import numpy as np

    arrays = {
        spec.name: np.asarray(feed[spec.name], np.float64)
        if spec.dtype.startswith("float")
        else np.asarray(feed[spec.name], object if spec.dtype == "string" else None)
        for spec in specs
    }
    if _picked_columns(model) is None:
        return arrays[MATRIX]
    import pandas

    return pandas.DataFrame({name: array.reshape(-1) for name, array in arrays.items()})


def _first_step(model: Any) -> Any:
    steps = getattr(model, "steps", None)
    while steps:
        model = next((step for _, step in steps if step not in (None, "passthrough")), None)
        steps = getattr(model, "steps", None)
    return model


def _picked_columns(model: Any) -> dict[str, str] | None:
    """Return the dtype of each column where columns are picked by name or have several dtypes."""
    first = _first_step(model)
    if type(first).__name__ != "ColumnTransformer":
        return None
    names = [str(name) for name in getattr(first, "feature_names_in_", ())]
    by_name = bool(names)
    if not names:
        return None
    dtypes = dict.fromkeys(names, "float32")
    for _, transformer, columns in first.transformers_:
        if transformer in ("drop", "passthrough"):
            continue
        for place, name in _names(columns, names):
            if _takes_text(_first_step(transformer), place):
                dtypes[name] = "string"
    return dtypes if by_name else None


def _names(columns: Any, names: list[str]) -> list[tuple[int, str]]:
    import numpy as np

    if isinstance(columns, (str, int)):
        columns = [columns]
    if isinstance(columns, slice):
        columns = names[columns] if not isinstance(columns.start, str) else []
    picked = np.asarray(columns)
    if picked.dtype == bool:
        picked = np.flatnonzero(picked)
    return [
        (place, names[int(one)] if np.issubdtype(type(one), np.integer) else str(one))
        for place, one in enumerate(picked.tolist())
    ]


def _takes_text(transformer: Any, place: int) -> bool:
    """Whether the categories or fill values that were learnt for a column are texts."""
    import numpy as np

    learnt = getattr(transformer, "categories_", None)
    if learnt is not None and place < len(learnt):
        return any(isinstance(one, str) for one in np.asarray(learnt[place], object).tolist())
    filled = getattr(transformer, "statistics_", None)
    if filled is not None and place < len(filled):
        return isinstance(np.asarray(filled, object)[place], str)
    return hasattr(transformer, "vocabulary_")
