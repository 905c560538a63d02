"""TVM's runtime alone: what loads a library and runs it, without the compiler.

5 MB instead of 260, so a device needs no more than `libtvm_runtime.so` and the package `tvm_ffi`
(the Python package `tvm` would load the compiler too, where that is installed).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import BundleError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# DLPack's numbers of kinds of devices.
DEVICES = {"cpu": 1, "cuda": 2}
POOLED = 2
# The big cores first, as TVM's pool does by itself.
BIG_CORES = 1

_loaded: dict[str, ctypes.CDLL] = {}


def start(device: str) -> None:
    """Load the runtime's libraries for `device` into the process.

    Raises UnavailableError where one is missing or cannot be loaded.
    """
    make_room_for_threads()
    place = folder()
    # the second has the sorts, the third drives the GPU
    for name, needed in (("runtime", True), ("runtime_extra", False), ("runtime_cuda", True)):
        if name in _loaded or (name == "runtime_cuda" and device != "cuda"):
            continue
        mode = ctypes.RTLD_GLOBAL if name == "runtime" else ctypes.RTLD_LOCAL
        try:
            _loaded[name] = ctypes.CDLL(str(place / f"libtvm_{name}.so"), mode)
        except OSError as error:
            if needed:
                raise UnavailableError(
                    f"TVM's library libtvm_{name}.so cannot be loaded: {error}",
                    hint="install apache-tvm anew"
                    if name == "runtime"
                    else "install NVIDIA's driver, which has libcuda.so.1",
                ) from error


def make_room_for_threads() -> None:
    """Let TVM's pool have a thread per core when it is made; it can shrink later, never grow."""
    os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))


def folder() -> Path:
    """Return where TVM's libraries lie: in the package `tvm`, which is not imported for it."""
    import tvm_ffi  # noqa: F401  # loads libtvm_ffi.so, which the others need

    found = importlib.util.find_spec("tvm")
    for place in found.submodule_search_locations or () if found else ():
        libraries = Path(place) / "lib"
        if (libraries / "libtvm_runtime.so").is_file():
            return libraries
    raise UnavailableError(
        "TVM's runtime is not installed here", hint="install the package apache-tvm"
    )


def use_threads(threads: int | None) -> None:
    """Make TVM use that many threads, in the whole process; None leaves them as they are."""
    import tvm_ffi

    if threads is None:
        return
    tvm_ffi.get_global_func("runtime.config_threadpool")(BIG_CORES, threads)
    made = int(tvm_ffi.get_global_func("runtime.NumThreads")())
    if made < threads:
        warnings.warn(
            f"TVM runs on {made} threads instead of {threads}: its pool was made for that many",
            stacklevel=3,
        )


def machine_of(library: Path, device: str) -> Any:
    """Return TVM's virtual machine with the library in it, its values on `device`.

    Raises BundleError where the file is no library of TVM's.
    """
    import tvm_ffi

    with tempfile.TemporaryDirectory(prefix="deploykit-tvm-") as names:
        # The system's loader takes a path that it knows for the library that it knows: a bundle
        # replaced since would give the old one's results. So each load has a name of its own.
        link = Path(names) / library.name
        link.symlink_to(library.resolve())
        try:
            made = tvm_ffi.load_module(str(link))["vm_load_executable"]()
        except (AttributeError, OSError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise BundleError(
                f"`{library}` is no library that TVM can load: {reason}",
                hint="compile the model again",
            ) from error
    # shapes are computed on the CPU in any case
    places = [DEVICES[device]] if device == "cpu" else [DEVICES[device], DEVICES["cpu"]]
    made["vm_initialization"](*(word for place in places for word in (place, 0, POOLED)))
    return made


def tensor(array: Array, device: str) -> Any:
    """Return a copy of `array` on `device`.

    Copied, because kernels rely on an alignment of 64 bytes that numpy does not promise.
    """
    import numpy as np
    import tvm_ffi

    made = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")(
        tvm_ffi.Shape(array.shape),
        tvm_ffi.dtype(str(array.dtype)),
        tvm_ffi.device(device, 0),
        None,
    )
    whole = np.ascontiguousarray(array)
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")(
        made, ctypes.c_void_p(whole.ctypes.data), whole.nbytes
    )
    return made


def array(value: Any) -> Array:
    """Return a copy of TVM's tensor `value` in numpy's memory."""
    import numpy as np
    import tvm_ffi

    made = np.empty(tuple(value.shape), str(value.dtype))
    tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")(
        value, ctypes.c_void_p(made.ctypes.data), made.nbytes
    )
    return made


def wait(device: str) -> None:
    """Return when what was started on `device` is done; a CPU's calls return when they are."""
    import tvm_ffi

    if device != "cpu":
        tvm_ffi.get_global_func("runtime.Device_StreamSync")(tvm_ffi.device(device, 0), 0)
