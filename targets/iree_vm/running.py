"""IREE's runtime: its devices here, and a loaded module with its buffers."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import PluginError, UnavailableError

if TYPE_CHECKING:
    import numpy as np

    from deploykit.protocol import Signature

    Array = np.ndarray[Any, Any]

# Ours -> IREE's name of the driver.
DRIVERS = {"cpu": "local-task", "vulkan": "vulkan", "cuda": "cuda"}

# What to install where a driver finds nothing, in the words of Debian and NVIDIA.
REMEDIES = {
    "vulkan": "it takes the Vulkan loader (libvulkan.so.1) and a driver with its ICD file "
    "(for a GPU its vendor's; in software: mesa-vulkan-drivers)",
    "cuda": "it takes NVIDIA's driver (libcuda.so.1) and a GPU",
}


def device_name(device: str) -> str:
    """Return what the runtime finds for `device`, by its name.

    Raises UnavailableError that says in one line what is missing.
    """
    import iree.runtime as runtime

    try:
        found = runtime.get_driver(DRIVERS[device]).query_available_devices()
    except (RuntimeError, ValueError) as error:
        raise UnavailableError(f"{_reason(error)}; {REMEDIES.get(device, '')}") from error
    if not found:
        raise UnavailableError(f"the driver finds no device; {REMEDIES.get(device, '')}")
    return str(found[0]["name"])


def _reason(error: Exception) -> str:
    """Return the runtime's status without its own source places: `CODE; message`."""
    line = " ".join(str(error).split())
    parts = line.split("; ", 1)
    return parts[1].split(" c/runtime/")[0][:200] if len(parts) > 1 else line[:200]


def nvidia_architecture() -> str | None:
    """Return the architecture of the first NVIDIA GPU here, such as `sm_86`; None without one.

    By the driver's own interface (cuDeviceGetAttribute: 75 and 76 are the compute capability).
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device):
        return None
    if driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device):
        return None
    return f"sm_{major.value}{minor.value}"


@functools.cache
def open_device(device: str, threads: int | None) -> tuple[Any, Any]:
    """Return a driver of the runtime and its device; the CPU's has `threads` workers of its own.

    Kept as long as the process lives: a buffer that outlives its device crashes, and who frees
    which first is the garbage collector's choice. Raises UnavailableError where there is none.
    """
    import iree.runtime as runtime
    from iree.runtime._binding import create_hal_driver

    if device != "cpu":
        device_name(device)
        driver = runtime.get_driver(DRIVERS[device])
        return driver, driver.create_default_device()
    # The flag is read when a driver is made: IREE's own cache would keep the threads of the first.
    workers = threads or len(os.sched_getaffinity(0))
    runtime.flags.parse_flags(f"--task_topology_group_count={workers}")
    driver = create_hal_driver(DRIVERS[device])
    return driver, driver.create_default_device()


class Loaded:
    """A module in the runtime, on a device."""

    def __init__(self, module: Path, function: str, device: str, threads: int | None) -> None:
        import iree.runtime as runtime

        _, self.device = open_device(device, threads)
        instance = runtime.VmInstance()
        try:
            loaded = runtime.VmModule.mmap(instance, str(module))
            hal = runtime.create_hal_module(instance, self.device)
            self.context = runtime.VmContext(instance, modules=[hal, loaded])
        except (RuntimeError, ValueError) as error:
            raise UnavailableError(
                f"IREE cannot load the compiled module here: {_reason(error)}",
                hint="compile it on this machine, or for it (--hardware)",
            ) from error
        self.function = loaded.lookup_function(function)


class IreeSession:
    """A compiled module in IREE's virtual machine."""

    def __init__(self, loaded: Loaded, order: list[str], signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._order = order
        self._loaded: Loaded | None = loaded

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        bound = self.bind(feed)
        bound()
        return bound.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundCall:
        """Fix the inputs; calling the result runs one inference on them."""
        if self._loaded is None:
            raise ValueError("the session is closed")
        dtypes = {spec.name: spec.dtype for spec in self.outputs}
        return BoundCall(self._loaded, [feed[name] for name in self._order], dtypes)

    def close(self) -> None:
        """Give the module, its constants and the device back."""
        self._loaded = None


class BoundCall:
    """The function with its arguments in the device's memory; the outputs stay there until asked."""

    def __init__(self, loaded: Loaded, arrays: list[Array], dtypes: Mapping[str, str]) -> None:
        self._loaded = loaded
        self._dtypes = dtypes
        self._arguments = arguments_of(loaded.device, arrays)
        self._results: Any = None

    def __call__(self) -> None:
        """Run once."""
        import iree.runtime as runtime

        results = runtime.VmVariantList(len(self._dtypes))
        try:
            self._loaded.context.invoke(self._loaded.function, self._arguments, results)
        except (IndexError, RuntimeError, ValueError) as error:
            # what IREE makes of its own status codes
            raise PluginError(
                f"IREE failed while running: {_reason(error)}",
                hint="where sizes are dynamic, fixed ones (--shape) often help",
            ) from error
        self._results = results

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        import iree.runtime as runtime

        found = {}
        for index, (name, dtype) in enumerate(self._dtypes.items()):
            view = self._results.get_as_object(index, runtime.HalBufferView)
            found[name] = read_back(self._loaded.device, view, dtype)
        return found


def arguments_of(device: Any, arrays: list[Array]) -> Any:
    """Return the arrays, copied to the device's memory, as the list that a call takes."""
    import iree.runtime as runtime
    import numpy as np

    arguments = runtime.VmVariantList(len(arrays))
    for array in arrays:
        # ascontiguousarray makes a scalar one-dimensional
        whole = np.ascontiguousarray(array).reshape(array.shape)
        view = device.allocator.allocate_buffer_copy(
            memory_type=runtime.MemoryType.DEVICE_LOCAL,
            allowed_usage=runtime.BufferUsage.DEFAULT,
            device=device,
            buffer=whole,
            element_type=runtime.array_interop.map_dtype_to_element_type(whole.dtype),
        )
        arguments.push_ref(view)
    return arguments


def read_back(device: Any, view: Any, dtype: str) -> Array:
    """Return a copy of the buffer `view` as numpy's `dtype`."""
    import iree.runtime as runtime
    import numpy as np

    kind, usage = runtime.MemoryType, runtime.BufferUsage
    raw = runtime.HalElementType.map_to_dtype(view.element_type)
    shape = view.shape
    if 0 in shape:
        return np.zeros(shape, dtype)
    buffer = view.get_buffer()
    visible = buffer.memory_type() & int(kind.HOST_VISIBLE)
    mappable = buffer.allowed_usage() & int(usage.MAPPING_SCOPED)
    if visible and mappable:
        mapped = view.map().asarray(shape, raw)
        return np.array(mapped).astype(dtype, copy=False)
    # Through memory that both sides see: importing ours, as IREE's own arrays do, wants it aligned
    # to a page on some Vulkan devices.
    staging = device.allocator.allocate_buffer(
        memory_type=kind.HOST_LOCAL | kind.DEVICE_VISIBLE,
        allowed_usage=usage.TRANSFER_TARGET | usage.MAPPING_SCOPED,
        allocation_size=buffer.byte_length(),
    )
    done = device.create_semaphore(0)
    device.queue_copy(
        buffer,
        staging,
        wait_semaphores=runtime.HalFence.create_at(done, 0),
        signal_semaphores=runtime.HalFence.create_at(done, 1),
    )
    runtime.HalFence.create_at(done, 1).wait()
    mapped = staging.map().asarray(shape, raw)
    return np.array(mapped).astype(dtype, copy=False)
