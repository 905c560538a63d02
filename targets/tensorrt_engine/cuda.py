"""The few calls of NVIDIA's driver that a TensorRT engine needs around it, by ctypes.

The driver's own API (`libcuda.so.1`, CUDA Driver API reference) rather than a runtime library: it
is there wherever there is a driver, in one version. Written after the documentation; no GPU was at
hand to try it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import UnavailableError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU: its compute capability is (major, minor), such as (9, 0)."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    @property
    def architecture(self) -> str:
        """The name that NVIDIA's compilers give it: `sm_90`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


class Driver:
    """NVIDIA's driver, opened on one GPU.

    Raises UnavailableError, with what is missing, where there is no driver or no such GPU.
    """

    def __init__(self, number: int = 0, *, library: Any = None) -> None:
        self._cuda = _library() if library is None else library
        self._check(self._cuda.cuInit(ctypes.c_uint(0)), "start", missing=True)
        count = ctypes.c_int()
        self._check(self._cuda.cuDeviceGetCount(ctypes.byref(count)), "count GPUs", missing=True)
        if count.value <= number:
            raise UnavailableError(
                f"NVIDIA's driver is here, and it finds {count.value} GPUs",
                hint="CUDA_VISIBLE_DEVICES may hide them; in a container, start it with them",
            )
        self._device = ctypes.c_int()
        self._check(
            self._cuda.cuDeviceGet(ctypes.byref(self._device), ctypes.c_int(number)), "open the GPU"
        )

    def gpu(self) -> Gpu:
        """Return what this GPU is."""
        name = ctypes.create_string_buffer(256)
        self._check(
            self._cuda.cuDeviceGetName(name, ctypes.c_int(len(name)), self._device), "name the GPU"
        )
        memory = ctypes.c_size_t()
        self._check(
            self._cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), self._device), "size the GPU"
        )
        return Gpu(
            name=name.value.decode(errors="replace"),
            capability=(self._attribute(_MAJOR), self._attribute(_MINOR)),
            memory_bytes=memory.value,
        )

    def version(self) -> str:
        """Return the newest CUDA that the driver runs, such as `12.8`."""
        number = ctypes.c_int()
        self._check(self._cuda.cuDriverGetVersion(ctypes.byref(number)), "tell its version")
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def enter(self) -> None:
        """Make this GPU's context the thread's own: the one that CUDA libraries share."""
        context = ctypes.c_void_p()
        self._check(
            self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device),
            "open a context",
        )
        self._check(self._cuda.cuCtxSetCurrent(context), "enter the context")

    def stream(self) -> Stream:
        """Return a new stream of this GPU; `enter` comes first."""
        handle = ctypes.c_void_p()
        self._check(
            self._cuda.cuStreamCreate(ctypes.byref(handle), ctypes.c_uint(_NON_BLOCKING)),
            "make a stream",
        )
        return Stream(self, handle)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of GPU memory. Raises MemoryError."""
        address = ctypes.c_uint64()
        self._check(
            self._cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(max(size, 1))),
            f"allocate {size} bytes",
        )
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._check(self._cuda.cuMemFree_v2(ctypes.c_uint64(address)), "free memory")

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._check(
            self._cuda.cuDeviceGetAttribute(
                ctypes.byref(value), ctypes.c_int(number), self._device
            ),
            "tell an attribute",
        )
        return value.value

    def _check(self, status: int, what: str, *, missing: bool = False) -> None:
        if status == 0:
            return
        name = ctypes.c_char_p()
        known = self._cuda.cuGetErrorName(ctypes.c_int(status), ctypes.byref(name)) == 0
        said = (name.value or b"").decode() if known else f"CUDA error {status}"
        message = f"NVIDIA's driver cannot {what}: {said}"
        if missing:
            raise UnavailableError(message, hint="`nvidia-smi` tells whether driver and GPU work")
        if status == _OUT_OF_MEMORY:
            raise MemoryError(message)
        raise RuntimeError(message)


class Stream:
    """Work for the GPU, in order."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p) -> None:
        self._driver = driver
        self._cuda = driver._cuda
        self._handle = handle

    @property
    def handle(self) -> int:
        """The stream as a number, as TensorRT takes it."""
        return self._handle.value or 0

    def upload(self, array: Array, address: int) -> None:
        """Begin to copy a contiguous `array` to the GPU; it must live until `wait`."""
        if array.nbytes:
            status = self._cuda.cuMemcpyHtoDAsync_v2(
                ctypes.c_uint64(address),
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_size_t(array.nbytes),
                self._handle,
            )
            self._driver._check(status, "copy to the GPU")

    def download(self, address: int, array: Array) -> None:
        """Begin to copy from the GPU into a contiguous `array`; it is there after `wait`."""
        if array.nbytes:
            status = self._cuda.cuMemcpyDtoHAsync_v2(
                ctypes.c_void_p(array.ctypes.data),
                ctypes.c_uint64(address),
                ctypes.c_size_t(array.nbytes),
                self._handle,
            )
            self._driver._check(status, "copy from the GPU")

    def wait(self) -> None:
        """Return when all that was begun is done."""
        self._driver._check(self._cuda.cuStreamSynchronize(self._handle), "finish its work")

    def close(self) -> None:
        """Give the stream back."""
        if self._handle.value:
            self._driver._check(self._cuda.cuStreamDestroy_v2(self._handle), "end a stream")
            self._handle = ctypes.c_void_p()


class Buffer:
    """Memory of the GPU that grows when more is asked for."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._size = -1
        self.address = 0

    def reserve(self, size: int) -> int:
        """Return the address of at least `size` bytes; what was in it before is lost if it moves."""
        if size > self._size:
            self.close()
            self.address = self._driver.allocate(size)
            self._size = size
        return self.address

    def close(self) -> None:
        """Give the memory back."""
        if self._size >= 0:
            self._driver.free(self.address)
        self._size = -1
        self.address = 0


def _library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise UnavailableError(
            f"no NVIDIA driver ({LIBRARY} is missing)", hint="install NVIDIA's driver for the GPU"
        ) from error
