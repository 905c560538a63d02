"""numpy's arrays in pickles, read without running them: what Theano's users keep parameters in.

An array is a call of `numpy.core.multiarray._reconstruct` whose state is (version, shape, dtype,
is_fortran, bytes); a dtype is a call of `numpy.dtype` whose state has the byte order second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.formats.content import Content, damaged, shown
from deploykit.formats.pickle_scan import Call, Global, Mapping, Pickle, scan
from deploykit.formats.reading import FormatError, Reading, RunsCodeError, elements, listed

KIND = "pickle of numpy arrays"
LARGEST_PICKLE = 2 << 30
MOST_VALUES = 1_000_000
DEEPEST = 100
DATA_ONLY = re.compile(
    r"numpy\.(_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)|ndarray|dtype)"
    r"|collections\.(OrderedDict|defaultdict)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(dict|list|tuple|int|float|str|bytes|bytearray|set)"
    r"|theano\.sandbox\.cuda\.type\.CudaNdarray_unpickler"
    r"|theano\.gpuarray\.type\.GpuArray_unpickler"
)
"""Names that make arrays and plain data, and run nothing of the file's own choice."""

THEANO = ("theano.", "pytensor.", "aesara.", "lasagne.")
_ARRAY = re.compile(r"numpy\._?core\.multiarray\._reconstruct")
_BUFFER = re.compile(r"numpy\._?core\.numeric\._frombuffer")
_SCALAR = re.compile(r"numpy\._?core\.multiarray\.scalar")
_ON_GPU = ("CudaNdarray_unpickler", "GpuArray_unpickler")


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array as a file holds it: `dtype` in numpy's words (`<f4`), and its bytes.

    Of an array of objects, `data` is the list of what it holds.
    """

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    data: bytes | list[Any]


def described(stored: StoredArray) -> str:
    """Return dtype and shape in words."""
    return f"{shown(stored.dtype, 20)}[{', '.join(map(str, stored.shape))}]"


def refuse_code(path: Path, names: list[str]) -> None:
    """Raise RunsCodeError where unpickling would import and run more than numpy's arrays."""
    foreign = [name for name in names if not DATA_ONLY.fullmatch(name)]
    if foreign:
        raise RunsCodeError(
            f"`{path}` is a pickle that imports more than arrays: {shown(listed(foreign, 3))}"
            " (deploykit has not run it)",
            hint="save numpy arrays (`[p.get_value() for p in params]`), or convert with --trust"
            " if you know where it comes from",
            path=path,
            names=tuple(foreign),
        )


def is_arrays(names: list[str]) -> bool:
    """Whether a pickle that imports these names is made of numpy's arrays and plain data."""
    has_arrays = any(_ARRAY.fullmatch(name) or _BUFFER.fullmatch(name) for name in names)
    return has_arrays and all(DATA_ONLY.fullmatch(name) for name in names)


def structure(value: Any) -> Any:
    """Return what a pickle describes as lists, dicts, numbers, texts and StoredArrays.

    Raises FormatError where a part is none of these or there is no end of it.
    """
    return _Structure().of(value, 0)


