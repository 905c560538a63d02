"""Paddle's parameter files (`.pdiparams`, or one file per variable): tensor after tensor.

u32 version, u64 LoD levels (each u64 bytes and those bytes), u32 version, i32 size and bytes of a
TensorDesc, then the elements. Names are not in the file: the tensors come in their order.
"""

from __future__ import annotations

from deploykit.errors import SourceError
from deploykit.formats.content import Content, damaged
from deploykit.formats.protobuf_wire import fields, number, numbers
from deploykit.formats.reading import FormatError, elements

KIND = "Paddle parameter file"
SIZES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16, 32: 1, 33: 1}
"""Bytes per element by the number of the dtype."""
LARGEST_DESCRIPTION = 4096
MOST_LEVELS = 64


def recognises(content: Content) -> bool:
    """Whether the file begins as a parameter file does."""
    try:
        _, after = _tensor(content.view, 0, whole=False)
    except FormatError:
        return False
    return after > 0


def check_parameters(content: Content, expected: int) -> None:
    """Walk over all tensors. Raises SourceError where they are not whole or not `expected` many."""
    at = count = 0
    try:
        while at < content.size:
            _, at = _tensor(content.view, at, whole=True)
            count += 1
    except FormatError as error:
        raise damaged(content.path, KIND, error) from error
    if count != expected:
        raise SourceError(
            f"`{content.path}` holds {count} tensors where the program has {expected} parameters",
            hint="program and parameters are not of one export: copy both again",
        )


def _tensor(view: memoryview, at: int, *, whole: bool) -> tuple[list[int], int]:
    """Return the sizes of the tensor at `at` and the place after it."""
    start = at
    levels = int.from_bytes(view[at + 4 : at + 12], "little")
    if len(view) - at < 20 or any(view[at : at + 4]) or levels > MOST_LEVELS:
        raise FormatError(f"no tensor begins at byte {start}")
    at += 12
    for _ in range(levels):
        at += 8 + int.from_bytes(view[at : at + 8], "little")
    length = int.from_bytes(view[at + 4 : at + 8], "little")
    if (
        any(view[at : at + 4])
        or not 2 <= length <= LARGEST_DESCRIPTION
        or at + 8 + length > len(view)
    ):
        raise FormatError(f"no tensor begins at byte {start}")
    at += 8
    dtype = -1
    sizes: list[int] = []
    for key, value in fields(view[at : at + length]):
        if key == 1:
            dtype = number(value)
        elif key == 2:
            sizes += numbers(value)
    if dtype not in SIZES or any(size < 0 for size in sizes):
        raise FormatError(f"the tensor at byte {start} has no known dtype and shape")
    at += length
    end = at + elements(sizes) * SIZES[dtype]
    if whole and end > len(view):
        raise FormatError(f"the tensor at byte {start} needs {end - at} bytes of {len(view) - at}")
    return sizes, end
