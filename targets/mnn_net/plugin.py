# /// script
# requires-python = ">=3.10,<3.14"
# dependencies = ["MNN==3.6.1", "onnx==1.23.2", "onnxruntime==1.32.0", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "mnn"
# summary = "MNN for phones: one portable file, its converter kept from the network"
# devices = ["cpu"]
# newest_opset = 21
# functions = ["probe", "compile", "load", "operators"]
# cross = true
#
# [tool.deploykit.settings]
# winograd = "auto (default), true or false: faster convolutions that round more; auto: while exact"
# ///
"""MNN on the CPU: converted by its C extension alone, tried against ONNX Runtime."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from deploykit._plugins.targets.mnn_net import conversion, profiling, session

from deploykit.errors import UnsupportedError
from deploykit.onnx_graph import check_dtypes, fixed_inputs
from deploykit.onnx_trial import (
    changes_nothing,
    first_that_agrees,
    outputs_seen,
    reference_runs,
    with_fewest_fixed,
)
from deploykit.parity import default_tolerance
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    Availability,
    CompileRequest,
    CompileResult,
    LoadRequest,
    OperatorRun,
    OperatorsRequest,
    Signature,
    TensorSpec,
)

SETTINGS = {"winograd": Setting(default="auto", choices=("auto", "true", "false"))}


def probe() -> tuple[Availability, ...]:
    """Return whether MNN can be used here."""
    try:
        session.runtime()
    except ImportError as error:
        return (Availability(device="cpu", available=False, detail=f"MNN: {error}"),)
    versions = _versions()
    return (
        Availability(
            device="cpu", available=True, detail=f"MNN {versions['MNN']}", versions=versions
        ),
    )


def compile(request: CompileRequest) -> CompileResult:
    """Convert the model and keep what computes the same as ONNX Runtime.

    Dynamic axes stay dynamic where MNN is right at several sizes; else first axes are fixed to 1,
    and a note says so. Raises UnsupportedError for operators that MNN lacks, where its converter
    gives up or makes something else of the model, and for a precision that takes no effect.
    """
    settings = in_force(request.settings, SETTINGS, plugin="mnn")
    if request.precision not in session.PRECISIONS:
        raise UnsupportedError(
            f"target mnn has no precision `{request.precision}`",
            hint=f"it has {', '.join(session.PRECISIONS)}",
        )
    inputs = fixed_inputs(request.signature.inputs, request.shapes)
    check_dtypes((*inputs, *request.signature.outputs), session.FED, target="mnn")
    phase("reading the model")
    model = conversion.read(request.model)

    def build(inputs: tuple[TensorSpec, ...]) -> tuple[Signature, bool]:
        with tempfile.TemporaryDirectory(prefix="deploykit-mnn-") as folder:
            return _build(request, inputs, model, Path(folder), settings["winograd"])

    (signature, winograd), fixed = with_fewest_fixed("mnn", inputs, build)
    notes = list(fixed)
    if settings["winograd"] == "auto" and not winograd:
        notes.append("convolutions run without the Winograd algorithm, which rounds too much here")
    settings["winograd"] = "true" if winograd else "false"
    if any(spec.dtype in ("int64", "uint32", "uint64") for spec in inputs):
        notes.append("integers are kept in 32 bits: an input beyond 2147483647 is refused")
    if any(spec.dtype == "float64" for spec in (*signature.inputs, *signature.outputs)):
        notes.append("float64 is computed in float32")
    if request.precision != "fp32" and request.hardware is not None:
        where = request.hardware.name
        notes.append(f"whether {request.precision} takes effect on {where} shows there")
    return CompileResult(
        signature=signature,
        settings=settings,
        versions=_versions(),
        notes=tuple(notes),
        portable=True,
    )


def load(request: LoadRequest) -> session.MnnSession:
    """Return the model of the payload, ready to run.

    Raises UnavailableError where MNN cannot read it.
    """
    settings = in_force(request.settings, SETTINGS, plugin="mnn")
    phase("loading")
    return session.MnnSession(request, winograd=settings["winograd"] != "false")


def operators(request: OperatorsRequest) -> tuple[OperatorRun, ...]:
    """Return MNN's own operations with the median of their times over a few runs.

    Raises UnsupportedError for a model with control flow, which only another interface of MNN runs.
    """
    phase("profiling")
    return profiling.operators(request)


def _build(
    request: CompileRequest,
    inputs: tuple[TensorSpec, ...],
    model: conversion.Model,
    folder: Path,
    winograd: str,
) -> tuple[Signature, bool]:
    """Convert for `inputs`, try the result, and move it into the payload.

    Returns the signature, and whether the convolutions are exact enough with Winograd's algorithm.
    """
    phase("computing what to expect")
    path = model.write(folder / "model.onnx", inputs)
    runs = reference_runs(request.model, inputs, request.signature.outputs)
    signature = Signature(
        inputs=inputs, outputs=outputs_seen(request.signature.outputs, inputs, runs)
    )
    phase("converting")
    conversion.convert(path, folder / session.MODEL, model, half=request.precision == "fp16")
    (folder / profiling.NODES).write_text(model.node_names(), encoding="utf-8")
    phase("trying it")
    load = LoadRequest(
        payload=str(folder),
        signature=signature,
        device=request.device,
        precision=request.precision,
        threads=request.threads,
    )

    def loaded(winograd: bool) -> session.MnnSession:
        return session.MnnSession(load, winograd=winograd)

    choices = {"auto": (True, False), "true": (True,), "false": (False,)}[winograd]
    chosen, reason = first_that_agrees(choices, loaded, runs, default_tolerance(request.precision))
    if reason:
        raise UnsupportedError(
            f"target mnn cannot take this model: what MNN made of it computes something else: {reason}"
        )
    if request.precision != "fp32" and request.hardware is None and runs:
        single = session.MnnSession(replace(load, precision="fp32"), winograd=chosen)
        if changes_nothing(loaded(chosen), single, runs[0]):
            raise UnsupportedError(
                f"MNN computes {request.precision} as float32 on this processor: "
                "it would take no effect",
                hint="use --precision fp32",
            )
    for name in (session.MODEL, profiling.NODES):
        shutil.move(folder / name, Path(request.payload) / name)
    return signature, chosen


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("MNN", "onnxruntime")}
