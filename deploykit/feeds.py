"""Inputs for a model: drawn at random, read from the user's file, or checked against a signature.

numpy is imported inside the functions, so that the command line may import this file freely.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError
from deploykit.events import Event, Listener, silent
from deploykit.index_bounds import index_bounds as index_bounds
from deploykit.protocol import Dimension, TensorSpec
from deploykit.tensor_spec import did_you_mean, is_dtype, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

DEFAULT_SIZE = 1
"""Of a dynamic axis that nobody gave a size."""

LENGTHS = ".lengths"
"""Behind the name of an input whose rows are sequences one behind another: how long each is."""

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)
_LARGE = 8


def make_feed(
    inputs: tuple[TensorSpec, ...],
    *,
    seed: int,
    sizes: Mapping[str, int] | None = None,
    bounds: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Array]:
    """Draw a value for every input: the same seed, name and shape give the same values.

    `sizes` gives dynamic axes their size, by the axis's name or as `INPUT:AXIS` (which wins); the
    others get 1. `bounds` gives the smallest and largest whole number an input may hold. Without
    bounds floats are standard normal, int8 and uint8 (pixels, quantised data) use their whole range,
    and other ints and bools are 0 or 1 with a 1 first in each row: that is a valid index into any
    table, a length that is not zero, and a mask that hides not everything. An input `NAME.lengths`
    beside an input `NAME` says how many rows of it each sequence has, and adds up to their number.

    Raises UsageError where an input's rank is unknown or `sizes` names no axis of these inputs.
    """
    sizes = sizes or {}
    bounds = bounds or {}
    known = [*_axis_keys(inputs), *axis_names(inputs)]
    for key in sizes:
        if key not in known:
            raise UsageError(
                f"no input has a dynamic axis `{key}`{did_you_mean(key, known)}",
                hint=f"dynamic axes: {', '.join(known) or 'none'}",
            )
    feed = {
        spec.name: _draw(spec, _concrete_shape(spec, sizes), seed, bounds.get(spec.name))
        for spec in inputs
    }
    for name in feed:
        rows = feed.get(name.removesuffix(LENGTHS))
        if name.endswith(LENGTHS) and rows is not None and rows.ndim and feed[name].ndim == 1:
            feed[name] = _lengths(len(rows), feed[name], seed)
    return feed


def _lengths(rows: int, like: Array, seed: int) -> Array:
    """Share `rows` out among as many sequences as `like` has, none of them empty where that goes."""
    import numpy as np

    if not len(like):
        return like
    random = np.random.default_rng([seed, rows])
    least = int(rows >= len(like))
    shares = random.multinomial(rows - least * len(like), [1 / len(like)] * len(like))
    return (shares + least).astype(like.dtype)


def _concrete_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise UsageError(
            f"the shape of the input `{spec.name}` is unknown",
            hint=f"say it with `--input '{spec.name}:{spec.dtype}[SIZES]'`",
        )
    return tuple(
        size
        if isinstance(size, int)
        else sizes.get(f"{spec.name}:{axis}", sizes.get(size or "", 1))
        for axis, size in enumerate(spec.shape)
    )


def _draw(
    spec: TensorSpec, shape: tuple[int, ...], seed: int, bounds: tuple[int, int] | None
) -> Array:
    import numpy as np

    dtype = numpy_dtype(spec.dtype)
    # seeded by the name too: an input's values do not depend on its neighbours
    random = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    if bounds is not None and spec.dtype not in ("string", "bool"):
        # a float input may be an index as well, cast inside the model
        low, high = bounds
        return random.integers(low, high, size=shape, endpoint=True).astype(dtype)
    if spec.dtype == "string":
        return random.integers(0, 10, size=shape).astype(dtype)
    if spec.dtype.startswith("complex"):
        real, imaginary = random.standard_normal((2, *shape))
        return np.asarray(real + 1j * imaginary, dtype=dtype)
    if spec.dtype.startswith(("float", "bfloat")):
        return np.asarray(random.standard_normal(shape), dtype=dtype)
    if spec.dtype in ("int8", "uint8"):
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, size=shape, endpoint=True, dtype=dtype)
    values = np.asarray(random.integers(0, 2, size=shape or 1))
    values[..., :1] = 1
    return values.reshape(shape).astype(dtype)


def axis_names(inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return the names of the named dynamic axes, each once, in the order of the inputs."""
    return tuple(
        dict.fromkeys(size for spec in inputs for size in spec.shape or () if isinstance(size, str))
    )


