"""IREE's runtime: its devices here, and a loaded module with its buffers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError

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


def open_device(device: str, threads: int | None) -> Any:
    """Return a new device of the runtime; the CPU's has `threads` workers of its own.

    Raises UnavailableError where there is none.
    """
    import iree.runtime as runtime
    from iree.runtime._binding import create_hal_driver

    if device != "cpu":
        device_name(device)
        return runtime.get_driver(DRIVERS[device]).create_default_device()
    # The flag is read when a driver is made, so each session makes its own (the cached one would
    # keep the threads of the first).
    workers = threads or len(os.sched_getaffinity(0))
    runtime.flags.parse_flags(f"--task_topology_group_count={workers}")
    return create_hal_driver(DRIVERS[device]).create_default_device()


class IreeSession:
    """A compiled module in IREE's virtual machine."""

    def __init__(
        self, module: Path, function: str, device: Any, order: list[str], signature: Signature
    ) -> None:
        import iree.runtime as runtime

        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._device = device
        self._order = order
        self._names = [spec.name for spec in signature.outputs]
        self._dtypes = [spec.dtype for spec in signature.outputs]
        instance = runtime.VmInstance()
        try:
            loaded = runtime.VmModule.mmap(instance, str(module))
            hal = runtime.create_hal_module(instance, device)
            self._context: Any = runtime.VmContext(instance, modules=[hal, loaded])
        except (RuntimeError, ValueError) as error:
            raise UnavailableError(
                f"IREE cannot load the compiled module here: {_reason(error)}",
                hint="compile it on this machine, or for it (--hardware)",
            ) from error
        self._function = loaded.lookup_function(function)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        bound = self.bind(feed)
        bound()
        return bound.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundCall:
        """Fix the inputs; calling the result runs one inference on them."""
        if self._context is None:
            raise ValueError("the session is closed")
        arguments = arguments_of(self._device, [feed[name] for name in self._order])
        call = BoundCall(self._context, self._function, self._device, arguments)
        call.names, call.dtypes = self._names, self._dtypes
        return call

    def close(self) -> None:
        """Give the module, its constants and the device back."""
        self._context = self._function = self._device = None


class BoundCall:
    """The function with its arguments in the device's memory; the outputs stay there until asked."""

    names: list[str]
    dtypes: list[str]

    def __init__(self, context: Any, function: Any, device: Any, arguments: Any) -> None:
        self._context = context
        self._function = function
        self._device = device
        self._arguments = arguments
        self._results: Any = None

    def __call__(self) -> None:
        """Run once."""
        import iree.runtime as runtime

        results = runtime.VmVariantList(len(self.names))
        self._context.invoke(self._function, self._arguments, results)
        self._results = results

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        import iree.runtime as runtime

        found = {}
        for index, (name, dtype) in enumerate(zip(self.names, self.dtypes, strict=True)):
            view = self._results.get_as_object(index, runtime.HalBufferView)
            found[name] = read_back(self._device, view, dtype)
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
