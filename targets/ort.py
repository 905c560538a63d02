# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["onnxruntime>=1.22", "onnx>=1.18", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "onnxruntime"
# summary = "ONNX Runtime: the model saved in its optimised form"
# devices = ["cpu"]
# newest_opset = 23
# functions = ["probe", "compile", "load"]
#
# [tool.deploykit.settings]
# optimization = "all (default; its layout may suit one kind of processor), extended, basic or none"
# execution = "sequential (default) or parallel: run independent branches at the same time"
# inter_threads = "threads over branches when parallel; 0 (default): the runtime's choice"
# spinning = "true (default): threads wait for work busily, the lowest latency; false: they sleep"
# ///
"""ONNX Runtime on the CPU: the graph is optimised once, saved, and loaded as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, UnavailableError, UnsupportedError
from deploykit.onnx_graph import every_node, fixed_inputs, set_inputs
from deploykit.plugin_settings import Setting, in_force
from deploykit.processor import architecture, instruction_sets
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime

    Array = np.ndarray[Any, Any]

SETTINGS = {
    "optimization": Setting(default="all", choices=("all", "extended", "basic", "none")),
    "execution": Setting(default="sequential", choices=("sequential", "parallel")),
    "inter_threads": Setting(default="0"),
    "spinning": Setting(default="true", choices=("true", "false")),
}
MODEL = "model.onnx"
WEIGHTS = "weights.bin"
LAYOUT = "layout.json"

# A protobuf message ends at 2 GiB; with this much, the weights go to a file of their own.
LARGE_BYTES = 1 << 30

# ONNX Runtime's names of element types, as session.get_inputs() gives them.
DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "string": "string",
    "bool": "bool",
    **{f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}

# The operators that take nearly all of a model's time decide whether a precision takes effect.
ARITHMETIC = {"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}


def probe() -> tuple[Availability, ...]:
    """Return whether ONNX Runtime's CPU device can be used here."""
    try:
        import onnxruntime
    except ImportError as error:
        return (Availability(device="cpu", available=False, detail=f"onnxruntime: {error}"),)
    detail = f"{onnxruntime.get_device()} build of ONNX Runtime on {architecture()}"
    return (Availability(device="cpu", available=True, detail=detail, versions=_versions()),)


def compile(request: CompileRequest) -> CompileResult:
    """Optimise the model, fix the sizes asked for, and save it to the payload.

    Raises UsageError for an unknown setting or shape, UnsupportedError for an operator that has
    no kernel or a precision that would not take effect, SourceError for a file that is no model.
    """
    settings = in_force(request.settings, SETTINGS, plugin="onnxruntime")
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    phase("reading the model")
    model, apart = _read(request.model)
    edited = set_inputs(model, inputs)
    notes: list[str] = []
    if request.precision != "fp32":
        phase(f"converting to {request.precision}")
        model, note = _in_precision(model, request.model, request.precision)
        notes.append(note)
        edited = True
    payload = Path(request.payload)
    options = _options(request.threads, settings)
    options.graph_optimization_level = _level(settings["optimization"])
    options.optimized_model_filepath = str(payload / MODEL)
    options.log_severity_level = 3  # it warns of the processor-bound layout, which we record
    if apart:  # else the saved graph would still name the model's own file
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", WEIGHTS
        )
    phase("optimising")
    if edited:
        # From memory, because the weights of a model may lie beside it where we must not write.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path",
            str(Path(request.model).resolve().parent),
        )
        session = _session(model.SerializeToString(), options, request.model)
    else:
        session = _session(request.model, options, request.model)
    signature = _signature(session, request.signature)
    del session
    notes += _note_layout(payload)
    return CompileResult(
        signature=signature, settings=settings, versions=_versions(), notes=tuple(notes)
    )


def load(request: LoadRequest) -> OrtSession:
    """Return the model of the payload, ready to run.

    Raises UnavailableError where the saved layout is for another kind of processor.
    """
    settings = in_force(request.settings, SETTINGS, plugin="onnxruntime")
    payload = Path(request.payload)
    _check_layout(payload)
    options = _options(request.threads, settings)
    # the saved graph is already optimised: doing it again costs time and changes nothing
    options.graph_optimization_level = _level("none")
    phase("loading")
    return OrtSession(
        _session(str(payload / MODEL), options, str(payload / MODEL)), request.signature
    )


