# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx>=1.18", "onnx_ir>=0.1.9", "onnxruntime>=1.22", "numpy>=1.26"]
#
# [tool.deploykit]
# name = "onnx"
# summary = "ONNX models: checked, mended, brought to a current opset"
# formats = ["onnx"]
# functions = ["inspect", "convert", "reference"]
#
# [tool.deploykit.settings]
# tidy = "no (default) or yes: fold constants, merge transposes, remove dead and double nodes"
# ///
"""ONNX to ONNX: the file is checked, mended, given the sizes and the opset asked for, and rewritten.

The graph's operators stay as they are: making them faster is the business of targets. Its
`reference` is ONNX Runtime with every graph optimisation off, the oracle of `compile`.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from deploykit._plugins.converters.onnx_model import (
    mending,
    reading,
    runtime,
    signatures,
    tidying,
    writing,
)

from deploykit import onnx_opset
from deploykit.plugin_settings import Setting, in_force
from deploykit.progress import phase
from deploykit.protocol import (
    ConvertRequest,
    ConvertResult,
    ReferenceRequest,
    Session,
    Signature,
    Source,
)


def inspect(source: Source) -> Signature:
    """Return inputs and outputs as the file declares them, with the user's `--input` applied.

    Raises SourceError where the file cannot be read, UnsupportedError where it is older than ONNX
    1.0 or an input is no tensor, UsageError where `--input` does not fit.
    """
    _check_options(source)
    model = reading.read(source.location)
    mending.mend(model.proto)
    signatures.apply(model.proto, source.inputs, ())
    signature: Signature = signatures.read(model.proto)
    return signature


def convert(request: ConvertRequest) -> ConvertResult:
    """Write a mended copy with the weights inside, or beside it where they exceed 2 GB.

    Without an opset asked for, a model older than opset 13 is brought to 17 where ONNX's converter
    can, and any other keeps its own. Raises SourceError where the file or its external data cannot
    be read or are invalid, UnsupportedError where the opset cannot be reached, UsageError where
    inputs, axes or the opset make no sense.
    """
    source = request.source
    tidies = _check_options(source)
    phase("reading the ONNX model")
    model = reading.read(source.location)
    phase("mending the graph")
    repairs = mending.mend(model.proto)
    signatures.apply(model.proto, source.inputs, request.dynamic)
    phase("bringing the model to its opset")
    model.proto, upgraded = onnx_opset.upgrade(model.proto, request.opset)
    if tidies and not model.external:
        phase("tidying the graph")
        model.proto, tidied = tidying.tidy(model.proto)
        upgraded += tidied
    phase("checking the ONNX graph")
    signature = writing.write(model, Path(request.output))
    return ConvertResult(
        signature=signature,
        opset=onnx_opset.opset_of(model.proto),
        repairs=(*repairs, *upgraded),
        versions={name: version(name) for name in ("onnx", "onnx_ir", "onnxruntime", "numpy")},
    )


def reference(request: ReferenceRequest) -> Session:
    """Return the model in ONNX Runtime on the CPU with graph optimisation disabled.

    A file that ONNX Runtime refuses as it is, or whose inputs the user overrides, is mended in
    memory first; its opset stays. Raises SourceError where it cannot be read or loaded.
    """
    source = request.source
    _check_options(source)
    model = reading.read(source.location)
    untouched = not source.inputs and signatures.are_tensors(model.proto)
    mending.mend(model.proto)
    signatures.apply(model.proto, source.inputs, ())
    phase("loading into ONNX Runtime")
    session: Session = runtime.open_session(model, threads=request.threads, untouched=untouched)
    return session


def _check_options(source: Source) -> bool:
    """Return whether the graph shall be tidied; raise UsageError for an unknown setting."""
    known = {"tidy": Setting(default="no", choices=("no", "yes"))}
    return in_force(source.options, known, plugin="the ONNX converter")["tidy"] == "yes"
