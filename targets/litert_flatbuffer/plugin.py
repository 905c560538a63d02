# /// script
# requires-python = ">=3.10,<3.15"
# dependencies = ["ai-edge-litert==2.3.0", "onnx>=1.18", "onnxruntime>=1.22", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "litert"
# summary = "LiteRT (TensorFlow Lite): one .tflite file for phones and microcontrollers"
# devices = ["cpu"]
# newest_opset = 23
# cross = true
# functions = ["probe", "compile", "load"]
#
# [tool.deploykit.settings]
# delegate = "xnnpack (default): fast kernels where they know the operator; none: the built-in ones"
# weights = "float32 (default) or float16: half the size, widened to float32 when it is loaded"
# ///
"""LiteRT: the ONNX graph is written as a TensorFlow Lite model by ourselves, and run by LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit._plugins.targets.litert_flatbuffer import building, graphs, interpreting, mapping
from deploykit._plugins.targets.litert_flatbuffer.emitting import NeedsSizeError

from deploykit.errors import UnavailableError, UnsupportedError
from deploykit.onnx_graph import fixed_inputs
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    Dimension,
    LoadRequest,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    from deploykit._plugins.targets.litert_flatbuffer.building import Built

SETTINGS = {
    "delegate": Setting(default="xnnpack", choices=("xnnpack", "none")),
    "weights": Setting(default="float32", choices=("float32", "float16")),
}
MODEL = "model.tflite"


def probe() -> tuple[Availability, ...]:
    """Return whether LiteRT can run here."""
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        return (Availability(device="cpu", available=False, detail=f"ai-edge-litert: {error}"),)
    del interpreter
    detail = "LiteRT's interpreter with XNNPACK"
    return (Availability(device="cpu", available=True, detail=detail, versions=_versions()),)


def compile(request: CompileRequest) -> CompileResult:
    """Write the model as one .tflite file, for any processor.

    Sizes stay dynamic where the operators can be written so; else the first axis of each input is
    fixed to 1 and a note says so. Raises UnsupportedError naming every operator that has no form,
    or the node that has none as it is.
    """
    settings = in_force(request.settings, SETTINGS, plugin="litert")
    if request.precision not in ("fp32", "int8"):
        raise UnsupportedError(
            f"target litert has no precision `{request.precision}`: its interpreter computes in "
            "float32 and int8",
            hint="it has fp32 and int8; set weights=float16 for a file of half the size",
        )
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    temporary = Path(request.payload) / f"{MODEL}.tmp"
    model, inputs, notes = _built(request, inputs, settings, temporary)
    temporary.replace(temporary.with_suffix(""))
    if request.precision == "int8":
        notes.append(
            f"{model.integer_kernels} of {len(model.operators)} operators compute in int8; "
            "their rounding may differ from ONNX's by a step"
        )
    if settings["weights"] == "float16":
        notes.append("weights are stored as float16 and lose digits; the arithmetic is float32")
    return CompileResult(
        signature=Signature(
            inputs=inputs, outputs=tuple(_given(model, s) for s in request.signature.outputs)
        ),
        settings=settings,
        versions=_versions(),
        notes=tuple(notes),
        portable=True,
    )


def load(request: LoadRequest) -> interpreting.LitertSession:
    """Return the model of the payload in LiteRT's interpreter.

    Raises UnavailableError where this LiteRT does not know one of its operators.
    """
    settings = in_force(request.settings, SETTINGS, plugin="litert")
    phase("loading")
    path = Path(request.payload) / MODEL
    try:
        return interpreting.LitertSession(
            path, request.signature, threads=request.threads, delegate=settings["delegate"]
        )
    except (ValueError, RuntimeError) as error:
        raise UnavailableError(
            f"LiteRT {_versions()['ai-edge-litert']} cannot load `{path.name}`: "
            f"{interpreting.reason(error)}"
        ) from error


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"ai-edge-litert": version("ai-edge-litert")}


def _built(
    request: CompileRequest, inputs: tuple[TensorSpec, ...], settings: dict[str, str], file: Path
) -> tuple[Built, tuple[TensorSpec, ...], list[str]]:
    """Write the model to `file`; return it, the inputs it takes, and notes."""
    dynamic = [
        f"{spec.name}:{axis}"
        for spec in inputs
        for axis, size in enumerate(spec.shape or ())
        if not isinstance(size, int)
    ]
    try:
        return _written(request, inputs, settings, file), inputs, []
    except UnsupportedError as error:
        fixed = _with_batch_of_one(inputs)
        if not dynamic or (fixed is None and not isinstance(error, NeedsSizeError)):
            raise
        if fixed is None:
            raise UnsupportedError(
                f"target litert cannot keep {', '.join(dynamic)} dynamic: {error.message}",
                hint="give their sizes with --shape",
                operators=error.operators,
            ) from error
        reason = error.message
    model = _written(request, fixed, settings, file)
    note = f"LiteRT cannot keep {', '.join(dynamic)} dynamic: fixed to 1 ({reason})"
    return model, fixed, [note]


def _written(
    request: CompileRequest, inputs: tuple[TensorSpec, ...], settings: dict[str, str], file: Path
) -> Built:
    """Write the model to `file`, and run it once."""
    model = _made(request, inputs, settings)
    phase("writing the file")
    model.write(file)
    _try_run(model, file, inputs, settings)
    return model


def _made(
    request: CompileRequest, inputs: tuple[TensorSpec, ...], settings: dict[str, str]
) -> Built:
    phase("folding the graph")
    model = graphs.folded(request.model, inputs, mapping.MAP)
    phase("writing the operators")
    made = building.built(model, integers=request.precision == "int8")
    if request.precision == "int8" and not made.integer_kernels:
        raise UnsupportedError(
            "target litert finds nothing to compute in int8: the model has no convolution or product "
            "between DequantizeLinear and QuantizeLinear",
            hint="quantise it first, to the QDQ form with 8 bits, or use --precision fp32",
        )
    return building.halved(made) if settings["weights"] == "float16" else made


def _with_batch_of_one(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...] | None:
    """Return `inputs` with every first axis fixed to 1, or None where others are dynamic too."""
    if any(not isinstance(size, int) for spec in inputs for size in (spec.shape or ())[1:]):
        return None
    if any(spec.shape is None for spec in inputs):
        return None
    return tuple(
        TensorSpec(
            name=spec.name,
            dtype=spec.dtype,
            shape=tuple(size if isinstance(size, int) else 1 for size in spec.shape or ()),
        )
        for spec in inputs
    )


def _try_run(
    model: Built, file: Path, inputs: tuple[TensorSpec, ...], settings: dict[str, str]
) -> None:
    """Run once on zeros: LiteRT says only then what its kernels cannot take."""
    phase("trying the model")
    try:
        found = interpreting.try_run(file, inputs, delegate=settings["delegate"])
    except (RuntimeError, ValueError) as error:
        at = interpreting.failed_operator(error)
        operator = model.operators[at] if at is not None and at < len(model.operators) else None
        where = f"{operator.kind} (node `{operator.node}`)" if operator else "the model"
        raise UnsupportedError(
            f"target litert: LiteRT cannot run {where}: {interpreting.reason(error)}",
            hint="fixed input sizes (--shape) may help",
            operators=(operator.kind,) if operator else (),
        ) from error
    for name, tensor in model.outputs.items():
        sizes = found[tensor.name]
        if len(sizes) != tensor.rank or any(
            isinstance(size, int) and size != real
            for size, real in zip(tensor.shape, sizes, strict=True)
        ):
            raise UnsupportedError(
                f"target litert: LiteRT gives the output `{name}` the sizes {list(sizes)}, "
                f"and {list(tensor.shape)} were expected"
            )


def _given(model: Built, asked: TensorSpec) -> TensorSpec:
    """Return an output as the model gives it; open sizes keep the names that ONNX has for them."""
    tensor = model.outputs[asked.name]
    names: tuple[Dimension, ...] = asked.shape or (None,) * tensor.rank
    if len(names) != tensor.rank:
        names = (None,) * tensor.rank
    shape = tuple(
        size if isinstance(size, int) else (None if isinstance(name, int) else name)
        for size, name in zip(tensor.shape, names, strict=True)
    )
    return TensorSpec(name=asked.name, dtype=asked.dtype, shape=shape)