def _axis_keys(inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Return `INPUT:AXIS` of every dynamic axis."""
    return tuple(
        f"{spec.name}:{axis}"
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    )


def size_plans(
    inputs: tuple[TensorSpec, ...], base: Mapping[str, int] | None = None
) -> list[Mapping[str, int]]:
    """Return the sizes of dynamic axes worth trying, each ready to be `make_feed`'s `sizes`.

    The first plan is `base`, with 1 for what it leaves open. Then each axis alone takes 1, 2, a
    prime, and, where its base is larger than eight, twice its base (an image's side must often be a
    multiple of something). In the last plan all axes differ, so that two mixed-up axes show.
    Unnamed axes with the same number vary together: they are most often one batch. The number of
    plans grows with the number of axes, not with its power.
    """
    base = base or {}
    groups: dict[str, list[str]] = {name: [name] for name in axis_names(inputs)}
    for spec in inputs:
        for axis, size in enumerate(spec.shape or ()):
            if size is None:
                groups.setdefault(f"{axis}:", []).append(f"{spec.name}:{axis}")
    start = {key: base.get(key, DEFAULT_SIZE) for keys in groups.values() for key in keys}
    # a base may also pin one place of a named axis (`x:0`): that place does not vary
    start |= {key: size for key, size in base.items() if key not in start}

    plans: list[Mapping[str, int]] = [start]
    for keys in groups.values():
        first = start[keys[0]]
        choices = [1, 2, _PRIMES[1], *([2 * first] if first > _LARGE else [])]
        plans.extend(start | dict.fromkeys(keys, size) for size in choices)
    different = dict(start)
    for number, keys in enumerate(groups.values()):
        different |= dict.fromkeys(keys, _PRIMES[number % len(_PRIMES)])
    plans.append(different)
    return [plan for i, plan in enumerate(plans) if plan not in plans[:i]]


def read_feed(
    path: str | Path, inputs: tuple[TensorSpec, ...], *, listen: Listener = silent
) -> dict[str, Array]:
    """Return the inputs that the file `path` holds, checked against `inputs`.

    `.npz` holds them by name (golden files, with `in_` before each name, too), `.npy` the single
    input, anything else is read as an image into the single input, and `listen` gets a note of what
    was done to it. Raises UsageError where the file does not fit, UnavailableError where an image
    needs Pillow.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no file `{path}`", hint="an .npz, an .npy or an image")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        from deploykit.tensors import read_tensors

        feed = _without_prefix(read_tensors(path), inputs)
    elif suffix == ".npy":
        from deploykit.tensors import read_tensor

        feed = {_single_input(path, inputs).name: read_tensor(path)}
    else:
        from deploykit.images import read_image

        only = _single_input(path, inputs)
        image, done = read_image(path, only)
        listen(Event(kind="note", step="input", message=done))
        feed = {only.name: image}
    check_feed(feed, inputs)
    return feed


def _without_prefix(tensors: dict[str, Array], inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Return the inputs among a golden file's tensors, or `tensors` where it is none."""
    names = {spec.name for spec in inputs}
    if tensors.keys() & names or not all(f"in_{name}" in tensors for name in names):
        return tensors
    return {name: tensors[f"in_{name}"] for name in names}


def _single_input(path: Path, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    if len(inputs) == 1:
        return inputs[0]
    raise UsageError(
        f"`{path}` is one tensor, but the model has {len(inputs)} inputs: "
        f"{', '.join(spec.name for spec in inputs)}",
        hint="give an .npz file with every input by name",
    )


def check_feed(feed: Mapping[str, Any], inputs: Sequence[TensorSpec]) -> None:
    """Check that `feed` has exactly these inputs, as numpy arrays of the right dtype and shape.

    An axis name stands for one size in all inputs. Raises UsageError naming the first thing wrong.
    """
    import numpy as np

    specs = {spec.name: spec for spec in inputs}
    wanted = f"inputs: {', '.join(map(str, inputs))}"
    for name in feed:
        if name not in specs:
            absent = [other for other in specs if other not in feed] or list(specs)
            raise UsageError(f"no input `{name}`{did_you_mean(str(name), absent)}", hint=wanted)
    sizes: dict[str, tuple[int, str]] = {}
    for name, spec in specs.items():
        if name not in feed:
            raise UsageError(f"the input `{name}` is missing", hint=wanted)
        array = feed[name]
        if not isinstance(array, np.ndarray):
            raise UsageError(
                f"the input `{name}` is a {type(array).__name__}, not a numpy array",
                hint=f"numpy.asarray(value, dtype={_dtype_word(spec.dtype)})",
            )
        if not is_dtype(array.dtype, spec.dtype):
            found = array.dtype.name if array.dtype.isnative else str(array.dtype)
            raise UsageError(
                f"the input `{name}` has dtype {found}, expected {spec.dtype}",
                hint=f"convert it: .astype({_dtype_word(spec.dtype)})",
            )
        _check_shape(spec, array.shape, sizes)


def _dtype_word(dtype: str) -> str:
    return (
        "ml_dtypes.bfloat16"
        if dtype == "bfloat16"
        else "str"
        if dtype == "string"
        else f'"{dtype}"'
    )


def _check_shape(
    spec: TensorSpec, found: tuple[int, ...], sizes: dict[str, tuple[int, str]]
) -> None:
    """Check one shape; `sizes` collects what each axis name stands for, and where it was seen."""
    if spec.shape is None:
        return
    if len(found) != len(spec.shape):
        raise UsageError(
            f"the input `{spec.name}` has {len(found)} axes {list(found)}, expected {spec}"
        )
    for axis, (size, expected) in enumerate(zip(found, spec.shape, strict=True)):
        if isinstance(expected, int):
            if size != expected:
                raise UsageError(
                    f"the input `{spec.name}` has shape {list(found)}, expected {spec}: "
                    f"axis {axis} is {size}, not {expected}"
                )
        elif expected is not None:
            first, where = sizes.setdefault(expected, (size, f"`{spec.name}` axis {axis}"))
            if size != first:
                raise UsageError(
                    f"the axis `{expected}` is {first} in {where}, but {size} in `{spec.name}` "
                    f"axis {axis}"
                )


class QuickCheck:
    """`check_feed` for the same inputs again and again: about a microsecond where nothing is wrong."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        import numpy as np

        self._inputs = tuple(inputs)
        self._array = np.ndarray
        # a string has no single dtype: such inputs always go the slow way
        self._always_slow = any(spec.dtype == "string" for spec in inputs)
        self._expected = tuple(
            (spec.name, numpy_dtype(spec.dtype), spec.shape, _is_fixed(spec.shape))
            for spec in inputs
        )

    def __call__(self, feed: Mapping[str, Any]) -> None:
        """Check `feed`. Raises UsageError as `check_feed` does."""
        if self._always_slow or not self._fits(feed):
            check_feed(feed, self._inputs)

    def _fits(self, feed: Mapping[str, Any]) -> bool:
        """Say whether `feed` is certainly right."""
        if len(feed) != len(self._expected):
            return False
        sizes: dict[str, int] = {}
        for name, dtype, shape, fixed in self._expected:
            array = feed.get(name)
            if type(array) is not self._array or array.dtype != dtype:
                return False
            found = array.shape
            if fixed:
                if found != shape:
                    return False
            elif shape is not None:
                if len(found) != len(shape):
                    return False
                for size, expected in zip(found, shape, strict=True):
                    if expected is None or size == expected:
                        continue
                    if isinstance(expected, int) or sizes.setdefault(expected, size) != size:
                        return False
        return True


def _is_fixed(shape: tuple[Dimension, ...] | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)
