"""A network of ncnn at work: ONNX's names, ranks and dtypes outside, ncnn's matrices inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit._plugins.targets.ncnn_net.conversion import BIN, NO_BATCH, PARAM, Tensors

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.protocol import Dimension, LoadRequest, TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

TENSORS = "tensors.json"

# ONNX's dtype -> what ncnn is fed: it has no other element types for inputs
_FED = {
    **dict.fromkeys(("float16", "float32"), "float32"),
    **dict.fromkeys(
        ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), "int32"
    ),
}
_GIVEN = ("float16", "float32")
_MOST_AXES = 4  # beside the batch


def runtime() -> Any:
    """Return the package ncnn, imported so that its threads soon stop waiting by spinning.

    Of two threads on two busy cores one spins through the time slices of its neighbours, layer after
    layer: 650 ms for a network that takes 3 ms on idle cores, and 5 to 40 ms with a short wait.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "100")
    import ncnn

    return ncnn


def check_dtypes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise UnsupportedError for inputs and outputs that ncnn's matrices cannot hold."""
    for spec in inputs:
        if spec.dtype not in _FED:
            raise UnsupportedError(f"target ncnn takes no input of {spec.dtype}: `{spec}`")
        if spec.shape is not None and not 1 <= len(spec.shape) <= _MOST_AXES + 1:
            raise UnsupportedError(
                f"target ncnn takes inputs of one to four axes beside a batch, not `{spec}`"
            )
    for spec in outputs:
        if spec.dtype not in _GIVEN:
            raise UnsupportedError(
                f"target ncnn gives floats only, not {spec.dtype}: output `{spec}`",
                hint="leave that output out of the model, or compute it from a float output",
            )


def write_tensors_file(folder: Path, tensors: Tensors) -> None:
    """Write what the network's files do not say: which axis of each tensor is the batch."""
    text = json.dumps({"inputs": tensors.inputs, "outputs": tensors.outputs}, indent=1)
    (folder / TENSORS).write_text(text + "\n", encoding="utf-8")


