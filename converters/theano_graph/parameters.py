"""Sets of parameters as Theano's users keep them: pickles and archives of numpy arrays.

Without `--trust` a pickle is read, not run (`deploykit.formats.numpy_pickle`).
"""

from __future__ import annotations

import io
import pickle
import tokenize
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UsageError
from deploykit.formats.content import open_content
from deploykit.formats.numpy_pickle import StoredArray, described, refuse_code, structure
from deploykit.formats.pickle_scan import scan
from deploykit.formats.reading import FormatError
from deploykit.formats.zip_archive import BROKEN

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WRAPPERS = (
    *("param values", "param_values", "params", "parameters", "values", "weights"),
    *("model", "network", "state", "model_params", "all_params"),
)
"""Under which of these keys a dict keeps the parameters, beside names of classes and the like."""

MOST_ARRAYS = 100_000
ALWAYS_FINE = 64 << 20
MOST_PACKED = 20
"""An archive may unpack to so many bytes, and beyond them to so many times its own size."""


def load(path: Path, *, trust: bool) -> list[Array] | dict[str, Array]:
    """Return the arrays of a `.pkl`, `.npz` or `.npy` file, in order or by name.

    Raises SourceError where the file is damaged, holds no arrays, or would run code.
    """
    content = open_content(path)
    try:
        if content.starts_with(b"PK\x03\x04"):
            found: Any = _archive(path, trust)
        elif content.starts_with(b"\x93NUMPY"):
            found = _npy(bytes(content.view), path, trust)
        else:
            found = _pickle(bytes(content.view), path, trust)
    except (FormatError, SyntaxError, TypeError, tokenize.TokenError, *BROKEN) as error:
        raise SourceError(
            f"`{path}` is a damaged set of parameters: {error}",
            hint="copy or download it again",
        ) from error
    return _flat(found, path)


def _archive(path: Path, trust: bool) -> Any:
    """Return the members of an `.npz`: a list where `np.savez(file, *arrays)` named them."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        whole = sum(one.file_size for one in archive.infolist())
        if whole > ALWAYS_FINE + MOST_PACKED * path.stat().st_size:
            raise SourceError(f"`{path}` unpacks to {whole} bytes, more than weights can be packed")
        for member in archive.namelist():
            if not member.endswith(".npy"):
                raise SourceError(f"`{path}` holds `{member}`, which is no array")
            found[member.removesuffix(".npy")] = _npy(archive.read(member), path, trust)
    numbers = [name.removeprefix("arr_") for name in found]
    if found and all(one.isdecimal() for one in numbers):
        return [found[f"arr_{at}"] for at in sorted(int(one) for one in numbers)]
    return found


def _npy(data: bytes, path: Path, trust: bool) -> Any:
    """Return one `.npy`; numpy keeps an array of objects as a pickle behind its header."""
    import numpy as np

    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    read = read or np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        found = _pickle(data[stream.tell() :], path, trust)
        return found.tolist() if isinstance(found, np.ndarray) else found
    return _array(StoredArray(dtype.str, tuple(shape), fortran, data[stream.tell() :]))


def _pickle(data: bytes, path: Path, trust: bool) -> Any:
    if trust:
        return _run(data, path)
    found = scan(data)
    refuse_code(path, found.globals)
    return _made(structure(found.value))


def _run(data: bytes, path: Path) -> Any:
    """Unpickle what the user trusts, Python 2's strings of bytes too."""
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except (pickle.UnpicklingError, AttributeError, ImportError, TypeError, IndexError) as error:
        raise SourceError(
            f"`{path}` cannot be unpickled here: {type(error).__name__}: {error}"[:400],
            hint="save numpy arrays (`[p.get_value() for p in params]`), not Theano's own objects",
        ) from error


