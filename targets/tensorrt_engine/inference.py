"""A TensorRT engine as a session: buffers on the GPU, one stream, outputs of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.tensorrt_engine.cuda import Buffer

from deploykit.errors import UsageError
from deploykit.protocol import Signature, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from deploykit._plugins.targets.tensorrt_engine.cuda import Driver

    Array = np.ndarray[Any, Any]


class TensorrtSession:
    """An engine on the GPU."""

    def __init__(self, trt: Any, driver: Driver, engine: Any, signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._parts: tuple[Any, Driver, Any, Signature] | None = (trt, driver, engine, signature)
        self._context = BoundContext(*self._parts)

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name. Raises UsageError for sizes the engine was not built for."""
        if self._parts is None:
            raise ValueError("the session is closed")
        self._context.set_inputs(feed)
        self._context()
        return self._context.outputs()

    def bind(self, feed: Mapping[str, Array]) -> BoundContext:
        """Fix the inputs in the GPU's memory; calling the result runs one inference on them."""
        if self._parts is None:
            raise ValueError("the session is closed")
        context = BoundContext(*self._parts)
        context.set_inputs(feed)
        return context

    def close(self) -> None:
        """Give the GPU's memory back."""
        if self._parts is not None:
            self._context.close()
        self._parts = None


class BoundContext:
    """An execution context with a buffer for each tensor that stays where it is."""

    def __init__(self, trt: Any, driver: Driver, engine: Any, signature: Signature) -> None:
        self._context = engine.create_execution_context()
        if self._context is None:
            raise MemoryError("TensorRT cannot make an execution context: no memory of the GPU?")
        self._driver = driver
        self._stream = driver.stream()
        names = {engine.get_tensor_name(number) for number in range(engine.num_io_tensors)}
        # an input that nothing reads is none of the engine's
        self._inputs = [spec for spec in signature.inputs if spec.name in names]
        self._outputs = list(signature.outputs)
        host = trt.TensorLocation.HOST
        self._on_host = {name for name in names if engine.get_tensor_location(name) == host}
        self._buffers = {name: Buffer(driver) for name in names}
        self._held: dict[str, Array] = {}
        self._allocators: dict[str, Any] = {}
        self._allocating = allocator_class(trt)

    @property
    def context(self) -> Any:
        """TensorRT's own execution context."""
        return self._context

    def set_inputs(self, feed: Mapping[str, Array]) -> None:
        """Copy the inputs to the GPU and make room for the outputs."""
        import numpy as np

        for spec in self._inputs:
            array = np.ascontiguousarray(feed[spec.name]).reshape(feed[spec.name].shape)
            self._held[spec.name] = array
            if not self._context.set_input_shape(spec.name, array.shape):
                sizes = "x".join(map(str, array.shape))
                raise UsageError(
                    f"the engine was not built for `{spec.name}` of {sizes}",
                    hint="compile with other bounds: `--set tensorrt.axes=...`",
                )
            if spec.name in self._on_host:
                address = array.ctypes.data
            else:
                address = self._buffers[spec.name].reserve(array.nbytes)
                self._stream.upload(array, address)
            self._set_address(spec.name, address)
        self._stream.wait()
        missing = self._context.infer_shapes()
        if missing:
            raise RuntimeError(f"TensorRT lacks the sizes of {', '.join(missing)}")
        for spec in self._outputs:
            self._place_output(spec)

    def _place_output(self, spec: TensorSpec) -> None:
        import numpy as np

        shape = tuple(self._context.get_tensor_shape(spec.name))
        if any(size < 0 for size in shape):
            # the size follows from the values: TensorRT asks for memory when it knows it
            allocator = self._allocating(self._buffers[spec.name])
            self._allocators[spec.name] = allocator
            if not self._context.set_output_allocator(spec.name, allocator):
                raise RuntimeError(f"TensorRT takes no allocator for the output `{spec.name}`")
            return
        array = np.empty(shape, spec.dtype)
        self._held[spec.name] = array
        if spec.name in self._on_host:
            self._set_address(spec.name, array.ctypes.data)
        else:
            self._set_address(spec.name, self._buffers[spec.name].reserve(array.nbytes))

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise RuntimeError(f"TensorRT refuses the address of `{name}`")

    def __call__(self) -> None:
        """Run once; the outputs are in the GPU's memory afterwards."""
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT cannot run the engine")
        self._stream.wait()

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        import numpy as np

        found: dict[str, Array] = {}
        for spec in self._outputs:
            allocator = self._allocators.get(spec.name)
            if spec.name in self._on_host:
                found[spec.name] = self._held[spec.name].copy()
                continue
            shape = allocator.shape if allocator else self._held[spec.name].shape
            found[spec.name] = np.empty(shape, spec.dtype)
            self._stream.download(self._buffers[spec.name].address, found[spec.name])
        self._stream.wait()
        return found

    def close(self) -> None:
        """Give the GPU's memory back."""
        self._context = None
        for buffer in self._buffers.values():
            buffer.close()
        self._stream.close()


def allocator_class(trt: Any) -> Any:
    """Return a class of TensorRT's output allocators: each fills a `Buffer` and tells its `shape`."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self, buffer: Buffer) -> None:
            trt.IOutputAllocator.__init__(self)
            self.buffer = buffer
            self.shape: tuple[int, ...] = ()

        # by position: the name of the tensor, the memory it has now, size, alignment (, stream);
        # cuMemAlloc aligns to 256 bytes, which is more than is ever asked for
        def reallocate_output(self, *asked: Any) -> int:
            return self.buffer.reserve(asked[2])

        def reallocate_output_async(self, *asked: Any) -> int:
            return self.buffer.reserve(asked[2])

        def notify_shape(self, *told: Any) -> None:
            self.shape = tuple(told[1])

    return Allocator
