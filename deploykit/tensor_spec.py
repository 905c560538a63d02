"""Words about tensors: what the user writes on the command line, and the names of dtypes.

Standard library at import, so that the command line may use it freely.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnsupportedError, UsageError
from deploykit.protocol import Dimension, DynamicAxis, TensorSpec

if TYPE_CHECKING:
    import numpy as np

DTYPES = (
    *("float32", "float16", "bfloat16", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bool", "string", "complex64", "complex128"),
)
"""Every dtype that a tensor of a signature may have: numpy's names, and two that numpy lacks."""

# what people write instead, from C, PyTorch, ONNX and command lines of other tools
_OTHER_NAMES = {
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
    "single": "float32",
    "half": "float16",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "double": "float64",
    "fp64": "float64",
    "f64": "float64",
    "int": "int64",
    "long": "int64",
    "i64": "int64",
    "i32": "int32",
    "u8": "uint8",
    "byte": "uint8",
    "char": "int8",
    "short": "int16",
    "boolean": "bool",
    "str": "string",
}

# greedy name: TensorFlow's names have colons of their own (`serving_default_x:0:float32[1,3]`)
_INPUT = re.compile(r"(?P<name>.+):(?P<dtype>[^:\[\]]*)(?:\[(?P<shape>[^\[\]]*)\])?", re.DOTALL)
_DYNAMIC = re.compile(r"(?P<input>.+):(?P<axes>[^:]+)", re.DOTALL)
_SHAPE = re.compile(r"(?P<name>.+)=(?P<sizes>[^=]*)", re.DOTALL)
_WHOLE = re.compile(r"[0-9]{1,18}")  # what fits an int64


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean `KNOWN`?)` where one of `known` looks like `word`, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""


def parse_input(text: str) -> TensorSpec:
    """Return the spec that `text` writes, such as `x:float32[1,3,?,W]`: the inverse of `str(spec)`.

    `?` is a dynamic axis, a word a dynamic axis with that name, `[]` a scalar; without brackets the
    rank is unknown. Raises UsageError saying which part cannot be read.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read the input `{text}`", hint=_INPUT_HINT)
    dtype = match["dtype"].strip()
    if dtype not in DTYPES:
        other = _OTHER_NAMES.get(dtype.lower())
        meant = f" (did you mean `{other}`?)" if other else did_you_mean(dtype.lower(), DTYPES)
        raise UsageError(
            f"the input `{text}` has an unknown dtype `{dtype}`{meant}",
            hint=f"one of {', '.join(DTYPES)}; {_INPUT_HINT}",
        )
    shape = match["shape"]
    return TensorSpec(
        name=match["name"].strip(),
        dtype=dtype,
        shape=None if shape is None else _parse_dimensions(text, shape),
    )


_INPUT_HINT = "write NAME:DTYPE[SIZES], such as `x:float32[1,3,?,width]`"


def _parse_dimensions(text: str, shape: str) -> tuple[Dimension, ...]:
    if not shape.strip():
        return ()
    dimensions: list[Dimension] = []
    for word in (part.strip() for part in shape.split(",")):
        if word == "?":
            dimensions.append(None)
        elif _WHOLE.fullmatch(word):
            dimensions.append(int(word))
        elif re.fullmatch(r"[-+]?[\d.]+", word) or not word:
            raise UsageError(
                f"the input `{text}` has a size `{word}`",
                hint="a size is a whole number, `?` (dynamic), or a name (dynamic, named)",
            )
        else:
            dimensions.append(word)
    return tuple(dimensions)


def parse_dynamic(text: str) -> tuple[DynamicAxis, ...]:
    """Return the dynamic axes that `text` names, such as `x:0=batch,2=time` (axes of one input).

    Raises UsageError where it cannot be read or names an axis twice.
    """
    hint = "write INPUT:AXIS=NAME[,AXIS=NAME]…, such as `x:0=batch,2=time`; axes count from 0"
    match = _DYNAMIC.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read the dynamic axes `{text}`", hint=hint)
    axes: list[DynamicAxis] = []
    for part in match["axes"].split(","):
        number, equals, name = (word.strip() for word in part.partition("="))
        if not (equals and name and _WHOLE.fullmatch(number)):
            raise UsageError(f"cannot read `{part}` in the dynamic axes `{text}`", hint=hint)
        if any(axis.axis == int(number) for axis in axes):
            raise UsageError(f"the dynamic axes `{text}` name axis {int(number)} twice", hint=hint)
        axes.append(DynamicAxis(input=match["input"].strip(), axis=int(number), name=name))
    return tuple(axes)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return input name and sizes that `text` writes, such as `x=1x3x224x224`.

    Raises UsageError where it cannot be read.
    """
    hint = "write INPUT=SIZExSIZE…, such as `x=1x3x224x224`"
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"cannot read the shape `{text}`", hint=hint)
    words = [word.strip() for word in match["sizes"].split("x")]
    for word in words:
        if not _WHOLE.fullmatch(word):
            raise UsageError(f"the shape `{text}` has a size `{word}`", hint=hint)
    return match["name"].strip(), tuple(int(word) for word in words)


def parse_shapes(texts: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Return the sizes of inputs that `texts` write, once for each set of sizes (a bucket).

    An input that is written several times has one size in each bucket, in that order; one that is
    written once has it in all. Raises UsageError where inputs disagree on how many there are.
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, sizes = parse_shape(text)
        found.setdefault(name, []).append(sizes)
    count = max((len(sizes) for sizes in found.values()), default=1)
    for name, several in found.items():
        if len(several) not in (1, count):
            raise UsageError(
                f"input `{name}` has {len(several)} shapes, and another has {count}",
                hint="give every input as many shapes, or one that holds for all",
            )
    return tuple(
        {name: several[number % len(several)] for name, several in found.items()}
        for number in range(count)
    )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype for the dtype `name` of a spec.

    `string` is numpy's `str` of any length; `bfloat16` comes from ml_dtypes, which onnx brings.
    Raises UnsupportedError for a name not in `DTYPES`.
    """
    import numpy as np

    if name not in DTYPES:
        raise UnsupportedError(f"no tensor can be made of the dtype `{name}`")
    if name == "string":
        return np.dtype(np.str_)
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def is_dtype(found: np.dtype[Any], name: str) -> bool:
    """Say whether the numpy dtype `found` is what a spec calls `name`.

    Strings may be numpy's `str` or objects. A foreign byte order is another dtype.
    """
    if name == "string":
        return found.kind in "UO"
    return found.name == name and found.isnative
