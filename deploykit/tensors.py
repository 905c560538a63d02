"""Tensors on disk: the one reader and writer of `.npz` files, without pickle, whole or not at all.

This file also runs inside plugin environments: standard library and numpy.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Array]) -> None:
    """Write `tensors` to the `.npz` file `path`, replacing it only when the new one is whole.

    Raises OutputError where the file cannot be written, UsageError for objects that are no strings.
    """
    import numpy as np

    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, tensor in tensors.items():
                # fixed time stamp: the same tensors give the same bytes
                member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(
                        stream, _storable(name, np.asarray(tensor)), allow_pickle=False
                    )
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write `{path}`: {error.strerror or error}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Return every tensor of the `.npz` file `path` by name.

    Raises UsageError where the file is missing, damaged, or holds pickled objects.
    """
    found = _read(path)
    if not isinstance(found, dict):
        raise UsageError(f"`{path}` is not an .npz archive")
    return found


def read_tensor(path: str | os.PathLike[str]) -> Array:
    """Return the tensor of the `.npy` file `path`. Raises UsageError as `read_tensors` does."""
    found = _read(path)
    if isinstance(found, dict):
        raise UsageError(f"`{path}` is an .npz archive, not an .npy file")
    return found


def _read(path: str | os.PathLike[str]) -> Array | dict[str, Array]:
    import tokenize  # numpy reads an old header with it

    import numpy as np

    try:
        # opened here: numpy forgets to close what turns out to be no archive
        with Path(path).open("rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return _named(found)
            return {name: _named(found[name]) for name in found.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError) as error:
        raise UsageError(f"cannot read tensors from `{path}`: {error}") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, TypeError) as error:
        raise UsageError(f"cannot read tensors from `{path}`: it is damaged: {error}") from error
    except tokenize.TokenError as error:
        raise UsageError(f"cannot read tensors from `{path}`: it is damaged: {error}") from error


def _named(array: Any) -> Array:
    """Return `array`; numpy's format knows no bfloat16 and gives it back as nameless pairs of bytes."""
    if not hasattr(array, "dtype"):  # a member of the archive that is no tensor
        raise ValueError("it holds something else than tensors")
    tensor: Array = array
    if tensor.dtype.str == "|V2":
        try:
            import ml_dtypes
        except ImportError:
            return tensor
        return tensor.view(ml_dtypes.bfloat16)
    return tensor


def _storable(name: str, tensor: Array) -> Array:
    """Return `tensor` so that no pickle is needed; runtimes give strings as objects."""
    if tensor.dtype.kind != "O":
        return tensor
    if not all(isinstance(item, str) for item in tensor.flat):
        raise UsageError(f"the tensor `{name}` holds objects that are not strings")
    return tensor.astype(str)