class OrtSession:
    """A model in ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature) -> None:
        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._names = [spec.name for spec in signature.outputs]
        self._session: onnxruntime.InferenceSession | None = session

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by name."""
        outputs = self._open().run(self._names, feed)
        return dict(zip(self._names, outputs, strict=True))

    def bind(self, feed: Mapping[str, Array]) -> BoundBuffers | BoundFeed:
        """Fix the inputs; calling the result runs one inference on them."""
        session = self._open()
        if any(spec.dtype == "string" for spec in (*self.inputs, *self.outputs)):
            return BoundFeed(session, dict(feed), self._names)
        return BoundBuffers(session, feed, self._names)

    def close(self) -> None:
        """Give the model's memory back."""
        self._session = None

    def _open(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise ValueError("the session is closed")
        return self._session


class BoundBuffers:
    """Inputs and outputs at fixed places: ONNX Runtime keeps the outputs' buffers between runs."""

    def __init__(
        self, session: onnxruntime.InferenceSession, feed: Mapping[str, Array], names: list[str]
    ) -> None:
        import numpy as np

        self._binding = session.io_binding()
        # the binding keeps addresses, not arrays: without this they would be freed under it
        self._feed = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        for name, array in self._feed.items():
            # ascontiguousarray makes a scalar one-dimensional
            self._binding.bind_cpu_input(name, array.reshape(feed[name].shape))
        for name in names:
            self._binding.bind_output(name)
        self._names = names
        self._run = session.run_with_iobinding

    def __call__(self) -> None:
        """Run once."""
        self._run(self._binding)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu(), strict=True))


class BoundFeed:
    """The same for strings, which have no fixed buffers: every run copies them."""

    def __init__(
        self, session: onnxruntime.InferenceSession, feed: dict[str, Array], names: list[str]
    ) -> None:
        self._session = session
        self._feed = feed
        self._names = names
        self._outputs: list[Array] = []

    def __call__(self) -> None:
        """Run once."""
        self._outputs = self._session.run(self._names, self._feed)

    def outputs(self) -> dict[str, Array]:
        """Return copies of the outputs of the last run."""
        return {name: array.copy() for name, array in zip(self._names, self._outputs, strict=True)}


def _versions() -> dict[str, str]:
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


def _read(path: str) -> tuple[onnx.ModelProto, bool]:
    """Return the model without what lies beside it, and whether its weights need their own file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        size = Path(path).stat().st_size
    except (OSError, DecodeError) as error:
        raise SourceError(f"cannot read the ONNX model `{path}`: {error}") from error
    beside = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return model, size > LARGE_BYTES or any(beside)


def _level(name: str) -> onnxruntime.GraphOptimizationLevel:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    return {
        "all": levels.ORT_ENABLE_ALL,
        "extended": levels.ORT_ENABLE_EXTENDED,
        "basic": levels.ORT_ENABLE_BASIC,
        "none": levels.ORT_DISABLE_ALL,
    }[name]


def _options(threads: int | None, settings: Mapping[str, str]) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = int(settings["inter_threads"])
    parallel = settings["execution"] == "parallel"
    modes = onnxruntime.ExecutionMode
    options.execution_mode = modes.ORT_PARALLEL if parallel else modes.ORT_SEQUENTIAL
    spinning = "1" if settings["spinning"] == "true" else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    return options


def _session(
    model: str | bytes, options: onnxruntime.SessionOptions, path: str
) -> onnxruntime.InferenceSession:
    """Open `model`; what ONNX Runtime says of an operator or a file becomes an error of ours."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as raised

    onnxruntime.disable_telemetry_events()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (raised.NotImplemented, raised.InvalidGraph, raised.Fail) as error:
        text = str(error).splitlines()[0]
        missing = re.search(
            r"implementation for (\w+)|No Op registered for (\w+)|(\S+) is not a registered function",
            text,
        )
        if missing is None:
            raise SourceError(f"ONNX Runtime cannot take `{path}`: {text}") from error
        operator = next(name for name in missing.groups() if name).split(":")[-1]
        raise UnsupportedError(
            f"target onnxruntime has no kernel for operator {operator}: {text}",
            operators=(operator,),
        ) from error
    except (raised.InvalidProtobuf, raised.InvalidArgument, raised.NoSuchFile) as error:
        raise SourceError(f"ONNX Runtime cannot read `{path}`: {error}") from error