class _Unpickler(pickle.Unpickler):
    """A trusted pickle: arrays that lay on a GPU come back as numpy's."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("CudaNdarray_unpickler", "GpuArray_unpickler"):
            return lambda array, *_: array
        # numpy 2 moved what numpy 1, which is here, still has
        module = module.replace("numpy._core", "numpy.core")
        return super().find_class(module, name)


def _made(value: Any) -> Any:
    """Return a described structure with numpy arrays in it."""
    if isinstance(value, StoredArray):
        return _array(value)
    if isinstance(value, list):
        return [_made(one) for one in value]
    if isinstance(value, dict):
        return {key: _made(one) for key, one in value.items()}
    return value


def _array(stored: StoredArray) -> Any:
    import numpy as np

    if isinstance(stored.data, list):
        return [_made(one) for one in stored.data]
    dtype = np.dtype(stored.dtype)
    count = 1
    for size in stored.shape:
        count *= size
    if dtype.hasobject or count * dtype.itemsize > len(stored.data):
        raise FormatError(f"an array of {described(stored)} has {len(stored.data)} bytes")
    flat = np.frombuffer(stored.data, dtype, count)
    return flat.reshape(stored.shape, order="F" if stored.fortran else "C")


def _flat(found: Any, path: Path) -> list[Array] | dict[str, Array]:
    """Return the parameters in `found`: by name where a dict names arrays, else in order."""
    import numpy as np

    if isinstance(found, Mapping):
        if found and all(isinstance(one, np.ndarray) for one in found.values()):
            return {str(key): one for key, one in found.items()}
        lower = {str(key).lower(): key for key in found}
        inner = next((found[lower[name]] for name in WRAPPERS if name in lower), None)
        if inner is None:
            raise SourceError(
                f"`{path}` is a dict whose entries are not all arrays:"
                f" {', '.join(map(str, list(found)[:8]))}",
                hint="save the list of arrays alone",
            )
        return _flat(inner, path)
    arrays: list[Array] = []
    for one in _leaves(found, path):
        if isinstance(one, np.ndarray):
            arrays.append(one)
        elif hasattr(one, "get_value"):
            arrays.append(np.asarray(one.get_value(borrow=True)))
        elif isinstance(one, (int, float, np.generic)) and not isinstance(one, bool):
            arrays.append(np.asarray(one))
        else:
            raise SourceError(
                f"`{path}` holds a {type(one).__name__} among its arrays",
                hint="save numpy arrays (`[p.get_value() for p in params]`)",
            )
    if not arrays:
        raise SourceError(f"`{path}` holds no arrays")
    return arrays


def _leaves(found: Any, path: Path) -> Iterator[Any]:
    """Yield what lists within lists hold. They may be shared, even circular: the number is bounded."""
    waiting, seen = [found], 0
    while waiting:
        one = waiting.pop()
        seen += 1
        if seen > MOST_ARRAYS:
            raise SourceError(f"`{path}` holds more than {MOST_ARRAYS} arrays, or itself")
        if isinstance(one, (list, tuple)):
            waiting += list(one)[::-1]
        elif isinstance(one, Mapping):
            waiting += list(one.values())[::-1]
        else:
            yield one


def assign(
    values: list[Array] | dict[str, Array],
    parameters: Sequence[Any] | None,
    shared: Sequence[Any],
    path: Path,
) -> None:
    """Put `values` into shared variables: in the order of `parameters`, or by name into `shared`.

    Raises UsageError where the order is not known, SourceError where number or shapes do not fit.
    """
    if isinstance(values, dict):
        pairs = _by_name(values, parameters or shared, path)
    elif parameters is None:
        raise UsageError(
            f"`{path}` is a list of {len(values)} arrays, and the graph does not say in which order"
            f" its {len(shared)} parameters stand",
            hint="return (inputs, outputs, parameters) from the function, parameters in that order",
        )
    else:
        if len(values) != len(parameters):
            raise SourceError(
                f"`{path}` holds {len(values)} arrays, the graph has {len(parameters)} parameters",
                hint="the file belongs to another network, or to another version of its code",
            )
        pairs = list(zip(parameters, values, strict=True))
    for at, (variable, value) in enumerate(pairs):
        own = variable.get_value(borrow=True)
        if getattr(own, "shape", ()) != value.shape:
            raise SourceError(
                f"`{path}`: array {at} has the shape {list(value.shape)}, the parameter"
                f" `{variable.name or at}` {list(getattr(own, 'shape', ()))}",
                hint="the file belongs to another network, or to another version of its code",
            )
        variable.set_value(value.astype(variable.type.dtype))


def _by_name(
    values: dict[str, Array], variables: Sequence[Any], path: Path
) -> list[tuple[Any, Array]]:
    named = {str(one.name): one for one in variables if one.name}
    if len(named) != len(variables):
        raise UsageError(
            f"`{path}` holds arrays by name, and the graph's parameters have not all a name each",
            hint="name the shared variables, or save a list of arrays",
        )
    missing = [name for name in named if name not in values]
    unknown = [name for name in values if name not in named]
    if missing or unknown:
        what = f"lacks `{missing[0]}`" if missing else f"has `{unknown[0]}`, which the graph lacks"
        raise SourceError(
            f"`{path}` {what}", hint=f"parameters of the graph: {', '.join(list(named)[:12])}"
        )
    return [(variable, values[name]) for name, variable in named.items()]