class _Structure:
    """One walk over a description; a part that occurs often is one value."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._count = 0

    def of(self, value: Any, depth: int) -> Any:
        self._count += 1
        if depth > DEEPEST or self._count > MOST_VALUES:
            raise FormatError("the pickle is nested without end")
        if isinstance(value, (Call, Mapping, list, tuple)):
            key = id(value)
            if key not in self._seen:
                self._seen[key] = None
                self._seen[key] = self._made(value, depth + 1)
            found = self._seen[key]
            if found is None:
                raise FormatError("the pickle contains itself")
            return found
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        raise FormatError(f"the pickle holds a {type(value).__name__}")

    def _made(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            return {_key(self.of(key, depth)): self.of(one, depth) for key, one in value.pairs}
        if isinstance(value, Call):
            return self._called(value, depth)
        return [self.of(one, depth) for one in value]

    def _called(self, call: Call, depth: int) -> Any:
        name = call.function.name if isinstance(call.function, Global) else ""
        arguments = call.arguments if isinstance(call.arguments, tuple) else ()
        if _ARRAY.fullmatch(name):
            return self._array(call.state, depth)
        if _BUFFER.fullmatch(name) and len(arguments) == 4:
            data, dtype, shape, order = arguments
            return StoredArray(_dtype(dtype), _shape(shape), order == "F", _bytes(data))
        if _SCALAR.fullmatch(name) and len(arguments) == 2:
            return StoredArray(_dtype(arguments[0]), (), False, _bytes(arguments[1]))
        if name.rpartition(".")[2] in _ON_GPU and arguments:
            return self.of(arguments[0], depth)
        if name == "_codecs.encode":
            return _bytes(call)
        if name.rpartition(".")[2] in ("OrderedDict", "defaultdict", "dict"):
            if isinstance(call.state, Mapping):
                return self.of(call.state, depth)
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            return {
                _key(self.of(one[0], depth)): self.of(one[1], depth)
                for one in pairs
                if isinstance(one, (list, tuple)) and len(one) == 2
            }
        raise FormatError(f"the pickle calls {shown(name) or 'what is no name'}")

    def _array(self, state: Any, depth: int) -> StoredArray:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise FormatError("an array has no state")
        shape, dtype, fortran, data = state[-4:]
        kind = _dtype(dtype)
        if "O" in kind:
            held = data if isinstance(data, list) else []
            return StoredArray("O", _shape(shape), False, [self.of(one, depth) for one in held])
        return StoredArray(kind, _shape(shape), bool(fortran), _bytes(data))


def _key(value: Any) -> str:
    if not isinstance(value, (str, int, bytes)):
        raise FormatError("the key of a dict is no text")
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _shape(value: Any) -> tuple[int, ...]:
    sizes = value if isinstance(value, tuple) else ()
    if not all(isinstance(one, int) and 0 <= one < 1 << 48 for one in sizes):
        raise FormatError("an array has a shape of other things than sizes")
    elements(sizes)
    return tuple(sizes)


def _dtype(value: Any) -> str:
    """Return numpy's word for a described dtype. Raises FormatError for structures and the like."""
    is_call = isinstance(value, Call) and isinstance(value.function, Global)
    arguments = value.arguments if is_call and isinstance(value.arguments, tuple) else ()
    if not is_call or value.function.name != "numpy.dtype" or not arguments:
        raise FormatError("an array has no dtype")
    kind = arguments[0]
    if isinstance(kind, bytes):
        kind = kind.decode("latin-1")
    if not isinstance(kind, str) or not re.fullmatch(r"[<>|=]?[biufO][0-9]{0,2}", kind):
        raise FormatError(f"an array is of the dtype {shown(str(kind), 40)}")
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    if kind[0] in "<>|=" or order not in ("<", ">"):
        return kind
    return f"{order}{kind}"


def _bytes(value: Any) -> bytes:
    """Return bytes in whichever way a pickle holds them; Python 2's are texts."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, Call) and isinstance(value.function, Global):
        arguments = value.arguments if isinstance(value.arguments, tuple) else ()
        if value.function.name == "_codecs.encode" and arguments:
            return _bytes(arguments[0])
        if value.function.name.endswith((".bytes", ".bytearray")):
            return _bytes(arguments[0]) if arguments else b""
    raise FormatError("an array has no bytes")


def arrays(value: Any) -> list[StoredArray]:
    """Return the arrays in a structure, in order."""
    found: list[StoredArray] = []
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise FormatError("the pickle is nested without end")
        if isinstance(one, StoredArray):
            if isinstance(one.data, list):
                waiting += one.data[::-1]
            else:
                found.append(one)
        elif isinstance(one, list):
            waiting += one[::-1]
        elif isinstance(one, dict):
            waiting += list(one.values())[::-1]
    return found


def reading(content: Content, pickle: Pickle) -> Reading:
    """Return what a pickle of arrays holds. Raises SourceError where it would run code."""
    refuse_code(content.path, pickle.globals)
    try:
        found = arrays(structure(pickle.value))
    except FormatError as error:
        raise damaged(content.path, KIND, error) from error
    return Reading(
        format="theano/parameters",
        location=content.path,
        files=(content.path,),
        parameters=sum(elements(one.shape) for one in found),
        details={
            "arrays": f"{len(found)}: {listed([described(one) for one in found], 4)}",
            "graph": "none: name the code that builds it: `--set module=FILE.py:callable`",
        },
    )


def read(content: Content) -> Reading:
    """Read a set of parameters: a pickle, or numpy's own `.npy` and `.npz` (by name only)."""
    if content.starts_with(b"PK\x03\x04", b"\x93NUMPY"):
        return Reading(format="theano/parameters", location=content.path, files=(content.path,))
    if content.size > LARGEST_PICKLE:
        raise damaged(content.path, KIND, f"{content.size} bytes are more than any network has")
    try:
        return reading(content, scan(bytes(content.view)))
    except FormatError as error:
        raise damaged(content.path, KIND, error) from error