def _signature(session: onnxruntime.InferenceSession, model: Signature) -> Signature:
    """Return the model's signature with the sizes that ONNX Runtime worked out."""
    found = {value.name: value for value in (*session.get_inputs(), *session.get_outputs())}

    def resolved(spec: TensorSpec) -> TensorSpec:
        value = found[spec.name]
        # ONNX Runtime says [] both for a scalar and for an unknown rank
        shape = tuple(value.shape) if value.shape else spec.shape
        if shape is not None:
            shape = tuple(None if isinstance(d, int) and d < 0 else d for d in shape)
        dtype = DTYPES.get(value.type.removeprefix("tensor(").removesuffix(")"))
        if dtype is None:
            raise UnsupportedError(
                f"`{spec.name}` is a {value.type}: only tensors can go in and out of a bundle"
            )
        return TensorSpec(name=spec.name, dtype=dtype, shape=shape)

    return Signature(
        inputs=tuple(resolved(spec) for spec in model.inputs),
        outputs=tuple(resolved(spec) for spec in model.outputs),
    )


def _in_precision(model: onnx.ModelProto, path: str, precision: str) -> tuple[onnx.ModelProto, str]:
    """Return the model in `precision` with float32 inputs and outputs, and a note about it.

    ONNX Runtime wraps an operator that lacks a kernel in casts and computes it in float32: slower
    than fp32, and less exact. So its own list of kernels is asked first.
    """
    dtype = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}.get(precision)
    if dtype is None:
        raise UnsupportedError(
            f"target onnxruntime has no precision `{precision}`", hint="it has fp32 and fp16"
        )
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = {
        kernel.op_name
        for kernel in state.get_all_opkernel_def()
        if kernel.provider == "CPUExecutionProvider"
        and any(dtype in types for types in kernel.type_constraints.values())
    }
    operators = {node.op_type for node in every_node(model.graph)}
    deciding = operators & ARITHMETIC or operators - {"Constant"}
    missing = sorted(deciding - kernels)
    if len(missing) == len(deciding) or precision == "bf16":
        raise UnsupportedError(
            f"target onnxruntime has no {precision} kernels on this processor "
            f"({architecture()}) for {', '.join(missing or sorted(deciding))}: "
            "the model would run in float32 between casts",
            hint="use --precision fp32",
            operators=tuple(missing),
        )
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.load_external_data_for_model(model, str(Path(path).resolve().parent))
    converted = convert_float_to_float16(model, keep_io_types=True)
    partly = f"; {', '.join(missing)} in float32 for want of kernels" if missing else ""
    return converted, f"weights and arithmetic in float16, inputs and outputs as they were{partly}"


def _layout_here() -> dict[str, str | bool]:
    return {"architecture": architecture(), "avx512f": "avx512f" in instruction_sets()}


def _note_layout(payload: Path) -> list[str]:
    """Write down which processors the saved graph fits, where it does not fit all of them.

    The NCHWc layout blocks channels by 16 with AVX-512 and by 8 without; the block is baked into
    the saved weights, and a graph of the other kind would give wrong numbers without an error.
    """
    import onnx

    saved = onnx.load(str(payload / MODEL), load_external_data=False)
    if not any(node.domain == "com.microsoft.nchwc" for node in every_node(saved.graph)):
        return []
    layout = _layout_here()
    temporary = payload / f"{LAYOUT}.tmp"
    temporary.write_text(json.dumps(layout, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(payload / LAYOUT)
    wide = "with" if layout["avx512f"] else "without"
    kind = f"{architecture()} {wide} AVX-512" if architecture() == "x86_64" else architecture()
    portable = "compile with optimization=extended for a bundle that runs on any processor"
    return [f"the saved layout suits {kind} only; {portable}"]


def _check_layout(payload: Path) -> None:
    """Raise UnavailableError where the saved graph is laid out for another kind of processor."""
    path = payload / LAYOUT
    if not path.is_file():
        return
    built = json.loads(path.read_text(encoding="utf-8"))
    if built != _layout_here():
        raise UnavailableError(
            f"the model is laid out for {built}, this machine is {_layout_here()}",
            hint="compile it here, or with optimization=extended for any processor",
        )