def _read_tensors_file(folder: Path) -> Tensors:
    try:
        found = json.loads((folder / TENSORS).read_text(encoding="utf-8"))
        return Tensors(
            inputs=tuple(int(axis) for axis in found["inputs"]),
            outputs=tuple(int(axis) for axis in found["outputs"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"the payload's `{TENSORS}` cannot be read: {error}") from error


class NcnnSession:
    """A loaded network."""

    def __init__(self, request: LoadRequest, *, winograd: bool) -> None:
        ncnn = runtime()
        self.inputs = request.signature.inputs
        self.outputs = request.signature.outputs
        payload = Path(request.payload)
        self._tensors = _read_tensors_file(payload)
        self._net = ncnn.Net()
        option = self._net.opt
        option.num_threads = request.threads or ncnn.get_physical_big_cpu_count()
        option.use_vulkan_compute = request.device == "vulkan"
        for kind in ("packed", "storage"):
            setattr(option, f"use_fp16_{kind}", request.precision == "fp16")
            setattr(option, f"use_bf16_{kind}", request.precision == "bf16")
        option.use_fp16_arithmetic = request.precision == "fp16"
        option.use_winograd_convolution = winograd
        for name, read in ((PARAM, self._net.load_param), (BIN, self._net.load_model)):
            if not (payload / name).is_file() or read(str(payload / name)) != 0:
                raise UnavailableError(
                    f"ncnn {ncnn.__version__} cannot read `{name}` of the payload",
                    hint="it is damaged or of a newer ncnn: compile it again",
                )

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        return self._named(self._extract(self._matrices(feed)), _axis_sizes(self.inputs, feed))

    def bind(self, feed: Mapping[str, Array]) -> BoundNetwork:
        """Fix the inputs; calling the result runs one inference on them."""
        sizes = _axis_sizes(self.inputs, feed)
        return BoundNetwork(self, self._matrices(feed), sizes)

    def without_vulkan(self) -> list[str]:
        """Return the layers, by type, that run on the processor even where Vulkan is asked for."""
        layers = self._net.layers
        found = layers() if callable(layers) else layers
        return sorted({layer.type for layer in found if not layer.support_vulkan})

    def close(self) -> None:
        """Give the network's memory back."""
        self._net.clear()

    def _matrices(self, feed: Mapping[str, Array]) -> list[Any]:
        import ncnn
        import numpy as np

        made = []
        for spec, axis in zip(self.inputs, self._tensors.inputs, strict=True):
            array = feed[spec.name]
            fed = np.dtype(_FED[spec.dtype])
            if array.dtype.kind in "iu" and array.size:
                limits = np.iinfo(fed)
                if array.min() < limits.min or array.max() > limits.max:
                    raise UnsupportedError(f"input `{spec.name}` holds numbers beyond 32 bits")
            if not array.size or (axis == NO_BATCH and not 1 <= array.ndim <= _MOST_AXES):
                raise UnsupportedError(
                    f"ncnn takes no input of shape {list(array.shape)} for `{spec.name}`"
                )
            # a copy: the matrix would only point into the caller's array
            whole = np.array(array, dtype=fed, order="C", copy=True)
            made.append(ncnn.Mat(whole, axis).clone())
        return made

    def _extract(self, matrices: list[Any]) -> list[Array]:
        extractor = self._net.create_extractor()
        for number, matrix in enumerate(matrices):
            if extractor.input(f"in{number}", matrix) != 0:
                raise UnsupportedError(f"ncnn has no input for `{self.inputs[number].name}`")
        found = []
        for number, axis in enumerate(self._tensors.outputs):
            failed, matrix = extractor.extract(f"out{number}")
            if failed or matrix.empty():
                raise UnsupportedError(
                    f"ncnn fails to compute output `{self.outputs[number].name}` at these sizes"
                )
            if matrix.elemsize != 4:
                raise UnsupportedError(
                    f"ncnn gives no float32 for output `{self.outputs[number].name}`"
                )
            found.append(matrix.numpy(batch_index=axis).copy())
        return found

    def _named(self, found: list[Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        return {
            spec.name: _shaped(spec, array, sizes).astype(spec.dtype, copy=False)
            for spec, array in zip(self.outputs, found, strict=True)
        }


class BoundNetwork:
    """A network with its inputs in ncnn's memory."""

    def __init__(self, session: NcnnSession, matrices: list[Any], sizes: Mapping[str, int]) -> None:
        self._session = session
        self._matrices = matrices
        self._sizes = sizes
        self._found: list[Array] = []

    def __call__(self) -> None:
        """Run once."""
        self._found = self._session._extract(self._matrices)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return self._session._named([array.copy() for array in self._found], self._sizes)


def _axis_sizes(inputs: Sequence[TensorSpec], feed: Mapping[str, Array]) -> dict[str, int]:
    """Return the size of each named axis."""
    return {
        name: size
        for spec in inputs
        for name, size in zip(spec.shape or (), feed[spec.name].shape, strict=False)
        if isinstance(name, str)
    }


def _shaped(spec: TensorSpec, array: Array, sizes: Mapping[str, int]) -> Array:
    """Return `array` in the shape of the model's output; only axes of size 1 come and go in ncnn.

    Raises UnsupportedError where it is another shape.
    """
    if spec.shape is None:
        return array
    wanted: tuple[Dimension, ...] = tuple(
        sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape
    )
    if len(array.shape) == len(wanted) and all(
        not isinstance(size, int) or size == found
        for size, found in zip(wanted, array.shape, strict=True)
    ):
        return array
    known = tuple(size for size in wanted if isinstance(size, int))
    if len(known) == len(wanted) and [n for n in known if n != 1] == [
        n for n in array.shape if n != 1
    ]:
        return array.reshape(known)
    raise UnsupportedError(f"ncnn gives output `{spec}` the shape {list(array.shape)}")
