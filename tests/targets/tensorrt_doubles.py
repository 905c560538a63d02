"""Stand-ins for NVIDIA's driver and TensorRT, on ordinary memory.

They keep to the documented calls and say nothing of how TensorRT computes: tests learn from them what
we pass to it and what we make of its answers.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx


class DriverDouble:
    """The calls of `libcuda.so.1`, on ordinary memory."""

    def __init__(self, *, status: int = 0, count: int = 1, full: bool = False) -> None:
        self.status = status
        self.count = count
        self.full = full
        self.blocks: dict[int, Any] = {}

    def cuInit(self, _flags: Any) -> int:
        return self.status

    def cuGetErrorName(self, status: Any, name: Any) -> int:
        words = {100: b"CUDA_ERROR_NO_DEVICE", 2: b"CUDA_ERROR_OUT_OF_MEMORY"}
        if status.value not in words:
            return 1
        name._obj.value = words[status.value]
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, number: Any) -> int:
        device._obj.value = number.value
        return 0

    def cuDeviceGetName(self, name: Any, _size: Any, _device: Any) -> int:
        name.value = b"A double"
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, _device: Any) -> int:
        size._obj.value = 1 << 33
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: Any, _device: Any) -> int:
        value._obj.value = {75: 8, 76: 6}[attribute.value]
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, _device: Any) -> int:
        context._obj.value = 1
        return 0

    def cuCtxSetCurrent(self, _context: Any) -> int:
        return 0

    def cuStreamCreate(self, stream: Any, _flags: Any) -> int:
        stream._obj.value = 7
        return 0

    def cuStreamSynchronize(self, _stream: Any) -> int:
        return 0

    def cuStreamDestroy_v2(self, _stream: Any) -> int:
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        assert size.value > 0
        if self.full:
            return 2
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.blocks[address._obj.value] = block
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        del self.blocks[address.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, _stream: Any) -> int:
        assert size.value <= len(self.blocks[to.value])
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, _stream: Any) -> int:
        assert size.value <= len(self.blocks[source.value])
        ctypes.memmove(to.value, source.value, size.value)
        return 0


class ContextDouble:
    """An execution context that computes `total` and, of a size that follows from it, `positive`."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}
        self.reporting: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return all(size <= 4 for size in shape)

    def infer_shapes(self) -> list[str]:
        return [name for name in ("x", "scale") if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"total": self.shapes["x"], "positive": (-1,)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def _at(self, name: str, shape: tuple[int, ...]) -> Any:
        count = int(np.prod(shape, dtype=int))
        floats: Any = (ctypes.c_float * count).from_address(self.addresses[name])
        return np.frombuffer(floats, np.float32).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        if self.reporting is not None:
            self.reporting.report_layer_time("product", 0.25)
        x, scale = self._at("x", self.shapes["x"]), self._at("scale", ())
        self._at("total", self.shapes["x"])[...] = x * scale
        positive = x[x > 0]
        allocator = self.allocators["positive"]
        self.addresses["positive"] = allocator.reallocate_output(
            "positive", 0, positive.nbytes, 256
        )
        self._at("positive", positive.shape)[...] = positive
        allocator.notify_shape("positive", positive.shape)
        return True

    @property
    def profiler(self) -> Any:
        """Set only, as TensorRT's is used."""
        raise AttributeError("profiler")

    @profiler.setter
    def profiler(self, value: Any) -> None:
        self.reporting = value


HOST, DEVICE = object(), object()
NAMES = ["x", "scale", "total", "positive"]


def engine_double() -> Any:
    """Return an engine of `ContextDouble`; the input `scale` is read from the host's memory."""
    told = {
        "Layers": [
            {
                "Name": "product",
                "LayerType": "PointWise",
                "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
                "Metadata": "[ONNX Layer: product]",
            }
        ]
    }
    return SimpleNamespace(
        create_execution_context=ContextDouble,
        num_io_tensors=len(NAMES),
        get_tensor_name=NAMES.__getitem__,
        get_tensor_location=lambda name: HOST if name == "scale" else DEVICE,
        create_engine_inspector=lambda: SimpleNamespace(
            get_engine_information=lambda _: json.dumps(told)
        ),
    )


class ConfigDouble:
    """A builder configuration that remembers what it was told."""

    def __init__(self) -> None:
        self.flags = {"TF32"}  # on by default, as TensorRT's
        self.limits: dict[str, int] = {}
        self.profiles: list[Any] = []
        self.cache: Any = None

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"damaged" else SimpleNamespace(content=content)

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache.content + b"timing;")


class TensorrtDouble:
    """The module `tensorrt`: it takes any ONNX model whose operators it is not told to lack."""

    __version__ = "11.4.0.106"
    BuilderFlag = SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE")
    MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
    HardwareCompatibilityLevel = SimpleNamespace(NONE="NONE", AMPERE_PLUS="AMPERE_PLUS")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    TensorLocation = SimpleNamespace(HOST=HOST, DEVICE=DEVICE)
    LayerInformationFormat = SimpleNamespace(JSON="JSON")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class IOutputAllocator:
        pass

    class IProfiler:
        pass

    def __init__(self, *, lacks: str = "", plan: bytes | None = b"plan") -> None:
        self.lacks = lacks
        self.plan = plan
        self.config = ConfigDouble()
        self.network_flags = -1
        self.model: Any = None
        self.shapes: dict[str, Any] = {}
        self.host_code: list[bool] = []

    def Builder(self, log: Any) -> Any:
        self.log = log

        def create_network(flags: int) -> Any:
            self.network_flags = flags
            return SimpleNamespace(num_inputs=0, num_outputs=0)

        def build(_network: Any, config: Any) -> bytes | None:
            assert config is self.config
            if self.plan is None:
                log.log(self.ILogger.Severity.WARNING, "slow")
                log.log(self.ILogger.Severity.ERROR, "no kernel\nfor layer product")
            return self.plan

        profile = SimpleNamespace(set_shape=lambda name, *sizes: self.shapes.update({name: sizes}))
        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:
        assert log is self.log
        errors: list[Any] = []

        def parse(path: str) -> bool:
            self.model = onnx.load(Path(path))
            graph = self.model.graph
            for node in graph.node:
                if node.op_type == self.lacks:
                    errors.append(
                        SimpleNamespace(
                            node_operator=lambda: self.lacks,
                            node_name=lambda name=node.name: name,
                            desc=lambda: "no importer",
                        )
                    )
            parser.num_errors = len(errors)
            inputs = [self._tensor(value) for value in graph.input]
            outputs = [self._tensor(value) for value in graph.output]
            network.num_inputs, network.num_outputs = len(inputs), len(outputs)
            network.get_input, network.get_output = inputs.__getitem__, outputs.__getitem__
            return not errors

        parser = SimpleNamespace(parse_from_file=parse, num_errors=0, get_error=errors.__getitem__)
        return parser

    @staticmethod
    def _tensor(value: onnx.ValueInfoProto) -> Any:
        shape = tuple(
            size.dim_value if size.HasField("dim_value") else -1
            for size in value.type.tensor_type.shape.dim
        )
        return SimpleNamespace(name=value.name, shape=shape, is_shape_tensor=False)

    def Runtime(self, _log: Any) -> Any:
        runtime = SimpleNamespace(engine_host_code_allowed=False)

        def deserialize(plan: bytes) -> Any:
            self.host_code.append(runtime.engine_host_code_allowed)
            return engine_double() if plan == self.plan else None

        runtime.deserialize_cuda_engine = deserialize
        return runtime
