# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#     "paddlepaddle==3.3.1",
#     "paddle2onnx==2.1.0",
#     "packaging==26.3",  # imported by paddle2onnx, which does not declare it
#     "setuptools==84.2.1",  # imported by paddle, which declares it for newer Pythons only
# ]
#
# [tool.deploykit]
# name = "paddle"
# summary = "Paddle 2 programs, Paddle 3 PIR programs, Paddle 1 fluid models, layers by reference"
# formats = ["paddle/program", "paddle/pir", "paddle/fluid", "paddle/layer"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# sizes = "accepted (default): image sizes that the file declares but Paddle does not insist on become dynamic; declared: they stay as the file says"
# ///
"""PaddlePaddle inference models to ONNX: paddle2onnx between repairs of the program and the graph.

Whatever the format, the program is loaded into Paddle's new representation (PIR), given the input
sizes the user wants, passed through Paddle's symbolic shape inference, mended (`repairs.py`),
exported in a process of its own because the exporter aborts on what it does not know
(`exporting.py`), and finished (`graph.py`). Programs of Paddle 1 with ragged inputs are mapped by
ourselves (`ragged.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from deploykit._plugins.converters.paddlepaddle import (
    exported_forms,
    exporting,
    files,
    graph,
    layers,
    predictor,
    program,
    ragged,
    repairs,
    sizes,
)

from deploykit import progress
from deploykit.errors import UnsupportedError, UsageError
from deploykit.plugin_settings import Setting, in_force
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)

OPSET = 17
"""The newest that every runtime of the last three years takes, and enough for every mapping here."""

OPSETS = range(11, 22)
"""Those that paddle2onnx 2.1 writes; asked for 22 it aborts."""

SETTINGS = {"sizes": Setting(default="accepted", choices=("accepted", "declared"))}


def inspect(source: Source) -> Signature:
    """Return inputs and outputs as the file declares them, with the user's `--input` applied.

    Raises SourceError where the model cannot be read, UnsupportedError where sequences are nested.
    """
    _check_settings(source)
    with _opened(source) as model:
        rows = program.read_ragged(model)
        signature: Signature
        if rows is not None:
            signature = ragged.signature(rows, source)
            return signature
        loaded = program.load(model)
        signature = program.infer(loaded, sizes.wanted(loaded, source.inputs)).signature
        return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write the model as ONNX with the source's names, order, dtypes and dynamic axes.

    Raises SourceError where the model cannot be read, UnsupportedError naming the operator that
    cannot be exported, UsageError where inputs, axes or the opset make no sense.
    """
    source = request.source
    settings = _check_settings(source)
    opset = OPSET if request.opset is None else request.opset
    if opset not in OPSETS:
        raise UsageError(
            f"opset {opset} is not available for Paddle models",
            hint=f"paddle2onnx writes opsets {OPSETS.start} to {OPSETS.stop - 1}",
        )
    done: list[str] = []
    with _opened(source) as model:
        rows = program.read_ragged(model)
        if rows is not None:
            result: ConvertResult = ragged.convert(rows, model, request)
            return result
        loaded = program.load(model)
        shapes = declared = sizes.wanted(loaded, source.inputs, request.dynamic)
        if settings["sizes"] == "accepted":
            named = {spec.name for spec in source.inputs} | {axis.input for axis in request.dynamic}
            progress.phase("trying another image size in Paddle")
            shapes = sizes.widen(model, loaded, shapes, keep=named, notes=done)
        try:
            inferred, exported, mended = _export(loaded, shapes, opset)
        except UnsupportedError:
            if shapes == declared:
                raise
            # adaptive pooling, for one, is exported for fixed sizes only
            done = ["the declared image size stays: paddle2onnx cannot export the model for others"]
            inferred, exported, mended = _export(loaded, declared, opset)
        done += mended
        progress.phase("checking the ONNX graph")
        signature, written, repaired = graph.finish(exported, inferred, Path(request.output))
    return ConvertResult(
        signature=signature,
        opset=written,
        repairs=(*done, *repaired),
        versions={name: version(name) for name in ("paddlepaddle", "paddle2onnx", "onnx", "numpy")},
    )


def _export(
    loaded: program.Loaded, shapes: sizes.Shapes, opset: int
) -> tuple[program.Inferred, bytes, list[str]]:
    """Return the program with inputs of `shapes`, its export and the repairs made before."""
    inferred = program.infer(loaded, shapes)
    done = repairs.mend(inferred.document)
    exported_forms.refuse(inferred.document)
    progress.phase("exporting with paddle2onnx")
    return inferred, exporting.export(inferred.document, loaded, opset), done


def reference(request: ReferenceRequest) -> Session:
    """Return the model loaded in Paddle's own inference engine on the CPU."""
    source = request.source
    _check_settings(source)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(_opened(source))
        rows = program.read_ragged(model)
        if rows is not None:
            signature = ragged.signature(rows, source)
            parameters = model.parameters(list(rows.parameters), list(rows.parameters))
            engine = predictor.create(model, parameters, request.threads)
        else:
            loaded = program.load(model)
            signature = program.infer(loaded, sizes.wanted(loaded, source.inputs)).signature
            engine = predictor.create_for(model, loaded, request.threads)
        # the engine may still read the intermediate files: they live as long as the session
        kept = stack.pop_all()
    session: Session = predictor.PaddleSession(engine, signature, kept.close)
    return session


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[files.ModelFiles]:
    """Open the files of the model; those of a layer are written first."""
    if source.format != "paddle/layer":
        with files.open_model(source.location, source.format) as model:
            yield model
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-paddle-") as folder:
        path = layers.save(source, Path(folder))
        with files.open_model(str(path), "paddle/pir") as model:
            yield model


def _check_settings(source: Source) -> dict[str, str]:
    """Return every setting, the user's or its default; UsageError for one that does not exist."""
    return in_force(source.options, SETTINGS, plugin="the Paddle converter")
